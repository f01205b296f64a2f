import dataclasses

import pytest

from polargrad.lab.comparison.analysis import (
    Replicates,
    alone,
    baseline_of,
    best_evaluation,
    best_of_recipe,
    cautions,
    first_reach,
    sentence,
    with_distinct_names,
)
from polargrad.lab.comparison.page import Findings
from polargrad.lab.matrix import MatrixQuadratic
from tests.runs import written_run


def _curve(*points):
    return [{"step": step, "seconds": step * 0.5, "val_loss": loss} for step, loss in points]


def test_a_crossing_lies_on_the_straight_line_between_two_evaluations():
    reach = first_reach(_curve((0, 8.0), (10, 6.0), (20, 4.0)), "val_loss", 5.0)
    assert (reach.step, reach.seconds) == (15.0, 7.5)


def test_the_first_crossing_counts_and_touching_is_reaching():
    wavy = _curve((0, 8.0), (10, 4.0), (20, 6.0), (30, 3.0))
    assert first_reach(wavy, "val_loss", 5.0).step == 7.5
    assert first_reach(wavy, "val_loss", 4.0).step == 10.0
    assert first_reach(wavy, "val_loss", 9.0).step == 0.0


def test_a_target_below_the_curve_is_not_reached():
    assert first_reach(_curve((0, 8.0), (10, 6.0)), "val_loss", 5.999) is None
    assert first_reach([], "val_loss", 5.0) is None


def test_no_line_is_drawn_through_an_evaluation_that_was_not_finite():
    assert first_reach(_curve((0, 8.0), (10, None), (20, 4.0)), "val_loss", 5.0).step == 20.0


@pytest.fixture
def three(tmp_path):
    """A baseline and two runs beside it, one that gets there in half of the steps and one that does not."""
    return [
        written_run(tmp_path / "fast", [(0, 8.0), (5, 5.0), (10, 4.0)], seconds_per_step=1.0),
        written_run(tmp_path / "adamw", [(0, 8.0), (5, 6.0), (10, 5.0)]),
        written_run(tmp_path / "slow", [(0, 8.0), (5, 7.0), (10, 6.0)]),
    ]


def test_runs_are_measured_against_adamw(three):
    fast, adamw, slow = measured = alone(three)
    assert baseline_of(measured) is adamw
    reached = fast.reach(adamw)
    assert (reached.step_ratio.mean, reached.time_ratio.mean) == (0.5, 1.0)
    assert (adamw.reach(adamw).step_ratio.mean, adamw.reach(adamw).time_ratio.mean) == (1.0, 1.0)
    assert slow.reach(adamw).steps.mean is None
    assert (fast.final.mean, best_evaluation(three[0]), fast.optimizer_share.mean) == (4.0, (4.0, 10), 0.5)
    assert [sentence(one, adamw) for one in measured] == [
        "fast reaches adamw's final loss in 50% of its steps and 100% of its time.",
        "adamw ends at 5.000 after 10 steps and 5.0 s.",
        "slow does not reach adamw's final loss.",
    ]


def test_runs_alone_are_measured_whatever_their_seeds(three):
    fast, adamw = three[0], three[1]
    other = dataclasses.replace(fast, spec=dataclasses.replace(fast.spec, seed=7))
    one, baseline = alone([other, adamw])
    assert one.reach(baseline).step_ratio.mean == 0.5
    pair = Replicates("pair", (adamw, dataclasses.replace(adamw, spec=dataclasses.replace(adamw.spec, seed=8))))
    assert one.reach(pair).steps.of == 0


def test_runs_of_different_metrics_are_not_compared(tmp_path, three):
    spec = dataclasses.replace(three[0].spec, objective=MatrixQuadratic.spec())
    with pytest.raises(ValueError, match=r"is judged by gap and .* by val_loss; report them apart"):
        alone([*three, dataclasses.replace(three[0], spec=spec)])


def test_a_baseline_that_was_lower_before_its_end_is_judged_by_when_it_first_was(tmp_path):
    run = written_run(tmp_path / "adamw", [(0, 8.0), (5, 4.0), (10, 5.0)])
    (adamw,) = alone([run])
    assert adamw.reach(adamw).steps.mean == pytest.approx(3.75)
    assert adamw.reach(adamw).step_ratio.mean == 1.0
    assert best_evaluation(run) == (4.0, 5)


