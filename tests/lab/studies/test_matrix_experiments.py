"""The matrix experiments: the paper's configurations, what diverges, what is recorded, drawn and said."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from polargrad.lab.cli.main import main
from polargrad.lab.matrix import (
    PROBLEMS,
    Configuration,
    MatrixCompletion,
    MatrixLogistic,
    MatrixQuadratic,
    OrthogonalProcrustes,
    ProblemObjective,
    ProblemSpec,
)
from polargrad.lab.matrix.configurations import polargrad
from polargrad.lab.matrix.training import build_optimizer
from polargrad.lab.report.curves import over_seeds
from polargrad.lab.run import runner
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.studies.matrix.experiments import ExperimentOptions, report, run_experiment
from polargrad.lab.studies.matrix.page import figures, final_gaps, results, sentences

# name -> (step size, decay), from the paper's section of experiments.
PAPER = {
    "quadratic": {
        "polargrad": (4e-8, None),
        "polargrad-decay": (4.75e-8, 0.99),
        "polargrad-zolo": (3e-8, None),
        "muon-ns": (0.1, None),
        "muon-qdwh": (0.1, None),
        "muon-qdwh-decay": (0.05, 0.99),
        "muon-zolo": (0.1, None),
        "adam": (0.05, None),
        "adam-decay": (0.05, 0.99),
        "newton": (0.25, None),
        "polar-first": (4e-7, None),
        "polar-first-decay": (5e-7, 0.99),
        "momentum-first": (2e-7, None),
        "momentum-first-decay": (2.5e-7, 0.99),
    },
    "logistic": {
        "polarsgd": (1.5e-7, None),
        "polarsgd-decay": (2.5e-7, 0.95),
        "muon-ns": (0.1, None),
        "muon-qdwh": (0.1, None),
        "muon-qdwh-decay": (0.2, 0.95),
        "adam": (0.005, None),
        "adam-decay": (0.01, 0.95),
        "polar-first": (2.5e-7, None),
        "polar-first-decay": (2.5e-7, 0.95),
        "momentum-first": (2.5e-7, None),
        "momentum-first-decay": (2.5e-7, 0.95),
    },
    "completion": {
        "polargrad": (50.0, None),
        "polargrad-decay": (50.0, 0.95),
        "muon-ns": (0.25, None),
        "muon-qdwh": (0.25, None),
        "muon-qdwh-decay": (0.25, 0.95),
        "adam": (0.05, None),
        "adam-decay": (0.05, 0.95),
        "alternating-gd": (50.0, None),
        "alternating-newton": (1.0, None),
        "polar-first": (100.0, None),
        "polar-first-decay": (100.0, 0.95),
        "momentum-first": (50.0, None),
        "momentum-first-decay": (50.0, 0.95),
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_step_sizes_and_decays(name):
    specs = {spec.name: spec for spec in ExperimentOptions().specs(PROBLEMS[name])}
    found = {
        key: (spec.learning_rates["matrix"], getattr(spec.schedule, "factor", None)) for key, spec in specs.items()
    }
    assert found == PAPER[name]
    for spec in specs.values():
        assert getattr(spec.schedule, "every", 25) == 25
        assert RunSpec.from_json(spec.to_json()) == spec
        options = spec.optimizer["matrix"]
        if options["rule"] == "polar" and options["method"] == "qdwh":
            assert options["max_steps"] == 2
    momentum = {key: specs[key].optimizer["matrix"] for key in ("polar-first", "momentum-first")}
    betas = (0.5, 0.5) if name == "completion" else (0.95, 0.9)
    assert tuple(options["momentum"] for options in momentum.values()) == betas
    assert momentum["polar-first"]["momentum_order"] == "polar-first"


def test_steps_of_the_paper():
    steps = {name: {s.recipe: s.loop.steps for s in ExperimentOptions().specs(PROBLEMS[name])} for name in PAPER}
    assert (steps["quadratic"]["adam"], steps["logistic"]["adam"], steps["completion"]["adam"]) == (4000, 1500, 1000)
    assert steps["completion"]["momentum-first-decay"] == 200


def test_the_exact_preset_has_converged_factors():
    for name in PAPER:
        for spec in ExperimentOptions(preset="exact").specs(PROBLEMS[name]):
            assert spec.optimizer["matrix"].get("method") != "qdwh" or spec.optimizer["matrix"]["max_steps"] is None


def _polargrad_on_completion(lr: float, max_steps: int | None, out) -> object:
    configuration = Configuration("polargrad", "PolarGrad", "PolarGrad", polargrad(lr, "qdwh", max_steps))

    class OneConfiguration(MatrixCompletion):
        kind = MatrixCompletion.kind
        experiment = dataclasses.replace(MatrixCompletion.experiment, presets={"paper": (configuration,)})

    options = ExperimentOptions(steps=60, eval_every=20, diagnostics_every=0)
    (spec,) = options.specs(OneConfiguration)
    return runner.run(spec, out)


@pytest.mark.filterwarnings("ignore:skipped updates")
def test_the_papers_step_converges_with_the_papers_factors_and_diverges_with_exact_ones(tmp_path):
    paper = _polargrad_on_completion(50.0, 2, tmp_path / "paper")
    exact = _polargrad_on_completion(50.0, None, tmp_path / "exact")
    smaller = _polargrad_on_completion(25.0, None, tmp_path / "smaller")
    assert final_gaps([paper])["polargrad"] < 1e-8
    assert final_gaps([smaller])["polargrad"] < 1e-6
    assert exact.status == "diverged"
    assert exact.of_kind("step")[-1]["step"] < 60
    assert [event["event"] for event in exact.of_kind("event")].count("diverged") == 1
    assert final_gaps([exact]) == {"polargrad": None}


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory):
    """Three configurations of a small completion over two seeds."""
    out = tmp_path_factory.mktemp("completion") / "small"
    options = ExperimentOptions(only=("polargrad", "adam", "alternating-newton"), size="small", steps=12, repeat=2)
    return *run_experiment(MatrixCompletion, out, options), out


def test_an_experiment_leaves_runs_page_and_figures(small_runs):
    runs, page, out = small_runs
    assert sorted(run.spec.name for run in runs)[:2] == ["adam@seed=42", "adam@seed=43"]
    assert {run.status for run in runs} == {"finished"}
    assert page == out / "report.html"
    keys = {path.stem for path in (out / "figures").glob("*.svg")}
    assert keys == {path.stem for path in (out / "figures").glob("*.png")}
    expected = {"objective", "objective-seconds", "residual-condition", "gradient-nuclear-norm-Y", "held-out"}
    assert expected <= keys
    html = page.read_text(encoding="utf-8")
    assert "Low-rank matrix completion" in html
    assert "adam@seed=43" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_records_hold_gap_residual_and_gradient(small_runs):
    run = small_runs[0][0]
    evaluations = run.of_kind("eval")
    assert [record["step"] for record in evaluations] == list(range(13))
    assert all(record["gap"] > 0 and record["residual_condition_number"] > 0 for record in evaluations)
    matrix = run.of_kind("matrix")
    assert {record["parameter"] for record in matrix} == {"X", "Y"}
    assert {"condition_number", "nuclear_norm", "stable_rank", "alignment"} <= set(matrix[0])
    problem = run.spec.objective.build(run.spec.seed)
    assert evaluations[0]["gap"] == problem.gap(problem.start)
    gradient = problem.gradients(problem.start)["X"]
    assert matrix[0]["nuclear_norm"] == pytest.approx(float(torch.linalg.matrix_norm(gradient, "nuc")), rel=1e-5)


def test_bands_are_median_and_range_over_seeds(small_runs):
    adam = [run for run in small_runs[0] if run.spec.recipe == "adam"]
    curve = over_seeds(adam, "eval", "gap")
    ends = sorted(run.of_kind("eval")[-1]["gap"] for run in adam)
    assert curve.x == tuple(range(13))
    assert (curve.low[-1], curve.high[-1]) == tuple(ends)
    assert curve.middle[-1] == pytest.approx(sum(ends) / 2)


def test_both_matrices_of_a_problem_have_their_figures(small_runs):
    titles = [figure.title for figure in figures(MatrixCompletion.experiment, small_runs[0])]
    assert "Condition number of the gradient in X" in titles
    assert "Alignment of the gradient in Y" in titles


def test_momentum_variants_stand_beside_plain_polargrad(tmp_path):
    options = ExperimentOptions(
        only=("polargrad", "adam", "momentum-first"), size="small", steps=5, diagnostics_every=0
    )
    runs, page = run_experiment(MatrixQuadratic, tmp_path / "out", options)
    drawn = {figure.key: figure for figure in figures(MatrixQuadratic.experiment, runs)}
    assert set(drawn) == {"objective", "objective-seconds", "momentum-objective", "momentum-objective-seconds"}
    legend = [text.get_text() for text in drawn["momentum-objective"].canvas.legends[0].get_texts()]
    assert legend == ["PolarGrad (QDWH)", "PolarGradM, momentum first"]
    written = page.read_text(encoding="utf-8")
    assert "With momentum" in written
    again = report(runs, tmp_path / "again.html").read_text(encoding="utf-8")
    assert results(runs).rows[0][2] in written
    assert results(runs).rows[0][2] in again


def test_other_sizes_scale_the_steps_that_depend_on_smoothness():
    rates = {
        size: {s.name: s.learning_rates["matrix"] for s in ExperimentOptions(size=size).specs(MatrixQuadratic)}
        for size in ("full", "small")
    }
    assert rates["small"]["adam"] == rates["full"]["adam"]
    assert rates["small"]["polargrad"] > 1e3 * rates["full"]["polargrad"]


@pytest.mark.parametrize("name", ["quadratic", "logistic"])
def test_polargrad_converges_at_a_small_size_too(name, tmp_path):
    plain = "polarsgd" if name == "logistic" else "polargrad"
    options = ExperimentOptions(only=(plain,), size="small", steps=60, diagnostics_every=0)
    (run,), _ = run_experiment(PROBLEMS[name], tmp_path / "out", options)
    gaps = [record["gap"] for record in run.of_kind("eval")]
    assert gaps[-1] < 0.2 * gaps[0]
    assert not run.of_kind("matrix")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("completion", {"only": ("polargard",)}, "did you mean 'polargrad'"),
        ("completion", {"preset": "mine"}, "unknown preset 'mine'"),
        ("completion", {"size": "huge"}, "size is 'huge'; allowed are 'full', 'small'"),
        ("completion", {"repeat": 0}, "repeat must be an integer of at least 1; got 0"),
        ("completion", {"steps": 0}, "steps must be"),
        ("completion", {"eval_every": 0}, "eval_every must be"),
        ("completion", {"jobs": 0}, "jobs must be"),
        ("completion", {"settings": {"rank": "400"}}, "rank 400 is above 250"),
        ("completion", {"settings": {"rows": "-3"}}, "rows must be an integer of at least 1; got -3"),
        ("completion", {"settings": {"rows": "many"}}, "rows must be an integer of at least 1; got 'many'"),
        ("completion", {"settings": {"observed": "nan"}}, "observed must be a finite number; got nan"),
        ("completion", {"settings": {"observed": "1e-12"}}, "selects no entry"),
        (
            "completion",
            {"settings": {"picture": "china"}},
            "unknown setting of completion 'picture'; the allowed names are 'rows'",
        ),
        ("quadratic", {"settings": {"rank": "3"}}, "unknown setting of quadratic 'rank'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(kind, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_experiment(PROBLEMS[kind], tmp_path / "out", ExperimentOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatrixQuadratic.spec(m=0), "m must be an integer of at least 1; got 0"),
        (lambda: MatrixQuadratic.spec(m=2.0), "m must be an integer of at least 1; got 2.0"),
        (lambda: MatrixQuadratic.spec(m=True), "m must be an integer of at least 1; got True"),
        (lambda: MatrixQuadratic.spec(height=3), "unknown setting of quadratic 'height'"),
        (lambda: MatrixLogistic.spec(batch=-1), "batch must be"),
        (lambda: MatrixCompletion.spec(rank=251).build(0), "rank 251 is above 250"),
        (
            lambda: MatrixCompletion.spec(observed=2.0).build(0),
            "observed must be a finite number above 0",
        ),
        (lambda: MatrixCompletion.spec(observed="half"), "observed must be a finite number; got 'half'"),
        (lambda: ProblemSpec("cubic"), "unknown matrix problem 'cubic'; the allowed names are 'quadratic'"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_optimizer_that_the_problem_does_not_know_is_refused():
    objective = ProblemObjective(MatrixCompletion.spec(**MatrixCompletion.small).build(0))
    with pytest.raises(ValueError, match="one role"):
        build_optimizer({"hidden": {"rule": "polar", "lr": 1.0}}, objective)
    with pytest.raises(ValueError, match="momentum"):
        build_optimizer({"matrix": {"rule": "newton", "lr": 1.0, "momentum": 0.9}}, objective)
    with pytest.raises(ValueError, match="rule"):
        build_optimizer({"matrix": {"rule": "guess", "lr": 1.0}}, objective)


def test_constrained_problems_stay_feasible():
    objective = ProblemObjective(OrthogonalProcrustes.draw(0, rows=20, n=4))
    optimizer = build_optimizer({"matrix": dict(polargrad(5e-3, "qdwh", 2))}, objective)
    start = objective.evaluate()["gap"]
    for step in range(30):
        optimizer.zero_grad()
        objective.loss(step).backward()
        optimizer.step()
    X = objective.module.X.detach()
    assert torch.allclose(X.mT @ X, torch.eye(4), atol=1e-5)
    assert 0.0 <= objective.evaluate()["gap"] < 0.1 * start


class TestCommandLine:
    def test_run_prints_a_table_and_the_page(self, tmp_path, capsys):
        out = tmp_path / "out"
        quick = ["--size", "small", "--steps", "4", "--diagnostics", "0"]
        assert main(["run", "quadratic", *quick, "--only", "adam", "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "adam" in said
        assert str(out / "report.html") in said
        assert json.loads((out / "adam" / "summary.json").read_text())["status"] == "finished"
        assert main(["report", str(out)]) == 0

    def test_a_diverging_run_is_told_in_one_sentence(self, tmp_path, capfd, recwarn, monkeypatch):
        quick = ["--size", "small", "--diagnostics", "0", "--set", "noise=1e25", "--only", "gd"]
        # The start would be refused, since its value is infinite.
        monkeypatch.setattr("polargrad.lab.studies.matrix.experiments.check_problem", lambda problem: None)
        assert main(["run", "regression", *quick, "--out", str(tmp_path / "out")]) == 0
        shown = capfd.readouterr()
        assert shown.out.count("gd diverged at step") == 1
        assert not recwarn.list
        assert "Warning" not in shown.err

    def test_an_existing_folder_is_left_alone(self, tmp_path, capsys):
        assert main(["run", "quadratic", "--size", "small", "--out", str(tmp_path)]) == 2
        assert "exists" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["quadratc"], "did you mean 'quadratic'"),
            (["theory", "--preset", "exact"], "--preset"),
            (["ratings", "--ratings", "nowhere.csv"], "nowhere.csv is not a file"),
            (["ratings"], "give --ratings FILE"),
            (["quadratic", "--picture", "china"], "unknown setting of quadratic 'picture'"),
            (["quadratic", "--set", "rows"], "NAME=VALUE"),
            (["picture", "--picture", "china", "--set", "picture=flower"], "given twice"),
            (["regression", "--preset", "exact"], "the allowed names are 'tuned'"),
        ],
    )
    def test_bad_input_ends_with_exit_code_2(self, arguments, message, tmp_path, capsys):
        assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:skipped updates")
def test_runs_of_other_sizes_or_lengths_are_not_held_against_each_other(tmp_path):
    quick = {"size": "small", "only": ("polargrad", "adam"), "diagnostics_every": 0}
    one, _ = run_experiment(PROBLEMS["quadratic"], tmp_path / "one", ExperimentOptions(steps=2, **quick))
    longer, _ = run_experiment(PROBLEMS["quadratic"], tmp_path / "longer", ExperimentOptions(steps=4, **quick))
    first, second = sentences([*one, *longer])
    assert first.startswith("Lowest after 2 steps: ")
    assert second.startswith("Lowest after 4 steps: ")
    assert sentences(one)[0].startswith("Lowest at the end: ")
    other = {"settings": {"rows": "40"}, "steps": 2, **quick}
    other, _ = run_experiment(PROBLEMS["quadratic"], tmp_path / "other", ExperimentOptions(**other))
    with pytest.raises(ValueError, match="have other sizes or data of quadratic"):
        report([*one, *other], tmp_path / "page.html")


def test_gaps_that_are_not_finite_are_no_gaps(tmp_path):
    run = _polargrad_on_completion(1e30, None, tmp_path / "wild")
    assert run.status == "diverged"
    assert all(record["gap"] is None or math.isfinite(record["gap"]) for record in run.of_kind("eval"))
