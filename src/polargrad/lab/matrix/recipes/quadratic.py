"""`polargrad run quadratic`: matrix quadratic regression, section 6.1 of the paper."""

from __future__ import annotations

from polargrad.lab.matrix.configurations import (
    Configuration,
    adam,
    momentum_first,
    muon,
    muon_newton_schulz,
    muon_qdwh,
    newton,
    polar_first,
    polargrad,
    polargrad_qdwh,
    with_decay,
)
from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.matrix.objectives import Quadratic

__all__ = ["QUADRATIC"]

_DECAY = 0.99


def _configurations(steps: int | None, rates: dict[str, float]) -> tuple[Configuration, ...]:
    """Every configuration, with so many QDWH steps (None: converged) and these step sizes for PolarGrad."""
    plain, first = polargrad_qdwh(rates["plain"], steps), polar_first(rates["polar-first"], steps, 0.95)
    second = momentum_first(rates["momentum-first"], steps, 0.9)
    return (
        plain,
        with_decay(plain, _DECAY, rates["plain-decay"]),
        Configuration("polargrad-zolo", "PolarGrad (ZOLO-PD)", "PolarGrad", polargrad(rates["zolo"], "zolo-pd", None)),
        muon_newton_schulz(0.1),
        muon_qdwh(0.1, steps),
        with_decay(muon_qdwh(0.05, steps), _DECAY),
        Configuration("muon-zolo", "Muon (ZOLO-PD)", "Muon", muon(0.1, "zolo-pd", None), scaled=False),
        adam(0.05),
        with_decay(adam(0.05), _DECAY),
        newton(0.25),
        first,
        with_decay(first, _DECAY, rates["polar-first-decay"]),
        second,
        with_decay(second, _DECAY, rates["momentum-first-decay"]),
    )


QUADRATIC = Experiment(
    name="quadratic",
    title="Matrix quadratic regression",
    formula="f(X) = ½ ‖A X B − C‖²",
    objective=Quadratic(),
    steps=4000,
    eval_every=10,
    configurations={
        "paper": _configurations(
            2,
            {
                "plain": 4e-8,
                "plain-decay": 4.75e-8,
                "zolo": 3e-8,
                "polar-first": 4e-7,
                "polar-first-decay": 5e-7,
                "momentum-first": 2e-7,
                "momentum-first-decay": 2.5e-7,
            },
        ),
        "exact": _configurations(
            None,
            {
                "plain": 3e-8,
                "plain-decay": 3.25e-8,
                "zolo": 3e-8,
                "polar-first": 3e-7,
                "polar-first-decay": 3.75e-7,
                "momentum-first": 1.5e-7,
                "momentum-first-decay": 1.9e-7,
            },
        ),
    },
    notes={
        "paper": (
            "QDWH is stopped after 2 steps in float32, as in the authors' experiments: it leaves singular values of "
            "about 0.73 to 1, and the step sizes are tuned to that. With exact factors PolarGrad diverges at 4e-8.",
        ),
        "exact": (
            "QDWH runs to convergence. PolarGrad's step sizes are smaller than the paper's, which diverge with exact "
            "factors.",
        ),
    },
)
