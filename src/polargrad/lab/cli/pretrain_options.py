"""What `polargrad pretrain` understands, as tables of a launch file (TOML) and as flags that override it."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction


def option(*, help: str, metavar: str | None = None) -> object:
    """Until the next commit."""
    return tyro.conf.arg(metavar=metavar, help=help)


def _size(help_text: str) -> Any:
    return option(metavar="N", help=f"{help_text}; the model's own by default")


@dataclass(frozen=True)
class ModelOptions:
    """[model] The decoder: one by name, any of its sizes changed."""

    model: Annotated[
        str,
        option(metavar="NAME", help="demo (1.9M), laptop (10.6M), gpt2-small, gpt2-medium, qwen2.5-540m or moe-demo"),
    ] = "demo"
    sequence: Annotated[int | None, _size("context length in tokens")] = None
    vocabulary: Annotated[int | None, _size("tokens in the vocabulary")] = None
    hidden_size: Annotated[int | None, _size("width of the residual stream")] = None
    layers: Annotated[int | None, _size("blocks")] = None
    heads: Annotated[int | None, _size("attention heads")] = None
    kv_heads: Annotated[int | None, _size("key and value heads")] = None
    mlp: Annotated[int | None, _size("width inside the MLP or each expert")] = None
    experts: Annotated[int | None, _size("experts of each block")] = None
    experts_per_token: Annotated[int | None, _size("experts that a token goes to")] = None


@dataclass(frozen=True)
class DataOptions:
    """[data] The text and its tokens."""

    data: Annotated[
        str,
        option(
            metavar="WHERE",
            help="standard-library (embedded); a file, folder or glob of .txt, .md, .py or .jsonl; a data set of the "
            "Hugging Face hub by name, or a folder in its format",
        ),
    ] = "standard-library"
    subset: Annotated[str, option(metavar="NAME", help="of a hub data set that has several")] = ""
    split: Annotated[str, option(metavar="NAME", help="of a hub data set")] = "train"
    field: Annotated[str, option(metavar="NAME", help="entry of a JSON line or a hub row that holds the text")] = "text"
    documents: Annotated[int, option(metavar="N", help="use at most so many documents; 0: all")] = 0
    held_out: Annotated[float, option(metavar="SHARE", help="of the documents, for evaluation")] = 0.05
    tokenizer: Annotated[
        str, option(metavar="WHERE", help="a tokenizer.json or a name on the hub; by default a BPE trained on the data")
    ] = ""
    shuffle: Annotated[
        Literal["documents", "windows"], option(help="what every epoch puts in a new order, drawn from the seed")
    ] = "documents"


@dataclass(frozen=True)
class OptimizerOptions:
    """[optimizer] A recipe, and changes to it."""

    recipe: Annotated[
        str, option(metavar="NAME", help="muon+polargrad, adamw, muon+adamw, ...: see `polargrad list`")
    ] = "muon+polargrad"
    set: Annotated[
        UseAppendAction[tuple[str, ...]],
        option(
            metavar="ROLE.OPTION=V",
            help="change an option of a role's group, as in hidden.lr=0.005, embedding+head.momentum=0.9 or "
            "*.weight_decay=0.1; may be given several times",
        ),
    ] = ()
    clip: Annotated[float | None, option(metavar="NORM", help="largest norm of all gradients together")] = None


@dataclass(frozen=True)
class ScheduleOptions:
    """[schedule] How long, and the learning rate's way."""

    steps: Annotated[int | None, option(metavar="N", help="optimizer steps; 200 where nothing else is said")] = None
    tokens: Annotated[int | None, option(metavar="N", help="instead of steps: tokens to train on")] = None
    minutes: Annotated[
        float | None, option(metavar="X", help="instead of steps: as many as take this long, found by trying a few")
    ] = None
    schedule: Annotated[Literal["warmup-linear-decay", "cosine", "constant"], option(help="of the learning rates")] = (
        "warmup-linear-decay"
    )
    warmup: Annotated[
        int | None, option(metavar="N", help="steps of linear warm-up; a fifteenth of the run, at most 100, by default")
    ] = None
    decay: Annotated[float, option(metavar="SHARE", help="of the run over which the rate falls to zero")] = 0.4
    final: Annotated[float, option(metavar="FACTOR", help="what a cosine ends at, times the rate")] = 0.0


@dataclass(frozen=True)
class TrainingOptions:
    """[training] How a step is computed."""

    batch: Annotated[int, option(metavar="N", help="sequences in a step")] = 16
    accumulation: Annotated[
        int, option(metavar="N", help="parts that a batch is differentiated in, to save memory")
    ] = 1
    precision: Annotated[
        Literal["float32", "bfloat16-mixed", "bfloat16"],
        option(help="mixed: bfloat16 where torch deems it safe, weights and updates in float32"),
    ] = "float32"
    activation_checkpointing: Annotated[
        bool, option(help="compute activations again in the backward pass instead of keeping them")
    ] = False
    compile: Annotated[bool, option(help="forward and backward through torch.compile")] = False
    device: Annotated[str, option(metavar="NAME", help="auto, cpu or cuda")] = "auto"
    seed: Annotated[int, option(metavar="N", help="of the initial weights and of the batches")] = 42


