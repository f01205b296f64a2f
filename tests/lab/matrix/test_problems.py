"""Every matrix problem against its own mathematics: gradient, optimum, curvature, Newton's direction, and bad data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from polargrad.diagnostics.metrics import matrix_metrics
from polargrad.lab.matrix import (
    AlternatingGradientDescent,
    AlternatingNewton,
    MatrixCompletion,
    MatrixLogistic,
    MatrixQuadratic,
    MultinomialRegression,
    MultiResponseRegression,
    NonnegativeFactorization,
    OrthogonalProcrustes,
    Problem,
    ProblemObjective,
    SoftplusFactorization,
)
from tests.assertions import assert_close

NAN = torch.full((2, 2), math.nan)
SMALL: dict[str, Callable[[int], Problem]] = {
    "quadratic": lambda seed: MatrixQuadratic.draw(seed, rows=12, m=6, n=4, columns=9),
    "logistic": lambda seed: MatrixLogistic.draw(seed, rows=200, m=5, n=3, columns=8, batch=20),
    "completion": lambda seed: MatrixCompletion.draw(seed, rows=14, columns=11, rank=2, observed=0.6),
    "regression": lambda seed: MultiResponseRegression.draw(seed, rows=30, features=6, responses=4, condition=50.0),
    "multinomial": lambda seed: MultinomialRegression.draw(seed, rows=80, features=5, classes=3),
    "nonnegative": lambda seed: NonnegativeFactorization.draw(seed, rows=9, columns=7, rank=3),
    "softplus": lambda seed: SoftplusFactorization.draw(seed, rows=9, columns=7, rank=3),
    "procrustes": lambda seed: OrthogonalProcrustes.draw(seed, rows=20, n=5),
}
WITH_MINIMUM = ("quadratic", "logistic", "regression", "multinomial", "procrustes")
SMOOTH = ("quadratic", "logistic", "regression", "multinomial")


@pytest.fixture(params=SMALL)
def problem(request) -> Problem:
    return SMALL[request.param](3)


def _near(problem: Problem, seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        key: value.double() + size * torch.randn(value.shape, generator=draw, dtype=torch.float64)
        for key, value in problem.start.items()
    }


def test_the_gradient_is_the_slope(problem):
    wide, point, direction = problem.float64, _near(problem, 1, 0.1), _near(problem, 2)
    step = 1e-5
    up = {key: value + step * direction[key] for key, value in point.items()}
    down = {key: value - step * direction[key] for key, value in point.items()}
    slope = float(wide.value(up) - wide.value(down)) / (2 * step)
    gradients = wide.gradients(point)
    assert slope == pytest.approx(sum(float((g * direction[key]).sum()) for key, g in gradients.items()), rel=1e-6)


def test_the_same_seed_draws_the_same_problem_and_another_seed_another(problem):
    make = next(make for make in SMALL.values() if type(make(3)) is type(problem))
    first, again, other = make(3), make(3), make(4)
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name))
    assert not all(torch.equal(first.start[name], other.start[name]) for name in first.start)


@pytest.mark.parametrize("name", WITH_MINIMUM)
def test_no_point_lies_below_the_minimum(name):
    problem = SMALL[name](5)
    assert problem.gap(problem.start) > 0
    for seed in range(8):
        point = _near(problem, seed, 0.3)
        if problem.constrained:
            problem.project(point)
        assert problem.gap(point) > 0


@pytest.mark.parametrize("name", ["quadratic", "regression", "procrustes"])
def test_the_solution_has_no_gap_and_the_gap_is_the_difference_of_values(name):
    problem = SMALL[name](5)
    assert problem.gap({"X": problem.solution}) == pytest.approx(0.0, abs=1e-12)
    difference = float(problem.float64.value({"X": problem.start["X"].double()})) - problem.minimum
    assert problem.gap(problem.start) == pytest.approx(difference, rel=1e-10)


@pytest.mark.parametrize("name", ["logistic", "multinomial"])
def test_the_gradient_vanishes_at_a_minimum_that_is_found(name):
    problem = SMALL[name](5)
    wide = problem.float64
    X = torch.zeros_like(wide.start["X"]).requires_grad_()
    solver = torch.optim.LBFGS([X], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = wide.value({"X": X})
        loss.backward()
        return loss

    solver.step(closure)
    assert problem.gap({"X": X.detach()}) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_smoothness_and_strong_convexity_bracket_the_curvature(name):
    problem = SMALL[name](7)
    wide = problem.float64
    for seed in range(6):
        x, y = _near(problem, seed), _near(problem, seed + 50, 0.5)
        difference = x["X"] - y["X"]
        change = wide.gradients(x)["X"] - wide.gradients(y)["X"]
        ratio = float((change * difference).sum() / difference.square().sum())
        assert ratio <= problem.smoothness * (1 + 1e-10)
        if problem.strong_convexity is not None:
            assert ratio >= problem.strong_convexity * (1 - 1e-10)


def test_the_hessian_of_the_quadratic_has_the_condition_number_of_its_factors():
    problem = SMALL["quadratic"](1)
    kappa = [matrix_metrics(M)["condition_number"] for M in (problem.A, problem.B)]
    assert problem.condition_number == pytest.approx(kappa[0] ** 2 * kappa[1] ** 2, rel=1e-9)
    hessian = torch.autograd.functional.hessian(
        lambda X: problem.float64.value({"X": X}), problem.start["X"].double()
    ).reshape(24, 24)
    extremes = torch.linalg.eigvalsh(hessian)[[0, -1]].tolist()
    assert extremes == pytest.approx([problem.strong_convexity, problem.smoothness], rel=1e-9)


def test_a_rank_deficient_quadratic_says_so():
    wide = MatrixQuadratic.draw(0, rows=3, m=5, n=2, columns=4)
    assert wide.strong_convexity == 0.0
    assert wide.condition_number is None
    assert wide.gap({"X": wide.solution}) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="rank-deficient"):
        wide.newton_direction("X", wide.start["X"], wide.start)


def test_the_step_of_the_quadratic_differentiates_the_same_function():
    problem = SMALL["quadratic"](2)
    point = _near(problem, 0)
    assert_close(problem.float64.step_value(point, 0), problem.float64.value(point), dimension=50)
    assert_close(problem.float64.gradients(point, 0)["X"], problem.float64.gradients(point)["X"], dimension=50)


def test_the_gradient_and_the_excess_of_the_quadratic_are_written_out_for_batches():
    problem = SMALL["quadratic"](2).float64
    points = torch.stack([_near(problem, seed)["X"] for seed in range(3)])
    by_autograd = torch.stack([problem.gradients({"X": X})["X"] for X in points])
    assert_close(problem.gradient(points), by_autograd, dimension=50)
    gaps = torch.tensor([problem.gap({"X": X}) for X in points], dtype=torch.float64)
    assert_close(problem.excess(points - problem.solution), gaps, dimension=50)


@pytest.mark.parametrize("name", ["quadratic", "regression"])
def test_newtons_direction_reaches_the_minimum_in_one_step(name):
    problem = SMALL[name](2).float64
    G = problem.gradients(problem.start)["X"]
    X = problem.start["X"] - problem.newton_direction("X", G, problem.start)
    assert problem.gap({"X": X}) < 1e-18 * problem.gap(problem.start) + 1e-20


def test_an_alternating_newton_step_is_least_squares_in_each_factor():
    problem = SMALL["completion"](2).float64
    point = dict(problem.start)
    for name in point:
        G = problem.gradients(point)[name]
        point[name] = point[name] - problem.newton_direction(name, G, point)
        assert float(problem.gradients(point)[name].norm()) < 1e-12


def test_a_problem_without_structure_has_no_newton_direction():
    problem = SMALL["logistic"](0)
    with pytest.raises(ValueError, match="logistic"):
        problem.newton_direction("X", problem.start["X"], problem.start)


def test_data_in_another_dtype_leaves_the_problem_and_forgets_what_was_computed():
    problem = SMALL["quadratic"](2)
    half = problem.minimum
    wide = problem.to(torch.float64)
    assert (problem.A.dtype, wide.A.dtype, wide.start["X"].dtype) == (torch.float32, torch.float64, torch.float64)
    wide.C = wide.C + 1.0
    assert wide.minimum != half


def test_projections_are_feasible_and_idempotent():
    factors, orthogonal = SMALL["nonnegative"](0), SMALL["procrustes"](0)
    point = {key: torch.randn_like(value) for key, value in factors.start.items()}
    factors.project(point)
    assert all(bool((value >= 0).all()) for value in point.values())
    X = {"X": torch.randn(5, 5)}
    orthogonal.project(X)
    assert_close(X["X"].mT @ X["X"], torch.eye(5))
    assert float(orthogonal.value({"X": orthogonal.solution.float()})) == pytest.approx(orthogonal.minimum, rel=1e-5)


def test_completion_sees_the_observed_entries_alone():
    M, mask = torch.randn(4, 3), torch.ones(4, 3, dtype=torch.bool)
    mask[1, 1] = False
    hidden = M.clone()
    hidden[1, 1] = math.nan
    X, Y = torch.randn(4, 2), torch.randn(3, 2)
    values = [MatrixCompletion(data, mask, X, Y).value({"X": X, "Y": Y}) for data in (M, hidden)]
    assert torch.equal(*values)
    assert MatrixCompletion(M, mask, X, Y).minimum is None


def test_held_out_entries_measure_what_was_not_observed():
    M, mask = torch.eye(2), torch.tensor([[True, True], [True, False]])
    problem = MatrixCompletion(M, mask, torch.zeros(2, 1), torch.zeros(2, 1), held_out=~mask)
    assert problem.metrics(problem.start) == {"held_out_rmse": 1.0}


def test_the_objective_evaluates_gap_and_now_and_then_the_residual():
    objective = ProblemObjective(SMALL["quadratic"](0), residual_every=2)
    seen = [set(objective.evaluate()) for _ in range(3)]
    assert seen == [{"gap", "residual_condition_number"}, {"gap"}, {"gap", "residual_condition_number"}]
    objective.loss(0).backward()
    assert objective.module.X.grad.shape == (6, 4)


def test_the_objective_leaves_the_initial_point_alone():
    problem = SMALL["quadratic"](0)
    before = problem.start["X"].clone()
    with torch.no_grad():
        ProblemObjective(problem).module.X.add_(1.0)
    assert torch.equal(problem.start["X"], before)


def test_alternating_descent_uses_the_point_that_the_first_step_reached():
    problem = SMALL["completion"](1)
    objective = ProblemObjective(problem)
    parameters = dict(objective.module.named_parameters())
    objective.loss(0).backward()
    optimizer = AlternatingGradientDescent(problem, parameters, lr=0.5)
    optimizer.step()
    X = problem.start["X"] - 0.5 * problem.gradients(problem.start)["X"]
    Y = problem.start["Y"] - 0.5 * problem.gradients({"X": X, "Y": problem.start["Y"]})["Y"]
    assert_close(parameters["X"], X)
    assert_close(parameters["Y"], Y)
    simultaneous = problem.start["Y"] - 0.5 * problem.gradients(problem.start)["Y"]
    assert not torch.allclose(parameters["Y"], simultaneous)


def test_newton_converges_at_once_and_says_what_it_misses():
    problem = SMALL["regression"](1)
    objective = ProblemObjective(problem)
    parameters = dict(objective.module.named_parameters())
    optimizer = AlternatingNewton(problem, parameters, lr=1.0)
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step()

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective.evaluate()["gap"] < 1e-9
    with pytest.raises(ValueError, match="lr"):
        AlternatingNewton(problem, parameters, lr=-1.0)
    with pytest.raises(ValueError, match="matrices"):
        AlternatingNewton(problem, {"Z": parameters["X"]}, lr=1.0)


EYE = torch.eye(2)
SEEN = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MatrixQuadratic.draw(0, rows=0), ValueError, "rows must be an integer of at least 1; got 0"),
        (lambda: MatrixQuadratic.draw(0, n=2.5), ValueError, "n must be an integer"),
        (lambda: MatrixQuadratic.draw(-1), ValueError, "seed"),
        (lambda: MatrixQuadratic(EYE, EYE, torch.ones(3, 2), EYE), ValueError, "C has shape"),
        (lambda: MatrixQuadratic(EYE, EYE, EYE, torch.ones(2, 3)), ValueError, "X has shape"),
        (lambda: MatrixQuadratic(NAN, EYE, EYE, EYE), ValueError, "A holds 4 entries that are NaN"),
        (lambda: MatrixQuadratic(EYE, EYE, EYE, EYE / 0.0), ValueError, "X holds 4 entries"),
        (lambda: MatrixQuadratic(EYE.int(), EYE, EYE, EYE), TypeError, "A must be a real floating-point"),
        (lambda: MatrixQuadratic(torch.ones(2), EYE, EYE, EYE), ValueError, "must be a matrix"),
        (lambda: MatrixQuadratic([[1.0]], EYE, EYE, EYE), TypeError, "got list"),
        (lambda: MatrixLogistic(EYE, EYE, EYE, EYE), ValueError, "labels -1 and 1"),
        (lambda: MatrixLogistic.draw(0, batch=0), ValueError, "batch"),
        (lambda: MatrixCompletion.draw(0, rows=10, columns=4, rank=5), ValueError, "rank 5 is above 4"),
        (lambda: MatrixCompletion.draw(0, observed=0.0), ValueError, "observed must be a finite number above 0"),
        (lambda: MatrixCompletion.draw(0, rows=2, columns=2, rank=1, observed=1e-9), ValueError, "selects no entry"),
        (lambda: MatrixCompletion(EYE, ~SEEN, EYE, EYE), ValueError, "selects no entry"),
        (lambda: MatrixCompletion(NAN, SEEN, EYE, EYE), ValueError, "M holds 4 entries"),
        (lambda: MatrixCompletion(EYE, EYE, EYE, EYE), TypeError, "mask must be bool"),
        (lambda: MatrixCompletion(EYE, SEEN[:1], EYE, EYE), ValueError, "must be the same"),
        (lambda: MatrixCompletion(EYE, SEEN, EYE, EYE, held_out=SEEN), ValueError, "4 entries are both"),
        (lambda: MatrixCompletion(EYE, SEEN, EYE, EYE[:1]), ValueError, "Y has shape"),
        (lambda: MultiResponseRegression.draw(0, condition=0.5), ValueError, "condition"),
        (lambda: MultiResponseRegression(EYE, EYE, EYE, ridge=-1.0), ValueError, "ridge"),
        (lambda: MultinomialRegression(EYE, torch.tensor([0, 2]), EYE), ValueError, "labels run from 0 to 2"),
        (lambda: MultinomialRegression(EYE, torch.tensor([0.0, 1.0]), EYE), TypeError, "int64"),
        (lambda: MultinomialRegression(EYE, torch.tensor([0]), EYE), ValueError, "one for each row"),
        (lambda: MultinomialRegression(EYE, torch.tensor([0, 1]), EYE, ridge=0.0), ValueError, "above 0"),
        (lambda: NonnegativeFactorization(-EYE, EYE, EYE), ValueError, "M has negative"),
        (lambda: NonnegativeFactorization(EYE, -EYE, EYE), ValueError, "X has negative"),
        (lambda: SoftplusFactorization(-EYE, EYE, EYE), ValueError, "M has negative"),
        (lambda: NonnegativeFactorization.draw(0, rows=3, columns=3, rank=4), ValueError, "rank 4"),
        (lambda: OrthogonalProcrustes(EYE, EYE, 2 * EYE), ValueError, "not orthogonal"),
        (lambda: OrthogonalProcrustes(EYE, EYE[:1], EYE), ValueError, "B has shape"),
    ],
)
def test_bad_data_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_separable_labels_have_no_optimum():
    problem = MatrixLogistic(torch.eye(3), torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3), batch=None)
    with pytest.raises(ValueError, match="separable"):
        _ = problem.minimum
