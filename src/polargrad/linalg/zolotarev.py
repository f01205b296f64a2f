"""Zolotarev's best rational approximations of the sign function, in the partial fractions that matrices need."""

from __future__ import annotations

import math
from typing import NamedTuple

from polargrad.linalg.compilation import compile_constant

__all__ = ["MAX_DEGREE", "Zolotarev", "zolotarev", "zolotarev_schedule"]

# Two steps of this degree take singular values from 1e-16 to 1 within double precision.
MAX_DEGREE = 8


class Zolotarev(NamedTuple):
    """The function Z(x) = scale * x (1 + sum_j weights[j] / (x^2 + shifts[j])), with Z(1) = 1.

    Attributes:
        scale: the factor that makes the maximum over [lower, 1] equal to 1.
        weights: positive, one for each shift.
        shifts: positive and ascending.
        lower: Z(lower bound), the minimum over [lower bound, 1].
    """

    scale: float
    weights: tuple[float, ...]
    shifts: tuple[float, ...]
    lower: float


@compile_constant
def zolotarev(lower: float, degree: int) -> Zolotarev:
    """The best approximation of 1 on [lower, 1] by odd rational functions of type (2 degree + 1, 2 degree), scaled.

    Z(x) ~ x prod_j (x^2 + c_{2j}) / (x^2 + c_{2j-1}),  c_i = lower^2 sn^2(u_i; k) / cn^2(u_i; k),
    u_i = i K(k) / (2 degree + 1), k^2 = 1 - lower^2. Degree 1 is the step of QDWH.

    Args:
        lower: lower end of the interval, in (0, 1).
        degree: number of partial fractions, 1 to 8.

    Returns:
        Zolotarev, computed with mpmath and rounded to float; kept for the next call.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> step = zolotarev(1e-7, 3)
        >>> len(step.shifts), round(step.lower, 4)
        (3, 0.3195)

    Source: Nakatsukasa and Freund, SIAM Review 58 (2016), equations (3.5) to (3.9).
    """
    import mpmath  # slow to import, and needed here alone

    if not 0.0 < lower < 1.0:
        raise ValueError(f"lower must lie in (0, 1), got {lower!r}")
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 1 to {MAX_DEGREE}, got {degree!r}")
    # 1 - lower^2 must keep what it differs from 1 by.
    with mpmath.workdps(40 + 2 * math.ceil(-math.log10(lower))):
        l = mpmath.mpf(lower)
        m = 1 - l**2
        quarter = mpmath.ellipk(m) / (2 * degree + 1)
        c = []
        for i in range(1, 2 * degree + 1):
            sn, cn = (mpmath.ellipfun(name, i * quarter, m=m) for name in ("sn", "cn"))
            c.append((l * sn / cn) ** 2)
        poles, zeros = c[0::2], c[1::2]
        scale = mpmath.fprod((1 + p) / (1 + z) for p, z in zip(poles, zeros, strict=True))
        weights = [mpmath.fprod(z - p for z in zeros) / mpmath.fprod(q - p for q in poles if q is not p) for p in poles]
        least = scale * l * (1 + mpmath.fsum(w / (l**2 + p) for w, p in zip(weights, poles, strict=True)))
        return Zolotarev(float(scale), tuple(map(float, weights)), tuple(map(float, poles)), float(least))


def zolotarev_schedule(lower: float, deviation: float, degree: int | None = None) -> tuple[Zolotarev, ...]:
    """The steps after which singular values from [lower, 1] lie in [1 - deviation, 1].

    With `degree` None the smallest degree with two steps is taken, or one step where that suffices; were eight not
    enough, steps of degree eight until it is reached. The composition of the steps is itself Zolotarev's function of
    the product of their types, so that two steps of degree 8 are as good as one of type (289, 288).

    Example:
        >>> [len(step.shifts) for step in zolotarev_schedule(1e-16, 1e-15)], len(zolotarev_schedule(1e-16, 1e-15, 1))
        ([8, 8], 6)

    Source: Nakatsukasa and Freund (2016), theorem 3 and table 3.1.
    """
    if degree is None:
        for r in range(1, MAX_DEGREE):
            steps = zolotarev_schedule(lower, deviation, r)
            if len(steps) <= 2:
                return steps
        degree = MAX_DEGREE
    steps = []
    while 1.0 - lower > deviation:
        step = zolotarev(lower, degree)
        steps.append(step)
        lower = min(step.lower, 1.0 - 2.0**-53)
    return tuple(steps)
