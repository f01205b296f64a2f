import dataclasses

import pytest

from polargrad.lab.comparison.grid import edge_notes
from polargrad.lab.comparison.sweep import Axis, expand, grid_points, parse_axis
from polargrad.lab.run.folder import SPEC, read_run
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import Cosine, StepDecay, WarmupLinearDecay
from tests.runs import tiny_spec, written_run


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("hidden.lr=0.1,0.2", Axis(("hidden",), "lr", (0.1, 0.2))),
        ("embedding+head.lr=1e-2", Axis(("embedding", "head"), "lr", (1e-2,))),
        ("hidden.nesterov=true,false", Axis(("hidden",), "nesterov", (True, False))),
        ("hidden.method=svd,qdwh,svd", Axis(("hidden",), "method", ("svd", "qdwh"))),
        ("rates=0.5,1,2,1", Axis((), "lr", (0.5, 1, 2))),
        (" warmup = 0, 40", Axis((), "warmup", (0, 40))),
    ],
)
def test_an_axis_is_read(text, axis):
    assert parse_axis(text) == axis


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hidden",
        "hidden.lr",
        "hidden.lr=",
        "hidden=1",
        ".lr=1",
        "a+.lr=1",
        "a.lr=1,,2",
        "rates",
        "warmup=",
        "warmups=1",
    ],
)
def test_an_axis_that_cannot_be_read_shows_how(text):
    with pytest.raises(ValueError, match=r"ROLE\.OPTION=VALUE"):
        parse_axis(text)


def test_a_grid_is_every_combination_under_names_that_tell():
    spec = tiny_spec("text.txt")
    points = expand(spec, [parse_axis("hidden.lr=0.1,0.2"), parse_axis("embedding+head.lr=1,2")])
    assert [point.name for point in points] == [
        "tiny@hidden.lr=0.1,embedding+head.lr=1",
        "tiny@hidden.lr=0.1,embedding+head.lr=2",
        "tiny@hidden.lr=0.2,embedding+head.lr=1",
        "tiny@hidden.lr=0.2,embedding+head.lr=2",
    ]
    assert {point.recipe for point in points} == {"tiny"}
    assert points[1].learning_rates == {"hidden": 0.1, "embedding": 2, "head": 2, "vector": 3e-3}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rates=1,two", "rates takes positive numbers.*'two'"),
        ("rates=1,0", "got 0"),
        ("rates=-1", "got -1"),
        ("rates=NaN", "got nan"),
        ("rates=Infinity", "got inf"),
        ("rates=true", "got True"),
        ("warmup=0,-1", "warmup takes integers.*got -1"),
        ("warmup=2.5", r"got 2\.5"),
        ("warmup=true", "got True"),
        ("warmup=long", "got 'long'"),
    ],
)
def test_values_of_another_kind_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_axis(text)


def warmed(steps=10, schedule=None):
    """A spec whose schedule has a warm-up of one step."""
    spec = tiny_spec("text.txt", steps=steps, polar=True)
    return dataclasses.replace(spec, schedule=schedule or WarmupLinearDecay(total=steps, warmup=1))


def test_rates_multiply_every_role_and_warmup_changes_the_schedule_alone():
    made = expand(warmed(), [parse_axis("warmup=0,4"), parse_axis("rates=1,3")])
    assert [spec.name for spec in made] == [
        "tiny@warmup=0,rates=1",
        "tiny@warmup=0,rates=3",
        "tiny@warmup=4,rates=1",
        "tiny@warmup=4,rates=3",
    ]
    assert [spec.schedule.warmup for spec in made] == [0, 0, 4, 4]
    assert made[0].learning_rates == warmed().learning_rates
    assert made[1].learning_rates == {"hidden": 0.03, "embedding": 0.009, "head": 0.009, "vector": 0.009}
    own = dataclasses.replace(made[2], schedule=warmed().schedule)
    assert own.content_hash == warmed().content_hash
    assert made[3].schedule.total == 10
    (other,) = expand(warmed(schedule=Cosine(total=10)), [parse_axis("warmup=2")])
    assert other.schedule == Cosine(total=10, warmup=2)


