"""Every cell of ours in the comparison with other libraries names a test that exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "comparison.md"
LINK = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


def _rows():
    """The cells of every row of every table of the page."""
    lines = PAGE.read_text().splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")]


def _cells():
    """Feature and our cell of each row of the table of features."""
    rows = _rows()
    start = next(i for i, row in enumerate(rows) if len(row) > 1 and row[1].startswith("ours"))
    width = len(rows[start])
    return [(row[0], row[1]) for row in rows[start + 1 :] if len(row) == width]


def _missing(cell):
    """The links of a cell that lead nowhere; the cell itself if it has none."""
    links = LINK.findall(cell)
    missing = [] if links else [cell]
    for path, test in links:
        file = TESTS / path
        tree = ast.walk(ast.parse(file.read_text())) if file.exists() else ()
        names = {node.name for node in tree if isinstance(node, ast.FunctionDef)}
        if not (test in names if test else any(name.startswith("test_") for name in names)):
            missing.append(f"{path}::{test}")
    return missing


def test_every_cell_of_ours_has_its_test():
    cells = _cells()
    assert len(cells) > 10
    assert {feature: _missing(cell) for feature, cell in cells if _missing(cell)} == {}


def test_a_dead_link_is_found():
    assert _missing("yes: `optim/test_memory.py::test_nothing_of_that_name`")
    assert _missing("yes: `optim/test_nowhere.py`")
    assert _missing("yes")
    assert not _missing("yes: `test_comparison.py::test_a_dead_link_is_found`")


def test_every_row_has_a_cell_for_everybody():
    widths = {len(row) for row in _rows() if any("`optim/" in cell for cell in row)}
    assert len(widths) == 1
    assert all(all(row[1:]) for row in _rows())
