"""An experiment: one problem, every configuration that it is run under, and the runs they make."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polargrad.lab.matrix.configurations import Configuration
from polargrad.lab.matrix.objectives import MatrixObjective
from polargrad.lab.matrix.optimizers import ROLE
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import Constant, LoopConfig, StepDecay

__all__ = ["DECAY_EVERY", "Experiment"]

DECAY_EVERY = 25


@dataclass(frozen=True)
class Experiment:
    """A problem and its configurations under each preset.

    Args:
        name: on the command line.
        title: of the page.
        formula: the problem in a line.
        objective: at its full size, the paper's where the problem is the paper's.
        steps: of each run.
        eval_every: steps between evaluations of the gap.
        configurations: preset -> configurations, in the order in which they run; the first preset is the default.
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

    @property
    def default_preset(self) -> str:
        """The preset that is taken if nothing is said."""
        return next(iter(self.configurations))

    def chosen(self, preset: str | None = None, only: Sequence[str] = ()) -> list[Configuration]:
        """The configurations of a preset, all or those named.

        Raises:
            ValueError: an unknown preset or name.
        """
        preset = preset or self.default_preset
        if preset not in self.configurations:
            raise ValueError(f"{self.name} has no preset {preset!r}; it has {', '.join(self.configurations)}")
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
        preset: str | None = None,
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
            preset: one of `configurations`; None is the first.
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
        scale, preset = objective.step_scale, preset or self.default_preset
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
            by = objective.gradient_rank / self.objective.gradient_rank if configuration.by_smoothness_alone else 1.0
            options["lr"] = float(options["lr"]) * scale * by  # pyright: ignore[reportArgumentType]
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
