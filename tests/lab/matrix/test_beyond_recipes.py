"""The problems beyond the paper: every one by name, optimizers that get somewhere, real data, jobs side by side."""

from __future__ import annotations

import pytest
import torch

from polargrad.lab.cli.main import main
from polargrad.lab.matrix.beyond import Multinomial, Nonnegative, Procrustes, Regression
from polargrad.lab.matrix.laboratory import EXPERIMENTS, Choices, report, run_experiment
from polargrad.lab.matrix.observed import Picture, Ratings
from polargrad.lab.matrix.page import results
from polargrad.lab.matrix.problems import MultiplicativeUpdates, NonnegativeFactorization, ProblemObjective
from polargrad.lab.run.spec import RunSpec

DRAWN = ("regression", "multinomial", "nonnegative", "nonnegative-softplus", "procrustes")


@pytest.fixture
def ratings_file(tmp_path):
    """Sixty of ninety ratings by twelve users."""
    lines = [f"{i},{j},{(i * j) % 5 + 1}" for i in range(12) for j in range(9) if (i + j) % 3]
    file = tmp_path / "ratings.csv"
    file.write_text("user,item,rating\n" + "\n".join(lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", DRAWN)
def test_every_optimizer_descends_at_a_small_size(name, tmp_path):
    choices = Choices(size="small", steps=150, diagnostics_every=0)
    runs, page = run_experiment(EXPERIMENTS[name], tmp_path / "out", choices)
    assert {"polargrad", "polargradm", "muon-ns", "adam"} < {run.spec.recipe for run in runs}
    for run in runs:
        gaps = [record["gap"] for record in run.of_kind("eval")]
        assert run.status == "finished", run.spec.name
        assert gaps[-1] < 0.5 * gaps[0], run.spec.name
        assert RunSpec.from_json(run.spec.to_json()) == run.spec
    assert EXPERIMENTS[name].title in page.read_text(encoding="utf-8")
    assert results(runs).rows[0][2] in report(runs, tmp_path / "again.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("objective", "label"),
    [
        (Regression(rows=400, features=60, responses=10), "smoothness"),
        (Multinomial(rows=500, features=30, classes=6), "smoothness"),
        (Procrustes(rows=120, n=20), "smoothness"),
    ],
)
def test_step_sizes_follow_one_over_the_smoothness_and_the_rank(objective, label):
    problem = objective.build(3)
    rank = min(problem.start["X"].shape)
    assert objective.step_scale == pytest.approx(1.0 / (getattr(problem, label) * rank), rel=0.25)


def test_a_picture_is_completed(tmp_path):
    pytest.importorskip("sklearn")
    choices = Choices(only=("polargrad", "als"), settings={"shrink": "16", "rank": "2"}, steps=60, diagnostics_every=0)
    runs, page = run_experiment(EXPERIMENTS["picture"], tmp_path / "out", choices)
    for run in runs:
        ends = run.of_kind("eval")
        assert ends[-1]["gap"] < 0.5 * ends[0]["gap"]
    assert (page.parent / "figures" / "held-out.svg").exists()


def test_ratings_are_completed(ratings_file, tmp_path):
    settings = {"file": str(ratings_file), "rank": "2"}
    choices = Choices(only=("polargrad", "muon-ns"), settings=settings, steps=40, diagnostics_every=0)
    runs, page = run_experiment(EXPERIMENTS["ratings"], tmp_path / "out", choices)
    for run in runs:
        ends = run.of_kind("eval")
        assert run.status == "finished"
        assert ends[-1]["gap"] < ends[0]["gap"]
        assert ends[-1]["held_out_rmse"] > 0
    assert (page.parent / "figures" / "held-out.svg").exists()
    assert runs[0].spec.objective == Ratings(file=str(ratings_file), rank=2)


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
        run_experiment(EXPERIMENTS["ratings"], tmp_path / "out", Choices(settings={"file": str(file)}))
    assert not (tmp_path / "out").exists()


def test_a_rank_above_the_data_is_refused(ratings_file, tmp_path):
    choices = Choices(settings={"file": str(ratings_file), "rank": "10"})
    with pytest.raises(ValueError, match="rank 10 is above 9"):
        run_experiment(EXPERIMENTS["ratings"], tmp_path / "out", choices)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nonnegative(rows=4, columns=3, rank=4), "rank 4 is above 3"),
        (lambda: Picture(observed=0.0), "observed is 0.0"),
        (lambda: Regression(features=0), "features is 0"),
        (lambda: Regression(noise=float("inf")), "noise is inf"),
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
    problem = NonnegativeFactorization.draw(0, rows=9, columns=7, rank=3, constraint="softplus")
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
    choices = Choices(only=("polargrad", "adam"), size="small", steps=10, diagnostics_every=0)
    with pytest.raises(KeyboardInterrupt, match="polargrad resume"):
        run_experiment(EXPERIMENTS["regression"], tmp_path / "out", choices, progress=_StopsAfterOne())
    first = (tmp_path / "out" / "polargrad" / "records.jsonl").stat().st_mtime_ns
    assert main(["resume", str(tmp_path / "out")]) == 0
    assert "adam" in capsys.readouterr().out
    assert (tmp_path / "out" / "polargrad" / "records.jsonl").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_jobs_side_by_side_give_what_one_after_another_gives(tmp_path):
    made = {}
    for jobs in (1, 2):
        choices = Choices(only=("polargrad", "adam"), size="small", steps=20, diagnostics_every=0, jobs=jobs)
        made[jobs], _ = run_experiment(EXPERIMENTS["regression"], tmp_path / str(jobs), choices)
    for one, other in zip(made[1], made[2], strict=True):
        assert one.spec == other.spec
        assert [r["gap"] for r in one.of_kind("eval")] == pytest.approx([r["gap"] for r in other.of_kind("eval")])
