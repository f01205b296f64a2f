"""`polargrad run completion`: low-rank matrix completion, section 6.3 of the paper."""

from __future__ import annotations

from polargrad.experiments.matrix.experiment import Configuration, Experiment, adam, muon, polargrad, with_decay
from polargrad.experiments.matrix.objectives import Completion

__all__ = ["COMPLETION"]

_DECAY = 0.95


def _configurations(steps: int | None, plain_rate: float, polar_first_rate: float) -> tuple[Configuration, ...]:
    """Every configuration, with so many QDWH steps (None: converged) and these step sizes for PolarGrad."""
    plain = Configuration("polargrad", "PolarGrad (QDWH)", "PolarGrad", polargrad(plain_rate, "qdwh", steps))
    muon_qdwh = Configuration("muon-qdwh", "Muon (QDWH)", "Muon", muon(0.25, "qdwh", steps), scaled=False)
    adam_ = Configuration("adam", "Adam", "Adam", adam(0.05), scaled=False)
    polar_first = Configuration(
        "polar-first",
        "PolarGradM, polar first",
        "polar first",
        polargrad(polar_first_rate, "qdwh", steps, momentum=0.5, momentum_order="polar-first"),
        momentum=True,
        steps=200,
    )
    momentum_first = Configuration(
        "momentum-first",
        "PolarGradM, momentum first",
        "momentum first",
        polargrad(plain_rate, "qdwh", steps, momentum=0.5),
        momentum=True,
        steps=200,
    )
    return (
        plain,
        with_decay(plain, _DECAY),
        Configuration("muon-ns", "Muon (Newton–Schulz)", "Muon", muon(0.25, "newton-schulz", 5), scaled=False),
        muon_qdwh,
        with_decay(muon_qdwh, _DECAY),
        adam_,
        with_decay(adam_, _DECAY),
        Configuration("alternating-gd", "alternating GD", "alternating", {"rule": "gradient-descent", "lr": 50.0}),
        Configuration(
            "alternating-newton", "alternating Newton", "Newton", {"rule": "newton", "lr": 1.0}, scaled=False
        ),
        polar_first,
        with_decay(polar_first, _DECAY),
        momentum_first,
        with_decay(momentum_first, _DECAY),
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