def test_a_warmup_that_does_not_fit_says_which():
    with pytest.raises(ValueError, match="warmup=7 of tiny, 10 steps: a warm-up of 7 steps does not fit: 6 steps"):
        expand(warmed(), [parse_axis("warmup=6,7")])
    with pytest.raises(ValueError, match="the schedule of tiny, step-decay, has no warm-up"):
        expand(warmed(schedule=StepDecay(2, 0.5)), [parse_axis("warmup=0")])


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (("rates=1,2", "hidden.lr=0.1"), "rates and hidden.lr both set the lr of hidden"),
        (("hidden.lr=1", "embedding+hidden.lr=0.1"), "both set the lr of hidden"),
        (("warmup=1", "warmup=2"), "both set warmup"),
        (("elbow.lr=1",), "no recipe here has a role 'elbow'"),
    ],
)
def test_axes_that_contradict_each_other_are_refused(texts, complaint):
    with pytest.raises(ValueError, match=complaint):
        grid_points([warmed()], [parse_axis(text) for text in texts])
    assert len(grid_points([warmed()], [parse_axis("rates=1,2"), parse_axis("hidden.momentum=0.5,0.9")])) == 4


def test_an_axis_of_other_roles_leaves_a_spec_alone():
    spec = RunSpec("one", LanguageModel(), {"hidden": {"lr": 0.1}})
    assert expand(spec, [parse_axis("head.lr=1,2")]) == [spec]
    assert len(expand(spec, [parse_axis("hidden+head.lr=1,2")])) == 2


def _swept(tmp_path, losses, roles=("hidden",)):
    return [
        written_run(
            tmp_path / f"a@{rate:g}",
            [(0, 8.0), (2, loss)],
            recipe="a",
            rates={**dict.fromkeys(roles, rate), "vector": 0.5},
            status="diverged" if loss is None else "finished",
        )
        for rate, loss in losses.items()
    ]


def test_the_edge_of_a_grid_is_told(tmp_path):
    assert edge_notes(_swept(tmp_path / "inside", {0.1: 5.0, 0.2: 4.0, 0.4: 5.0})) == []
    (low,) = edge_notes(_swept(tmp_path / "low", {0.1: 4.0, 0.2: 5.0, 0.4: 6.0}))
    assert "best hidden rate, 0.1, is the lowest tried; try lower" in low
    (high,) = edge_notes(_swept(tmp_path / "high", {0.1: 6.0, 0.2: 5.0, 0.4: 4.0}, roles=("embedding", "head")))
    assert "best embedding+head rate, 0.4, is the highest tried; try higher" in high
    (none,) = edge_notes(_swept(tmp_path / "none", {0.1: None, 0.2: None}))
    assert "no run has a final loss" in none


def placed(tmp_path, losses):
    """Runs of one recipe over (multiple of the rates, warm-up), written with their final losses."""
    runs = []
    for (multiple, warmup), loss in losses.items():
        run = written_run(
            tmp_path / f"a@{multiple:g},{warmup}",
            [(0, 8.0), (10, loss)],
            recipe="a",
            rates={"hidden": 0.1 * multiple, "head": 0.3 * multiple},
        )
        schedule = WarmupLinearDecay(total=10, warmup=warmup)
        (run.path / SPEC).write_text(dataclasses.replace(run.spec, schedule=schedule).to_json())
        runs.append(read_run(run.path))
    return runs


def test_rates_that_moved_together_in_any_ratio_have_one_edge(tmp_path):
    (note,) = edge_notes(placed(tmp_path, {(0.5, 2): 6.0, (1, 2): 5.0, (2, 2): 4.0}))
    assert "the best rates (hidden rate, 0.2; head rate, 0.6) are the highest tried; try higher" in note


def test_the_edge_of_warmups_is_told_but_none_is_no_edge(tmp_path):
    rates = {(0.5, 2): 6.0, (2, 2): 6.0}
    (long,) = edge_notes(placed(tmp_path / "long", {**rates, (1, 0): 5.0, (1, 2): 4.5, (1, 4): 4.0}))
    assert "the best warm-up, 4 steps, is the longest tried; try a longer" in long
    (short,) = edge_notes(placed(tmp_path / "short", {**rates, (1, 2): 4.0, (1, 4): 4.5}))
    assert "the best warm-up, 2 steps, is the shortest tried" in short
    assert edge_notes(placed(tmp_path / "none", {**rates, (1, 0): 4.0, (1, 2): 4.5})) == []


def test_a_run_alone_has_no_edge(tmp_path):
    assert edge_notes(_swept(tmp_path, {0.1: 5.0})) == []
