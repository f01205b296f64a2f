"""The declaration of a run: what is minimized, by which optimizer, under which schedule, for how long.

A spec is plain data. It round-trips through JSON, checks itself when it is made, and has a hash of its content, so that
a run folder says exactly what ran and two runs can be told to be the same experiment.

The fields of `Text`, `Computation` and `Evaluation`, like those of `Architecture` and `LoopConfig`, are also the flags
of `polargrad pretrain` and the keys of a launch file; `polargrad.lab.options` says how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from polargrad.lab.files import json_text, parse_json
from polargrad.lab.lm.models import Architecture
from polargrad.lab.options import check_integer, divisors, option, unknown_name
from polargrad.lab.train import Constant, LoopConfig, Schedule, schedule_from_dict

Plain = None | bool | int | float | str | tuple["Plain", ...] | Mapping[str, "Plain"]

FORMAT = 1
Shuffle = Literal["windows", "documents"]
Precision = Literal["float32", "tf32", "bfloat16-mixed", "bfloat16", "float64"]


@dataclass(frozen=True)
class Text:
    """The text of a language model and its tokens.

    Args:
        corpus: "standard-library" (the sources of the running Python); a file, folder or glob of .txt, .md, .py or
            .jsonl; a data set of the Hugging Face hub by name (OWNER/NAME, or OWNER/NAME@COMMIT), or a folder in its
            format. What runs is written down with its commit.
        subset: subset of a hub data set that has several; empty: its default.
        split: split of a hub data set.
        field: entry of a JSON line or of a hub data set's row that holds the text.
        documents: number of documents to use at most; 0: all.
        held_out: share of the documents that is held out for evaluation, in (0, 0.5].
        tokenizer: a tokenizer.json, or a name on the hub; empty: a byte-level BPE trained on the corpus.
        shuffle: what every epoch puts into a new order drawn from the seed, whole "documents" or "windows" of the text.
    """

    corpus: str = option("standard-library", flag="data", metavar="WHERE")
    subset: str = ""
    split: str = "train"
    field: str = "text"
    documents: int = option(0, least=0)
    held_out: float = option(0.05, metavar="SHARE")
    tokenizer: str = option("", metavar="WHERE")
    shuffle: Shuffle = "windows"


@dataclass(frozen=True)
class Computation:
    """How a step of a language model is computed.

    Args:
        batch: sequences in a step.
        accumulation: parts that a batch is differentiated in, to save memory; a divisor of `batch`.
        precision: "float32"; "tf32": the same, products of forward and backward in TF32, on an NVIDIA GPU;
            "bfloat16-mixed": forward and backward in bfloat16 where torch deems it safe, weights and updates in
            float32; "bfloat16": weights too; "float64": weights and losses, to compare runs on several layouts (norms
            of transformers stay in float32).
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
        compiled: forward and backward through `torch.compile`.
        device: cpu or cuda; in a launch file or a flag also auto.
    """

    batch: int = 16
    accumulation: int = 1
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    compiled: bool = option(False, flag="compile")
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(self.precision, torch.float32)


@dataclass(frozen=True)
class Evaluation:
    """How a language model is evaluated.

    Args:
        evaluation_windows: held-out sequences in an evaluation.
    """

    evaluation_windows: int = 256


@dataclass(frozen=True)
class LanguageModel(Evaluation, Computation, Text, Architecture):
    """Next-token loss of a decoder on a text corpus: `Architecture`, `Text`, `Computation` and `Evaluation` in one.

    Raises:
        ValueError: for a value of the wrong type or out of range, or values that do not fit together.

    Example:
        >>> LanguageModel(hidden_size=64, heads=4).kv_heads
        4
    """

    kind: ClassVar[str] = "language-model"
    metric: ClassVar[str] = "val_loss"
    metric_label: ClassVar[str] = "validation loss"
    metric_unit: ClassVar[str] = "nats per token"

    def __post_init__(self) -> None:
        super().__post_init__()  # checks every field
        if self.batch % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide the batch of {self.batch} sequences; it may be one "
                f"of {divisors(self.batch)}"
            )
        if self.precision == "tf32" and (not self.device.startswith("cuda") or torch.version.hip is not None):
            raise ValueError(
                f"tf32 is a precision of NVIDIA's GPUs, and the device is {self.device!r}; give --precision float32"
            )
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out!r}, the share of documents held out; give one in (0, 0.5]")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the kind first."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class MatrixOptions:
    """Which runs of a matrix problem: `polargrad run PROBLEM`, and `ExperimentOptions` with settings, seed and steps.

    Args:
        only: configurations to run; all by default
        preset: settings of the paper's problems: paper (the authors', the default), or exact (converged polar factors
            with step sizes that converge)
        size: full (the paper's) or small
        repeat: number of seeds, from the seed on; figures show bands
        eval_every: steps between evaluations of the gap in float64
        diagnostics_every: steps between computations of the singular values of gradient and residual, outside the timed
            path; 0: never; by default a hundred of them
        jobs: configurations at a time, each in a process of its own with its share of the cores
    """

    only: tuple[str, ...] = ()
    preset: str | None = None
    size: Literal["full", "small"] = "full"
    repeat: int = 1
    eval_every: int | None = None
    diagnostics_every: int | None = option(None, flag="diagnostics", least=0)
    jobs: int = 1


if TYPE_CHECKING:
    from polargrad.lab.matrix import ProblemSpec

    ObjectiveSpec = LanguageModel | ProblemSpec


@dataclass(frozen=True)
class RunSpec:
    """One run: an equal spec repeats it.

    Args:
        name: name of the run, and of its folder in a comparison.
        objective: what is minimized.
        optimizer: role ("hidden", "embedding", "head", "vector", ...) -> options of that parameter group.
        schedule: step -> multiplier of every group's learning rate.
        loop: number of steps, evaluation, logging and divergence.
        seed: seed of the initial weights and of the batches; equal seeds see equal batches.
        probe: names of the matrices whose gradients are measured every `loop.probe_every` steps.
        recipe: what this run is a variant of, by which a sweep groups its runs; `name` by default.
        description: one line for people.

    Raises:
        ValueError: for a name that cannot be a folder, an optimizer without roles, a rate that is not a positive
            number, a schedule shorter than the run, or anything that is not plain data.

    Example:
        >>> spec = RunSpec("adamw", LanguageModel(), {"hidden": {"rule": "adamw", "lr": 3e-3}})
        >>> RunSpec.from_json(spec.to_json()) == spec
        True
    """

    name: str
    objective: ObjectiveSpec
    optimizer: Mapping[str, Mapping[str, Plain]]
    schedule: Schedule = field(default_factory=Constant)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=100))
    seed: int = 42
    probe: tuple[str, ...] = ()
    recipe: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        check_integer("seed", self.seed, least=0)
        if not self.optimizer:
            raise ValueError("optimizer is empty; give at least one role with its options")
        for role, options in self.optimizer.items():
            _check_role(role, options)
        self.schedule(self.loop.steps - 1)  # refuses a step beyond its end
        object.__setattr__(self, "optimizer", _freeze(self.optimizer, "optimizer"))
        object.__setattr__(self, "probe", tuple(self.probe))
        object.__setattr__(self, "recipe", self.recipe or self.name)

    def __hash__(self) -> int:
        return hash((self.name, self.content_hash))

    def __reduce__(self) -> tuple[Any, ...]:
        # the objective comes first: unpickling it imports the problem's module, wherever that is
        return (_rebuild, (self.objective, self.to_dict()))

    @property
    def content(self) -> dict[str, Any]:
        """What runs, as plain data: everything but name, recipe and description."""
        return {k: v for k, v in self.to_dict().items() if k not in ("name", "recipe", "description")}

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of `content`."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def learning_rates(self) -> dict[str, float]:
        """The base learning rate of every role."""
        return {role: options["lr"] for role, options in self.optimizer.items()}  # pyright: ignore[reportReturnType]

    def with_option(self, role: str, option: str, value: Plain) -> RunSpec:
        """The same run with one option of one role changed."""
        if role not in self.optimizer:
            raise ValueError(f"{self.name} has no role {role!r}; its roles are {', '.join(self.optimizer)}")
        optimizer = {**self.optimizer, role: {**self.optimizer[role], option: value}}
        return dataclasses.replace(self, optimizer=optimizer)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "recipe": self.recipe,
            "description": self.description,
            "seed": self.seed,
            "objective": self.objective.to_dict(),
            "optimizer": _thaw(self.optimizer),
            "schedule": self.schedule.to_dict(),
            "loop": dataclasses.asdict(self.loop),
            "probe": list(self.probe),
        }

    def to_json(self) -> str:
        """Indented JSON, as it stands in a run folder."""
        return json_text(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunSpec:
        """The spec that `to_dict` gave.

        Raises:
            ValueError: for a missing or unknown key, an unknown kind of objective, or a format of a later version.
        """
        data = without_format(data, "the spec", FORMAT)
        return from_plain(
            cls,
            {
                **data,
                "objective": _objective_from_dict(_mapping(data.get("objective"), "objective")),
                "schedule": schedule_from_dict(dict(_mapping(data.get("schedule"), "schedule"))),
                "loop": from_plain(LoopConfig, _mapping(data.get("loop"), "loop"), "loop"),
                "probe": tuple(data.get("probe", ())),
            },
            "a spec",
        )

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The spec that `to_json` gave."""
        return cls.from_dict(parse_json(text))


def parse_setting(text: str) -> tuple[tuple[str, ...], str, str]:
    """An option of some roles as it is written on the command line: the roles, the option, and the text of its value.

    Raises:
        ValueError: anything else.

    Example:
        >>> parse_setting("embedding+head.lr=0.1")
        (('embedding', 'head'), 'lr', '0.1')
    """
    place, equals, value = (part.strip() for part in text.partition("="))
    names, dot, option = place.rpartition(".")
    roles = tuple(name.strip() for name in names.split("+"))
    if not (equals and dot and option and value and all(roles)):
        raise ValueError(f"cannot read {text!r}; write ROLE.OPTION=VALUE, as in hidden.lr=0.005 or head.momentum=0.5")
    return roles, option, value


def parse_value(text: str) -> Any:
    """A value as it is written on the command line: JSON, a number such as -.5 or 5., else a bare word.

    Example:
        >>> parse_value(".5"), parse_value("true"), parse_value("svd")
        (0.5, True, 'svd')
    """
    try:
        return json.loads(text)
    except ValueError:
        return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) else text


