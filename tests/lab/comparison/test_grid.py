"""Grids of runs, on courses written by hand."""

import dataclasses
import math

import pytest

from polargrad.lab.comparison.analysis import condition_number, largest_rise, replicates, spikes
from polargrad.lab.comparison.comparison import Comparison
from polargrad.lab.comparison.figures import figures
from polargrad.lab.comparison.grid import Grid
from polargrad.lab.comparison.page import Findings
from polargrad.lab.comparison.sweep import grid_points
from polargrad.lab.recipes import COMPARISONS, spec_of
from polargrad.lab.train import WarmupLinearDecay
from tests.runs import tiny_spec, written_grid, written_run

STEPS = 20
SWEEP = ("warmup=0,4", "rates=2,0.5,1")


def asked(sweep=SWEEP, seeds=(1,)):
    specs = (tiny_spec("text.txt", "adamw", steps=STEPS), tiny_spec("text.txt", "polar", steps=STEPS, polar=True))
    schedule = WarmupLinearDecay(total=STEPS, warmup=1)
    return Comparison(tuple(dataclasses.replace(spec, schedule=schedule) for spec in specs), seeds, sweep=sweep)


def course(spec):
    """Down from 8 in a straight line; adamw diverges at twice its rates, unless it warms up, when it ends above 8."""
    multiple = spec.learning_rates["vector"] / 3e-3
    warmup = spec.schedule.warmup
    if spec.recipe == "adamw" and multiple == 2:
        return [8.0, 9.0, 80.0, None] if warmup < 2 else [*[8.0] * 19, 9.5]
    end = {0.5: 5.0, 1: 4.0, 2: 4.5}[multiple] + (0.25 if warmup > 1 else 0.0) + 0.125 * (spec.seed - 1)
    return [8.0 + (end - 8.0) * step / 19 for step in range(STEPS)]


def grid_of(tmp_path, whole):
    return Grid.of(whole, written_grid(tmp_path / "c", whole, course))


def test_the_valley_is_the_factor_between_rates_that_do_nearly_as_well(tmp_path):
    """Losses 5, 4, 4.5 at half, one and two times: within .02 of 4 up to 2^.02 below and 2^.04 above."""
    grid = grid_of(tmp_path, asked())
    first, _, steady, _ = map(grid.valley, grid.rows())
    assert first.factor == pytest.approx(2**0.02)  # nothing beyond the best rate, where runs diverge
    assert steady.factor == pytest.approx(2**0.06)
    assert not first.is_open
    assert not steady.is_open
    assert str(steady) == "1.04x"
    flat = dataclasses.replace(grid.rows()[2], cells=grid.rows()[2].cells[1:])
    assert grid.valley(flat).is_open
    assert str(grid.valley(flat)) == "at least 1.03x"


def test_a_grid_has_a_row_for_each_setting_and_a_cell_for_each_rate(tmp_path):
    grid = grid_of(tmp_path, asked())
    assert (grid.along.label, grid.recipes) == ("rates", ["adamw", "polar"])
    assert [row.name for row in grid.rows()] == [
        "adamw, warmup=0",
        "adamw, warmup=4",
        "polar, warmup=0",
        "polar, warmup=4",
    ]
    assert [[cell.final.mean for cell in row.cells] for row in grid.rows()] == [
        [5.0, 4.0, None],
        [5.25, 4.25, 9.5],
        [5.0, 4.0, 4.5],
        [5.25, 4.25, 4.75],
    ]
    best = grid.best_along(grid.axes[0])
    assert [[(cell.value(grid.along), cell.final.mean) for cell in row.cells] for row in best] == [
        [(1, 4.0), (1, 4.25)],
        [(1, 4.0), (1, 4.25)],
    ]


def test_what_diverged_counts_as_not_moved(tmp_path):
    grid = grid_of(tmp_path, asked())
    first, beyond, steady, _ = grid.rows()
    assert grid.start == 8.0
    assert grid.sensitivity(first) == pytest.approx((5.0 + 4.0 + 8.0) / 3 - 4.0)
    assert grid.sensitivity(beyond) == pytest.approx((5.25 + 4.25 + 8.0) / 3 - 4.25)
    assert grid.sensitivity(steady) == pytest.approx((5.0 + 4.0 + 4.5) / 3 - 4.0)


