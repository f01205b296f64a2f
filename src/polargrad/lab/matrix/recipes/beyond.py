"""Problems beyond the paper, by one command each: `polargrad run regression`, `multinomial`, `nonnegative`, ..."""

from __future__ import annotations

from polargrad.lab.matrix.beyond import Multinomial, Nonnegative, NonnegativeSoftplus, Procrustes, Regression
from polargrad.lab.matrix.configurations import (
    Configuration,
    adam,
    gradient_descent,
    muon_newton_schulz,
    newton,
    polargrad,
    with_decay,
)
from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.matrix.objectives import MatrixObjective
from polargrad.lab.matrix.observed import Picture, Ratings

__all__ = ["BEYOND"]

_TUNED = (
    "Step sizes are the best of a grid of factors of two at seed 42, for each optimizer by itself; PolarGrad's and "
    "gradient descent's follow the smoothness of other sizes and other data.",
)


def _experiment(
    title: str,
    formula: str,
    objective: MatrixObjective,
    steps: int,
    *,
    plain: float,
    averaged: float,
    muon: tuple[float, float, float],
    adam_: tuple[float, float, float],
    classical: tuple[Configuration, ...],
    notes: tuple[str, ...] = (),
    eval_every: int = 5,
) -> Experiment:
    """PolarGrad without and with momentum 0.9, Muon and Adam, and classical methods.

    Muon and Adam come with a constant step size, and with a decay and the step size that it starts from.
    """
    configurations = (
        Configuration("polargrad", "PolarGrad", "PolarGrad", polargrad(plain, "auto", None)),
        Configuration("polargradm", "PolarGradM", "momentum first", polargrad(averaged, "auto", None, momentum=0.9)),
        muon_newton_schulz(muon[0]),
        with_decay(muon_newton_schulz(muon[2]), muon[1]),
        adam(adam_[0]),
        with_decay(adam(adam_[2]), adam_[1]),
        *classical,
    )
    return Experiment(
        name=objective.kind,
        title=title,
        formula=formula,
        objective=objective,
        steps=steps,
        eval_every=eval_every,
        configurations={"tuned": configurations},
        notes={"tuned": (*notes, *_TUNED)},
    )


BEYOND = (
    _experiment(
        "Multi-response regression",
        "f(X) = ‖A X − Y‖² / 2N",
        Regression(),
        500,
        plain=2.5,
        averaged=20.0,
        muon=(0.1, 0.7, 0.8),
        adam_=(0.08, 0.9, 0.4),
        classical=(gradient_descent(64.0), newton(0.25)),
    ),
    _experiment(
        "Multinomial regression",
        "f(X) = mean cross-entropy of softmax(A X) + ridge/2 ‖X‖²",
        Multinomial(),
        500,
        plain=12.0,
        averaged=32.0,
        muon=(0.04, 0.7, 0.2),
        adam_=(0.08, 0.8, 0.4),
        classical=(gradient_descent(190.0),),
    ),
    _experiment(
        "Nonnegative matrix factorization, projected",
        "f(X, Y) = ‖X Yᵀ − M‖² / pq, X, Y ≥ 0",
        Nonnegative(),
        1000,
        plain=1.5,
        averaged=6.0,
        muon=(0.1, 0.7, 0.2),
        adam_=(0.16, 0.9, 0.2),
        classical=(
            gradient_descent(15.0, "projected-gd", "projected gradient descent"),
            Configuration(
                "multiplicative",
                "multiplicative updates",
                "Newton",
                {"rule": "multiplicative", "lr": 1.0},
                scaled=False,
            ),
        ),
    ),
    _experiment(
        "Nonnegative matrix factorization, softplus",
        "f(X, Y) = ‖softplus(X) softplus(Y)ᵀ − M‖² / pq",
        NonnegativeSoftplus(),
        1000,
        plain=3.0,
        averaged=3.0,
        muon=(0.1, 0.9, 0.4),
        adam_=(0.64, 0.9, 0.4),
        classical=(gradient_descent(60.0),),
    ),
    _experiment(
        "Orthogonal Procrustes",
        "f(X) = ½ ‖A X − B‖², XᵀX = I by projection",
        Procrustes(),
        500,
        plain=1.6,
        averaged=3.2,
        muon=(0.1, 0.7, 0.4),
        adam_=(0.04, 0.8, 1.6),
        classical=(gradient_descent(48.0, "projected-gd", "projected gradient descent"),),
        notes=(
            "The minimum is one polar factor away, that of AᵀB. Projected steps along a polar factor or along signs "
            "have fixed points that are no minima: U may be normal to the orthogonal matrices where G is not.",
        ),
    ),
    _experiment(
        "Completion of a photograph",
        "f(X, Y) = mean of (X Yᵀ − M)² over observed pixels",
        Picture(),
        500,
        plain=1.0,
        averaged=2.0,
        muon=(0.1, 0.9, 0.2),
        adam_=(0.08, 0.9, 0.2),
        classical=(
            gradient_descent(5.0, "alternating-gd", "alternating GD"),
            newton(1.0, "als", "alternating least squares"),
        ),
    ),
    _experiment(
        "Completion of ratings",
        "f(X, Y) = mean of (X Yᵀ − M)² over observed ratings, less their mean",
        Ratings(),
        500,
        plain=0.5,
        averaged=2.0,
        muon=(0.2, 0.9, 0.4),
        adam_=(0.02, 0.9, 0.1),
        classical=(
            gradient_descent(2.5, "alternating-gd", "alternating GD"),
            newton(1.0, "als", "alternating least squares"),
        ),
    ),
)
