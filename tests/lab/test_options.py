"""Options as fields of dataclasses: checked by their declared types, and refused where they have no effect."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from polargrad.lab.lm.models import Architecture
from polargrad.lab.options import Options, Used, check_value, given, option, refuse_unused, values_of


@pytest.mark.parametrize(
    ("hint", "limits", "good", "bad"),
    [
        (int, {}, [1, 7], [0, -1, 1.0, True, "1", None]),
        (int, {"least": 0}, [0], [-1]),
        (int | None, {}, [None, 3], [0, "three"]),
        (float, {}, [0, 1.5, -2], [True, "1", None, float("nan"), float("inf")]),
        (float, {"above": 0, "most": 1}, [0.5, 1], [0, 1.01]),
        (float | None, {"least": 0}, [None, 0.0], [-0.1]),
        (bool, {}, [True, False], [0, "yes", None]),
        (str, {}, ["", "a"], [1, None]),
        (Path | None, {}, [None, Path("a")], ["a"]),
        (Literal["a", "b"], {}, ["a"], ["c", 1, None]),
        (Literal["a", "b"] | None, {}, ["a", None], ["c"]),
        (tuple[str, ...], {}, [(), ("a",)], [["a"], (1,), "a"]),
    ],
)
def test_a_value_is_checked_by_its_declared_type(hint, limits, good, bad):
    for value in good:
        check_value("x", value, hint, limits)
    for value in bad:
        with pytest.raises(ValueError, match=r"^x (must be|is) "):
            check_value("x", value, hint, limits)


def test_an_option_of_a_decoder_may_be_of_any_type():
    @dataclass(frozen=True)
    class Sizes(Architecture):
        attention: Literal["sdpa", "eager"] = "sdpa"
        note: str = ""
        dropout: float = option(0.0, least=0, most=1)

    assert Sizes(attention="eager", note="a", dropout=0.5).attention == "eager"
    for wrong, message in (
        ({"attention": "flash"}, "attention is 'flash'; allowed are 'sdpa', 'eager'"),
        ({"note": 3}, "note is 3; give a string"),
        ({"dropout": 2.0}, "dropout must be a finite number of at least 0 and at most 1; got 2.0"),
        ({"layers": 0}, "layers must be an integer of at least 1; got 0"),
        ({"untied": 1}, "untied is 1; give a bool"),
    ):
        with pytest.raises(ValueError, match=message):
            Sizes(**wrong)


@dataclass(frozen=True)
class Search(Options):
    ratio: float = option(2.0, above=1, used=Used("tune", why="options of a search"))
    wide: bool = option(True, used=Used("tune", why="options of a search"))
    rounds: int = option(3, used=Used("kind", ("long",)))
    out: str = option("", used=Used("again", unless=True, why="it stays where it is"))


@dataclass(frozen=True)
class Command(Options):
    tune: bool = False
    kind: Literal["long", "short"] = "long"
    again: bool = False
    search: Search = field(default_factory=Search)


def test_options_that_the_others_leave_without_effect_are_refused():
    refuse_unused(Command())
    refuse_unused(Command(tune=True, search=Search(ratio=3.0, wide=False, rounds=4, out="a")))
    for command, message in (
        (
            Command(search=Search(ratio=3.0, wide=False)),
            "--ratio, --no-wide: options of a search; add --tune",
        ),
        (
            Command(kind="short", search=Search(rounds=4)),
            "--rounds is not used by --kind short; leave it out",
        ),
        (Command(again=True, search=Search(out="a")), "--out: it stays where it is; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            refuse_unused(command)


def test_an_option_that_was_written_out_is_given_even_at_its_default():
    search = Search()
    assert given(search) == ""
    object.__setattr__(search, "written", frozenset({"ratio"}))
    assert given(search) == "--ratio"
    with pytest.raises(ValueError, match="--ratio: options of a search"):
        refuse_unused(Command(search=search))
    refuse_unused(Command(tune=True, search=search))
    command = Command(search=search)
    object.__setattr__(command, "written", frozenset({"tune"}))  # --no-tune
    with pytest.raises(ValueError, match="--ratio: options of a search"):
        refuse_unused(command)


def test_values_of_a_part():
    @dataclass(frozen=True)
    class More(Search):
        more: int = 1

    assert values_of(Search, More(more=2)) == {"ratio": 2.0, "wide": True, "rounds": 3, "out": ""}
