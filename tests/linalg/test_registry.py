"""Names of things that can be added: taken names, unknown ones, and modules imported when a name is looked up."""

import sys

import pytest

from polargrad.linalg.registry import Registry


def test_things_come_in_their_order_and_are_found():
    shapes = Registry("shape")
    assert [shapes.add(name, name.upper()) for name in "ba"] == ["B", "A"]
    assert (list(shapes), dict(shapes), len(shapes), "a" in shapes) == (["b", "a"], {"b": "B", "a": "A"}, 2, True)
    assert (shapes.get("b"), shapes.get("c"), shapes.get("c", 3)) == ("B", None, 3)
    shapes["a"] = "other"
    del shapes["b"]
    assert dict(shapes) == {"a": "other"}


def test_an_unknown_name_is_told_with_its_neighbour():
    shapes = Registry("shape")
    shapes.add("circle", 1)
    with pytest.raises(ValueError, match="unknown shape 'circel'; did you mean 'circle'"):
        shapes["circel"]


def test_a_name_that_is_taken_is_refused_and_a_file_read_again_is_not():
    def made(module):
        return type("Circle", (), {"__module__": module, "__qualname__": "Circle"})

    shapes = Registry("shape")
    shapes.add("circle", made("here"))
    again = shapes.add("circle", made("here"))
    with pytest.raises(ValueError, match="the shape 'circle' is taken by Circle; choose another name"):
        shapes.add("circle", made("elsewhere"))
    assert shapes["circle"] is again


def test_an_announced_module_is_imported_when_its_name_is_looked_up(tmp_path, monkeypatch):
    shapes = Registry("shape")
    (tmp_path / "announced_circle.py").write_text(
        "import test_shapes\n\ndef circle(): ...\n\ntest_shapes.shapes.add('circle', circle)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_shapes", type("module", (), {"shapes": shapes}))
    monkeypatch.delitem(sys.modules, "announced_circle", raising=False)
    shapes.add("square", "pointed")
    shapes.announce({"circle": "announced_circle"})
    assert list(shapes) == ["circle", "square"]
    assert "announced_circle" not in sys.modules
    with pytest.raises(ValueError, match="'circle' is taken"):  # by what has not been imported yet
        shapes.add("circle", "another")
    assert shapes["circle"].__module__ == "announced_circle"
