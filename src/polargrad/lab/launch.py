"""A pre-training run as it is asked for, by a launch file (TOML) and by flags, and the spec that it comes to.

Each dataclass here is a table of a launch file and a group of flags. What a spec itself holds is declared there
(`polargrad.lab.run.spec`) and inherited here; declared here is what leads to a spec, such as a model's name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch

from polargrad.lab.checks import check_integer, given, unknown_name
from polargrad.lab.lm.models import Architecture, architecture
from polargrad.lab.recipes import RECIPES, optimizer_for
from polargrad.lab.run.spec import Computation, Evaluation, LanguageModel, RunSpec, Text, option
from polargrad.lab.train import Constant, Cosine, LoopConfig, Schedule, WarmupLinearDecay
from polargrad.optim.roles import roles

__all__ = ["Launch"]


@dataclass(frozen=True)
class _Named:
    model: str = "demo"


@dataclass(frozen=True)
class ModelOptions(Architecture, _Named):
    """[model] The decoder: one by name, and sizes that differ from its own.

    Args:
        model: demo (1.9M parameters), laptop (10.6M), gpt2-small, gpt2-medium, qwen2.5-540m or moe-demo.
    """

    @classmethod
    def named(cls, name: str, **sizes: Any) -> Self:
        """The model of a name with some sizes changed.

        Raises:
            ValueError: an unknown name, or sizes that do not fit together.
        """
        own = {entry.name: getattr(architecture(name), entry.name) for entry in fields(Architecture)}
        return cls(**{**own, **sizes, "model": name})


@dataclass(frozen=True)
class DataOptions(Text):
    """[data] The text and its tokens."""

    shuffle: Literal["windows", "documents"] = "documents"


@dataclass(frozen=True)
class OptimizerOptions:
    """[optimizer] A recipe, and changes to it.

    Args:
        recipe: muon+polargrad, adamw, muon+adamw, ...: see `polargrad list`.
        set: change of an option of a role's group, as in hidden.lr=0.005, embedding+head.momentum=0.9 or
            *.weight_decay=0.1; may be given several times.
        clip: largest norm of all gradients together.
    """

    recipe: str = "muon+polargrad"
    set: tuple[str, ...] = option((), metavar="ROLE.OPTION=V", repeated=True)
    clip: float | None = option(None, metavar="NORM")


@dataclass(frozen=True)
class ScheduleOptions:
    """[schedule] The length of the run, and the learning rate over it.

    Args:
        steps: optimizer steps; 200 by default.
        tokens: instead of steps: tokens to train on.
        minutes: instead of steps: as many as take this long on this machine, which a few steps measure.
        schedule: course of the learning rates.
        warmup: steps of linear warm-up; a fifteenth of the run, at most 100, by default.
        decay: share of the run over which warmup-linear-decay falls to zero, in [0, 1].
        final: factor of the rate at which a cosine ends.
    """

    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    schedule: Literal["warmup-linear-decay", "cosine", "constant"] = "warmup-linear-decay"
    warmup: int | None = None
    decay: float = option(0.4, metavar="SHARE")
    final: float = option(0.0, metavar="FACTOR")

    def count(self, tokens_per_step: int) -> int:
        """Number of steps, 200 where it is to be found from minutes."""
        if self.tokens is not None:
            return math.ceil(self.tokens / tokens_per_step)
        return 200 if self.steps is None else self.steps

    def course(self, steps: int) -> Schedule:
        """The schedule of a run of so many steps.

        Raises:
            ValueError: numbers that do not fit.
        """
        warmup = min(100, steps // 15) if self.warmup is None else self.warmup
        if self.schedule == "constant":
            return Constant()
        if self.schedule == "cosine":
            return Cosine(total=steps, warmup=warmup, final=self.final)
        return WarmupLinearDecay(total=steps, warmup=warmup, decay_fraction=self.decay)


@dataclass(frozen=True)
class TrainingOptions(Computation):
    """[training] How a step is computed.

    Args:
        seed: seed of the initial weights and of the batches.
    """

    device: str = "auto"
    seed: int = 42


@dataclass(frozen=True)
class EvaluationOptions(Evaluation):
    """[evaluation] What is measured, and when.

    Args:
        eval_every: steps between evaluations; 0: before the first step and after the last.
        diagnostics_every: steps between computations of singular values, off the timed path; 0: none.
        matrices: matrices for diagnostics; embedding, head, an early and a late hidden one by default.
        tensorboard: write the records for TensorBoard too, into the run folder.
        track: send the records to a tracker too, which must be installed.
        log_every: steps between reads of the loss; all are recorded.
    """

    eval_every: int = 50
    diagnostics_every: int = 0
    matrices: tuple[str, ...] = ()
    tensorboard: bool = False
    track: Literal["none", "wandb", "trackio"] = "none"
    log_every: int = 10


@dataclass(frozen=True)
class CheckpointOptions:
    """[checkpoints] Checkpoints in the run folder, from which a run that was stopped or killed continues.

    Args:
        checkpoint_every: steps between checkpoints; 0: every half minute.
        keep: number of checkpoints that stay.
        resume: run folder to continue, of a run of the same options; `polargrad resume` asks for none.
    """

    checkpoint_every: int = 0
    keep: int = 2
    resume: Path | None = None


@dataclass(frozen=True)
class RunOptions:
    """[run] Where the run goes, or what a dry run assumes.

    Args:
        name: name of the run; model and recipe by default.
        out: new run folder; runs/NAME-DATE-TIME by default.
        dry_run: train nothing: print what would run, and an estimate of its memory and time.
        devices: of a dry run: number of GPUs that share each batch.
        tflops: of a dry run: teraflops a second that a GPU reaches in bfloat16 products.
        optimizer_tflops: of a dry run: the same in float32, in which most polar factors are computed.
    """

    name: str = ""
    out: Path | None = None
    dry_run: bool = False
    devices: int = 1
    tflops: float = 400.0
    optimizer_tflops: float = 40.0


@dataclass(frozen=True)
class Launch:
    """Every table of a launch file."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def from_file(cls, path: Path | None, model: str | None = None) -> Self:
        """The options of a launch file, and the defaults for the rest.

        Args:
            path: a TOML file with tables and keys of these names; None: all defaults.
            model: name of the model in place of the file's; its sizes stand where the file does not change them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not TOML, or it has an unknown table or key or a value of the wrong type.
        """
        tables, made = {} if path is None else _read_toml(path), cls()
        known = {entry.name: getattr(made, entry.name) for entry in fields(Launch)}
        values: dict[str, dict[str, Any]] = {"model": {}}
        for name, table in tables.items():
            if name not in known:
                raise ValueError(f"{path}: {unknown_name('table', name, known)}")
            if not isinstance(table, dict):
                raise ValueError(f"{path}: {name} is a table; write [{name}] and its keys below it")
            values[name] = _checked(table, type(known[name]), f"{path}: [{name}]")
        sizes = values.pop("model")
        named = sizes.pop("model", "demo")
        changed: dict[str, Any] = {"model": ModelOptions.named(model or named, **sizes)}
        changed |= {name: dataclasses.replace(known[name], **table) for name, table in values.items()}
        return dataclasses.replace(made, **changed)

    def language_model(self) -> LanguageModel:
        """What is minimized; device "auto" becomes the accelerator where there is one.

        Raises:
            ValueError: values that do not fit together.
        """
        tables = ((Architecture, self.model), (Text, self.data), (Computation, self.training))
        values = {
            entry.name: getattr(table, entry.name)
            for kind, table in (*tables, (Evaluation, self.evaluation))
            for entry in fields(kind)
        }
        if values["device"] == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            values["device"] = "cpu" if accelerator is None else accelerator.type
        return LanguageModel(**values)

    def spec(self) -> RunSpec:
        """The run that these options describe.

        Raises:
            ValueError: options that do not fit together; the message says which and what to do.
        """
        self._refuse_unused()
        model, recipe, observed = self.language_model(), self.optimizer.recipe, self.evaluation
        steps = self.schedule.count(model.batch * model.sequence)
        module = model.build(device="meta")
        return RunSpec(
            name=self.run.name or f"{self.model.model}-{recipe}",
            recipe=recipe,
            objective=model,
            optimizer=optimizer_for(recipe, set(roles(module).values()), self.optimizer.set),
            description=RECIPES[recipe].description,
            schedule=self.schedule.course(steps),
            loop=LoopConfig(
                steps=steps,
                eval_every=observed.eval_every,
                log_every=observed.log_every,
                probe_every=observed.diagnostics_every,
                clip_grad_norm=self.optimizer.clip,
            ),
            seed=self.training.seed,
            probe=_probed(module, observed.matrices) if observed.diagnostics_every else (),
        )

    def _refuse_unused(self) -> None:
        """Raise ValueError for options of which one takes the place of another, or that have no effect."""
        schedule, run = self.schedule, self.run
        lengths = [flag for flag in (given(schedule, name) for name in ("steps", "tokens", "minutes")) if flag]
        if len(lengths) > 1:
            raise ValueError(f"{', '.join(lengths)} each say how long the run is; give one of them")
        for name, count in (("--steps", schedule.steps), ("--tokens", schedule.tokens)):
            if count is not None:
                check_integer(name, count)
        if schedule.minutes is not None and not schedule.minutes > 0:
            raise ValueError(f"--minutes is {schedule.minutes}; give a positive number")
        used_by = {"decay": "warmup-linear-decay", "final": "cosine"}
        unused = {name: by for name, by in used_by.items() if by != schedule.schedule and given(schedule, name)}
        if schedule.schedule == "constant" and schedule.warmup:
            unused["warmup"] = "warmup-linear-decay with --decay 0"
        for name, by in unused.items():
            raise ValueError(f"--{name} is not used by --schedule {schedule.schedule}; leave it out, or take {by}")
        if self.evaluation.matrices and not self.evaluation.diagnostics_every:
            raise ValueError("--matrices are for diagnostics, and there are none; add --diagnostics-every")
        if not run.dry_run and (assumed := given(run, "devices", "tflops", "optimizer_tflops")):
            raise ValueError(f"{assumed}: options of a dry run; add --dry-run, or leave them out")


