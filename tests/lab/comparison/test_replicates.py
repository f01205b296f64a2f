"""Recipes over several seeds, on curves written by hand."""

import dataclasses
import json

import pytest

from polargrad.lab.comparison.analysis import Spread, replicates
from polargrad.lab.comparison.comparison import Comparison, final_losses
from polargrad.lab.comparison.page import Findings
from polargrad.lab.run.folder import COMPARISON, SPEC, read_run, write_json
from tests.runs import tiny_spec, written_run


def seeded(folder, recipe, seed, curve, **options):
    """A written run with another seed in its spec."""
    run = written_run(folder / f"{recipe}@seed={seed}", curve, recipe=recipe, **options)
    (run.path / SPEC).write_text(dataclasses.replace(run.spec, seed=seed).to_json())
    return read_run(run.path)


def asked(*names):
    """A comparison of recipes over three seeds."""
    return Comparison(tuple(tiny_spec("text.txt", name) for name in names), seeds=(1, 2, 3))


@pytest.fixture
def runs(tmp_path):
    """Two recipes with three seeds; b is where a ended at step 5, 4 and never."""
    ends = {1: 4.0, 2: 5.0, 3: 6.0}
    made = [seeded(tmp_path, "a", seed, [(0, 8.0), (10, end)]) for seed, end in ends.items()]
    curves = {1: [(0, 8.0), (5, 4.0), (10, 3.0)], 2: [(0, 8.0), (4, 5.0), (10, 4.0)], 3: [(0, 8.0), (10, 7.0)]}
    return made + [seeded(tmp_path, "b", seed, curve) for seed, curve in curves.items()]


def test_means_deviations_and_missing_seeds():
    assert Spread((1.0, 2.0, 3.0), 3).mean == 2.0
    assert Spread((1.0, 2.0, 3.0), 3).deviation == 1.0
    assert Spread((1.0,), 1).deviation is None
    assert Spread((), 2).mean is None
    assert Spread((1.0, 2.0), 3).text(1) == "1.5 ± 0.7 (2 of 3 seeds)"
    assert Spread((0.5,), 1).text(0, percent=True) == "50%"


def test_a_recipe_is_measured_seed_by_seed(runs):
    a, b = replicates(runs)
    assert (a.name, a.final.values) == ("a", (4.0, 5.0, 6.0))
    reached = b.reach(a)
    assert reached.steps.values == (5.0, 4.0)
    assert reached.steps.of == 3
    assert reached.step_ratio.values == (0.5, 0.4)
    assert reached.seconds.values == (2.5, 2.0)
    assert a.reach(b).steps.values == pytest.approx((10 * 1 / 2,), abs=10)
    assert a.reach(a).step_ratio.values == (1.0, 1.0, 1.0)


def test_full_length_then_seeds_then_loss_decide_what_counts(tmp_path):
    short = written_run(tmp_path / "a@short", [(0, 8.0), (4, 1.0)], recipe="a")
    alone = seeded(tmp_path, "a", 9, [(0, 8.0), (10, 1.0)], rates={"hidden": 0.5, "embedding": 0.5})
    pair = [seeded(tmp_path, "a", seed, [(0, 8.0), (10, 5.0)]) for seed in (2, 1)]
    (group,) = replicates([short, alone, *pair])
    assert [run.spec.seed for run in group.runs] == [1, 2]


def test_a_seed_that_diverged_is_counted_as_missing(tmp_path):
    made = [
        seeded(tmp_path, "a", 1, [(0, 8.0), (4, 5.0)]),
        seeded(tmp_path, "a", 2, [(0, 8.0), (4, None)], status="diverged"),
    ]
    (group,) = replicates(made)
    assert group.final.text(1) == "5.0 (1 of 2 seeds)"
    assert "5.0000 diverged" in Findings(made, asked("a")).results().rows[0]


def test_a_recipe_whose_rates_are_still_searched_for_is_no_result(runs, tmp_path):
    searched = dataclasses.replace(asked("a", "b"), tune=True)
    write_json(tmp_path / COMPARISON, searched.to_dict())
    assert [one.name for one in Findings.read(tmp_path).shown] == ["a", "b"]  # neither search has ended
    while pending := searched.search(searched.recipes[1]).state(final_losses(tmp_path)).pending:
        for spec in pending:
            written_run(tmp_path / spec.name, [(0, 8.0), (4, 5.0)], recipe="b")
    assert [one.name for one in Findings.read(tmp_path).shown] == ["b"]


def test_tables_and_page(runs, tmp_path):
    found = Findings(runs, asked("a", "b"))
    assert [tuple(map(str, row[:3])) for row in found.results().rows] == [
        ("a", "5.0000 ± 1.0000", "4.0000 5.0000 6.0000"),
        ("b", "4.6667 ± 2.0817", "3.0000 4.0000 7.0000"),
    ]
    steps, seconds = found.cross_tables()
    assert steps.rows[1][1] == "4 ± 1 (2 of 3 seeds) (45%)"
    assert seconds.columns[0].startswith("seconds to")
    page = found.write_page(tmp_path / "report.html")
    text = page.read_text()
    assert "Lowest validation loss: b, 4.6667 ± 2.0817." in text
    assert "in 45% of its steps" in text
    assert (tmp_path / "figures" / "loss-steps.svg").is_file()
    assert json.dumps("<") not in text


def test_recipes_on_other_texts_or_lengths_are_not_held_against_each_other(tmp_path):
    seeds = (1, 2)
    made = [seeded(tmp_path, "a", seed, [(0, 8.0), (10, 4.0)]) for seed in seeds]
    made += [seeded(tmp_path, "longer", seed, [(0, 8.0), (20, 3.0)]) for seed in seeds]
    elsewhere = {"environment": {"torch": "0", "corpus_checksum": "abc"}}
    made += [seeded(tmp_path, "text", seed, [(0, 8.0), (10, 2.0)], **elsewhere) for seed in seeds]
    found = Findings(made, dataclasses.replace(asked("a", "longer", "text"), seeds=seeds))
    said = " ".join(found.sentences())
    assert "Lowest" not in said
    assert "of its steps" not in said
    assert "longer ends at 3.0000 ± 0.0000; it is not held against a, whose number of steps is another." in said
    assert "text ends at 2.0000 ± 0.0000; it is not held against a, whose corpus is another." in said
    assert not any(getattr(cell, "best", False) for row in found.results().rows for cell in row)
    assert not any("to a" in column.replace("\n", " ") for column in found.results().columns)
    for table in found.cross_tables():
        assert [[cell == "not comparable" for cell in row[1:]] for row in table.rows] == [
            [row != column for column in range(3)] for row in range(3)
        ]
    assert "dotted line" not in found.write_page(tmp_path / "report.html").read_text(encoding="utf-8")
