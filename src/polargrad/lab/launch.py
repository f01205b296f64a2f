"""A pre-training run as a launch file (TOML) and flags describe it, and the spec that follows from them.

Each dataclass here is a table of a launch file and a group of flags. What a spec itself holds is declared there
(`polargrad.lab.run.spec`) and inherited here; this file declares only what leads to a spec, such as a model's name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch

from polargrad.distributed.cost import Machine
from polargrad.lab.lm.models import Architecture, architecture
from polargrad.lab.options import (
    Options,
    Used,
    check_value,
    given,
    name_of,
    option,
    refuse_unused,
    unknown_name,
    values_of,
)
from polargrad.lab.recipes import Recipe, changed, recipe
from polargrad.lab.run.environment import chosen_device
from polargrad.lab.run.spec import Computation, Evaluation, LanguageModel, RunSpec, Shuffle, Text
from polargrad.lab.run.tracking import Tracking
from polargrad.lab.train import LoopConfig, Schedule
from polargrad.lab.train.config import Clipping, Intervals
from polargrad.lab.train.schedules import SCHEDULES
from polargrad.optim.roles import roles

# Of options that only a dry run has.
_DRY = Used("dry_run", why="options of a dry run")
# Tables and keys of a run that a comparison does not take; of a table without keys none.
_NOT_OF_COMPARISONS = {
    "run": (),
    "checkpoints": (),
    "optimizer": ("recipe", "set"),
    "training": ("seed",),
    "evaluation": ("tensorboard", "track"),
}


@dataclass(frozen=True)
class _Named:
    model: str = "demo"


@dataclass(frozen=True)
class ModelOptions(Architecture, _Named):
    """[model] The decoder: one by name, and sizes that differ from its own.

    Args:
        model: demo (1.9M parameters), mini (.38M), laptop (10.6M), gpt2-small, gpt2-medium, qwen2.5-540m or moe-demo.
    """

    @classmethod
    def named(cls, name: str, **sizes: Any) -> Self:
        """The model of a name with some sizes changed.

        Raises:
            ValueError: an unknown name, or sizes that do not fit together.
        """
        return cls(**{**values_of(Architecture, architecture(name)), **sizes, "model": name})


@dataclass(frozen=True)
class DataOptions(Options, Text):
    """[data] The text and its tokens."""

    shuffle: Shuffle = "documents"


@dataclass(frozen=True)
class OptimizerOptions(Options, Clipping):
    """[optimizer] A recipe, and changes to it.

    Args:
        recipe: muon+normalized-tables, muon+adamw, adamw, ...: see `polargrad list`; or an optimizer of your own.
        set: change of an option of a role's group, as in hidden.lr=0.005, embedding+head.momentum=0.9 or
            *.weight_decay=0.1; may be given several times.
    """

    recipe: str = "muon+normalized-tables"
    set: tuple[str, ...] = option((), metavar="ROLE.OPTION=V", repeated=True)


def _of_schedules(name: str) -> Used:
    """The condition of an option that only some schedules have."""
    having = [kind.name for kind in SCHEDULES.values() if any(entry.name == name for entry in fields(kind))]
    return Used("schedule", tuple(having))


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """[schedule] The length of the run, and the learning rate over it.

    Args:
        steps: optimizer steps; 200 by default.
        tokens: instead of steps: tokens to train on.
        minutes: instead of steps: as many as take this long on this machine, which a few steps measure.
        schedule: course of the learning rates.
        warmup: steps of linear warm-up; a fifteenth of the run, at most 100, by default.
        decay_fraction: share of the run over which warmup-linear-decay falls to zero, in [0, 1].
        final: factor of the rate at which a cosine ends.
    """

    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = option(None, above=0)
    schedule: Literal["warmup-linear-decay", "cosine", "constant"] = "warmup-linear-decay"
    warmup: int | None = option(None, least=0, used=_of_schedules("warmup"))
    decay_fraction: float = option(0.4, flag="decay", metavar="SHARE", used=_of_schedules("decay_fraction"))
    final: float = option(0.0, metavar="FACTOR", used=_of_schedules("final"))

    def count(self, tokens_per_step: int) -> int:
        """Number of steps, 200 where it is to be found from minutes."""
        if self.tokens is not None:
            return math.ceil(self.tokens / tokens_per_step)
        return 200 if self.steps is None else self.steps

    def course(self, steps: int) -> Schedule:
        """The schedule of a run of this many steps.

        Raises:
            ValueError: numbers that do not fit.
        """
        warmup = min(100, steps // 15) if self.warmup is None else self.warmup
        chosen, kind = {**vars(self), "total": steps, "warmup": warmup}, SCHEDULES[self.schedule]
        return kind(**{entry.name: chosen[entry.name] for entry in fields(kind)})


@dataclass(frozen=True)
class TrainingOptions(Options, Computation):
    """[training] How a step is computed.

    Args:
        seed: seed of the initial weights and of the batches.
    """

    device: str = "auto"
    seed: int = option(42, least=0)


@dataclass(frozen=True)
class EvaluationOptions(Options, Tracking, Evaluation, Intervals):
    """[evaluation] What is measured, and when.

    Args:
        matrices: matrices for diagnostics; embedding, head, an early and a late hidden one by default.
    """

    eval_every: int = option(50, least=0)
    log_every: int = 10
    matrices: tuple[str, ...] = option((), used=Used("probe_every", why="they are for diagnostics, and there are none"))


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """[checkpoints] Checkpoints in the run folder, from which a run that was stopped or killed continues.

    Args:
        checkpoint_every: steps between checkpoints; 0: every half minute.
        keep: number of checkpoints that stay.
        resume: run folder to continue, of a run of the same options; `polargrad resume` asks for none.
    """

    checkpoint_every: int = option(0, least=0)
    keep: int = 2
    resume: Path | None = None


@dataclass(frozen=True)
class RunOptions(Options):
    """[run] Where the run goes, or what a dry run assumes.

    Args:
        name: name of the run; model and recipe by default.
        out: new run folder; runs/NAME-DATE-TIME by default.
        dry_run: train nothing, write nothing: print what would run, and an estimate of its memory and time.
        devices: of a dry run: number of GPUs that share each batch.
        tflops: of a dry run: teraflops a second that a GPU reaches in bfloat16 products.
        optimizer_tflops: of a dry run: the same in float32, in which most polar factors are computed.
    """

    name: str = ""
    out: Path | None = option(None, used=Used("resume", unless=True, why="a resumed run stays in its folder"))
    dry_run: bool = False
    devices: int = option(1, used=_DRY)
    tflops: float = option(Machine.half / 1e12, above=0, used=_DRY)
    optimizer_tflops: float = option(Machine.single / 1e12, above=0, used=_DRY)


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
        return cls._of_tables({} if path is None else _read_toml(path), path, model)

    @classmethod
    def for_comparison(cls, path: Path, own: type[Any]) -> tuple[dict[str, Any], Self | None]:
        """The options of a comparison in a launch file: those of its table [compare], and what its runs train.

        Args:
            path: a TOML file with the table [compare], those of a run, or both.
            own: the options of [compare].

        Returns:
            The values of [compare]; and the run, or None where no other table is there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: as in `from_file`, or an option that a comparison has in [compare] or not at all.
        """
        tables = _read_toml(path)
        table = tables.pop("compare", {})
        if not isinstance(table, dict):
            raise ValueError(f"{path}: compare is a table; write [compare] and its keys below it")
        for name, keys in _NOT_OF_COMPARISONS.items():
            held = tables.get(name, {})
            if isinstance(held, dict) and (odd := [key for key in held if not keys or key in keys]):
                raise ValueError(
                    f"{path}: [{name}] {odd[0]} is of a single run; a comparison has names, set, seed, out, "
                    "tensorboard and track in [compare], and checkpoints every half minute; leave it out"
                )
        values = _checked(table, own, f"{path}: [compare]")
        return values, cls._of_tables(tables, path) if tables else None

    @classmethod
    def _of_tables(cls, tables: Mapping[str, Any], path: Path | None, model: str | None = None) -> Self:
        made = cls()
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
        """The objective; device "auto" becomes the accelerator where there is one.

        Raises:
            ValueError: values that do not fit together.
        """
        values = {
            **values_of(Architecture, self.model),
            **values_of(Text, self.data),
            **values_of(Computation, self.training),
            **values_of(Evaluation, self.evaluation),
        }
        return LanguageModel(**{**values, "device": chosen_device(values["device"])})

    def spec(self, of: Recipe | None = None, changes: Sequence[str] = ()) -> RunSpec:
        """The run that these options describe.

        Args:
            of: a recipe in place of the options' own, whose name the run has.
            changes: changes to that recipe.

        Raises:
            ValueError: options that do not fit together, or that have no effect; the message says what to do.
        """
        refuse_unused(self)
        lengths = given(self.schedule, "steps", "tokens", "minutes")
        if "," in lengths:
            raise ValueError(f"{lengths} each say how long the run is; give one of them")
        model, chosen = self.language_model(), of or recipe(self.optimizer.recipe)
        steps = self.schedule.count(model.batch * model.sequence)
        module = model.build(device="meta")
        return RunSpec(
            name=chosen.name if of else self.run.name or f"{self.model.model}-{chosen.name}",
            recipe=chosen.name,
            objective=model,
            optimizer=changed(chosen, set(roles(module).values()), changes if of else self.optimizer.set),
            description=chosen.description,
            schedule=self.schedule.course(steps),
            loop=LoopConfig(steps, **values_of(Intervals, self.evaluation), **values_of(Clipping, self.optimizer)),
            seed=self.training.seed,
            probe=_probed(module, self.evaluation.matrices) if self.evaluation.probe_every else (),
        )


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
    tables = [name for name in matrices if role_of.get(name) in ("embedding", "head", "tied")]
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
    """A table's values by the names of the fields, each as the type that its field has."""
    known = {name_of(entry): entry for entry in fields(kind)}
    hints, values = typing.get_type_hints(kind), {}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}: {unknown_name('key', key, known)}")
        entry = known[key]
        hint = hints[entry.name]
        values[entry.name] = made = _converted(value, {hint, typing.get_origin(hint), *typing.get_args(hint)})
        check_value(f"{where} {key}", made, hint, entry.metadata)
    return values


def _converted(value: Any, kinds: set[Any]) -> Any:
    """A value of TOML, where tuples are lists, paths are strings, and a number may be an integer."""
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    return float(value) if type(value) is int and float in kinds else value
