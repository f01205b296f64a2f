"""Run folders for tests: written by hand with known curves, and specs small enough to run in a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polargrad.lab import recipes
from polargrad.lab.comparison.comparison import Comparison
from polargrad.lab.run.folder import COMPARISON, Run, RunFolder, find_runs, read_run, write_json
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig

ADAMW = {"rule": "adamw", "lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
POLAR = {"rule": "polar", "lr": 0.01, "momentum": 0.95, "scale": "rms", "method": "svd"}

PROBED = (("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight"))


def tiny_text(folder: Path) -> Path:
    """A text with enough in it for a vocabulary of 300 tokens."""
    path = folder / "text.txt"
    words = [f"{first}{middle}{last}" for first in "bdfglm" for middle in "aeiou" for last in ("n", "rt", "st", "ll")]
    lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 12)) for i in range(400)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def tiny_spec(
    corpus: str | Path, name: str = "tiny", *, steps: int = 4, seed: int = 42, polar: bool = False
) -> RunSpec:
    """A decoder of a few thousand parameters for a few steps."""
    hidden = POLAR if polar else ADAMW
    return RunSpec(
        name=name,
        objective=LanguageModel(
            hidden_size=16,
            layers=1,
            heads=2,
            kv_heads=2,
            mlp=32,
            vocabulary=300,
            sequence=16,
            batch=4,
            corpus=str(corpus),
            evaluation_windows=8,
        ),
        optimizer={"hidden": hidden, "embedding": ADAMW, "head": ADAMW, "vector": ADAMW},
        loop=LoopConfig(steps=steps, eval_every=2, probe_every=2),
        seed=seed,
        probe=("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"),
        description="A tiny run.",
    )


def patch_recipes(folder: Path, monkeypatch: Any, *, steps: int) -> None:
    """Leave two recipes, "adamw" and "polar", that run `steps` steps in a moment; optimizers from outside do as well.

    The working folder and the cache become `folder`.
    """
    text = tiny_text(folder)
    monkeypatch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    length = steps

    class Tiny(recipes.Recipe):
        def __call__(self, *, steps: int | None = None, seed: int = 42, changes: Sequence[str] = ()) -> RunSpec:
            spec = tiny_spec(text, self.name, steps=length if steps is None else steps, seed=seed)
            return dataclasses.replace(spec, optimizer=recipes.changed(self, spec.optimizer, changes))

    table = recipes.Registry(
        "recipe", wanted=recipes.RECIPES.wanted, fits=recipes.RECIPES.fits, group=recipes.RECIPES.group
    )
    for name, hidden in (("adamw", ADAMW), ("polar", POLAR)):
        roles = {"hidden": hidden, **dict.fromkeys(("embedding", "head", "vector"), ADAMW)}
        table[name] = Tiny(name, "A tiny run.", roles)
    monkeypatch.setattr(recipes, "Recipe", Tiny)
    monkeypatch.setattr(recipes, "RECIPES", table)


def written_run(
    path: Path,
    curve: Sequence[tuple[int, float | None]],
    *,
    name: str | None = None,
    recipe: str = "",
    rates: dict[str, float] | None = None,
    status: str | None = "finished",
    seconds_per_step: float = 0.5,
    environment: dict[str, object] | None = None,
    description: str = "",
) -> Run:
    """A run folder whose evaluations are the given (step, loss) points; half of the time is the optimizer's."""
    rates = rates or {"hidden": 0.01, "embedding": 0.02}
    last = max(step for step, _ in curve)
    spec = RunSpec(
        name=name or path.name,
        objective=LanguageModel(),
        optimizer={role: {"rule": "adamw", "lr": rate} for role, rate in rates.items()},
        loop=LoopConfig(steps=max(last, 1)),
        recipe=recipe,
        description=description,
    )
    losses = dict(curve)
    with RunFolder(path, spec, environment or {"torch": "0", "cpu": "one", "device": "cpu", "threads": 1}) as folder:
        for step in range(last + 1):
            seconds = step * seconds_per_step
            if step:
                timed = {"seconds": seconds, "optimizer_seconds": seconds / 2}
                folder.record({"kind": "step", "step": step, "loss": 8.0 / step, **timed, "lr": rates, "units": step})
                for role, parameter in PROBED:
                    figures = {"condition_number": 10.0**step, "nuclear_norm": 1.0 / step}
                    folder.record({"kind": "matrix", "step": step, "role": role, "parameter": parameter, **figures})
            if step in losses:
                folder.record({"kind": "eval", "step": step, "seconds": seconds, "val_loss": losses[step]})
        if status == "diverged":
            folder.record({"kind": "event", "step": last, "event": "diverged", "message": "the loss is nan"})
        if status is not None:
            folder.finish({"status": status, "steps": last})
    return read_run(path)


def written_grid(folder: Path, asked: Comparison, course: Callable[[RunSpec], Sequence[float | None]]) -> list[Run]:
    """The runs of a comparison, written by hand, each with the training losses that `course` gives for its spec.

    The evaluations at start and end are the first and the last loss; one that is None makes the run diverge there.
    """
    folder.mkdir(exist_ok=True)
    write_json(folder / COMPARISON, asked.to_dict())
    for spec in asked.pending({}):
        losses = course(spec)
        probed = {"condition_number": 1e4 * spec.learning_rates["vector"]}
        with RunFolder(folder / spec.name, spec, {"torch": "0", "device": "cpu"}) as made:
            made.record({"kind": "eval", "step": 0, "seconds": 0.0, "val_loss": losses[0]})
            for step, loss in enumerate(losses, start=1):
                timed = {"seconds": float(step), "optimizer_seconds": step / 2}
                made.record({"kind": "step", "step": step, "loss": loss, **timed, "lr": spec.learning_rates})
                for role, parameter in PROBED:
                    made.record({"kind": "matrix", "step": step, "role": role, "parameter": parameter, **probed})
            made.record({"kind": "eval", "step": len(losses), "seconds": float(len(losses)), "val_loss": losses[-1]})
            status = "diverged" if losses[-1] is None else "finished"
            made.finish({"status": status, "steps": len(losses)})
    return [read_run(path) for path in find_runs(folder)]


class StopsAt:
    """Ctrl-C, twice at once, when so many steps are told of."""

    def __init__(self, step):
        self.at = step

    def start(self, total, unit):
        pass

    def update(self, step, loss, units, seconds):
        if step == self.at:
            raise KeyboardInterrupt

    def evaluated(self, step, figures):
        pass

    def finish(self, status):
        pass