def _probed(module: torch.nn.Module, named: tuple[str, ...]) -> tuple[str, ...]:
    """The matrices that diagnostics measure: those named, else embedding, head, an early and a late hidden one."""
    matrices = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim == 2}
    if unknown := [name for name in named if name not in matrices]:
        close = difflib.get_close_matches(unknown[0], matrices, n=3)
        raise ValueError(
            f"the model has no matrix {unknown[0]!r}; it has {', '.join(close or list(matrices)[:6])}, ..."
        )
    if named:
        return named
    role_of = roles(module)
    tables = [name for name in matrices if role_of.get(name) in ("embedding", "head")]
    hidden = [name for name in matrices if role_of.get(name) == "hidden"]
    return tuple(dict.fromkeys([*tables, *hidden[:1], *hidden[-1:]]))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no launch file {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error


def _checked(table: Mapping[str, Any], kind: type[Any], where: str) -> dict[str, Any]:
    """A table's values by the names of the fields."""
    known = {entry.metadata.get("flag", entry.name): entry for entry in fields(kind)}
    hints, values = typing.get_type_hints(kind), {}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}: {unknown_name('key', key, known)}")
        values[known[key].name] = _fitted(value, hints[known[key].name], f"{where} {key}")
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
        words = {int: "an integer", float: "a number", str: "a string", Path: "a string", bool: "true or false"}
        raise ValueError(f"{where} is {value!r}; give {' or '.join(words[kind] for kind in plain)}")
    return value
