"""An experiment: one problem, every configuration of the paper that belongs to it, and the runs they make."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from polargrad.experiments.matrix.objectives import MatrixObjective
from polargrad.experiments.matrix.optimizers import ROLE
from polargrad.experiments.spec import Plain, RunSpec
from polargrad.train import Constant, LoopConfig, StepDecay

__all__ = ["DECAY_EVERY", "PRESETS", "Configuration", "Experiment", "adam", "muon", "polargrad"]

PRESETS = ("paper", "exact")
DECAY_EVERY = 25
Options = Mapping[str, Plain]


@dataclass(frozen=True)
class Configuration:
    """An optimizer with its step size.

    Args:
        name: of the run.
        label: what figures call it.
        family: configurations of one family have one colour; PolarGrad, Muon, Adam, ...
        options: of the parameter group, lr included.
        decay: what the step size is multiplied by every 25 steps; None keeps it.
        momentum: whether it stands in the momentum figures rather than in the first ones.
        steps: fewer than the experiment's, where the paper ran fewer.
        scaled: whether the step size depends on the problem's smoothness, and so on its size.
    """

    name: str
    label: str
    family: str
    options: Options
    decay: float | None = None
    momentum: bool = False
    steps: int | None = None
    scaled: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


@dataclass(frozen=True)
class Experiment:
    """A problem and its configurations under each preset.

    Args:
        name: on the command line.
        title: of the page.
        formula: the problem in a line.
        objective: at the paper's size.
        steps: of each run.
        eval_every: steps between evaluations of the gap.
        configurations: preset -> configurations, in the order in which they run.
        notes: preset -> what a reader should know.
    """

    name: str
    title: str
    formula: str
    objective: MatrixObjective
    steps: int
    eval_every: int
    configurations: Mapping[str, Sequence[Configuration]]
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def chosen(self, preset: str = "paper", only: Sequence[str] = ()) -> list[Configuration]:
        """The configurations of a preset, all or those named.

        Raises:
            ValueError: an unknown preset or name.
        """
        if preset not in self.configurations:
            raise ValueError(f"preset {preset!r} is unknown; {self.name} has {', '.join(self.configurations)}")
        every = {configuration.name: configuration for configuration in self.configurations[preset]}
        for name in only:
            if name not in every:
                close = difflib.get_close_matches(name, every, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(f"{self.name} has no configuration {name!r}; {hint}it has {', '.join(every)}")
        return [configuration for name, configuration in every.items() if not only or name in only]

    def specs(
        self,
        *,
        preset: str = "paper",
        only: Sequence[str] = (),
        objective: MatrixObjective | None = None,
        seed: int = 42,
        repeat: int = 1,
        steps: int | None = None,
        eval_every: int | None = None,
        diagnostics_every: int | None = None,
    ) -> list[RunSpec]:
        """The runs: each configuration on each of the seeds seed, seed + 1, ...; all configurations of a seed together.

        Args:
            preset: "paper" or "exact".
            only: names of configurations; all if empty.
            objective: another size or source; step sizes that depend on the problem's smoothness follow it.
            seed: of data, initial point and batches.
            repeat: how many seeds.
            steps: of each run; the paper's own by default.
            eval_every: steps between evaluations of the gap.
            diagnostics_every: steps between looks at the singular values of gradient and residual; 0: never; by default
                a hundred looks over a run.

        Raises:
            ValueError: an unknown preset or configuration, a number out of range.
        """
        for name, value, least in (("repeat", repeat, 1), ("steps", steps, 1), ("eval_every", eval_every, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        objective = objective or self.objective
        scale = 1.0 if objective == self.objective else objective.step_scale
        return [
            self._spec(c, preset, objective, scale, seed + offset, repeat > 1, steps, eval_every, diagnostics_every)
            for offset in range(repeat)
            for c in self.chosen(preset, only)
        ]

    def _spec(
        self,
        configuration: Configuration,
        preset: str,
        objective: MatrixObjective,
        scale: float,
        seed: int,
        repeated: bool,
        steps: int | None,
        eval_every: int | None,
        diagnostics_every: int | None,
    ) -> RunSpec:
        options = dict(configuration.options)
        if configuration.scaled:
            options["lr"] = float(options["lr"]) * scale  # pyright: ignore[reportArgumentType]
        total = steps or configuration.steps or self.steps
        looks = max(1, total // 100) if diagnostics_every is None else diagnostics_every
        return RunSpec(
            name=f"{configuration.name}@seed={seed}" if repeated else configuration.name,
            recipe=configuration.name,
            description=f"{configuration.label}, {self.name}, preset {preset}",
            objective=objective,
            optimizer={ROLE: options},
            schedule=Constant() if configuration.decay is None else StepDecay(DECAY_EVERY, configuration.decay),
            loop=LoopConfig(
                steps=total,
                eval_every=eval_every or self.eval_every,
                log_every=max(1, min(eval_every or self.eval_every, 10)),
                probe_every=looks,
                nonfinite_limit=1,  # the same gradient comes again
                spike_threshold=None,  # losses fall by orders of magnitude
            ),
            seed=seed,
            probe=tuple(objective.matrices) if looks else (),
        )


def polargrad(lr: float, method: str = "qdwh", max_steps: int | None = 2, **options: Plain) -> Options:
    """X <- X - lr nu U, without momentum unless `options` say so."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.0,
        "scale": "nuclear",
        "method": method,
        "max_steps": max_steps,
        **options,
    }


def muon(lr: float, method: str, max_steps: int | None) -> Options:
    """X <- X - lr U on Nesterov momentum 0.95, without a factor for the shape."""
    return polargrad(lr, method, max_steps, scale="none", momentum=0.95, nesterov=True)


def adam(lr: float) -> Options:
    """Adam with its default betas and no weight decay."""
    return {"rule": "adamw", "lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def with_decay(configuration: Configuration, factor: float, lr: float | None = None) -> Configuration:
    """The same with a decaying step size, which may start elsewhere."""
    options = {**configuration.options, **({} if lr is None else {"lr": lr})}
    return dataclasses.replace(
        configuration,
        name=f"{configuration.name}-decay",
        label=f"{configuration.label}, decay",
        options=options,
        decay=factor,
    )
