"""`polargrad pretrain`: one language-model run, every option from a launch file or flags."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import Parallelism, read
from polargrad.lab.launch import Launch
from polargrad.lab.options import given, values_of
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.run.tracking import Tracking

if TYPE_CHECKING:
    from polargrad.lab.estimate import Estimate


@dataclass(frozen=True)
class Pretrain(Launch):
    """Pre-train a language model: any model, text and recipe into a new run folder, with a report at the end.

    Example: polargrad pretrain --model demo --recipe muon+polargrad --steps 100

    Options may stand in a launch file, a TOML file with the tables named below, that comes first; flags override it.

    Example: polargrad pretrain launch/gpt2-small.toml --batch 32 --data essays/
    """

    parallel: Parallelism = field(default_factory=Parallelism)

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """The command from a launch file, where the first argument is one, and flags.

        Raises:
            SystemExit: after --help.
            ValueError: if the launch file or the flags cannot be read.
        """
        flags, path = list(arguments), None
        if flags and not flags[0].startswith("-"):
            path = Path(flags.pop(0))
        ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        ahead.add_argument("--model", nargs="?")  # whose sizes are the defaults of the other flags
        return read(cls, "pretrain", flags, cls.from_file(path, ahead.parse_known_args(flags)[0].model))

    def __call__(self) -> None:
        """Check everything, train, then say how it ended and where the report is."""
        from polargrad.lab.run.build import check

        spec = self.spec()
        check(spec, here=not self.run.dry_run and self.parallel.parallel is None)
        if self.run.dry_run:
            return print("\n".join(self._plan(self._paced(spec))))
        with terminal.idle_cores(self.checkpoints.resume):
            self._train(self._paced(spec))

    def _train(self, spec: RunSpec) -> None:
        from polargrad.lab.run import runner
        from polargrad.lab.train import CheckpointPolicy, terminal_progress

        policy = CheckpointPolicy(every_steps=self.checkpoints.checkpoint_every, keep=self.checkpoints.keep)
        with self.parallel.processes() as parallel:
            if not parallel.is_main_process:
                return runner.serve(parallel)
            how = {"progress": terminal_progress(spec.name), "policy": policy, "parallel": parallel}
            if self.checkpoints.resume is not None:
                if not given(self.checkpoints, "checkpoint_every", "keep"):
                    how["policy"] = None  # as the run was begun
                finished = runner.resume(self.checkpoints.resume, spec, **how)
            else:
                tracking = Tracking(**values_of(Tracking, self.evaluation))
                out = terminal.place(self.run.out, spec.name)
                finished = runner.run_or_resume(
                    spec, out, **how, tracking=tracking, page=True, created=terminal.created
                )
        from polargrad.lab.cli.report import print_pretrained

        print_pretrained(finished)

    def _paced(self, spec: RunSpec) -> RunSpec:
        """The run, with as many steps as take the minutes if any were asked for: measured, of a dry run estimated."""
        minutes = self.schedule.minutes
        if minutes is None:
            return spec
        from polargrad.lab.estimate import steps_within

        if self.run.dry_run:
            steps = max(1, int(60 * minutes / self._estimate(spec).seconds))
        else:
            self.parallel.refuse("a run of --minutes")
            if self.checkpoints.resume is not None:
                raise ValueError(
                    "--minutes may come to another number of steps; resume with --steps, or `polargrad resume`"
                )
            steps = steps_within(spec, minutes)
            terminal.tell(f"{minutes:g} minutes are {steps} steps here")
        return replace(self, schedule=replace(self.schedule, minutes=None, steps=steps)).spec()

    def _estimate(self, spec: RunSpec) -> Estimate:
        """A step on the devices of a dry run, which are copies unless --parallel says otherwise."""
        from polargrad.distributed.cost import Machine
        from polargrad.lab.estimate import estimate
        from polargrad.lab.train.parallel import mesh_sizes

        assert isinstance(spec.objective, LanguageModel)
        mesh = mesh_sizes(self.parallel.parallel or "ddp", self.run.devices, self.parallel.mesh)
        machine = Machine(half=self.run.tflops * 1e12, single=self.run.optimizer_tflops * 1e12)
        return estimate(spec.objective, spec.optimizer, mesh, machine)

    def _plan(self, spec: RunSpec) -> Iterator[str]:
        """What would run, line by line."""
        from polargrad.lab.comparison.analysis import duration

        model, run, found = spec.objective, self.run, self._estimate(spec)
        assert isinstance(model, LanguageModel)
        parts = {
            "weights": found.weights,
            "optimizer": found.optimizer.state,
            "activations": found.activations,
            "logits": found.logits,
            "workspace": found.optimizer.workspace,
        }
        yield f"{spec.name}: {found.parameters:,} parameters, {spec.description}"
        yield f"rates: {terminal.rates(spec)}; schedule {spec.schedule}"
        tokens, seconds = spec.loop.steps * found.tokens, spec.loop.steps * found.seconds
        yield f"{spec.loop.steps:,} steps of {model.batch} x {model.sequence} tokens, {tokens:,} in all"
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        devices = "the device" if run.devices == 1 else f"each of {run.devices} devices"
        yield f"memory on {devices}, estimated: {found.memory / 1e9:.1f} GB ({listed})"
        work = "" if found.unpriced is None else f", the work of {found.unpriced} not counted"
        yield (
            f"time, estimated at {run.tflops:g} TFLOP/s in bfloat16 and {run.optimizer_tflops:g} in float32: "
            f"{duration(seconds)} ({tokens / seconds:,.0f} tokens/s), {found.optimizer_share:.0%} of it in the "
            f"optimizer{work}"
        )
