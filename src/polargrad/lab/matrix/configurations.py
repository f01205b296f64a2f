"""The optimizers that several problems are run under, each with a step size: what the experiments list."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from polargrad.lab.run.spec import Plain

__all__ = [
    "Configuration",
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
    "with_decay",
]

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

    @property
    def by_smoothness_alone(self) -> bool:
        """Whether the step size goes with 1/L, as gradient descent's does, and not with 1/(L r)."""
        return self.options["rule"] == "gradient-descent"


def polargrad(lr: float, method: str, max_steps: int | None, **options: Plain) -> Options:
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
    """PolarGrad with so many QDWH steps (None: converged); PolarSGD is the same on stochastic gradients."""
    called = "PolarSGD" if name == "polarsgd" else "PolarGrad"
    return Configuration(name, f"{called} (QDWH)", "PolarGrad", polargrad(lr, "qdwh", steps))


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
    """Muon with so many QDWH steps (None: converged)."""
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
