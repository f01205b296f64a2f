"""The problems beyond the paper: every one by name, optimizers that get somewhere, real data, jobs side by side."""

from __future__ import annotations

import pytest
import torch

from polargrad.lab.cli.main import main
from polargrad.lab.matrix import (
    PROBLEMS,
    MultinomialRegression,
    MultiplicativeUpdates,
    MultiResponseRegression,
    NonnegativeFactorization,
    OrthogonalProcrustes,
    PictureCompletion,
    ProblemObjective,
    RatingsCompletion,
    SoftplusFactorization,
)
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.studies.matrix.experiments import ExperimentOptions, report, run_experiment
from polargrad.lab.studies.matrix.page import results

DRAWN = ("regression", "multinomial", "nonnegative", "nonnegative-softplus", "procrustes")


@pytest.fixture
def ratings_file(tmp_path):
    """Sixty of ninety ratings by twelve users."""
    lines = [f"{i},{j},{(i * j) % 5 + 1}" for i in range(12) for j in range(9) if (i + j) % 3]
    file = tmp_path / "ratings.csv"
    file.write_text("user,item,rating\n" + "\n".join(lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "name", [name if name == "regression" else pytest.param(name, marks=pytest.mark.slow) for name in DRAWN]
)
def test_every_optimizer_descends_at_a_small_size(name, tmp_path):
    options = ExperimentOptions(size="small", steps=150, diagnostics_every=0)
    runs, page = run_experiment(PROBLEMS[name], tmp_path / "out", options)
    assert {"polargrad", "polargradm", "muon-ns", "adam"} < {run.spec.recipe for run in runs}
    for run in runs:
        gaps = [record["gap"] for record in run.of_kind("eval")]
        assert run.status == "finished", run.spec.name
        assert gaps[-1] < 0.5 * gaps[0], run.spec.name
        assert RunSpec.from_json(run.spec.to_json()) == run.spec
    assert PROBLEMS[name].experiment.title in page.read_text(encoding="utf-8")
    assert results(runs).rows[0][2] in report(runs, tmp_path / "again.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "spec",
    [
        MultiResponseRegression.spec(rows=400, features=60, responses=10),
        MultinomialRegression.spec(rows=500, features=30, classes=6),
        OrthogonalProcrustes.spec(rows=120, n=20),
    ],
)
def test_step_sizes_follow_one_over_the_smoothness_and_the_rank(spec):
    problem = spec.build(3)
    L, r = spec.expected_curvature
    assert pytest.approx(1.0 / problem.smoothness, rel=0.25) == 1.0 / L
    assert r == min(problem.start["X"].shape)
    scales = {}
    for name, options in (("full", ExperimentOptions()), ("spec", ExperimentOptions(settings=_texts(spec)))):
        runs = options.specs(spec.problem)
        scales[name] = {run.recipe: run.learning_rates["matrix"] for run in runs}
    L_full, r_full = spec.problem.spec().expected_curvature
    ratio = {key: scales["spec"][key] / scales["full"][key] for key in scales["full"]}
    descent = "projected-gd" if "projected-gd" in ratio else "gd"
    assert ratio["polargrad"] == pytest.approx(L_full * r_full / (L * r))
    assert ratio[descent] == pytest.approx(L_full / L)
    assert ratio["adam"] == ratio["muon-ns"] == 1.0


def _texts(spec):
    return {name: str(value) for name, value in spec.settings.items()}


def test_a_picture_is_completed(tmp_path):
    pytest.importorskip("sklearn")
    options = ExperimentOptions(
        only=("polargrad", "als"), settings={"shrink": "16", "rank": "2"}, steps=60, diagnostics_every=0
    )
    runs, page = run_experiment(PictureCompletion, tmp_path / "out", options)
    for run in runs:
        ends = run.of_kind("eval")
        assert ends[-1]["gap"] < 0.5 * ends[0]["gap"]
    assert (page.parent / "figures" / "held-out.svg").exists()


def test_ratings_are_completed(ratings_file, tmp_path):
    settings = {"file": str(ratings_file), "rank": "2"}
    options = ExperimentOptions(only=("polargrad", "muon-ns"), settings=settings, steps=40, diagnostics_every=0)
    runs, page = run_experiment(RatingsCompletion, tmp_path / "out", options)
    for run in runs:
        ends = run.of_kind("eval")
        assert run.status == "finished"
        assert ends[-1]["gap"] < ends[0]["gap"]
        assert ends[-1]["held_out_rmse"] > 0
    assert (page.parent / "figures" / "held-out.svg").exists()
    assert runs[0].spec.objective == RatingsCompletion.spec(file=str(ratings_file), rank=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\n1,2\n", "lacks a column 'rating'"),
        ("user,item,rating\n1,2,nan\n", "line 2"),
        ("user,item,rating\n", "no ratings"),
    ],
)
def test_a_bad_file_of_ratings_is_refused_before_anything_is_written(text, message, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        run_experiment(RatingsCompletion, tmp_path / "out", ExperimentOptions(settings={"file": str(file)}))
    assert not (tmp_path / "out").exists()


def test_a_rank_above_the_data_is_refused(ratings_file, tmp_path):
    options = ExperimentOptions(settings={"file": str(ratings_file), "rank": "10"})
    with pytest.raises(ValueError, match="rank 10 is above 9"):
        run_experiment(RatingsCompletion, tmp_path / "out", options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NonnegativeFactorization.spec(rows=4, columns=3, rank=4).build(0), "rank 4 is above 3"),
        (lambda: PictureCompletion.spec(observed=0.0).build(0), "observed must be a finite number above 0"),
        (lambda: MultiResponseRegression.spec(features=0), "features must be an integer"),
        (lambda: MultiResponseRegression.spec(noise=float("inf")), "noise must be a finite number; got inf"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_multiplicative_updates_are_those_of_lee_and_seung():
    problem = NonnegativeFactorization.draw(0, rows=9, columns=7, rank=3).float64
    objective = ProblemObjective(problem)
    X, Y = (value.clone() for value in problem.start.values())
    optimizer = MultiplicativeUpdates(problem, dict(objective.module.named_parameters()), 1.0)
    values = []
    for step in range(20):
        optimizer.zero_grad()
        loss = objective.loss(step)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
        X = X * (problem.M @ Y) / (X @ (Y.mT @ Y))
        Y = Y * (problem.M.mT @ X) / (Y @ (X.mT @ X))
    torch.testing.assert_close(objective.module.X.detach(), X)
    torch.testing.assert_close(objective.module.Y.detach(), Y)
    assert values == sorted(values, reverse=True)


def test_multiplicative_updates_are_for_nonnegative_factors_alone():
    problem = SoftplusFactorization.draw(0, rows=9, columns=7, rank=3)
    parameters = dict(ProblemObjective(problem).module.named_parameters())
    with pytest.raises(ValueError, match="projected"):
        MultiplicativeUpdates(problem, parameters, 1.0)


class _StopsAfterOne:
    """Ctrl-C in the second run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, label: str) -> None:
        self.runs += 1
        if self.runs == 2:
            raise KeyboardInterrupt


def test_an_experiment_that_was_stopped_goes_on(tmp_path, capsys):
    options = ExperimentOptions(only=("polargrad", "adam"), size="small", steps=10, diagnostics_every=0)
    with pytest.raises(KeyboardInterrupt, match="polargrad resume"):
        run_experiment(MultiResponseRegression, tmp_path / "out", options, progress=_StopsAfterOne())
    first = (tmp_path / "out" / "polargrad" / "records.jsonl").stat().st_mtime_ns
    assert main(["resume", str(tmp_path / "out")]) == 0
    assert "adam" in capsys.readouterr().out
    assert (tmp_path / "out" / "polargrad" / "records.jsonl").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_jobs_side_by_side_give_what_one_after_another_gives(tmp_path):
    made = {}
    for jobs in (1, 2):
        options = ExperimentOptions(only=("polargrad", "adam"), size="small", steps=20, diagnostics_every=0, jobs=jobs)
        made[jobs], _ = run_experiment(MultiResponseRegression, tmp_path / str(jobs), options)
    for one, other in zip(made[1], made[2], strict=True):
        assert one.spec == other.spec
        assert [r["gap"] for r in one.of_kind("eval")] == pytest.approx([r["gap"] for r in other.of_kind("eval")])
