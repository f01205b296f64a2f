"""PolarGrad on a quadratic beside its theorem: every step of the optimizer measured, every claim checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.geometry import inner
from polargrad.lab.studies.theory.guarantees import descent_factor
from polargrad.lab.studies.theory.quadratics import Quadratic
from polargrad.linalg import SVD, PolarMethod, polar_factor, residuals, resolve_method
from polargrad.optim import PolarGrad

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Oracle:
    """A polar method that computes U~ from G, and what it claims of U~.

    Args:
        name: in tables.
        method: the algorithm.
        claim: "exact": U~ is the partial isometry of G; "nuclear": <G, U~> is the nuclear norm; "function": U~ is some
            positive semidefinite function of G's singular values between its singular vectors, no more.
    """

    name: str
    method: PolarMethod
    claim: str

    def __post_init__(self) -> None:
        if self.claim not in ("exact", "nuclear", "function"):
            raise ValueError(f"claim is {self.claim!r}; give 'exact', 'nuclear' or 'function'")

    @property
    def eps(self) -> float:
        """The unit of U~'s error: roundoff of the method's arithmetic, or a converged method's class if coarser."""
        dtype = self.method.working_dtype(torch.float64)
        eps = torch.finfo(dtype).eps
        # 4 eps n is the class of a method that is accurate to rounding
        return eps if self.claim == "function" else max(eps, self.method.tolerance(dtype, 1) / 4.0)


def exact_oracle(tolerance: float) -> Oracle:
    """The partial isometry over the singular values above `tolerance` times the largest."""
    return Oracle("svd", SVD(cutoff=tolerance), "exact")


def oracle_of(method: str | PolarMethod, max_steps: int | None = None) -> Oracle:
    """A polar method as an oracle: run to convergence, or stopped after `max_steps`.

    Raises:
        ValueError: the method is unknown or takes no step limit.
    """
    chosen = resolve_method(method, max_steps)
    limited = max_steps is not None or getattr(chosen, "max_steps", None) is not None
    name = chosen.name if max_steps is None else f"{chosen.name}, {max_steps} steps"
    return Oracle(name, chosen, "function" if limited else "nuclear")


def polargrad_of(quadratic: Quadratic, X: torch.nn.Parameter, oracle: Oracle) -> torch.optim.Optimizer:
    """PolarGrad as the theorem has it: X <- X - gamma <G, U~> U~ with gamma = 1 / (L ||U~||_F^2)."""
    return PolarGrad(
        [X],
        lr=1.0,
        momentum=0.0,
        step_rule={"name": "smoothness", "smoothness": quadratic.smoothness},
        method=oracle.method,
    )


class Step(NamedTuple):
    """One step, and what was true of the gradient it was taken from.

    Attributes:
        gap: Delta_k before the step.
        factor: the theorem's bound on Delta_{k+1} / Delta_k, with the measured eps and delta.
        rank: r of the gradient.
        gradient_kappa: sigma_1 / sigma_r of the gradient.
        eps: 1 - <G, U~> / ||G||_nuc.
        delta: ||U~||_F / sqrt(r) - 1.
        cosine: <G, U~> / (||G||_F ||U~||_F).
        deviation: of the optimizer's step from gamma <G, U~> U~, in units of the rounding that is allowed.
        residuals: symmetry and definiteness of U~^T G in units of eps * dimension of the oracle's arithmetic, measured
            in steps 0, 1, 2, 4, 8, ...; else None
    """

    gap: float
    factor: float
    rank: int
    gradient_kappa: float
    eps: float
    delta: float
    cosine: float
    deviation: float
    residuals: tuple[float, float] | None


@dataclass
class Descent:
    """A run of PolarGrad on one quadratic with one oracle.

    Args:
        quadratic: what was minimized.
        oracle: the polar method, with its claim.
        steps: every step taken while the gap was above the floor of rounding.
        final: the gap after the last step.
    """

    quadratic: Quadratic
    oracle: Oracle
    steps: list[Step] = field(default_factory=list)
    final: float = float("nan")

    @property
    def gaps(self) -> list[float]:
        """Delta_0, ..., Delta_K."""
        return [step.gap for step in self.steps] + [self.final]

    @property
    def measured_rate(self) -> float:
        """Geometric mean of Delta_{k+1} / Delta_k."""
        return (max(self.final, 1e-300) / self.steps[0].gap) ** (1.0 / len(self.steps))

    @property
    def guaranteed_rate(self) -> float:
        """Geometric mean of the theorem's factors."""
        logs = torch.tensor([step.factor for step in self.steps], dtype=torch.float64).clamp_min(0.0).log()
        return float(logs.mean().exp())