def _rebuild(_objective: ObjectiveSpec, data: Mapping[str, Any]) -> RunSpec:
    return RunSpec.from_dict(data)


def _objective_from_dict(data: Mapping[str, Any]) -> ObjectiveSpec:
    settings = {key: value for key, value in data.items() if key != "kind"}
    kind = data.get("kind")
    if kind == LanguageModel.kind:
        return from_plain(LanguageModel, settings, f"objective {kind}")
    from polargrad.lab.matrix import PROBLEMS, ProblemSpec

    if not isinstance(kind, str) or PROBLEMS.key(kind) not in PROBLEMS:
        raise unknown_name("kind of objective", kind, (LanguageModel.kind, *PROBLEMS))
    return ProblemSpec(str(kind), settings)


def without_format(data: Any, what: str, known: int) -> dict[str, Any]:
    """Plain data as it was written, without its format.

    Raises:
        ValueError: not a mapping, or another format than the known one.
    """
    plain = dict(_mapping(data, what))
    if (written := plain.pop("format", None)) != known:
        raise ValueError(f"{what} has format {written!r}, this version reads {known}; use the version that wrote it")
    return plain


def from_plain(cls: type[Any], data: Mapping[str, Any], what: str) -> Any:
    """An instance of a dataclass from a mapping with exactly its fields, those with defaults left out or not.

    Raises:
        ValueError: a missing or unknown key; `what` names the mapping.
    """
    known = {entry.name: entry for entry in fields(cls)}
    if unknown := [key for key in data if key not in known]:
        raise ValueError(f"{what} has no {', '.join(map(repr, unknown))}; it knows {', '.join(known)}")
    missing = [
        name
        for name, entry in known.items()
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING and name not in data
    ]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}; add them")
    return cls(**data)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object with named entries, got {type(value).__name__}")
    return value


