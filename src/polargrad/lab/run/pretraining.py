"""From what a person asks of a pre-training run to its spec, with everything checked before any work is done."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from polargrad.lab.run.language_model import LanguageModel
from polargrad.lab.train import Constant, Cosine, Schedule, WarmupLinearDecay
from polargrad.optim.routing import roles

SCHEDULES = ("warmup-linear-decay", "cosine", "constant")

__all__ = ["SCHEDULES", "chosen_matrices", "language_model", "make_schedule", "skeleton", "steps_for"]


def language_model(name: str, changed: Mapping[str, Any]) -> LanguageModel:
    """The named model, with other sizes, its text and how it is computed.

    Args:
        name: of `polargrad.lab.lm.ARCHITECTURES`.
        changed: fields of `LanguageModel`; None leaves the architecture's or the usual value.

    Raises:
        ValueError: an unknown name, or values that do not fit together.
    """
    from polargrad.lab.lm import architecture

    given = {key: value for key, value in changed.items() if value is not None}
    if given.get("device") == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        given["device"] = "cpu" if accelerator is None else accelerator.type
    return LanguageModel(**{**architecture(name).sizes(), **given})


def skeleton(model: LanguageModel) -> torch.nn.Module:
    """The model without storage: names and shapes of its parameters, at any size and at no cost."""
    return model.architecture().build(device="meta")


def steps_for(model: LanguageModel, *, steps: int | None, tokens: int | None, minutes: float | None = None) -> int:
    """How many steps a run has, asked for as such or as tokens; 200 where it is to be found from minutes.

    Raises:
        ValueError: more than one is given, or a number is not positive.

    Example:
        >>> steps_for(LanguageModel(batch=8, sequence=128), steps=None, tokens=10_000)
        10
    """
    lengths = {"steps": steps, "tokens": tokens, "minutes": minutes}
    given = [f"--{name} {value}" for name, value in lengths.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} all say how long the run is; give one of them")
    if tokens is None:
        return 200 if steps is None else steps
    if tokens < 1:
        raise ValueError(f"--tokens is {tokens}; give a positive number of them")
    return math.ceil(tokens / (model.batch * model.sequence))


def make_schedule(name: str, steps: int, *, warmup: int | None, decay: float, final: float) -> Schedule:
    """The schedule of a run of so many steps.

    Args:
        name: one of `SCHEDULES`.
        steps: of the run.
        warmup: steps of the warm-up; None: a fifteenth of the run, at most 100.
        decay: for "warmup-linear-decay", the share of the run over which the rate falls to zero.
        final: for "cosine", the multiplier it heads for.

    Raises:
        ValueError: an unknown name, or numbers that do not fit.
    """
    if name not in SCHEDULES:
        raise ValueError(f"there is no schedule {name!r}; the schedules are {', '.join(SCHEDULES)}")
    warm = min(100, steps // 15) if warmup is None else warmup
    if name == "cosine":
        return Cosine(total=steps, warmup=warm, final=final)
    if name == "warmup-linear-decay":
        return WarmupLinearDecay(total=steps, warmup=warm, decay_fraction=decay)
    if warmup:
        raise ValueError(
            f"the constant schedule has no warm-up, and {warmup} steps were asked for; take warmup-linear-decay with a "
            "decay of 0"
        )
    return Constant()


def chosen_matrices(module: torch.nn.Module, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The matrices that diagnostics look at: those asked for, else embedding, head, an early and a late hidden one.

    Raises:
        ValueError: the model has no matrix of a name.
    """
    matrices = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim == 2}
    if unknown := [name for name in asked if name not in matrices]:
        close = difflib.get_close_matches(unknown[0], matrices, n=3)
        raise ValueError(
            f"the model has no matrix {unknown[0]!r}; it has {', '.join(close or list(matrices)[:6])}, ..."
        )
    if asked:
        return tuple(asked)
    found = roles(module)
    tables = [name for name in matrices if found.get(name) in ("embedding", "head")]
    hidden = [name for name in matrices if found.get(name) == "hidden"]
    return tuple(dict.fromkeys([*tables, *hidden[:1], *hidden[-1:]]))
