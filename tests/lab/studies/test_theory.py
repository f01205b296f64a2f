"""The theory study: constants are what they claim, right factors pass, planted wrong ones are caught."""

import dataclasses
import json
import math
from typing import ClassVar

import pytest
import torch

from polargrad.geometry import Spectral
from polargrad.lab.report import figures as drawing
from polargrad.lab.studies.study import StudyFolder
from polargrad.lab.studies.theory import study
from polargrad.lab.studies.theory.consistency import OPTIMIZERS, response
from polargrad.lab.studies.theory.descent import Oracle, check, descend, exact_oracle, oracle_of, polargrad_of
from polargrad.lab.studies.theory.guarantees import (
    descent_factor,
    noise_floor,
    sign_descent_plateau,
    stochastic_rate,
)
from polargrad.lab.studies.theory.levels import NOISES, _sampler, floors, plateau, skewed_bias_gap
from polargrad.lab.studies.theory.page import figures
from polargrad.lab.studies.theory.quadratics import FAMILIES, random_quadratic
from polargrad.lab.studies.theory.study import draw_quadratic, step_counts, theory
from polargrad.linalg import QDWH, SVD, NewtonSchulz, PolarMethod, available_methods
from polargrad.linalg.method import METHODS
from polargrad.optim import PolarGrad

EPS = torch.finfo(torch.float64).eps


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _eigenvalues(quadratic):
    """Of the Hessian, from the gradient alone: column by column, since it is affine."""
    m, n = quadratic.minimizer.shape
    columns = []
    for k in range(m * n):
        E = torch.zeros(m * n, dtype=torch.float64)
        E[k] = 1.0
        columns.append((quadratic.gradient(E.reshape(m, n)) - quadratic.gradient(torch.zeros(m, n).double())).flatten())
    H = torch.stack(columns)
    return torch.linalg.eigvalsh((H + H.mT) / 2)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 1), (1, 4), (1, 1)])
@pytest.mark.parametrize("spectrum", ["geometric", "uniform", "two-point"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quadratic_has_the_constants_it_claims(family, spectrum, shape):
    q = random_quadratic(family, *shape, 50.0, _generator(), spectrum=spectrum)
    values = _eigenvalues(q)
    scale = 1e4 * EPS * q.smoothness
    assert values[-1] <= q.smoothness + scale
    assert values[0] >= q.convexity - scale
    if math.prod(shape) > 1 and not (family == "one-sided" and shape[0] == 1):
        assert values[0] == pytest.approx(q.convexity, rel=1e-6)
        assert values[-1] == pytest.approx(q.smoothness, rel=1e-6)
        assert q.kappa == pytest.approx(50.0, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_gap_and_vanishes_at_the_minimizer(family):
    q = random_quadratic(family, 5, 4, 20.0, _generator(1))
    X = q.start.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(q.gap(X), X)
    assert torch.linalg.matrix_norm(by_autograd - q.gradient(q.start)) <= 1e4 * EPS * torch.linalg.matrix_norm(
        by_autograd
    )
    assert torch.linalg.matrix_norm(q.gradient(q.minimizer)) <= 1e4 * EPS * torch.linalg.matrix_norm(by_autograd)
    assert float(q.gap(q.minimizer)) == 0.0


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("cubic", 3, 3, 2.0), {}),
        (("dense", 3, 3, 2.0), {"spectrum": "flat"}),
        (("dense", 0, 3, 2.0), {}),
        (("dense", 3, 3, 0.5), {}),
        (("dense", 3, 3, math.inf), {}),
        (("one-sided", 3, 2, 2.0), {"rank": 3}),
    ],
)
def test_an_impossible_quadratic_is_refused(arguments, options):
    with pytest.raises(ValueError, match=r"give one of|at least 1|a rank between"):
        random_quadratic(*arguments, _generator(), **options)


