"""Command-line arguments: a command is a dataclass of options (`polargrad.lab.options`), read by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import docstring_parser
import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction
from tyro.conf import Positional as Positional
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from polargrad.lab.options import Options, given, name_of, option, refuse_unused, tables
from polargrad.lab.run.tracking import Tracking

Command = TypeVar("Command")
_REGISTRY = ConstructorRegistry()
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "DIR"}


@dataclasses.dataclass(frozen=True)
class Parallelism(Options):
    """Several processes, started as torchrun --nproc-per-node 2 -m polargrad run NAME --parallel ddp.

    Args:
        parallel: how a language model is divided: copies, shards, both, or tensor parallelism
        mesh: copies x shards x tensor-parallel ranks; by default all ranks along the mode's axis
    """

    parallel: Literal["ddp", "fsdp", "hsdp", "tp"] | None = None
    mesh: str | None = option(None, metavar="DxSxT")

    def processes(self) -> contextlib.AbstractContextManager[Any]:
        """The processes (`polargrad.lab.train.parallel.Parallel`), as long as the block lasts."""
        from polargrad.lab.train.parallel import processes

        return processes(self.parallel, self.mesh)

    def refuse(self, name: str) -> None:
        """Raise ValueError if several processes were asked for where one does the work."""
        if unused := given(self):
            raise ValueError(f"{unused}: {name} runs on one process; leave --parallel and --mesh out")


@dataclasses.dataclass(frozen=True)
class TrackingFlags(Options, Tracking):
    """Where records go beside the run folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jobs(Options):
    """Several runs at a time.

    Args:
        jobs: runs at a time, each in a process of its own
        threads: threads of each run; by default as many as find idle cores, and one where there are several jobs
    """

    jobs: int = 1
    threads: int | None = None

    def cores(self, resumed: Path | None = None) -> contextlib.AbstractContextManager[None]:
        """The cores that a single job takes if it is not said how many, as long as the block lasts."""
        from polargrad.lab.cli.terminal import idle_cores

        return idle_cores(resumed) if self.jobs == 1 and self.threads is None else contextlib.nullcontext()


def read(kind: type[Command], command: str, arguments: Sequence[str], default: Command | None = None) -> Command:
    """A command with its options set, none of which the others leave without effect.

    Args:
        kind: the command's dataclass.
        command: what it is called.
        arguments: what follows its name.
        default: the options that are there already, such as those of a launch file.

    Raises:
        ValueError: arguments that cannot be read, or an option that the others leave without effect.
        SystemExit: after --help.
    """
    if {"-h", "--help"} & set(arguments):
        print(_description(kind), end="\n\n")
    said = io.StringIO()
    options: dict[str, Any] = {"prog": f"polargrad {command}", "description": "", "registry": _REGISTRY}
    try:
        with contextlib.redirect_stderr(said):
            made = tyro.cli(kind, args=list(arguments), default=default, **options)
    except SystemExit as end:
        if not end.code:
            raise
        message = f"{refusal(said.getvalue())}; `polargrad {command} --help` shows what it takes"
        raise ValueError(message) from None
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for table in tables(made):
        spelled = {entry.name: name_of(entry).replace("_", "-") for entry in dataclasses.fields(table)}
        written = {name for name, text in spelled.items() if {f"--{text}", f"--no-{text}"} & flags}
        object.__setattr__(table, "written", frozenset(written))
    refuse_unused(made)
    return made


def _description(kind: type[Any]) -> str:
    """The command's docstring down to `Args:`, wrapped to the width of the terminal."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:")[0].strip()
    width = shutil.get_terminal_size().columns
    return "\n\n".join(textwrap.fill(part, width) for part in text.split("\n\n"))


def _meanings(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= {
                entry.arg_name: " ".join((entry.description or "").split()).removesuffix(".")
                for entry in docstring_parser.parse(base.__doc__ or "").params
            }
    return found


@_REGISTRY.struct_rule
def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro reads every dataclass here."""
    if not dataclasses.is_dataclass(info.type):
        return None
    hints, meanings = typing.get_type_hints(info.type, include_extras=True), _meanings(info.type)
    specs = []
    for entry in dataclasses.fields(info.type):
        default = tyro.MISSING
        if dataclasses.is_dataclass(info.default):
            default = getattr(info.default, entry.name)
        elif entry.default is not dataclasses.MISSING:
            default = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        specs.append(
            StructFieldSpec(entry.name, _annotated(hints[entry.name], entry), default, meanings.get(entry.name))
        )
    return StructConstructorSpec(info.type, tuple(specs))


def _annotated(hint: Any, entry: dataclasses.Field[Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        return Annotated[hint, OmitArgPrefixes]
    made = Annotated[
        hint,
        tyro.conf.arg(
            name=entry.metadata.get("flag"),
            metavar=entry.metadata.get("metavar") or _metavar(hint),
            help_behavior_hint=lambda shown: "" if shown in ("", "''", "()", "None") else f"(default: {shown})",
        ),
    ]
    return UseAppendAction[made] if entry.metadata.get("repeated") else made


def _metavar(hint: Any) -> str | None:
    """What stands for a value of this type; None leaves it to tyro, as for booleans."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _metavar(choices[0])
    if origin in (types.UnionType, typing.Union):
        return next((_metavar(choice) for choice in choices if choice is not type(None)), None)
    if origin is tuple:
        return f"{_metavar(choices[0])} ..."
    return "{" + ",".join(map(str, choices)) + "}" if origin is Literal else _METAVARS.get(hint)


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
    wrong = re.sub(r"^Error parsing (?!-)\S+: ", "", wrong)  # from the checks of a table of options
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
