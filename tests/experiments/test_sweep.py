import pytest

from polargrad.experiments.spec import LanguageModel, RunSpec
from polargrad.experiments.sweep import Axis, edge_notes, expand, parse_axis
from tests.runs import tiny_spec, written_run


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("hidden.lr=0.1,0.2", Axis(("hidden",), "lr", (0.1, 0.2))),
        ("embedding+head.lr=1e-2", Axis(("embedding", "head"), "lr", (1e-2,))),
        ("hidden.nesterov=true,false", Axis(("hidden",), "nesterov", (True, False))),
        ("hidden.method=svd,qdwh,svd", Axis(("hidden",), "method", ("svd", "qdwh"))),
    ],
)
def test_an_axis_is_read(text, axis):
    assert parse_axis(text) == axis


@pytest.mark.parametrize("text", ["", "hidden", "hidden.lr", "hidden.lr=", "hidden=1", ".lr=1", "a+.lr=1", "a.lr=1,,2"])
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


def test_a_run_alone_has_no_edge(tmp_path):
    assert edge_notes(_swept(tmp_path, {0.1: 5.0})) == []
