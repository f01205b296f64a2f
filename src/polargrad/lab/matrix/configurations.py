"""Optimizers with their step sizes, and the experiments that run a problem under each of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = [
    "DECAY_EVERY",
    "Configuration",
    "Experiment",
    "adam",
    "gradient_descent",
    "momentum_first",
    "muon",
    "muon_newton_schulz",
    "muon_qdwh",
    "newton",
    "polar_first",
    "polargrad",
    "polargrad_qdwh",
    "tuned",
    "with_decay",
]

DECAY_EVERY = 25

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """An optimizer with its step size.

    Args:
        name: of the run.
        label: in figures.
        family: configurations of one family have one colour; PolarGrad, Muon, Adam, ...
        options: of the parameter group, lr included.
        decay: what the step size is multiplied by every 25 steps; None keeps it.
        momentum: whether it belongs to the figures of momentum variants rather than to the first ones.
        steps: fewer than the experiment's, where the paper ran fewer.
        scaled: whether the step size follows the problem's expected smoothness.
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

    @property
    def by_smoothness_alone(self) -> bool:
        """Whether the step size goes with 1/L, as gradient descent's does, and not with 1/(L r)."""
        return self.options["rule"] == "gradient-descent"


@dataclass(frozen=True)
class Experiment:
    """A problem's runs: every configuration of a preset, for the same number of steps.

    Args:
        title: of the page.
        formula: the problem in a line.
        steps: of each run.
        eval_every: steps between evaluations.
        presets: name -> configurations, in the order in which they run; the first preset is the default.
        notes: preset -> what a reader should know.
        per_smoothness: whether step sizes that follow the smoothness are given in units of 1/(L r), and gradient
            descent's in units of 1/L; if not, they are those of the full size.
    """

    title: str
    formula: str
    steps: int
    eval_every: int
    presets: Mapping[str, Sequence[Configuration]]
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    per_smoothness: bool = False

    @property
    def default_preset(self) -> str:
        """The first preset."""
        return next(iter(self.presets))

    def chosen(self, preset: str | None = None, only: Sequence[str] = ()) -> list[Configuration]:
        """The configurations of a preset, all or those named.

        Raises:
            ValueError: an unknown preset or name.
        """
        preset = preset or self.default_preset
        if preset not in self.presets:
            raise ValueError(f"there is no preset {preset!r} of this problem; it has {', '.join(self.presets)}")
        every = {configuration.name: configuration for configuration in self.presets[preset]}
        for name in only:
            if name not in every:
                close = difflib.get_close_matches(name, every, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(f"there is no configuration {name!r} of this problem; {hint}it has {', '.join(every)}")
        return [configuration for name, configuration in every.items() if not only or name in only]


def polargrad(lr: float, method: str, max_steps: int | None, **options: Any) -> Options:
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


def polargrad_qdwh(lr: float, steps: int | None, name: str = "polargrad") -> Configuration:
    """PolarGrad with this many QDWH steps (None: converged); PolarSGD is the same on stochastic gradients."""
    label = "PolarSGD" if name == "polarsgd" else "PolarGrad"
    return Configuration(name, f"{label} (QDWH)", "PolarGrad", polargrad(lr, "qdwh", steps))


def polar_first(
    lr: float, steps: int | None, beta: float, plain: str = "PolarGrad", run: int | None = None
) -> Configuration:
    """The average of polar factors; `run` steps at most."""
    options = polargrad(lr, "qdwh", steps, momentum=beta, momentum_order="polar-first")
    return Configuration("polar-first", f"{plain}M, polar first", "polar first", options, momentum=True, steps=run)


def momentum_first(
    lr: float, steps: int | None, beta: float, plain: str = "PolarGrad", run: int | None = None
) -> Configuration:
    """The polar factor of an average; `run` steps at most."""
    options = polargrad(lr, "qdwh", steps, momentum=beta)
    return Configuration(
        "momentum-first", f"{plain}M, momentum first", "momentum first", options, momentum=True, steps=run
    )


def muon_newton_schulz(lr: float) -> Configuration:
    """Muon as it is used: 5 quintic steps in bfloat16."""
    return Configuration("muon-ns", "Muon (Newton–Schulz)", "Muon", muon(lr, "newton-schulz", 5), scaled=False)


def muon_qdwh(lr: float, steps: int | None) -> Configuration:
    """Muon with this many QDWH steps (None: converged)."""
    return Configuration("muon-qdwh", "Muon (QDWH)", "Muon", muon(lr, "qdwh", steps), scaled=False)


def adam(lr: float) -> Configuration:
    """Adam with its default betas and no weight decay."""
    options = {"rule": "adamw", "lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    return Configuration("adam", "Adam", "Adam", options, scaled=False)


def newton(lr: float, name: str = "newton", label: str = "Newton") -> Configuration:
    """Newton's method, on several matrices one after the other."""
    return Configuration(name, label, "Newton", {"rule": "newton", "lr": lr}, scaled=False)


def gradient_descent(lr: float, name: str = "gd", label: str = "gradient descent") -> Configuration:
    """Gradient descent, on several matrices one after the other."""
    return Configuration(name, label, "gradient descent", {"rule": "gradient-descent", "lr": lr})


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


def tuned(
    title: str,
    formula: str,
    steps: int,
    *classical: Configuration,
    polargrad_lr: float,
    momentum_lr: float,
    muon_lr: tuple[float, float, float],
    adam_lr: tuple[float, float, float],
    notes: Sequence[str] = (),
) -> Experiment:
    """The experiment of a problem beyond the paper's: optimizers tuned alike, in one preset.

    Args:
        title: of the page.
        formula: the problem in a line.
        steps: of each run.
        classical: methods that know the problem; gradient descent's step size is in units of 1/L.
        polargrad_lr: PolarGrad's step size in units of 1/(L r).
        momentum_lr: the same with momentum 0.9.
        muon_lr: Muon's constant step size, the factor of a decaying one, and the step size that this starts from.
        adam_lr: the same of Adam.
        notes: what a reader should know of this problem.
    """
    configurations = (
        Configuration("polargrad", "PolarGrad", "PolarGrad", polargrad(polargrad_lr, "auto", None)),
        Configuration("polargradm", "PolarGradM", "momentum first", polargrad(momentum_lr, "auto", None, momentum=0.9)),
        muon_newton_schulz(muon_lr[0]),
        with_decay(muon_newton_schulz(muon_lr[2]), muon_lr[1]),
        adam(adam_lr[0]),
        with_decay(adam(adam_lr[2]), adam_lr[1]),
        *classical,
    )
    about = (
        "Step sizes are the best of a grid of factors of two at seed 42, for each optimizer by itself; PolarGrad's and "
        "gradient descent's follow the smoothness of other sizes and other data."
    )
    return Experiment(
        title, formula, steps, 5, {"tuned": configurations}, {"tuned": (*notes, about)}, per_smoothness=True
    )