def test_no_violation_with_exact_and_inexact_factors():
    generator = _generator(3)
    oracles = [
        lambda: oracle_of("qdwh", 2),
        lambda: oracle_of("newton-schulz"),
        lambda: oracle_of(NewtonSchulz.cubic(4)),
    ]
    for index in range(24):
        quadratic, _ = draw_quadratic(index, generator)
        for oracle in (exact_oracle(quadratic.rank_tolerance), oracles[index % 3]()):
            found = check(descend(quadratic, oracle, 40))
            assert found.comparisons > 0
            assert not found.violations, (index, oracle.name, found.violations[:3])


@pytest.mark.parametrize("method", available_methods())
def test_no_violation_with_any_method_at_any_step_count(method):
    quadratic = random_quadratic("regression", 8, 6, 30.0, _generator(5))
    for limit in step_counts(method):
        found = check(descend(quadratic, oracle_of(method, limit), 6))
        assert not found.violations, (limit, found.violations[:3])


def _rotated(U):
    n = U.shape[-1]
    K = torch.randn(n, n, dtype=U.dtype, generator=_generator(9))
    return U @ torch.linalg.matrix_exp(0.01 * (K - K.mT) / torch.linalg.matrix_norm(K - K.mT, 2))


def _without_last_direction(U):
    P, sigma, Qh = torch.linalg.svd(U, full_matrices=False)
    sigma[..., -1] = 0.0
    return (P * sigma[..., None, :]) @ Qh


WRONG = {
    "wrong sign": lambda U: -U,
    "swapped columns": lambda U: U[..., [1, 0, *range(2, U.shape[-1])]],
    "rotated by 1%": _rotated,
    "longer by 1%": lambda U: 1.01 * U,
    "one direction lost": _without_last_direction,
    "one direction reversed": lambda U: 2 * _without_last_direction(U) - U,
    "one entry off by 1e-6": lambda U: U + 1e-6 * torch.eye(*U.shape[-2:], dtype=U.dtype)[:, [3, 5, 0, 1, 4, 2]],
    "not a number": lambda U: U * math.nan,
}


@dataclasses.dataclass(frozen=True)
class Planted(PolarMethod):
    """A polar method with an error in its factor, to be stepped by PolarGrad like any other."""

    name: ClassVar[str] = "planted"
    error: str = "wrong sign"
    limited: bool = False

    def iterate(self, X):
        result = (QDWH(max_steps=2) if self.limited else SVD(cutoff=1e-14)).iterate(X)
        return result._replace(unitary=WRONG[self.error](result.unitary))


@pytest.fixture
def planted(monkeypatch):
    """The method that is wrong, known to the optimizer for one test."""
    monkeypatch.setitem(METHODS, Planted.name, Planted)
    return Planted


