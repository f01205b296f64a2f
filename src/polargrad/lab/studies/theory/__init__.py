"""The theorems, run: strongly convex quadratics with known constants, and what each optimizer does on them."""

from polargrad.lab.studies.theory.descent import Check, Descent, Violation, check, descend
from polargrad.lab.studies.theory.guarantees import (
    descent_factor,
    noise_floor,
    sign_descent_plateau,
    stochastic_rate,
)
from polargrad.lab.studies.theory.quadratics import FAMILIES, Quadratic, random_quadratic

__all__ = [
    "FAMILIES",
    "Check",
    "Descent",
    "Quadratic",
    "Violation",
    "check",
    "descend",
    "descent_factor",
    "noise_floor",
    "random_quadratic",
    "sign_descent_plateau",
    "stochastic_rate",
]
