"""Commands as dataclasses: what their options mean, how they are read and refused."""

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.cli.arguments import Positional, _meanings, read
from polargrad.lab.options import given


@dataclass(frozen=True)
class Sizes:
    """[sizes] A table of options.

    Args:
        width: width of everything, which is a sentence
            over two lines.
        compiled: whether to compile.
    """

    width: int = 3
    compiled: bool = field(default=True, metadata={"flag": "compile"})

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width is {self.width}; give at least 1")


@dataclass(frozen=True)
class Toy:
    """Do something that takes more than a line of a terminal of 60 columns to say.

    Example: polargrad toy a

    Args:
        names: some names
        kind: a kind
        where: a folder
        change: a change
    """

    names: Positional[tuple[str, ...]]
    kind: Literal["a", "b"] = "a"
    where: Path | None = None
    change: tuple[str, ...] = field(default=(), metadata={"metavar": "K=V", "repeated": True})
    sizes: Sizes = field(default_factory=Sizes)


def test_flags_are_read_into_fields():
    made = read(Toy, "toy", ["x", "y", "--kind", "b", "--change", "a=1", "--change", "b=2", "--no-compile"])
    assert made == Toy(("x", "y"), "b", change=("a=1", "b=2"), sizes=Sizes(compiled=False))
    assert read(Toy, "toy", ["x", "--where", "out", "--width", "5"], made).sizes == Sizes(5, compiled=False)


def test_help_says_what_docstrings_say(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        read(Toy, "toy", ["--help"])
    out = capsys.readouterr().out
    assert out.startswith("Do something that takes more than a line of a terminal of 60\ncolumns to say.\n\nExample: ")
    said = " ".join(out.replace("│", " ").split())
    for words in (
        "--kind {a,b} a kind (default: a)",
        "--where DIR a folder --",
        "--change K=V a change",
        "[sizes] A table of options.",
        "--width N width of everything, which is a sentence over two lines (default: 3)",
        "--compile, --no-compile whether to compile (default: True)",
    ):
        assert words in said
    assert max(map(len, out.splitlines())) <= 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--width", "0"], "width is 0; give at least 1; `polargrad toy --help`"),
        (["x", "--kind", "c"], "'c' for argument '--kind'"),
        (["x", "--widht", "2"], "did you mean --width?"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(arguments, message):
    with pytest.raises(ValueError) as caught:
        read(Toy, "toy", arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_given_names_the_flags_that_differ():
    made = Toy(("x",), where=Path("a"), sizes=Sizes(compiled=False))
    assert given(made, "kind", "where") == "--where"
    assert given(made.sizes) == "--no-compile"
    assert given(Sizes()) == ""


def _tables(kind):
    """A command's dataclass and those of its tables."""
    yield kind
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.default_factory):
            yield entry.default_factory


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_of_every_command_has_a_meaning(command):
    kind = getattr(importlib.import_module(f"polargrad.lab.cli.{command}"), command.capitalize())
    for table in _tables(kind):
        entries = [entry for entry in dataclasses.fields(table) if not dataclasses.is_dataclass(entry.default_factory)]
        assert {entry.name for entry in entries} == {name for name, words in _meanings(table).items() if words}, table
