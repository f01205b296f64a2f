"""Coefficients of the odd matrix polynomials p(X) = a X + b X (X^H X) + c X (X^H X)^2, each with its source."""

from __future__ import annotations

import math

__all__ = [
    "CUBIC",
    "MUON_QUINTIC",
    "QUINTIC",
    "Coefficients",
    "check_coefficients",
    "evaluate",
    "map_interval",
    "min_converging_sigma",
    "schedule_for",
]

Coefficients = tuple[float, float, float]

# Jordan et al., Muon (2024): steep at zero rather than fixed at one; singular values end in about [0.68, 1.14].
MUON_QUINTIC: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),)

# The classical Newton-Schulz steps: the series of x (1 - (1 - x^2))^(-1/2) to first and to second order in 1 - x^2.
# Every minimax schedule ends in them.
CUBIC: tuple[Coefficients, ...] = ((1.5, -0.5, 0.0),)
QUINTIC: tuple[Coefficients, ...] = ((1.875, -1.25, 0.375),)


def check_coefficients(coefficients: object) -> None:
    """Raise ValueError unless `coefficients` is a non-empty tuple of rows (a, b, c) of finite numbers."""
    rows = coefficients if isinstance(coefficients, tuple) else ()
    good = rows and all(
        isinstance(row, tuple) and len(row) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in row)
        for row in rows
    )
    if not good:
        raise ValueError(
            f"coefficients must be a non-empty tuple of rows (a, b, c) of finite numbers, got {coefficients!r}; "
            "for example ((1.5, -0.5, 0.0),)"
        )


def schedule_for(coefficients: tuple[Coefficients, ...], steps: int) -> tuple[Coefficients, ...]:
    """The polynomial of each of `steps` steps; a table that is too short goes on with its last row.

    Example:
        >>> schedule_for(CUBIC, 2)
        ((1.5, -0.5, 0.0), (1.5, -0.5, 0.0))
    """
    head = coefficients[:steps]
    return head + (coefficients[-1],) * (steps - len(head))


def evaluate(row: Coefficients, x: float) -> float:
    """p(x) = a x + b x^3 + c x^5."""
    a, b, c = row
    return x * (a + x * x * (b + c * x * x))


def _extremes(row: Coefficients, low: float, high: float) -> tuple[float, float]:
    """The least and the largest value of p on [low, high]: at an end, or where a + 3 b t + 5 c t^2 = 0, t = x^2."""
    a, b, c = row
    if c:
        discriminant = 9.0 * b * b - 20.0 * a * c
        squares = [(-3.0 * b + sign * math.sqrt(max(discriminant, 0.0))) / (10.0 * c) for sign in (-1.0, 1.0)]
    else:
        squares = [-a / (3.0 * b)] if b else []
    inner = [math.sqrt(t) for t in squares if low * low < t < high * high]
    values = [evaluate(row, x) for x in (low, high, *inner)]
    return min(values), max(values)


def map_interval(schedule: tuple[Coefficients, ...], low: float, high: float = 1.0) -> tuple[float, float]:
    """The interval onto which the composed polynomials of `schedule` map [low, high].

    Exact up to rounding, since the image of an interval under each step is the interval between its extremes.

    Example:
        >>> map_interval(CUBIC, 0.5)
        (0.6875, 1.0)
    """
    for row in schedule:
        low, high = _extremes(row, low, high)
    return low, high


def min_converging_sigma(schedule: tuple[Coefficients, ...], deviation: float) -> float:
    """The smallest x such that the composed polynomials map [x, 1] into [1 - deviation, infinity).

    Found by bisection in log x; 1.0 where not even x = 1 gets there.

    Example:
        >>> round(min_converging_sigma(CUBIC * 2, 0.1), 4)
        0.5381
    """
    least, most = -100.0, 0.0
    if map_interval(schedule, 1.0)[0] < 1.0 - deviation:
        return 1.0
    for _ in range(60):
        middle = (least + most) / 2.0
        if map_interval(schedule, 10.0**middle)[0] < 1.0 - deviation:
            least = middle
        else:
            most = middle
    return 10.0**most
