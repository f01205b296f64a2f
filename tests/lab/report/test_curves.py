import re
from xml.etree import ElementTree

import pytest

from polargrad.lab.report.curves import gradient_sections, loss_figures
from polargrad.lab.report.figures import DARK, LIGHT, inline_svg, save
from tests.runs import written_run

CURVE = [(0, 8.0), (2, 6.0), (4, 5.0)]
HOSTILE = ["<script>alert(1)<&", "$x$", "_under", "a$b", 'id="', LIGHT[0], "ひ😀", "x" * 120]


def figures(runs):
    """Every figure of some runs, each with a line of its own."""
    sections = gradient_sections({run.spec.name: run for run in runs})
    return [*loss_figures({run.spec.name: [run] for run in runs}), *(f for s in sections for f in s.figures)]


@pytest.fixture
def runs(tmp_path):
    return [written_run(tmp_path / name, CURVE) for name in ("adamw", "muon")]


def test_every_figure_is_drawn_from_records(runs):
    drawn = figures(runs)
    assert [figure.key for figure in drawn] == [
        "loss-steps",
        "loss-seconds",
        "condition-number-0",
        "condition-number-1",
        "nuclear-norm-0",
        "nuclear-norm-1",
    ]
    steps, seconds = (figure.canvas.axes[0] for figure in drawn[:2])
    evaluated = [line for line in steps.get_lines() if line.get_marker() != "None"]
    assert [list(line.get_xdata()) for line in evaluated] == [[0, 2, 4]] * 2
    assert list(evaluated[0].get_ydata()) == [8.0, 6.0, 5.0]
    assert list(seconds.get_lines()[1].get_xdata()) == [0.0, 1.0, 2.0]


def test_lines_differ_in_colour_dashes_and_marks(tmp_path):
    runs = [written_run(tmp_path / f"run{i}", CURVE) for i in range(3)]
    lines = [line for line in figures(runs)[0].canvas.axes[0].get_lines() if line.get_marker() != "None"]
    for trait in ("get_color", "get_marker"):
        assert len({getattr(line, trait)() for line in lines}) == 3
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 3


def test_figures_are_saved_twice(runs, tmp_path):
    paths = save(figures(runs)[:1], tmp_path / "figures")
    assert [path.name for path in paths] == ["loss-steps.svg", "loss-steps.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(paths[0])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_drawn_as_it_is_and_never_as_markup(tmp_path, name):
    run = written_run(tmp_path / "folder", CURVE, name=name)
    for figure in figures([run]):
        tree = ElementTree.fromstring(inline_svg(figure))
        texts = ["".join(element.itertext()) for element in tree.iter() if element.tag.endswith("text")]
        shown = name if len(name) <= 48 else name[:47] + "…"
        assert shown in texts
        assert not [element for element in tree.iter() if "script" in element.tag]


def test_colours_of_a_page_follow_its_theme(runs):
    svg = inline_svg(figures(runs)[0])
    assert "var(--run-0)" in svg
    assert "var(--run-1)" in svg
    assert "var(--ink)" in svg
    assert not re.findall("|".join(LIGHT), svg)
    assert len(LIGHT) == len(DARK)


def test_identifiers_of_figures_do_not_collide(runs):
    first, second = (set(re.findall(r'\bid="([^"]*)"', inline_svg(figure))) for figure in figures(runs)[:2])
    assert first
    assert not first & second
    for figure in figures(runs):
        svg = inline_svg(figure)
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]*)', svg)) <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_a_diverging_run_does_not_flatten_the_others(tmp_path, runs):
    wild = written_run(tmp_path / "wild", [(0, 8.0), (1, 4e9), (2, None)], status="diverged")
    axes = figures([*runs, wild])[0].canvas.axes[0]
    assert axes.get_ylim()[1] < 9


def test_records_without_figures_draw_what_there_is(tmp_path):
    run = written_run(tmp_path / "one", [(0, None)], status="diverged")
    assert [figure.key for figure in figures([run])] == ["loss-steps", "loss-seconds"]
    save(figures([run]), tmp_path / "figures")
