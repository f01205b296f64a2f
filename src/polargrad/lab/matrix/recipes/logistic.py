"""`polargrad run logistic`: matrix logistic regression with stochastic gradients, section 6.2 of the paper."""

from __future__ import annotations

from polargrad.lab.matrix.configurations import (
    Configuration,
    adam,
    momentum_first,
    muon_newton_schulz,
    muon_qdwh,
    polar_first,
    polargrad_qdwh,
    with_decay,
)
from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.matrix.objectives import Logistic

__all__ = ["LOGISTIC"]

_DECAY = 0.95


def _configurations(steps: int | None) -> tuple[Configuration, ...]:
    """Every configuration, with so many QDWH steps (None: converged)."""
    plain = polargrad_qdwh(1.5e-7, steps, "polarsgd")
    first, second = polar_first(2.5e-7, steps, 0.95, "PolarSGD"), momentum_first(2.5e-7, steps, 0.9, "PolarSGD")
    return (
        plain,
        with_decay(plain, _DECAY, 2.5e-7),
        muon_newton_schulz(0.1),
        muon_qdwh(0.1, steps),
        with_decay(muon_qdwh(0.2, steps), _DECAY),
        adam(0.005),
        with_decay(adam(0.01), _DECAY),
        first,
        with_decay(first, _DECAY),
        second,
        with_decay(second, _DECAY),
    )


LOGISTIC = Experiment(
    name="logistic",
    title="Matrix logistic regression",
    formula="f(X) = Σ softplus(−C ∘ (A X B)), batches of rows",
    objective=Logistic(),
    steps=1500,
    eval_every=50,
    configurations={"paper": _configurations(2), "exact": _configurations(None)},
    notes={
        "paper": ("QDWH is stopped after 2 steps in float32, as in the authors' experiments.",),
        "exact": (
            "QDWH runs to convergence. With exact factors the paper's step sizes do not diverge, but have a noise "
            "floor that is up to half as high again.",
        ),
    },
)
