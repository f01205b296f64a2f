"""The unifying view, measured: the best step is the best, and every optimizer is what the table says."""

import json
import math

import pytest
import torch

from polargrad.geometry import inner
from polargrad.geometry.preconditioners import Diagonal, identity
from polargrad.lab.studies.preconditioning.best_step import _NORMS, Ball, best_descent, project
from polargrad.lab.studies.preconditioning.measure import hessian, measure, regression
from polargrad.lab.studies.preconditioning.study import preconditioning
from polargrad.lab.studies.preconditioning.views import VIEWS

EPS = torch.finfo(torch.float64).eps
SMALL = regression(0, p=12, m=6, n=4, q=9)
HESSIAN = hessian(SMALL)


def _gradient(problem):
    return problem.gradient(problem.start["X"])


def test_the_hessian_is_that_of_the_regression():
    D = torch.randn(6, 4, dtype=torch.float64)
    change = SMALL.gradient(SMALL.start["X"] + D) - _gradient(SMALL)
    assert torch.allclose(HESSIAN.apply(D), change, rtol=1e-9)
    values = torch.linalg.eigvalsh(HESSIAN.matrix())
    assert SMALL.condition_number == pytest.approx(float(values[-1] / values[0]), rel=1e-9)


def test_the_regression_is_the_papers_at_a_tenth_of_its_size():
    problem = regression()
    assert (problem.A.shape, problem.B.shape, problem.C.shape) == ((100, 50), (10, 25), (100, 25))
    assert problem.condition_number == pytest.approx(270, abs=0.5)  # as docs/unifying-view.md has it


def test_a_singular_regression_is_refused():
    with pytest.raises(ValueError, match="Hessian is regular"):
        regression(p=3, m=5)


@pytest.mark.parametrize("shape", _NORMS)
def test_projection_is_the_nearest_point_of_the_ball(shape):
    X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Y = project(X, shape, 0.7)
    ball = Ball(shape)
    assert ball.norm(Y) <= 0.7 * (1 + 100 * EPS)
    assert torch.allclose(project(Y, shape, 0.7), Y, atol=100 * EPS)
    # X - Y lies in the normal cone: <X - Y, Z> <= <X - Y, Y> for Z in the ball, whose maximum is 0.7 ||X - Y||_*
    assert 0.7 * float(ball.geometry.dual_norm(X - Y)) == pytest.approx(float(inner(X - Y, Y)), rel=1e-9)
    assert torch.equal(project(0.01 * X, shape, 70.0), 0.01 * X) or shape == "spectral"


@pytest.mark.parametrize("shape", _NORMS)
def test_a_long_step_reaches_the_minimum_and_a_short_one_follows_the_gradient(shape):
    G, ball = _gradient(SMALL), Ball(shape)
    whole = SMALL.gap(SMALL.start)
    assert best_descent(HESSIAN, G, ball, 1e3, tolerance=1e-6) == pytest.approx(whole, rel=1e-5)
    tiny = 1e-6
    first_order = tiny * float(ball.geometry.dual_norm(G))
    assert best_descent(HESSIAN, G, ball, tiny) == pytest.approx(first_order, rel=1e-3)
    middle = best_descent(HESSIAN, G, ball, 0.1)
    assert first_order < middle < whole


def test_two_ways_to_the_best_step_of_the_frobenius_norm_agree():
    G = _gradient(SMALL)
    for radius in (0.01, 0.3, 1.0, 100.0):
        by_projection = best_descent(HESSIAN, G, Ball("frobenius"), radius, tolerance=1e-8)
        by_eigenvectors = best_descent(HESSIAN, G, Ball("ellipsoid", identity(G)), radius)
        assert by_projection == pytest.approx(by_eigenvectors, rel=1e-6)


def test_a_ball_that_is_none_is_refused():
    for arguments in (("cube",), ("ellipsoid",), ("spectral", Diagonal(torch.ones(2, 2)))):
        with pytest.raises(ValueError, match="give one of"):
            Ball(*arguments)


@pytest.mark.parametrize("optimizer", VIEWS)
def test_no_optimizer_beats_the_best_step_and_every_one_descends(optimizer):
    course = measure(SMALL, optimizer, (0, 2, 5))
    assert all(after <= before for before, after in zip(course.gaps, course.gaps[1:], strict=False))
    for measurement in course.measurements:
        assert 0.0 <= measurement.efficiency <= 1.0 + 2e-3
        assert 0.0 <= measurement.share <= 1.0 + 1e-9
    assert course.measurements[0].descent > 0.0


def test_what_the_table_promises():
    first = {name: measure(SMALL, name, (0,)).measurements[0] for name in VIEWS}
    assert first["PolarGrad"].direction_kappa == pytest.approx(1.0, rel=1e-9)
    assert first["one-sided polar"].direction_kappa == pytest.approx(1.0, rel=1e-3)
    assert first["Muon"].direction_kappa < 2.0
    assert first["gradient descent"].direction_kappa == first["gradient descent"].gradient_kappa
    assert first["Newton"].preconditioned_kappa == pytest.approx(1.0, rel=1e-9)
    assert first["Newton"].efficiency == pytest.approx(1.0, rel=1e-9)
    assert first["K-FAC"].preconditioned_kappa < SMALL.condition_number
    # without memory Shampoo is polar and Adam is sign descent
    assert first["Shampoo"].descent == pytest.approx(first["PolarGrad"].descent, rel=1e-2)
    assert first["Adam"].descent == pytest.approx(first["sign descent"].descent, rel=1e-6)
    assert first["AdaGrad, full"].descent == pytest.approx(first["gradient descent"].descent, rel=1e-3)


def test_newton_ends_in_one_step_and_gradient_descent_does_not():
    assert measure(SMALL, "Newton", (0, 3)).steps_to(1e-12) == 1
    assert measure(SMALL, "gradient descent", (0, 3)).steps_to(1e-12) is None


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unifying view knows"):
        measure(SMALL, "adamw", (0,))


def test_the_study_writes_its_folder(tmp_path):
    outcome = preconditioning(tmp_path / "study", at=(0, 1), problem=SMALL)
    records = [json.loads(line) for line in (tmp_path / "study" / "records.jsonl").read_text().splitlines()]
    assert {r["optimizer"] for r in records if r["kind"] == "measurement"} == set(VIEWS)
    assert all(r["efficiency"] is None or math.isfinite(r["efficiency"]) for r in records if r["kind"] == "measurement")
    assert (tmp_path / "study" / "figures" / "unifying-view.svg").is_file()
    assert (tmp_path / "study" / "figures" / "unifying-view.png").is_file()
    assert "PolarGrad" in outcome.page.read_text()
    with pytest.raises(FileExistsError, match="give another"):
        preconditioning(tmp_path / "study")
    with pytest.raises(ValueError, match="at least one iterate"):
        preconditioning(tmp_path / "other", at=())