@dataclass(frozen=True)
class EvaluationOptions:
    """[evaluation] When to look, and at what."""

    eval_every: Annotated[
        int, option(metavar="N", help="steps between evaluations; 0: before the first and at the end")
    ] = 50
    evaluation_windows: Annotated[int, option(metavar="N", help="held-out sequences in an evaluation")] = 256
    diagnostics_every: Annotated[
        int, option(metavar="N", help="steps between looks at singular values, off the timed path; 0: none")
    ] = 0
    matrices: Annotated[
        tuple[str, ...],
        option(metavar="NAME ...", help="to look at; embedding, head, an early and a late hidden one by default"),
    ] = ()
    tensorboard: Annotated[bool, option(help="write the records for TensorBoard too, into the run folder")] = False
    track: Annotated[
        Literal["none", "wandb", "trackio"], option(help="send the records to a tracker too; it must be installed")
    ] = "none"
    log_every: Annotated[int, option(metavar="N", help="steps between reads of the loss; all are recorded")] = 10


@dataclass(frozen=True)
class CheckpointOptions:
    """[checkpoints] So that a run that is stopped or killed goes on where it was; they are in the run folder."""

    checkpoint_every: Annotated[int, option(metavar="N", help="steps between checkpoints; 0: every half minute")] = 0
    keep: Annotated[int, option(metavar="N", help="how many checkpoints stay")] = 2
    resume: Annotated[
        Path | None,
        option(
            metavar="DIR", help="go on with this run, which must be of the same options; `polargrad resume` asks none"
        ),
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """[run] Where it goes."""

    name: Annotated[str, option(metavar="NAME", help="of the run; model and recipe by default")] = ""
    out: Annotated[Path | None, option(metavar="DIR", help="the new run folder; runs/NAME-DATE-TIME by default")] = None
    dry_run: Annotated[
        bool, option(help="train nothing: say what would run, and the memory and time it would take")
    ] = False
    devices: Annotated[int, option(metavar="N", help="of a dry run: GPUs that share each batch")] = 1
    tflops: Annotated[
        float, option(metavar="X", help="of a dry run: teraflops a second that a GPU reaches forward and backward")
    ] = 400.0
    optimizer_tflops: Annotated[
        float, option(metavar="X", help="of a dry run: the same for polar factors in float32")
    ] = 40.0


@dataclass(frozen=True)
class PretrainOptions:
    """Every table of a launch file."""

    model: Annotated[ModelOptions, OmitArgPrefixes] = field(default_factory=ModelOptions)
    data: Annotated[DataOptions, OmitArgPrefixes] = field(default_factory=DataOptions)
    optimizer: Annotated[OptimizerOptions, OmitArgPrefixes] = field(default_factory=OptimizerOptions)
    schedule: Annotated[ScheduleOptions, OmitArgPrefixes] = field(default_factory=ScheduleOptions)
    training: Annotated[TrainingOptions, OmitArgPrefixes] = field(default_factory=TrainingOptions)
    evaluation: Annotated[EvaluationOptions, OmitArgPrefixes] = field(default_factory=EvaluationOptions)
    checkpoints: Annotated[CheckpointOptions, OmitArgPrefixes] = field(default_factory=CheckpointOptions)
    run: Annotated[RunOptions, OmitArgPrefixes] = field(default_factory=RunOptions)


Options = TypeVar("Options", bound=PretrainOptions)


def read_launch_file(path: Path, default: Options) -> Options:
    """The options of a launch file, laid over the given ones.

    Args:
        path: a TOML file whose tables and keys are those of `PretrainOptions`.
        default: what the file does not say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or has a table, key or value that there is not; the message names it.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no launch file {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error
    known = {entry.name: getattr(default, entry.name) for entry in dataclasses.fields(PretrainOptions)}
    changed = {}
    for name, table in tables.items():
        if name not in known:
            raise ValueError(f"{path} has [{name}]{_like(name, known)}; its tables are {', '.join(known)}")
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {name} is a table; write [{name}] and its keys below it")
        changed[name] = dataclasses.replace(known[name], **_checked(table, type(known[name]), f"{path}: [{name}]"))
    return dataclasses.replace(default, **changed)


def _checked(table: Mapping[str, Any], cls: type[Any], where: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"{where} has no {key!r}{_like(key, hints)}; it knows {', '.join(hints)}")
        values[key] = _fitted(value, hints[key], f"{where} {key}")
    return values


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """A value of TOML as the type that a field has."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in choices:
            return value
        raise ValueError(f"{where} is {value!r}; allowed are {', '.join(map(repr, choices))}")
    if origin is tuple:
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise ValueError(f"{where} is {value!r}; give a list of strings")
    allowed = choices if origin in (types.UnionType, typing.Union) else (hint,)
    if Path in allowed and isinstance(value, str):
        return Path(value)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = tuple(kind for kind in allowed if kind is not type(None))
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        raise ValueError(f"{where} is {value!r}; give {' or '.join(words[kind] for kind in plain if kind in words)}")
    return value


def _like(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
