"""`polargrad run completion`: low-rank matrix completion, section 6.3 of the paper."""

from __future__ import annotations

from polargrad.lab.matrix.configurations import (
    Configuration,
    adam,
    gradient_descent,
    momentum_first,
    muon_newton_schulz,
    muon_qdwh,
    newton,
    polar_first,
    polargrad_qdwh,
    with_decay,
)
from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.matrix.objectives import Completion

__all__ = ["COMPLETION"]

_DECAY = 0.95


def _configurations(steps: int | None, plain_rate: float, polar_first_rate: float) -> tuple[Configuration, ...]:
    """Every configuration, with so many QDWH steps (None: converged) and these step sizes for PolarGrad."""
    plain = polargrad_qdwh(plain_rate, steps)
    first, second = polar_first(polar_first_rate, steps, 0.5, run=200), momentum_first(plain_rate, steps, 0.5, run=200)
    return (
        plain,
        with_decay(plain, _DECAY),
        muon_newton_schulz(0.25),
        muon_qdwh(0.25, steps),
        with_decay(muon_qdwh(0.25, steps), _DECAY),
        adam(0.05),
        with_decay(adam(0.05), _DECAY),
        gradient_descent(50.0, "alternating-gd", "alternating GD"),
        newton(1.0, "alternating-newton", "alternating Newton"),
        first,
        with_decay(first, _DECAY),
        second,
        with_decay(second, _DECAY),
    )


COMPLETION = Experiment(
    name="completion",
    title="Low-rank matrix completion",
    formula="f(X, Y) = ‖mask ∘ (X Yᵀ − M)‖² / Σ mask",
    objective=Completion(),
    steps=1000,
    eval_every=1,
    configurations={"paper": _configurations(2, 50.0, 100.0), "exact": _configurations(None, 25.0, 50.0)},
    notes={
        "paper": (
            "QDWH is stopped after 2 steps in float32, as in the authors' experiments: it leaves singular values of "
            "about 0.73 to 1, and the step sizes are tuned to that. With exact factors PolarGrad diverges at 50.",
        ),
        "exact": (
            "QDWH runs to convergence. PolarGrad's step sizes are half the paper's, which diverge with exact factors.",
        ),
    },
)
