"""What a person wrote after a command: read by tyro, refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

__all__ = ["option", "read", "read_options"]

Options = TypeVar("Options")


def option(*, help: str, metavar: str | None = None) -> object:
    """An option as `Annotated` wants it; its help ends with the default where there is one to speak of.

    Args:
        help: what it means.
        metavar: what stands for its value.
    """
    return tyro.conf.arg(metavar=metavar, help=help, help_behavior_hint=_default)


def _default(shown: str) -> str:
    return "" if shown in ("", "()", "None") else f"(default: {shown})"


def read(commands: Mapping[str, Callable[..., Callable[[], object]]], arguments: Sequence[str]) -> Callable[[], object]:
    """The command that the arguments name, with its options set.

    Args:
        commands: name -> what is made of its options.
        arguments: the command's name, and what follows it; at least the name.

    Raises:
        ValueError: arguments that cannot be read.
        SystemExit: after --help.
    """
    return _read(
        lambda: tyro.extras.subcommand_cli_from_dict(dict(commands), prog="polargrad", args=list(arguments)),
        arguments[0],
    )


def read_options(kind: type[Options], command: str, arguments: Sequence[str], default: Options) -> Options:
    """One command's options, laid over those it has already.

    Args:
        kind: what holds them.
        command: what the command is called.
        arguments: what follows its name.
        default: the options that are there already.

    Raises:
        ValueError: arguments that cannot be read.
        SystemExit: after --help.
    """
    made = lambda: tyro.cli(kind, prog=f"polargrad {command}", args=list(arguments), default=default)  # noqa: E731
    return _read(made, command)


def _read(make: Callable[[], Options], command: str) -> Options:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return make()
    except SystemExit as end:
        if not end.code:
            raise
    raise ValueError(f"{refusal(said.getvalue())}; `polargrad {command} --help` shows what it takes")


def refusal(box: str) -> str:
    """What tyro's box says was wrong, as the beginning of a sentence.

    Example:
        >>> refusal("╭─ Value error ──╮\\n│ Unrecognized options: -x │\\n╰──╯")
        'unrecognized options: -x'
        >>> refusal("Value error\\n----\\n  Error parsing --steps: no type matching INT from ['many'].\\n")
        "--steps cannot be 'many'"
    """
    paragraphs = _paragraphs(box) or ["the arguments cannot be read"]
    wrong = paragraphs[0].removesuffix(".").removesuffix(" (required)")
    if bad_value := re.match(r"Error parsing (\S+): .*(?: from \[| base 10: )(.+?)\]?$", wrong):
        wrong = f"{bad_value[1]} cannot be {bad_value[2]}"
    meant = next((p.split()[3] for p in paragraphs if p.startswith("Perhaps you meant: ")), None)
    hint = "" if meant is None else f"; did you mean {meant}?"
    return wrong[:1].lower() + wrong[1:] + hint


def _paragraphs(box: str) -> list[str]:
    """The text of a box, cut at its rules and empty lines; without title (its first line), frame and colours."""
    lines = [line.strip().strip("│").strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line.strip("╰╯─-"):
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    return [" ".join(paragraph) for paragraph in paragraphs if paragraph]