def _check_name(name: Any) -> None:
    """A run's name is also a folder's, so it may not climb out of one."""
    allowed = "give 1 to 120 printable characters without / and \\ that do not start with a dot or a space"
    if not isinstance(name, str) or not name or len(name) > 120 or not name.isprintable():
        raise ValueError(f"a run cannot be called {name!r}; {allowed}")
    if "/" in name or "\\" in name or name[0] in ". ":
        raise ValueError(f"a run cannot be called {name!r}, since its folder bears the name; {allowed}")


def _check_role(role: Any, options: Any) -> None:
    if not isinstance(role, str) or not isinstance(options, Mapping):
        raise ValueError(f"optimizer maps a role to its options, got {role!r}: {options!r}")
    rate = options.get("lr")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"the lr of {role!r} is {rate!r}; give a positive finite number")


def _freeze(value: Any, where: str) -> Any:
    """Make plain data immutable; a value that JSON cannot hold is refused with its place."""
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where} has the key {odd[0]!r}; keys are strings")
        return MappingProxyType({key: _freeze(entry, f"{where}.{key}") for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(
        f"{where} is {value!r} ({type(value).__name__}); a spec holds plain data: "
        "None, booleans, finite numbers, strings, lists and mappings"
    )


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(entry) for key, entry in value.items()}
    return [_thaw(entry) for entry in value] if isinstance(value, tuple) else value