def test_a_diverged_run_has_no_final_loss(tmp_path, three):
    run = written_run(tmp_path / "wild", [(0, 8.0), (3, None)], status="diverged")
    *_, adamw, _, wild = alone([*three, run])
    assert wild.final.mean is None
    assert wild.reach(adamw).steps.mean is None
    assert sentence(wild, adamw) == "wild diverged at step 3."


def test_a_diverged_baseline_leaves_nothing_to_reach(tmp_path):
    adamw, other = alone(
        [
            written_run(tmp_path / "adamw", [(0, 8.0), (3, None)], status="diverged"),
            written_run(tmp_path / "other", [(0, 8.0), (3, 5.0)]),
        ]
    )
    assert other.reach(adamw).steps.mean is None
    assert sentence(adamw, adamw) == "adamw diverged at step 3."
    assert "no final loss to measure it against" in sentence(other, adamw)


def test_the_baseline_is_the_best_adamw_else_the_first(tmp_path, three):
    better = written_run(tmp_path / "adamw@1", [(0, 8.0), (10, 4.5)], recipe="adamw")
    assert baseline_of(alone([*three, better])).runs == (better,)
    assert baseline_of(alone([three[0], three[2]])).runs == (three[0],)
    with pytest.raises(ValueError, match="at least one"):
        alone([])


def test_the_best_of_each_recipe_of_each_comparison(tmp_path):
    curves = {"a@1": 5.0, "a@2": 4.0, "b@1": 6.0}
    runs = [
        written_run(tmp_path / "one" / name, [(0, 8.0), (4, loss)], recipe=name[0]) for name, loss in curves.items()
    ]
    runs.append(written_run(tmp_path / "two" / "a@1", [(0, 8.0), (4, 3.0)], recipe="a"))
    runs.append(written_run(tmp_path / "one" / "a@3", [(0, 8.0), (4, None)], recipe="a", status="diverged"))
    assert best_of_recipe(runs) == [runs[1], runs[2], runs[3]]


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [written_run(tmp_path / day / "adamw", [(0, 8.0), (4, 5.0)]) for day in ("monday", "tuesday")]
    names = [run.spec.name for run in with_distinct_names(runs)]
    assert names == ["adamw (monday)", "adamw (tuesday)"]


def test_cautions_name_what_differs(tmp_path, three):
    assert cautions(three) == []
    other = written_run(
        tmp_path / "other", [(0, 8.0), (4, 5.0)], status=None, environment={"cpu": "two", "corpus_checksum": "abc"}
    )
    text = " ".join(cautions([*three, other]))
    for part in ("The number of steps of other", "The corpus of other", "another machine", "other (unfinished)"):
        assert part in text


def test_what_differs_is_not_held_against_each_other(tmp_path):
    curve = [(0, 8.0), (4, 5.0)]
    base = written_run(tmp_path / "base", curve)
    same = written_run(tmp_path / "same", [(0, 8.0), (4, 4.0)])
    longer = written_run(tmp_path / "longer", [(0, 8.0), (8, 4.0)])
    text = written_run(tmp_path / "text", curve, environment={"corpus_checksum": "abc"})
    one = {run.spec.name: alone([run])[0] for run in (base, same, longer, text)}
    assert "reaches base's final loss in 75% of its steps" in sentence(one["same"], one["base"])
    for name, what in (("longer", "number of steps"), ("text", "corpus")):
        assert sentence(one[name], one["base"]).endswith(f"it is not held against base, whose {what} is another.")
        assert one[name].reach(one["base"]).steps.of == 0
    page = Findings([base, same, longer, text]).write_page(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("not comparable") == 4  # steps and seconds of two runs
    assert not any("Steps to" in column for column in Findings([base, longer, text]).results().columns)
    (tmp_path / "comparison.json").write_text("{}")
    assert one["longer"].reach(one["base"]).steps.of == 0
    (tmp_path / "comparison.json").write_text('{"minutes": 1.0}')
    assert one["longer"].reach(one["base"]).steps.of == 1