@pytest.mark.parametrize("family", ["regression", "dense"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_factor_is_caught(wrong, family, planted):
    quadratic = random_quadratic(family, 8, 6, 30.0, _generator(5))
    assert not check(descend(quadratic, exact_oracle(quadratic.rank_tolerance), 20)).violations
    assert check(descend(quadratic, Oracle(wrong, planted(wrong), "exact"), 20)).violations


@pytest.mark.parametrize("wrong", ["wrong sign", "swapped columns", "rotated by 1%"])
def test_a_wrong_factor_is_caught_even_of_a_method_that_claims_little(wrong, planted):
    quadratic = random_quadratic("regression", 8, 6, 30.0, _generator(5))
    right = oracle_of("qdwh", 2)
    assert right.claim == "function"
    assert not check(descend(quadratic, right, 20)).violations
    run = descend(quadratic, Oracle(wrong, planted(wrong, limited=True), "function"), 20)
    assert {v.claim for v in check(run).violations} & {"symmetry", "definiteness"}


def test_convergence_alone_does_not_see_a_wrong_sign(planted):
    """-gamma <G, U> U is even in U: the run is the same to the last digit, only the factor's own residuals differ."""
    quadratic = random_quadratic("regression", 8, 6, 30.0, _generator(5))
    right = descend(quadratic, exact_oracle(1e-14), 20)
    wrong = descend(quadratic, Oracle("-svd", planted("wrong sign"), "function"), 20)
    assert wrong.gaps == right.gaps
    assert {v.claim for v in check(wrong).violations} == {"definiteness"}


WRONG_STEPS = {
    "1% too long": lambda q, X, oracle: _with_rate(polargrad_of(q, X, oracle), 1.01),
    "smoothness of another problem": lambda q, X, oracle: polargrad_of(
        dataclasses.replace(q, smoothness=2 * q.smoothness), X, oracle
    ),
    "another method": lambda q, X, oracle: polargrad_of(q, X, oracle_of("qdwh", 2)),
    "without the nuclear norm": lambda q, X, oracle: PolarGrad([X], lr=1e-3, momentum=0.0, scale="none", method="svd"),
    "with momentum": lambda q, X, oracle: PolarGrad([X], lr=1.0 / (6 * q.smoothness), momentum=0.9, method="svd"),
    "gradient descent": lambda q, X, oracle: torch.optim.SGD([X], lr=1.0 / q.smoothness),
    "no step": lambda q, X, oracle: torch.optim.SGD([X], lr=0.0),
}


def _with_rate(optimizer, lr):
    optimizer.param_groups[0]["lr"] = lr
    return optimizer


@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_wrong_step_of_the_optimizer_is_caught(wrong):
    """The theorem is checked on what the optimizer does, not on a formula beside it."""
    quadratic = random_quadratic("regression", 8, 6, 30.0, _generator(5))
    oracle = exact_oracle(quadratic.rank_tolerance)
    right = check(descend(quadratic, oracle, 10))
    claims = {v.claim for v in check(descend(quadratic, oracle, 10, WRONG_STEPS[wrong])).violations}
    assert not right.violations
    assert "step" in claims


def test_a_wrong_constant_is_caught():
    quadratic = random_quadratic("regression", 8, 6, 300.0, _generator(5))
    flattered = dataclasses.replace(quadratic, convexity=quadratic.smoothness)
    claims = {v.claim for v in check(descend(flattered, exact_oracle(1e-14), 40)).violations}
    assert {"rate", "exact rate", "product"} <= claims


def test_the_bound_is_nearly_attained():
    """1 - (1 + 1/r) / (r kappa) is reached, so no bound of the form 1 - c / (r kappa) with c > 1 + 1/r holds."""
    r, kappa = 10, 100.0
    run = descend(random_quadratic("adverse", 12, r, kappa, _generator(2)), exact_oracle(1e-11), 1)
    brought = (1.0 - run.final / run.gaps[0]) * r * kappa
    assert 1.0 <= brought <= 1.0 + 1.0 / r + 1e-3


def test_the_step_needs_no_rank():
    """r (1 + delta)^2 = ||U~||_F^2, for whichever r: factor and step do not depend on how the rank is counted."""
    quadratic = random_quadratic("one-sided", 8, 6, 30.0, _generator(5), rank=2)
    counted = descend(quadratic, exact_oracle(1e-8), 10)
    assert {step.rank for step in counted.steps} == {2}
    overcounted = dataclasses.replace(quadratic, rank_tolerance=0.0)
    for a, b in zip(counted.steps, descend(overcounted, exact_oracle(1e-8), 10).steps, strict=True):
        assert b.rank == 6
        assert b.factor == pytest.approx(a.factor, rel=1e-12)
        assert b.gap == pytest.approx(a.gap, rel=1e-12)


def test_the_range_of_steps_is_sharp():
    """On f = L ||X||_F^2 / 2 from X = I a step multiplies X by 1 - gamma L r: descent for gamma < 2 / (L r) alone."""
    L, r = 3.0, 4
    X = torch.eye(r, dtype=torch.float64)
    for factor, descends in ((1.99, True), (2.01, False)):
        after = X - factor / (L * r) * Spectral("svd").sharp(L * X)
        assert bool(after.square().sum() < X.square().sum()) is descends


def test_where_the_spectral_norm_beats_gradient_descent():
    """One entry of curvature L among entries of mu: <D, H D> <= L + (r - 1) mu for ||D||_2 <= 1, far below r L.

    With gamma = 1 / (L + (r - 1) mu) the factor is 1 - (nu / ||G||_F)^2 mu / (L + (r - 1) mu), up to r times the
    progress of gradient descent's 1 - mu / L; while the singular values of G are alike, most of it.
    """
    r, kappa = 8, 200.0
    W = torch.full((r, r), 1.0 / kappa, dtype=torch.float64)
    W[0, 0] = 1.0
    start = torch.randn(r, r, dtype=torch.float64, generator=_generator())
    start[0, 0] = 0.0
    geometry = Spectral("svd")

    def steps_to(fraction, move):
        X, target = start, fraction * float((W * start.square()).sum())
        for k in range(10_000):
            gap = float((W * X.square()).sum())
            if gap <= target:
                return k
            G = W * X
            X = X - move(G)
            after, nu = float((W * X.square()).sum()), float(geometry.dual_norm(G))
            if move is polar:
                promised = 1.0 - nu**2 / float(G.square().sum()) / kappa / (1.0 + (r - 1) / kappa)
                assert after <= promised * gap * (1 + 100 * EPS)
        return None

    def polar(G):
        return geometry.sharp(G) / (1.0 + (r - 1) / kappa)

    assert 2 * steps_to(0.1, polar) < steps_to(0.1, lambda G: G)
    assert steps_to(1e-4, polar) < steps_to(1e-4, lambda G: G)


def test_formulas():
    assert descent_factor(10.0, 2) == pytest.approx(0.95)
    assert descent_factor(10.0, 2, eps=0.5, delta=1.0) == pytest.approx(1 - 0.25 / 80)
    assert descent_factor(10.0, 2, eps=2.0) == 1.0  # a factor that points uphill promises nothing
    assert sign_descent_plateau(4.0, 1.0, 4, 0.1) == pytest.approx(16 * 0.01 * 16 / 8)
    assert sign_descent_plateau(1.0, 1.0, 1, 1.0) == 0.5  # not the fixed point 1/8
    assert noise_floor(2.0, 1.0, 1, 1e-6, 3.0) == pytest.approx(1e-6 * 2.0 * 3.0 / 2.0, rel=1e-4)
    assert stochastic_rate(2.0, 1.0, 2, 0.25) == pytest.approx(1 - 0.25 * 0.5)
    for step in (0.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="theorem holds"):
            noise_floor(2.0, 1.0, 2, step, 1.0)


def test_sign_descent_stalls_at_a_level_proportional_to_the_square_of_the_step():
    found = plateau(random_quadratic("regression", 6, 4, 10.0, _generator()), decades=2, per_decade=2, iterations=200)
    assert found.violations == 0
    assert found.slope == pytest.approx(2.0, abs=0.2)
    assert dataclasses.replace(found, bounds=[level / 2 for level in found.levels]).violations == len(found.levels)


def test_the_fixed_point_alone_is_no_bound():
    """0.9 gamma -> -0.1 gamma -> 0.9 gamma: the gap returns to 0.405 L gamma^2, above the fixed point L gamma^2 / 8."""
    q = random_quadratic("dense", 1, 1, 1.0, _generator(0))
    found = plateau(q, decades=1, per_decade=4, iterations=50)
    fixed_points = [q.smoothness * gamma**2 / 8 for gamma in found.steps]
    assert found.violations == 0
    assert any(level > point for level, point in zip(found.levels, fixed_points, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_null_gradient_consistency(optimizer):
    found = response(optimizer, _generator(), repeats=3)
    assert len(found.gradient_norms) == 13
    proportional = optimizer in ("gradient descent", "heavy ball") or optimizer.endswith("with dual norm")
    scaled = ("PolarGrad, scale nuclear", "PolarGrad, scale mean-singular")
    if proportional or optimizer in scaled:
        assert found.verdict == "yes"
    else:
        assert found.verdict == ("no" if optimizer == "Adam, eps 0" else "below eps")


def test_noise_has_mean_zero_and_the_variance_it_claims():
    for noise in NOISES:
        N = _sampler(noise, (4, 3), _generator())(200_000, 2.0)
        assert float(N.square().sum((1, 2)).mean()) == pytest.approx(4.0, rel=0.02)
        assert float(N.mean(0).abs().max()) < 0.02


def test_polar_factors_of_skewed_noise_are_biased():
    """The mean of nu U over (2, 0), (-1, 1), (-1, -1) is (-2/3, 0), where the noise's own is zero."""
    points = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    mean = Spectral("svd").sharp(torch.diag_embed(points)).mean(0)
    assert torch.allclose(mean, torch.diag(torch.tensor([-2.0 / 3.0, 0.0], dtype=torch.float64)), atol=10 * EPS)
    q = random_quadratic("adverse", 2, 2, 4.0, _generator())
    assert skewed_bias_gap(q, 1.0) == pytest.approx((4 / 9) * (3 / 8) / (2 * q.convexity))


def test_with_one_entry_polarsgd_is_sgd():
    q = random_quadratic("dense", 1, 1, 1.0, _generator())
    settings = [(0.5 / q.smoothness, 1.0)]
    polar, plain = (
        floors(q, "gaussian", settings, _generator(4), optimizer=name, horizon=50.0) for name in ("PolarSGD", "SGD")
    )
    assert polar.levels == pytest.approx(plain.levels, rel=1e-9)
    assert polar.violations == 0
    # stationary variance of x <- (1 - t) x - (t / L) N is t / ((2 - t) L^2) sigma^2, with t = gamma L = 1/2
    assert abs(polar.levels[0] - 0.5 / 1.5 / (2 * q.smoothness)) <= 5 * polar.errors[0]
    assert dataclasses.replace(polar, bounds=[polar.levels[0] / 10]).violations == 1


def test_noise_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="two rows and two columns"):
        floors(random_quadratic("dense", 1, 3, 2.0, _generator()), "skewed", [(0.1, 1.0)], _generator())


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="give one of"):
        floors(random_quadratic("dense", 2, 2, 2.0, _generator()), "pink", [(0.1, 1.0)], _generator())


def _records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_brief_study_writes_records_summary_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "save", lambda drawn, folder: [])
    monkeypatch.setattr(drawing, "inline_svg", lambda figure: f"<svg><title>{figure.key}</title></svg>")
    outcome = theory(tmp_path / "study", quadratics=4, steps=5, brief=True)
    assert outcome.ok
    kinds = {record["kind"] for record in _records(tmp_path / "study")}
    assert kinds == {"descent", "oracle", "plateau", "consistency", "noise", "bias"}
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert (summary["violations"], summary["quadratics"]) == (0, 4)
    page = outcome.page.read_text()
    assert all(f"<title>{key}</title>" in page for key in figures(_records(tmp_path / "study")))
    with pytest.raises(FileExistsError, match="give another"):
        theory(tmp_path / "study")


@pytest.mark.slow
def test_a_brief_study_draws_its_figures_and_asks_for_nothing_outside(tmp_path):
    outcome = theory(tmp_path / "study", quadratics=4, steps=5, brief=True)
    assert {path.suffix for path in (tmp_path / "study" / "figures").iterdir()} == {".svg", ".png"}
    page = outcome.page.read_text()
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_violation_is_counted_and_recorded(tmp_path, monkeypatch, planted):
    oracle = Oracle("planted", planted("wrong sign"), "exact")
    monkeypatch.setattr(study, "exact_oracle", lambda tolerance: oracle)
    tally = study.Tally()
    with StudyFolder(tmp_path / "study", "theory", {}) as folder:
        study.convergence(folder, tally, _generator(), quadratics=1, steps=3)
    violations = [record for record in _records(tmp_path / "study") if record["kind"] == "violation"]
    assert tally.violations == len(violations) > 0
    assert {record["oracle"] for record in violations} == {"planted"}


def test_a_study_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        theory(tmp_path / "study", quadratics=0)
    assert not (tmp_path / "study").exists()