def descend(
    quadratic: Quadratic,
    oracle: Oracle,
    steps: int,
    optimizer_of: Callable[[Quadratic, torch.nn.Parameter, Oracle], torch.optim.Optimizer] = polargrad_of,
) -> Descent:
    """Run PolarGrad with gamma = 1 / (L r (1 + delta)^2) until rounding or `steps`, and measure each step.

    Since r (1 + delta)^2 = ||U~||_F^2, the step needs no rank: gamma = 1 / (L ||U~||_F^2), and for an exact factor that
    is the theorem's 1 / (L r). U~ is computed once more beside the optimizer, to hold both to their claims.

    Args:
        quadratic: what is minimized.
        oracle: the polar method, and what it claims.
        steps: at most.
        optimizer_of: makes the optimizer that steps X.

    Returns:
        The run; a factor that is not finite ends it.
    """
    X = torch.nn.Parameter(quadratic.start.clone())
    optimizer = optimizer_of(quadratic, X, oracle)
    run = Descent(quadratic, oracle)
    gap = float(quadratic.gap(X.detach()))
    for k in range(steps):
        if gap <= quadratic.floor:
            break
        before = X.detach().clone()
        G = X.grad = quadratic.gradient(before)
        U = polar_factor(G, oracle.method)
        sigma = torch.linalg.svdvals(G)
        rank = int((sigma > quadratic.rank_tolerance * sigma[0]).sum())
        slope, size = float(inner(G, U)), float(U.square().sum())
        if not (size > 0.0 and size < float("inf")):
            run.final = float("nan")
            return run
        optimizer.step()
        move = slope / (quadratic.smoothness * size) * U
        rounding = 10.0 * (oracle.eps * min(G.shape) * float(move.norm()) + _EPS * float(before.norm()))
        eps, delta = 1.0 - slope / float(sigma.sum()), (size / rank) ** 0.5 - 1.0
        run.steps.append(
            Step(
                gap=gap,
                factor=descent_factor(quadratic.kappa, rank, eps=eps, delta=delta),
                rank=rank,
                gradient_kappa=float(sigma[0] / sigma[rank - 1]),
                eps=eps,
                delta=delta,
                cosine=slope / (float(sigma.square().sum()) * size) ** 0.5,
                deviation=float((X.detach() - before + move).norm()) / rounding,
                residuals=_residuals(G, U, oracle.eps) if k & (k - 1) == 0 else None,
            )
        )
        gap = float(quadratic.gap(X.detach()))
    run.final = gap
    return run


def _residuals(G: Tensor, U: Tensor, eps: float) -> tuple[float, float]:
    measured = residuals(G, U)
    return float(measured.symmetry) * _EPS / eps, float(measured.definiteness) * _EPS / eps


class Violation(NamedTuple):
    """A claim that did not hold: which, at which step, what was measured and what was allowed."""

    claim: str
    step: int
    measured: float
    allowed: float


class Check(NamedTuple):
    """How many comparisons were made, and those that failed."""

    comparisons: int
    violations: list[Violation]


# Ratios to eps * dimension above which U~ is not a function of its gradient's singular values. Correct factors stay
# below 1 in float64; a rotation by one hundredth gives about 1e12.
RESIDUAL_LIMIT = 100.0


def check(run: Descent) -> Check:
    """Compare a run with everything that the theorems and its oracle claim.

    - "step": PolarGrad moved X by -gamma <G, U~> U~ to rounding.
    - "rate": Delta_{k+1} <= factor_k Delta_k. "product": Delta_k <= prod factor_j Delta_0.
    - "exact rate", for exact oracles: the same with 1 - 1 / (r kappa) and 1 - 4 kappa_G / ((1 + kappa_G)^2 kappa).
    - "nuclear", "norm": eps and delta are rounding where claimed. "symmetry", "definiteness": of U~^T G.
    - "finite": every number of the run is finite.

    The rates alone cannot tell a wrong factor from a right one: X - gamma <G, U~> U~ descends along any U~ at all, and
    does not change with its sign. The claims about the oracle can.
    """
    failed: list[Violation] = []
    count = 0

    def require(claim: str, step: int, measured: float, allowed: float) -> None:
        nonlocal count
        count += 1
        if not measured <= allowed:
            failed.append(Violation(claim, step, measured, allowed))

    quadratic, gaps = run.quadratic, run.gaps
    unit = _EPS * quadratic.minimizer.numel()
    rounding = 10.0 * unit  # of Delta_{k+1} / Delta_k: where the bound is attained, its 1 - x cancels
    product = 1.0
    for k, step in enumerate(run.steps):
        after = gaps[k + 1]
        compared = not after <= quadratic.floor  # below it is rounding
        require("step", k, step.deviation, 1.0)
        product *= step.factor + rounding
        if compared:
            require("rate", k, after, (step.factor + rounding) * step.gap)
            require("product", k, after, product * gaps[0])
        dimension = min(quadratic.minimizer.shape)
        if run.oracle.claim == "exact":
            exact = descent_factor(quadratic.kappa, step.rank)
            if compared:
                require("exact rate", k, after, (exact + rounding) * step.gap)
                spread = (1.0 + step.gradient_kappa) ** 2 / (4.0 * step.gradient_kappa)
                by_gradient = descent_factor(quadratic.kappa, spread)
                require("exact rate", k, after, (by_gradient + rounding) * step.gap)
            require("norm", k, abs(step.delta), 10.0 * _EPS * dimension)
        if step.residuals is not None:
            require("symmetry", k, step.residuals[0], RESIDUAL_LIMIT)
            require("definiteness", k, step.residuals[1], RESIDUAL_LIMIT)
        if run.oracle.claim != "function":
            dropped = dimension * quadratic.rank_tolerance if run.oracle.claim == "exact" else 0.0
            require("nuclear", k, abs(step.eps), 10.0 * run.oracle.eps * dimension + dropped)
    require("finite", len(run.steps), 0.0 if run.final == run.final and run.steps else 1.0, 0.5)
    return Check(count, failed)