def test_tables_and_sentences_name_what_diverged(tmp_path):
    grid = grid_of(tmp_path, asked())
    ends, rough = grid.tables()
    assert ends.columns == ("final validation loss", "rates=0.5", "rates=1", "rates=2", "sensitivity", "valley")
    assert ends.rows[0] == ("adamw, warmup=0", "5.000", "4.000", "diverged", "1.667", "1.01x")
    assert rough.rows[0] == ("adamw, warmup=0", "0; 0.00", "0; 0.00", "1; not finite; diverged")
    assert rough.rows[1][-1] == "0; 1.50"
    adamw, polar = grid.sentences()
    assert adamw == (
        "adamw: lowest 4.000 at warmup=0,rates=1; with warmup=4 at best 4.250. Diverged: 1 of 6 runs; loss spikes: 1."
    )
    assert polar.endswith("Diverged: 0 of 6 runs; loss spikes: 0.")


def test_seeds_of_a_cell_are_one_mean_with_its_spread(tmp_path):
    grid = grid_of(tmp_path, asked(("rates=1,2",), seeds=(1, 2)))
    (low, high), (steady, _) = (row.cells for row in grid.rows())
    assert steady.final.values == (4.0, 4.125)
    assert low.final.text(3) == "4.062 ± 0.088"
    assert (high.diverged, high.final.mean) == (2, None)
    assert grid.tables()[1].rows[0][-1] == "1; not finite; 2 of 2 diverged"


def test_what_has_not_run_yet_is_a_dash(tmp_path):
    whole = asked()
    runs = written_grid(tmp_path / "c", whole, course)
    grid = Grid.of(whole, [run for run in runs if run.spec.name != "polar@warmup=4,rates=1"])
    assert grid.tables()[0].rows[-1][:4] == ("polar, warmup=4", "5.250", "–", "4.750")
    assert "has not run yet" in grid.tables()[0].note
    assert "has not run yet" not in Grid.of(whole, runs).tables()[0].note
    assert Grid.of(whole, []) is None
    assert Grid.of(asked(()), runs) is None


def test_spikes_and_rises_are_those_of_the_records(tmp_path):
    run = written_run(tmp_path / "calm", [(0, 8.0), (6, 4.0)])
    assert (spikes(run), largest_rise(run)) == (0, 0.0)

    def told(losses, *events):
        records = [{"kind": "step", "step": k, "loss": loss} for k, loss in enumerate(losses, start=1)]
        records += [{"kind": "event", "step": 3, "event": event} for event in events]
        return dataclasses.replace(run, records=tuple(records))

    assert largest_rise(told([8.0, 5.0, 6.5, 4.0, 5.0])) == 1.5
    assert spikes(told([8.0, 5.0, 6.5], "spike", "skipped", "spike")) == 2
    lost = told([8.0, None, None, 7.0, None], "nonfinite", "nonfinite")
    assert (spikes(lost), largest_rise(lost)) == (2, math.inf)


def marks(axes, marker):
    return [line for line in axes.get_lines() if line.get_marker() == marker and line.get_linestyle() == "None"]


