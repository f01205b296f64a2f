"""What the rest of a run depends on, taken out of it and put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.lab.train.checkpoint import Checkpoints
from polargrad.lab.train.journal import Journal


def capture(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, base_rates: Sequence[float], data: Any
) -> dict[str, Any]:
    """Weights, optimizer, position in the data and random generators, as tensors and plain data.

    Args:
        module: its state dict is taken, tensors uncopied.
        optimizer: likewise; its learning rates are those of the moment.
        base_rates: what a schedule multiplies, one for each group; these are what is kept.
        data: asked for `state_dict()` if it has one. A source whose batch is a function of the step needs none.

    Returns:
        A mapping that `restore` takes.
    """
    held = optimizer.state_dict()
    for group, rate in zip(held["param_groups"], base_rates, strict=True):
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
    return {
        "module": module.state_dict(),
        "optimizer": held,
        "data": data.state_dict() if hasattr(data, "state_dict") else None,
        "random": _generators(),
    }


def restore(state: Mapping[str, Any], module: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    """Put back what `capture` took; the optimizer's groups get their base rates.

    Raises:
        ValueError: the data source has a position to be restored and cannot take it, or the optimizer's groups differ.
        RuntimeError: the module has other parameters.
    """
    module.load_state_dict(state["module"])
    tensors = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, rate in zip(optimizer.param_groups, tensors, strict=True):
        if isinstance(rate, Tensor):  # a compiled optimizer reads the rate from this very tensor
            group["lr"] = rate.fill_(float(group["lr"]))
    if state["data"] is not None:
        if not hasattr(data, "load_state_dict"):
            raise ValueError(f"the checkpoint holds a position in the data, and {type(data).__name__} cannot take it")
        data.load_state_dict(state["data"])
    _restore_generators(state["random"])


class Saver:
    """Saves the run as it stands after the finished steps."""

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        objective: Any,
        optimizer: torch.optim.Optimizer,
        base_rates: list[float],
        journal: Journal,
    ) -> None:
        self._checkpoints, self._journal = checkpoints, journal
        self._objective, self._optimizer, self._base_rates = objective, optimizer, base_rates
        self._saved = journal.steps

    def due(self, step: int, last: bool) -> bool:
        """Whether to save after so many finished steps."""
        return self._checkpoints is not None and self._checkpoints.due(step, last)

    def save(self) -> None:
        """Save, unless nothing was stepped since; a failure is an event."""
        if self._checkpoints is None:
            return
        self._journal.flush()
        if self._journal.steps == self._saved:
            return
        try:
            self._checkpoints.save(
                self._journal.steps,
                {
                    **capture(self._objective.module, self._optimizer, self._base_rates, self._objective),
                    "journal": self._journal.state_dict(),
                },
            )
        except OSError as error:
            self._journal.event("not-saved", f"{error}; the checkpoints from before are as they were")
        else:
            self._saved = self._journal.steps


def _generators() -> dict[str, Any]:
    """The state of every global generator; numpy's only where something imported numpy."""
    version, words, gauss = random.getstate()
    held: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if torch.cuda.is_available():
        held["cuda"] = torch.cuda.get_rng_state_all()
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        held["numpy"] = [name, keys.tolist(), int(position), int(has_gauss), float(cached)]
    return held


def _restore_generators(held: Mapping[str, Any]) -> None:
    torch.set_rng_state(held["torch"])
    version, words, gauss = held["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in held and torch.cuda.device_count() == len(held["cuda"]):
        torch.cuda.set_rng_state_all(held["cuda"])
    if "numpy" in held:
        import numpy

        name, keys, position, has_gauss, cached = held["numpy"]
        words = numpy.asarray(keys, dtype=numpy.uint32)
        numpy.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002  the global one's state
