"""Optimizers with their step sizes, and the experiments that run a problem under each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from polargrad.lab.options import unknown_name

DECAY_EVERY = 25
STOPPED_EARLY = (
    "QDWH is stopped after 2 steps in float32, as in the authors' experiments: it leaves singular values of about 0.73 "
    "to 1, and the step sizes are tuned to that."
)

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
            raise unknown_name("preset", preset, self.presets)
        every = {configuration.name: configuration for configuration in self.presets[preset]}
        for name in only:
            if name not in every:
                raise unknown_name("configuration", name, every)
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


def configurations(
    rates: Mapping[str, float | tuple[float, float]],
    *,
    method: str = "qdwh",
    max_steps: int | None = None,
    momenta: tuple[float, float] = (0.95, 0.9),
    decay: float | None = None,
    momentum_steps: int | None = None,
) -> tuple[Configuration, ...]:
    """Optimizers by name with their step sizes, in the order given.

    - PolarGrad: "polargrad", "polarsgd" (on stochastic gradients), "polargrad-zolo", "polargradm" (momentum 0.9),
      "polar-first" (the average of polar factors), "momentum-first" (the polar factor of an average).
    - Muon, X <- X - lr U on Nesterov momentum 0.95: "muon-ns" (as it is used: 5 quintic steps in bfloat16),
      "muon-qdwh", "muon-zolo".
    - "adam", with its default betas and no weight decay.
    - Methods that know the problem, on several matrices one after the other: "newton", "alternating-newton", "als",
      "gd", "alternating-gd", "projected-gd", "multiplicative".

    Args:
        rates: name -> step size; NAME-decay is NAME with a decaying step size, and may give (step size, factor).
        method: the polar method of PolarGrad.
        max_steps: its steps, and QDWH's in Muon; None runs to convergence.
        momenta: of "polar-first" and of "momentum-first".
        decay: the factor of all decaying step sizes.
        momentum_steps: steps of these two, if fewer than the experiment's.

    Raises:
        ValueError: an unknown name.
    """
    plain, qdwh = "PolarSGD" if "polarsgd" in rates else "PolarGrad", " (QDWH)" if method == "qdwh" else ""
    variant = {"momentum": True, "steps": momentum_steps}

    def polar(method: str = method, max_steps: int | None = max_steps, **options: Any) -> Options:
        return polargrad(0.0, method, max_steps, **options)

    def muon(method: str, max_steps: int | None) -> Options:
        return polar(method, max_steps, scale="none", momentum=0.95, nesterov=True)

    # name, label, family, options, others
    known: dict[str, tuple[str, str, Options, dict[str, Any]]] = {
        "polargrad": (f"PolarGrad{qdwh}", "PolarGrad", polar(), {}),
        "polarsgd": (f"PolarSGD{qdwh}", "PolarGrad", polar(), {}),
        "polargrad-zolo": ("PolarGrad (ZOLO-PD)", "PolarGrad", polar("zolo-pd", None), {}),
        "polargradm": ("PolarGradM", "momentum first", polar(momentum=0.9), {}),
        "polar-first": (
            f"{plain}M, polar first",
            "polar first",
            polar(momentum=momenta[0], momentum_order="polar-first"),
            variant,
        ),
        "momentum-first": (f"{plain}M, momentum first", "momentum first", polar(momentum=momenta[1]), variant),
        "muon-ns": ("Muon (Newton–Schulz)", "Muon", muon("newton-schulz", 5), _FIXED),
        "muon-qdwh": ("Muon (QDWH)", "Muon", muon("qdwh", max_steps), _FIXED),
        "muon-zolo": ("Muon (ZOLO-PD)", "Muon", muon("zolo-pd", None), _FIXED),
        "adam": ("Adam", "Adam", _ADAM, _FIXED),
        "newton": ("Newton", "Newton", {"rule": "newton"}, _FIXED),
        "alternating-newton": ("alternating Newton", "Newton", {"rule": "newton"}, _FIXED),
        "als": ("alternating least squares", "Newton", {"rule": "newton"}, _FIXED),
        "multiplicative": ("multiplicative updates", "Newton", {"rule": "multiplicative"}, _FIXED),
        "gd": ("gradient descent", "gradient descent", {"rule": "gradient-descent"}, {}),
        "alternating-gd": ("alternating GD", "gradient descent", {"rule": "gradient-descent"}, {}),
        "projected-gd": ("projected gradient descent", "gradient descent", {"rule": "gradient-descent"}, {}),
    }
    chosen = []
    for name, given in rates.items():
        base = name.removesuffix("-decay")
        if base not in known:
            raise unknown_name("optimizer", name, known)
        label, family, options, others = known[base]
        lr, factor = given if isinstance(given, tuple) else (given, decay)
        if base != name:
            label, others = f"{label}, decay", {**others, "decay": factor}
        chosen.append(Configuration(name, label, family, {**options, "lr": lr}, **others))
    return tuple(chosen)


_ADAM: Options = {"rule": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_FIXED: dict[str, Any] = {"scaled": False}


def tuned(
    title: str, formula: str, steps: int, rates: Mapping[str, float | tuple[float, float]], notes: Sequence[str] = ()
) -> Experiment:
    """The experiment of a problem beyond the paper's: optimizers tuned alike, in one preset.

    Args:
        title: of the page.
        formula: the problem in a line.
        steps: of each run.
        rates: as of `configurations`; PolarGrad's are in units of 1/(L r), gradient descent's of 1/L.
        notes: what a reader should know of this problem.
    """
    about = (
        "Step sizes are the best of a grid of factors of two at seed 42, for each optimizer by itself; PolarGrad's and "
        "gradient descent's follow the smoothness of other sizes and other data."
    )
    presets = {"tuned": configurations(rates, method="auto")}
    return Experiment(title, formula, steps, 5, presets, {"tuned": (*notes, about)}, per_smoothness=True)
