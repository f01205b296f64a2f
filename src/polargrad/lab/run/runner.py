"""Running a spec into a run folder, and resuming a run that was stopped."""

from __future__ import annotations

import dataclasses
import errno
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.run.build import BuiltRun, build, code_checksums
from polargrad.lab.run.folder import (
    CHECKPOINTS,
    ENDED,
    Run,
    RunFolder,
    read_environment,
    read_run,
    read_spec,
    refuse_existing,
    status_of,
)
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import Checkpoint, CheckpointError, CheckpointPolicy, Checkpoints, train
from polargrad.lab.train.checkpoint import differences
from polargrad.lab.train.parallel import Parallel

if TYPE_CHECKING:
    from polargrad.lab.train import Progress, Record, Summary


# Length of the text that a finished run records.
SAMPLED_TOKENS = 64


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop.

    Args:
        path: the folder in which everything is safe, and from which the run can be resumed.
        signal: name of the signal that stopped it.
    """

    def __init__(self, path: Path, signal: str = "SIGINT") -> None:
        super().__init__(
            f"interrupted; everything until then is in {path}. `polargrad resume {path}` continues from there"
        )
        self.path, self.signal = path, signal


def run(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
    watch: Record | None = None,
) -> Run:
    """Run a spec into a new folder.

    Args:
        spec: what to run.
        path: the run folder; it must not exist.
        progress: shows how far the run has come.
        policy: when checkpoints are made and which stay; several processes make none.
        parallel: the processes it runs on; this is rank 0, and the others call `run_worker`. None: this one alone.
        watch: is given every record besides the folder.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if the spec does not fit its data or its model.
        Interrupted: on Ctrl-C or SIGTERM, after checkpoint, records and summary are written.
    """
    path = Path(path)
    refuse_existing(path)
    built = build(spec, parallel)
    return _execute(built, RunFolder(path, spec, built.environment), None, progress, policy, watch)


def resume(
    path: str | Path,
    spec: RunSpec | None = None,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    watch: Record | None = None,
) -> Run:
    """Continue a run that was stopped or killed, from its last good checkpoint; from the start if it has none.

    Args:
        path: the run folder.
        spec: the run that the folder must hold; None: whichever it holds.
        progress: shows how far the run has come.
        policy: when checkpoints are made and which stay.
        watch: is given every record besides the folder.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the run has ended, or another process is writing it.
        CheckpointError: if the checkpoint is of another configuration, which the message tells, or none is whole.
        Interrupted: as in `run`.
    """
    path = Path(path)
    held = read_spec(path)
    if spec is not None and (different := differences(held.to_dict(), spec.to_dict())):
        raise CheckpointError(
            f"{path} is of another configuration: {'; '.join(different)}. Resume with the configuration it was made "
            "with, or give another --out"
        )
    if (ended := status_of(path)) in ENDED:
        raise FileExistsError(f"{path} has {ended}, so there is nothing to resume; `polargrad report {path}` reads it")
    built = build(held)
    codes = [code_checksums(environment) for environment in (read_environment(path), built.environment)]
    if changed := [name for name in codes[1] if codes[0].get(name) != codes[1][name]]:
        raise CheckpointError(
            f"{', '.join(changed)} has changed since {path} was begun (its SHA-256 in environment.json is another); "
            "resume with the code as it was, or start a new run in another folder"
        )
    checkpoint = Checkpoints(path / CHECKPOINTS, built.configuration).newest()
    folder = RunFolder.reopen(path, 0 if checkpoint is None else int(checkpoint.caller["records"]))
    step = 0 if checkpoint is None else checkpoint.step
    if checkpoint is None:
        _event(folder, step, "resumed", "begun again: it was stopped before its first checkpoint")
    if changed := differences(_machine(read_environment(path)), _machine(built.environment)):
        _event(folder, step, "machine", f"{'; '.join(changed)}: from here on equal only to rounding")
    return _execute(built, folder, checkpoint, progress, policy, watch)


def run_or_resume(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
) -> Run:
    """The run of a spec in a folder: run, resumed, or read if it has ended. Raises what these raise."""
    if not Path(path).exists():
        return run(spec, path, progress=progress, policy=policy, parallel=parallel)
    if status_of(path) in ENDED:
        return read_run(path)
    return resume(path, spec, progress=progress, policy=policy)


def train_unrecorded(spec: RunSpec) -> list[dict[str, Any]]:
    """Run a spec without a folder and return the records."""
    records: list[dict[str, Any]] = []
    _train(build(spec), record=records.append)
    return records


def run_worker(spec: RunSpec, parallel: Parallel) -> None:
    """What every other rank does while rank 0 does `run`: the same steps, on its part of the data and of the model.

    Raises:
        ValueError: as `run` does.
    """
    built = build(spec, parallel)
    _train(built, record=lambda record: None)


def _execute(
    built: BuiltRun,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    policy: CheckpointPolicy | None,
    watch: Record | None,
) -> Run:
    path = folder.path

    def record(entry: dict[str, Any]) -> None:
        folder.record(entry)
        if watch is not None:
            watch(entry)

    checkpoints = None
    if built.parallel is None or built.parallel.is_single:
        position = lambda: {"records": folder.position()}  # noqa: E731
        checkpoints = Checkpoints(path / CHECKPOINTS, built.configuration, policy, caller=position)
    with folder:
        try:
            summary = _train(built, record=record, progress=progress, checkpoints=checkpoints, resume=checkpoint)
        except KeyboardInterrupt:
            raise Interrupted(path) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            remedy = f"free some space, then `polargrad resume {path}` continues from the last checkpoint"
            raise OSError(error.errno, f"the records cannot be written, since the disk is full; {remedy}") from error
        if summary.status == "finished" and (policy is None or policy.keep_finished):
            _record_text(built, record, summary.steps)
        folder.finish(dataclasses.asdict(summary))
    if summary.status == "interrupted":
        raise Interrupted(path, summary.reason or "SIGINT")
    if checkpoints is not None:
        checkpoints.finish()
    return read_run(path)


def _train(built: BuiltRun, **options: Any) -> Summary:
    """The training loop, its draws (such as dropout) from the spec's seed; the caller's generators are left alone.

    The optimizer does not warn of updates it skipped: they are events of the record, which the pages tell of.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped updates")
        torch.manual_seed(built.spec.seed)
        return train(
            built.objective,
            built.optimizer,
            built.spec.schedule,
            built.spec.loop,
            probe=built.probe,
            parallel=built.parallel,
            **options,
        )


def _record_text(built: BuiltRun, record: Record, step: int) -> None:
    """Record what a trained language model writes when it begins a text; on several processes it writes nothing."""
    objective: Any = built.objective
    if (built.parallel is None or built.parallel.is_single) and getattr(objective, "tokenizer", None) is not None:
        from polargrad.lab.lm.generation import sample

        text = sample(objective.module, objective.tokenizer, tokens=SAMPLED_TOKENS)
        record({"kind": "sample", "step": step, "prompt": "", "text": text})


def _event(folder: RunFolder, step: int, name: str, message: str) -> None:
    folder.record({"kind": "event", "step": step, "event": name, "message": message})


def _machine(where: Mapping[str, Any]) -> dict[str, Any]:
    """What the last bits of a result depend on."""
    return {key: where.get(key) for key in ("torch", "platform", "cpu", "device", "threads", "parallel", "mesh")}
