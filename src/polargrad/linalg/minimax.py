"""Minimax odd polynomials for the sign function, and the greedy compositions made of them."""

from __future__ import annotations

from typing import Any

from polargrad.linalg.coefficients import CUBIC, QUINTIC, Coefficients
from polargrad.linalg.compilation import compile_constant

# mpmath is imported where it is used: importing it takes longer than all of this package, and few calls need it.

__all__ = ["CUSHION", "composition", "minimax_odd", "with_safety"]

# Below this ratio of the ends of the interval a polynomial is fitted on [CUSHION * high, high] instead: it loses
# hardly any slope at zero, and keeps the values inside the interval away from zero, where rounding would drown them.
# The value is the one behind the published table (Amsel et al., section 3.4 and their code).
CUSHION = 0.02407327424182761

# Digits for the exchange: near an interval of width w the Vandermonde system loses about 3 log10(1/w) of them.
_DIGITS = 60
# Below this half-width of the interval the minimax polynomial is the Newton-Schulz one to far beyond float64.
_NARROW = 1e-8


def _roots_of_derivative(row: list[Any]) -> list[Any]:
    """The positive zeros of p'(x), ascending, for p with the coefficients of x, x^3 (and x^5)."""
    import mpmath

    if len(row) == 2:
        return [mpmath.sqrt(-row[0] / (3 * row[1]))]
    a, b, c = row
    root = mpmath.sqrt(9 * b * b - 20 * a * c)
    return [mpmath.sqrt((-3 * b - root) / (10 * c)), mpmath.sqrt((-3 * b + root) / (10 * c))]


def _exchange(low: Any, high: Any, degree: int) -> list[Any]:
    """Remez exchange for min max |1 - p(x)| on [low, high]: the inner extremes of p are the new nodes."""
    import mpmath

    terms = (degree + 1) // 2
    inner = [low + (high - low) * (1 - mpmath.cos(mpmath.pi * j / terms)) / 2 for j in range(1, terms)]
    while True:
        nodes = [low, *inner, high]
        system = mpmath.matrix([[*(x ** (2 * i + 1) for i in range(terms)), (-1) ** j] for j, x in enumerate(nodes)])
        row = list(mpmath.lu_solve(system, mpmath.matrix([1] * (terms + 1))))[:terms]
        previous, inner = inner, _roots_of_derivative(row)
        if max(abs(x - y) for x, y in zip(inner, previous, strict=True)) < mpmath.mpf(10) ** (-_DIGITS // 2):
            return row


def _value(row: list[Any], x: Any) -> Any:
    return sum(coefficient * x ** (2 * i + 1) for i, coefficient in enumerate(row))


def _as_coefficients(row: list[Any]) -> Coefficients:
    a, b, c = (*(float(v) for v in row), 0.0)[:3]
    return a, b, c


def _check_degree(degree: int) -> None:
    if degree not in (3, 5):
        raise ValueError(f"degree must be 3 or 5, got {degree!r}")


def minimax_odd(low: float, high: float, degree: int = 5) -> Coefficients:
    """The odd polynomial that minimizes max |1 - p(x)| over [low, high].

    Args:
        low: lower end, positive.
        high: upper end, above `low`.
        degree: 3 or 5.

    Returns:
        (a, b, c) of p(x) = a x + b x^3 + c x^5, with c = 0 for degree 3.

    Raises:
        ValueError: an interval that is empty or reaches zero, or another degree.

    Example:
        >>> a, b, c = minimax_odd(0.1, 1.0, degree=3)
        >>> round(a, 4), round(b, 4), c
        (3.9634, -3.5706, 0.0)

    Source: Remez exchange; Amsel, Persson, Musco, Gower (arXiv 2505.16932), section 3; degree 3 has the closed form of
        Grishina, Smirnov, Rakhuba, CANS (arXiv 2506.10935), proposition 2.
    """
    import mpmath

    _check_degree(degree)
    if not 0.0 < low < high:
        raise ValueError(f"the interval must have 0 < low < high, got low={low!r}, high={high!r}")
    with mpmath.workdps(_DIGITS):
        return _as_coefficients(_exchange(mpmath.mpf(low), mpmath.mpf(high), degree))


@compile_constant
def composition(
    lower_bound: float, steps: int, *, degree: int = 5, cushion: float = CUSHION
) -> tuple[Coefficients, ...]:
    """The greedy composition: each polynomial is the minimax one on the interval that the previous one left.

    p_1 is the best on [lower_bound, 1]; if it maps that onto [1 - e, 1 + e], p_2 is the best there, and so on. With
    no cushion this is the best composition of so many polynomials of the degree. Generated once per argument set.

    Args:
        lower_bound: l in (0, 1), the lower end of the singular values at the start.
        steps: number of polynomials, at least 1.
        degree: 3 or 5.
        cushion: fit on [max(l, cushion * u), u] and recentre, so that the image stays symmetric about 1; 0 for none.

    Returns:
        `steps` rows (a, b, c). They tend to the Newton-Schulz polynomial of the degree.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> rows = composition(1e-3, 8)
        >>> round(rows[0][0], 6), rows[-1]
        (8.287212, (1.875, -1.25, 0.375))

    Source: Amsel, Persson, Musco, Gower (arXiv 2505.16932), theorem 3.1 and algorithm 1.
    """
    import mpmath

    _check_degree(degree)
    if not 0.0 < lower_bound < 1.0:
        raise ValueError(f"lower_bound must lie in (0, 1), got {lower_bound!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    if not 0.0 <= cushion < 1.0:
        raise ValueError(f"cushion must lie in [0, 1), got {cushion!r}")
    limit = QUINTIC[0] if degree == 5 else CUBIC[0]
    rows: list[Coefficients] = []
    with mpmath.workdps(_DIGITS):
        low, high = mpmath.mpf(lower_bound), mpmath.mpf(1)
        while len(rows) < steps:
            if high - low < 2 * _NARROW:
                rows.append(limit)
                continue
            row = _exchange(max(low, cushion * high), high, degree)
            values = [_value(row, x) for x in (low, high, *_roots_of_derivative(row)) if low <= x <= high]
            centre = (min(values) + max(values)) / 2
            rows.append(_as_coefficients([v / centre for v in row]))
            low, high = min(values) / centre, max(values) / centre
    return tuple(rows)


def with_safety(rows: tuple[Coefficients, ...], safety: float) -> tuple[Coefficients, ...]:
    """p(x) becomes p(x / safety) in every row that is not yet the limiting Newton-Schulz polynomial.

    The rows before it are steep just above their interval, so rounding past its end would be blown up; the limiting
    ones contract up to x = 1.5 and need no such guard.

    Example:
        >>> with_safety(((2.0, -1.0, 0.0), (1.5, -0.5, 0.0)), 2.0)
        ((1.0, -0.125, 0.0), (1.5, -0.5, 0.0))
    """
    limits = (*CUBIC, *QUINTIC)
    return tuple(row if row in limits else (row[0] / safety, row[1] / safety**3, row[2] / safety**5) for row in rows)
