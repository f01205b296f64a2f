"""`polargrad run logistic`: matrix logistic regression with stochastic gradients, section 6.2 of the paper."""

from __future__ import annotations

from polargrad.experiments.matrix.experiment import Configuration, Experiment, adam, muon, polargrad, with_decay
from polargrad.experiments.matrix.objectives import Logistic

__all__ = ["LOGISTIC"]

_DECAY = 0.95


def _configurations(steps: int | None) -> tuple[Configuration, ...]:
    """Every configuration, with so many QDWH steps (None: converged)."""
    plain = Configuration("polarsgd", "PolarSGD (QDWH)", "PolarGrad", polargrad(1.5e-7, "qdwh", steps))
    muon_qdwh = Configuration("muon-qdwh", "Muon (QDWH)", "Muon", muon(0.1, "qdwh", steps), scaled=False)
    adam_ = Configuration("adam", "Adam", "Adam", adam(0.005), scaled=False)
    polar_first = Configuration(
        "polar-first",
        "PolarSGDM, polar first",
        "polar first",
        polargrad(2.5e-7, "qdwh", steps, momentum=0.95, momentum_order="polar-first"),
        momentum=True,
    )
    momentum_first = Configuration(
        "momentum-first",
        "PolarSGDM, momentum first",
        "momentum first",
        polargrad(2.5e-7, "qdwh", steps, momentum=0.9),
        momentum=True,
    )
    return (
        plain,
        with_decay(plain, _DECAY, 2.5e-7),
        Configuration("muon-ns", "Muon (Newton–Schulz)", "Muon", muon(0.1, "newton-schulz", 5), scaled=False),
        muon_qdwh,
        with_decay(muon_qdwh, _DECAY, 0.2),
        adam_,
        with_decay(adam_, _DECAY, 0.01),
        polar_first,
        with_decay(polar_first, _DECAY),
        momentum_first,
        with_decay(momentum_first, _DECAY),
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
        "exact": ("QDWH runs to convergence; the paper's step sizes converge with exact factors too.",),
    },
)