def test_figures_keep_what_diverged(tmp_path):
    drawn = {figure.key: figure.canvas for figure in figures(grid_of(tmp_path, asked()))}
    best, conditions = ["grid-best-0", "grid-best-1"], ["grid-condition-0", "grid-condition-1"]
    assert list(drawn) == ["grid-final", "grid-spikes", "grid-rise", *best, *conditions]
    adamw, polar = drawn["grid-final"].axes
    assert (adamw.get_title("left"), polar.get_title("left")) == ("adamw", "polar")
    curves = [line for line in adamw.get_lines() if line.get_linestyle() != "None"]
    assert [list(line.get_xdata()) for line in curves] == [[0.5, 1, 2]] * 2
    assert list(curves[0].get_ydata())[:2] == [5.0, 4.0]
    assert math.isnan(curves[0].get_ydata()[2])
    assert len(marks(adamw, "X")) == len(marks(adamw, "^")) == 1
    assert not marks(polar, "X") + marks(polar, "^")
    assert adamw.get_ylim()[1] < 8.0  # what lies beyond the start does not flatten the rest
    assert [text.get_text() for text in adamw.get_xticklabels()] == ["0.5", "1", "2"]
    assert all(len(marks(drawn[key].axes[0], "X")) == 1 for key in ("grid-spikes", "grid-rise"))
    (best,) = drawn["grid-best-0"].axes
    assert [text.get_text() for text in best.get_xticklabels()] == ["0", "4"]
    curve = drawn["grid-condition-0"].axes[1].get_lines()[0]
    assert list(curve.get_ydata()) == pytest.approx([15.0, 30.0, 60.0])


def test_condition_numbers_are_medians_over_looks_and_matrices(tmp_path):
    run = written_run(tmp_path / "a", [(0, 8.0), (3, 4.0)])
    assert condition_number(run, "head") == 100.0
    assert condition_number(run, "hidden") is None
    unknown = [{**record, "condition_number": None} for record in run.of_kind("matrix")]
    assert condition_number(dataclasses.replace(run, records=tuple(unknown)), "head") is None


def test_one_axis_is_one_panel_of_all_recipes(tmp_path):
    drawn = figures(grid_of(tmp_path, asked(("rates=0.5,1,2",), seeds=(1, 2))))
    assert [figure.key for figure in drawn][:4] == ["grid-final", "grid-spikes", "grid-rise", "grid-condition-0"]
    (axes,) = drawn[0].canvas.axes
    assert len([line for line in axes.get_lines() if line.get_linestyle() != "None"]) == 2
    assert len(axes.collections) == 2  # bands over the seeds
    shown = [text.get_text() for text in drawn[0].canvas.legends[0].get_texts()]
    assert shown == ["adamw", "polar", "diverged"]


def test_values_that_are_no_numbers_stand_side_by_side(tmp_path):
    grid = grid_of(tmp_path, asked(("hidden.weight_decay=none,0.1",)))
    (axes,) = figures(grid)[0].canvas.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "0.1"]
    assert grid.tables()[0].columns[-1] == "hidden.weight_decay=0.1"
    assert grid.sensitivity(grid.rows()[0]) is None
    assert grid.valley(grid.rows()[0]) is None


def test_the_page_has_the_grid(tmp_path):
    whole = asked()
    runs = written_grid(tmp_path / "c", whole, course)
    text = Findings.read(tmp_path / "c").write_page(tmp_path / "c" / "report.html").read_text()
    assert "<h2>The grid</h2>" in text
    assert "adamw: lowest 4.000 at warmup=0,rates=1" in text
    assert (tmp_path / "c" / "figures" / "grid-final.png").is_file()
    alone = Findings(runs[:1]).write_page(tmp_path / "report.html").read_text()  # no comparison's folder
    assert "The grid" not in alone


def test_a_point_that_lost_a_seed_is_not_the_best(tmp_path):
    def unlucky(spec):
        lower = spec.learning_rates["vector"] > 3e-3
        return [8.0, None] if lower and spec.seed == 2 else [8.0, 3.0 if lower else 4.0]

    runs = written_grid(tmp_path / "c", asked(("rates=1,2",), seeds=(1, 2)), unlucky)
    assert {one.runs[0].spec.name for one in replicates(runs)} == {"adamw@rates=1@seed=1", "polar@rates=1@seed=1"}


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_named_comparison_is_one_that_can_be_made(name):
    whole = COMPARISONS[name]
    specs = tuple(whole.observed(spec_of(recipe, steps=whole.steps)) for recipe in whole.recipes)
    made = Comparison(specs, sweep=whole.sweep)
    assert len(grid_points(specs, made.axes)) == len(made.pending({})) == {"phenomena": 45, "valley": 70}[name]
    assert {spec.loop.eval_every for spec in made.pending({})} == {25}
