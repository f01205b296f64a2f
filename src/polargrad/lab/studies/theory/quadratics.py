"""Strongly convex quadratics of a matrix, with every constant of the theorems known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polargrad.lab.matrix.quadratic import MatrixQuadratic

FAMILIES = ("regression", "one-sided", "dense", "adverse")
SPECTRA = ("geometric", "uniform", "two-point")


@dataclass(frozen=True)
class Quadratic:
    """f(X) = 1/2 <X - X*, H[X - X*]> + f*, in float64.

    Args:
        family: one of `FAMILIES`.
        smoothness: L, the largest eigenvalue of H.
        convexity: mu, the smallest.
        minimizer: X*, (m, n).
        start: X_0, (m, n).
        gradient: X -> H[X - X*], computed as the problem would (for a regression from its data A, B, C); X may be a
            batch (*batch, m, n).
        gap: X -> f(X) - f*, from X - X*, so that it is accurate down to the rounding of X; likewise.
        rank_tolerance: singular values of the gradient below this fraction of the largest count as zero.
    """

    family: str
    smoothness: float
    convexity: float
    minimizer: Tensor
    start: Tensor
    gradient: Callable[[Tensor], Tensor]
    gap: Callable[[Tensor], Tensor]
    rank_tolerance: float = 1e-14

    @property
    def kappa(self) -> float:
        """L / mu, the condition number of the Hessian."""
        return self.smoothness / self.convexity

    @property
    def floor(self) -> float:
        """Gaps below 10 eps m n L (||X*||_F^2 + ||X_0||_F^2) / 2 are rounding and are not compared with a bound."""
        scale = self.smoothness * float(self.minimizer.square().sum() + self.start.square().sum()) / 2.0
        return 10.0 * torch.finfo(torch.float64).eps * self.minimizer.numel() * scale


def random_quadratic(
    family: str,
    m: int,
    n: int,
    kappa: float,
    generator: torch.Generator,
    *,
    rank: int | None = None,
    spectrum: str = "geometric",
) -> Quadratic:
    """A quadratic with Hessian of condition number exactly kappa (up to rounding) and a random scale.

    "regression": 1/2 ||A X B - C||_F^2 with prescribed singular values of A and B, and C not attainable.
    "one-sided": 1/2 ||A X - C||_F^2 from an error of the given rank, which every gradient then keeps.
    "dense": a Hessian on vec(X) with prescribed eigenvalues and random eigenvectors.
    "adverse": eigenvectors E_ij and a start that makes one step almost as slow as the theorem allows.

    Args:
        family: one of `FAMILIES`.
        m: rows of X.
        n: columns of X.
        kappa: condition number of the Hessian, at least 1.
        generator: source of every random number.
        rank: of the first error, for "one-sided" and "adverse"; None is min(m, n).
        spectrum: one of `SPECTRA`, how the eigenvalues lie between mu and L.

    Raises:
        ValueError: an unknown family or spectrum, a size below 1, kappa below 1, or a rank outside [1, min(m, n)].

    Example:
        >>> q = random_quadratic("dense", 3, 2, 10.0, torch.Generator().manual_seed(0))
        >>> round(q.kappa, 6), tuple(q.start.shape)
        (10.0, (3, 2))
    """
    if family not in FAMILIES or spectrum not in SPECTRA:
        raise ValueError(
            f"family is {family!r} and spectrum {spectrum!r}; "
            f"give one of {', '.join(FAMILIES)} and one of {', '.join(SPECTRA)}"
        )
    if m < 1 or n < 1 or not 1.0 <= kappa < float("inf"):
        raise ValueError(f"m, n and kappa are {m}, {n} and {kappa}; each must be finite and at least 1")
    rank = min(m, n) if rank is None else rank
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank is {rank}; a {m} x {n} matrix has a rank between 1 and {min(m, n)}")
    scale = 10.0 ** (4.0 * torch.rand((), generator=generator).item() - 2.0)
    if family == "regression":
        return _regression(m, n, kappa, scale, spectrum, generator)
    if family == "one-sided":
        return _one_sided(m, n, kappa, scale, rank, spectrum, generator)
    if family == "dense":
        return _dense(m, n, kappa, scale, spectrum, generator)
    return _adverse(m, n, kappa, scale, rank, generator)


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _orthonormal(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(_normal(m, n, generator=generator))[0]


def _between(low: float, high: float, count: int, spectrum: str, generator: torch.Generator) -> Tensor:
    """`count` numbers from low to high, both among them wherever count >= 2."""
    if count == 1:
        return torch.tensor([high], dtype=torch.float64)
    t = torch.rand(count, dtype=torch.float64, generator=generator)
    t[0], t[1] = 0.0, 1.0
    if spectrum == "two-point":
        t = t.round()
    return low + (high - low) * t if spectrum == "uniform" else low * (high / low) ** t


def _with_singular_values(rows: int, values: Tensor, generator: torch.Generator) -> Tensor:
    k = len(values)
    return (_orthonormal(rows, k, generator) * values) @ _orthonormal(k, k, generator).mT


def _regression(m: int, n: int, kappa: float, scale: float, spectrum: str, generator: torch.Generator) -> Quadratic:
    # kappa(A)^2 kappa(B)^2 = kappa; a side with one column has condition number 1 and leaves all of it to the other.
    share = 0.5 if min(m, n) > 1 else float(m > 1)
    a = _between(kappa ** (-share / 2), 1.0, m, spectrum, generator) * scale**0.5
    b = _between(kappa ** (-(1 - share) / 2), 1.0, n, spectrum, generator)
    A = _with_singular_values(m + 3, a, generator)
    B = _with_singular_values(n + 2, b, generator).mT
    X_star, start = _normal(m, n, generator=generator), 2.0 * _normal(m, n, generator=generator)
    noise = scale**0.5 * _normal(m + 3, n + 2, generator=generator)
    outside = noise - A @ torch.linalg.pinv(A) @ noise
    problem = MatrixQuadratic(A, B, A @ X_star @ B + outside, start)
    return _of_problem("regression", problem, X_star, a.square(), b.square())


def _one_sided(
    m: int, n: int, kappa: float, scale: float, rank: int, spectrum: str, generator: torch.Generator
) -> Quadratic:
    a = _between(kappa**-0.5, 1.0, m, spectrum, generator) * scale**0.5
    A = _with_singular_values(m + 2, a, generator)
    X_star = _normal(m, n, generator=generator)
    start = X_star + _normal(m, rank, generator=generator) @ _orthonormal(n, rank, generator).mT
    problem = MatrixQuadratic(A, torch.eye(n, dtype=torch.float64), A @ X_star, start)
    # rounding of X puts singular values of about eps ||X|| where exact arithmetic has zeros
    return _of_problem("one-sided", problem, X_star, a.square(), torch.ones(1), rank_tolerance=1e-8)


def _of_problem(
    family: str, problem: MatrixQuadratic, minimizer: Tensor, left: Tensor, right: Tensor, **options: float
) -> Quadratic:
    """1/2 ||A X B - C||_F^2 with the eigenvalues of A^T A and B B^T, which are known beforehand."""
    return Quadratic(
        family=family,
        smoothness=float(left.max() * right.max()),
        convexity=float(left.min() * right.min()),
        minimizer=minimizer,
        start=problem.start["X"],
        gradient=problem.gradient,
        gap=lambda X: problem.excess(X - minimizer),
        **options,
    )


def _dense(m: int, n: int, kappa: float, scale: float, spectrum: str, generator: torch.Generator) -> Quadratic:
    values = scale * _between(1.0 / kappa, 1.0, m * n, spectrum, generator)
    W = _orthonormal(m * n, m * n, generator)
    H = (W * values) @ W.mT
    root = values.sqrt()[:, None] * W.mT
    X_star, start = _normal(m, n, generator=generator), 2.0 * _normal(m, n, generator=generator)
    return Quadratic(
        family="dense",
        smoothness=float(values.max()),
        convexity=float(values.min()),
        minimizer=X_star,
        start=start,
        gradient=lambda X: ((X - X_star).flatten(-2) @ H).reshape(X.shape),
        gap=lambda X: ((X - X_star).flatten(-2) @ root.mT).square().sum(-1) / 2,
    )


def _adverse(m: int, n: int, kappa: float, scale: float, rank: int, generator: torch.Generator) -> Quadratic:
    """H[E] = W * E entrywise; the gradient is a large entry where the curvature is mu, and tiny ones where it is L.

    Then nu is about ||G||_F although the rank is r, and the step meets the largest curvature in r - 1 of r directions:
    the first factor is 1 - (1 + 1/r) / (r kappa) up to smaller terms, against the theorem's 1 - 1 / (r kappa).
    """
    W = torch.full((m, n), scale, dtype=torch.float64)
    W[0, 0] = scale / kappa
    X_star = _normal(m, n, generator=generator)
    E = torch.zeros(m, n, dtype=torch.float64)
    E[range(1, rank), range(1, rank)] = 1e-6
    E[0, 0] = kappa
    return Quadratic(
        family="adverse",
        smoothness=scale,
        convexity=scale / kappa,
        minimizer=X_star,
        start=X_star + E,
        gradient=lambda X: W * (X - X_star),
        gap=lambda X: (W * (X - X_star).square()).sum((-2, -1)) / 2,
        rank_tolerance=1e-11,
    )
