"""`polargrad pretrain`: one language-model run with every choice in the hand of the person who starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrad.lab.cli.arguments import Parallelism, read
from polargrad.lab.cli.pretrain_options import PretrainOptions, read_launch_file
from polargrad.lab.compare import analysis
from polargrad.lab.compare.page import write_runs_page
from polargrad.lab.recipes import RECIPES, optimizer_for
from polargrad.lab.report.page import PAGE
from polargrad.lab.run import pretraining, runner
from polargrad.lab.run.folder import Run
from polargrad.lab.run.footprint import footprint
from polargrad.lab.run.language_model import LanguageModel
from polargrad.lab.run.pacing import steps_in
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.run.tensorboard import FOLDER, TensorBoard
from polargrad.lab.run.tracking import Tracker
from polargrad.lab.train import CheckpointPolicy, LoopConfig, terminal_progress
from polargrad.optim.routing import roles

if TYPE_CHECKING:
    from polargrad.lab.train import Record

__all__ = ["Pretrain"]


@dataclass(frozen=True)
class Pretrain(PretrainOptions):
    """Pre-train a language model: any model, text and recipe into a new run folder, with a report at the end.

    Example: polargrad pretrain --model demo --recipe muon+polargrad --steps 100

    Options may stand in a launch file, a TOML file with the tables named below, that comes first; flags override it.

    Example: polargrad pretrain launch/gpt2-small.toml --batch 32 --data essays/
    """

    parallel: Parallelism = field(default_factory=Parallelism)

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Pretrain:
        """The command from a launch file, where the first argument is one, and flags.

        Raises:
            SystemExit: after --help.
            ValueError: if the launch file or the flags cannot be read.
        """
        flags, default = list(arguments), cls()
        if flags and not flags[0].startswith("-"):
            default = read_launch_file(Path(flags.pop(0)), default)
        return read(cls, "pretrain", flags, default)

    def spec(self) -> RunSpec:
        """The run that these options describe.

        Raises:
            ValueError: options that do not fit together; the message says which and what to do.
        """
        training, evaluation, schedule = self.training, self.evaluation, self.schedule
        data, sizes = asdict(self.data), asdict(self.model)
        model = pretraining.language_model(
            sizes.pop("model"),
            {
                **sizes,
                "corpus": data.pop("data"),
                **data,
                "batch": training.batch,
                "accumulation": training.accumulation,
                "precision": training.precision,
                "activation_checkpointing": training.activation_checkpointing,
                "compiled": training.compile,
                "device": training.device,
                "evaluation_windows": evaluation.evaluation_windows,
            },
        )
        steps = pretraining.steps_for(model, steps=schedule.steps, tokens=schedule.tokens, minutes=schedule.minutes)
        loop = LoopConfig(
            steps=steps,
            eval_every=evaluation.eval_every,
            log_every=evaluation.log_every,
            probe_every=evaluation.diagnostics_every,
            clip_grad_norm=self.optimizer.clip,
        )
        module = pretraining.skeleton(model)
        recipe = self.optimizer.recipe
        return RunSpec(
            name=self.run.name or f"{self.model.model}-{recipe}",
            recipe=recipe,
            description=RECIPES[recipe].description if recipe in RECIPES else "",
            objective=model,
            optimizer=optimizer_for(recipe, set(roles(module).values()), self.optimizer.set),
            schedule=pretraining.make_schedule(
                schedule.schedule, steps, warmup=schedule.warmup, decay=schedule.decay, final=schedule.final
            ),
            loop=loop,
            seed=training.seed,
            probe=pretraining.chosen_matrices(module, evaluation.matrices) if evaluation.diagnostics_every else (),
        )

    def __call__(self) -> None:
        """Check everything, train, then say how it ended and where the report is."""
        spec = self.spec()
        if self.schedule.minutes is not None:
            spec = self._paced(spec)
        if self.run.dry_run:
            return print("\n".join(self._plan(spec)))
        policy = CheckpointPolicy(every_steps=self.checkpoints.checkpoint_every, keep=self.checkpoints.keep)
        if self.checkpoints.resume is not None:
            self.parallel.refuse("a run that is resumed")
            out = self.checkpoints.resume
            with self._watching(spec, out) as watch:
                progress = terminal_progress(spec.name)
                finished = runner.resume(out, spec, progress=progress, policy=policy, watch=watch)
            return _report(finished)
        with self.parallel.processes() as parallel:
            if not parallel.is_main_process:
                return runner.assist(spec, parallel)
            out = self.run.out or Path("runs") / f"{spec.name}-{datetime.now():%Y%m%d-%H%M%S}"
            runner.refuse_existing(out)
            print(f"Results go to {out}", file=sys.stderr)
            with self._watching(spec, out) as watch:
                progress = terminal_progress(spec.name)
                finished = runner.run(spec, out, progress=progress, policy=policy, parallel=parallel, watch=watch)
        _report(finished)

    def _paced(self, spec: RunSpec) -> RunSpec:
        """The run with as many steps as take the minutes asked for."""
        self.parallel.refuse("a run of --minutes")
        if self.checkpoints.resume is not None:
            raise ValueError(
                "--minutes may come to another number of steps; resume with --steps, or `polargrad resume`"
            )
        steps = steps_in(self.schedule.minutes or 0.0, spec)
        print(f"{self.schedule.minutes:g} minutes are {steps} steps here", file=sys.stderr)
        schedule = replace(self.schedule, minutes=None, steps=steps)
        return replace(self, schedule=schedule).spec()

    def _plan(self, spec: RunSpec) -> Iterator[str]:
        """What would run, line by line."""
        model, run = spec.objective, self.run
        assert isinstance(model, LanguageModel)
        need = footprint(spec, run.devices)
        seconds = need.seconds(run.devices, run.tflops * 1e12, run.optimizer_tflops * 1e12)
        parts = {name: getattr(need, name) / 1e9 for name in ("weights", "optimizer", "activations", "logits")}
        rates = ", ".join(f"{role} {rate:g}" for role, rate in spec.learning_rates.items())
        yield f"{spec.name}: {need.parameters:,} parameters, {spec.description}"
        yield f"rates: {rates}; schedule {spec.schedule}"
        yield f"{spec.loop.steps:,} steps of {model.batch} x {model.sequence} tokens, {need.tokens:,} in all"
        listed = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
        yield f"memory on each of {run.devices} devices, estimated: {need.memory / 1e9:.1f} GB ({listed})"
        yield (
            f"time, estimated at {run.tflops:g} TFLOP/s in bfloat16 and {run.optimizer_tflops:g} in float32 factors: "
            f"{analysis.duration(seconds)} ({need.tokens / seconds:,.0f} tokens/s)"
        )

    @contextmanager
    def _watching(self, spec: RunSpec, out: Path) -> Iterator[Record | None]:
        """What is given every record besides the run folder; None if nothing is."""
        with ExitStack() as stack:
            watchers: list[Record] = []
            if self.evaluation.tensorboard:
                watchers.append(stack.enter_context(TensorBoard(out / FOLDER)))
            if self.evaluation.track != "none":
                watchers.append(stack.enter_context(Tracker(self.evaluation.track, spec)))

            def watch(record: dict[str, Any]) -> None:
                for watcher in watchers:
                    watcher(record)

            yield watch if watchers else None


def _report(finished: Run) -> None:
    page = write_runs_page([finished], finished.path / PAGE, save_figures=True)
    print(_ending(finished))
    print(f"Records are in {finished.path}. Report: {page}")


def _ending(run: Run) -> str:
    """How a run ended, and how fast it was, in a sentence."""
    summary = run.summary or {}
    units, seconds = summary.get("units", 0), summary.get("seconds", 0.0)
    speed = f", {units / seconds:,.0f} tokens/s" if seconds else ""
    outcome = analysis.outcomes([run])[0]
    share = "" if outcome.optimizer_share is None else f", {outcome.optimizer_share:.0%} of the time in the optimizer"
    return f"{analysis.sentence(outcome, run)[:-1]}: {units:,} tokens{speed}{share}."
