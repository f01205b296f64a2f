"""Running a spec into a run folder, and resuming a run that was stopped, on one process or many."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.files import explained
from polargrad.lab.run.build import BuiltRun, build, code_checksums, pinned
from polargrad.lab.run.folder import (
    CHECKPOINTS,
    ENDED,
    Run,
    RunFolder,
    RunSettings,
    read_environment,
    read_run,
    read_settings,
    read_spec,
    refuse_existing,
    status_of,
    write_settings,
)
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.run.tracking import Tracking, watching
from polargrad.lab.train import Checkpoint, CheckpointError, CheckpointPolicy, Checkpoints, train
from polargrad.lab.train.checkpoint import differences
from polargrad.lab.train.optimizers import evaluation_weights
from polargrad.lab.train.parallel import Parallel
from polargrad.linalg.precision import tf32_products

if TYPE_CHECKING:
    from polargrad.lab.train import Progress, Record, Summary


# Length of the text that a finished run records.
SAMPLED_TOKENS = 64
_VERSIONS = ("polargrad", "commit", "python", "torch", "transformers", "tokenizers")


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop.

    Args:
        path: the folder in which everything is safe, and from which the run can be resumed.
        signal: name of the signal that stopped it.
        continues: where it continues when it is resumed.
    """

    def __init__(self, path: Path, signal: str = "SIGINT", continues: str = "continues from there") -> None:
        super().__init__(f"interrupted; everything until then is in {path}. `polargrad resume {path}` {continues}")
        self.path, self.signal = path, signal


def run(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
    page: bool = False,
    tracking: Tracking | None = None,
    created: Callable[[Path], object] = lambda path: None,
) -> Run:
    """Run a spec into a new folder.

    Args:
        spec: what to run.
        path: the run folder; it must not exist.
        progress: shows how far the run has come.
        policy: when checkpoints are made and which stay.
        parallel: the processes it runs on; this is rank 0, and the others call `serve`. None: this one alone.
        page: whether a page is to be written about it at the end; resuming it tells so in `read_settings`.
        tracking: where the records go beside the folder.
        created: called with the folder once it is there.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if the spec does not fit its data or its model.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after checkpoint, records and summary are written.
        OSError: something cannot be written; the message says what, and where the run continues when it is resumed.
        ConnectionError: another process of the run died.
    """
    path = Path(path)
    refuse_existing(path)
    options = RunSettings(policy or CheckpointPolicy(), page, tracking or Tracking())
    options.tracking.check()
    (spec,) = pinned([spec])
    _tell_others(parallel, spec, path, options)
    built = build(spec, parallel)
    folder = RunFolder(path, spec, built.environment, options)
    created(path)
    return _execute(built, folder, None, progress, options)


def resume(
    path: str | Path,
    spec: RunSpec | None = None,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
) -> Run:
    """Continue a run that was stopped or killed, from its last good checkpoint; from the start if it has none.

    The processes may be others than those that wrote the checkpoint, in number and in layout.

    Args:
        path: the run folder.
        spec: the run that the folder must hold; None: whichever it holds.
        progress: shows how far the run has come.
        policy: when checkpoints are made and which stay; None: as the run was begun.
        parallel: as in `run`.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the run has ended, or another process is writing it.
        CheckpointError: if the checkpoint is of another configuration, which the message tells, or none is whole.
        Interrupted: as in `run`, like OSError and ConnectionError.
    """
    path = Path(path)
    held = read_spec(path)
    if spec is not None and (different := differences(held.to_dict(), _as_pinned(spec, held).to_dict())):
        raise CheckpointError(
            f"{path} is of another configuration: {'; '.join(different)}. Resume with the configuration it was made "
            "with, or give another --out"
        )
    if (ended := status_of(path)) in ENDED:
        raise FileExistsError(f"{path} has {ended}, so there is nothing to resume; `polargrad report {path}` reads it")
    options = read_settings(path)
    if policy is not None:
        options = dataclasses.replace(options, policy=policy)
    _tell_others(parallel, held, path, options)
    built = build(held, parallel)
    # What a damaged record does not hold, the checkpoint's configuration does.
    recorded, present = code_checksums(read_environment(path)), code_checksums(built.environment)
    if changed := [name for name in present if recorded.get(name, present[name]) != present[name]]:
        raise CheckpointError(
            f"{', '.join(changed)} has changed since {path} was begun (its SHA-256 in environment.json is another); "
            "resume with the code as it was, or start a new run in another folder"
        )
    checkpoint = Checkpoints(path / CHECKPOINTS, built.configuration).newest()
    position = 0 if checkpoint is None else checkpoint.caller.get("records")
    if type(position) is not int or position < 0:
        raise CheckpointError(f"{path / CHECKPOINTS} does not say where its records end; use another checkpoint")
    if policy is not None:
        write_settings(path, options)
    checksum = None if checkpoint is None else checkpoint.caller.get("records_sha256")
    folder = RunFolder.reopen(path, position, checksum)
    step = 0 if checkpoint is None else checkpoint.step
    if folder.altered:
        _event(folder, step, "altered", "the records before this step were changed since they were written")
    if checkpoint is None:
        _event(folder, step, "resumed", "begun again: it was stopped before its first checkpoint")
    if not (began := read_environment(path)):
        _event(folder, step, "machine", "where the run began is not known: its environment file cannot be read")
    elif changed := differences(_machine(began), _machine(built.environment)):
        _event(folder, step, "machine", f"{'; '.join(changed)}: from here on equal only to rounding")
    return _execute(built, folder, checkpoint, progress, options)


def run_or_resume(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
    **options: Any,
) -> Run:
    """The run of a spec in a folder: run, resumed, or read if it has ended. Raises what these raise.

    The other options are those of `run`; a run that is resumed has its own.
    """
    if not Path(path).exists():
        return run(spec, path, progress=progress, policy=policy, parallel=parallel, **options)
    if status_of(path) in ENDED:
        return read_run(path)
    return resume(path, spec, progress=progress, policy=policy, parallel=parallel)


def train_unrecorded(spec: RunSpec) -> list[dict[str, Any]]:
    """Run a spec without a folder and return the records."""
    records: list[dict[str, Any]] = []
    _train(build(spec), record=records.append)
    return records


def serve(parallel: Parallel) -> None:
    """Take part in the runs of rank 0, on every other rank: the same steps, on its part of the data and of the model.

    Raises:
        ValueError: what is wrong on this rank alone.
        SystemExit: rank 0 has ended with an error, and has said which.
        ConnectionError: another process of the run died.
    """
    messages = parallel.messages
    assert messages is not None
    while True:
        try:
            task = messages.receive()
        except SystemExit as end:
            if end.code == 0:
                return
            raise
        try:
            built = build(RunSpec.from_dict(task["spec"]), parallel)
            path = Path(task["folder"]) / CHECKPOINTS
        except Exception:
            messages.receive()  # where rank 0 failed alike, it has said why, and this ends here
            raise
        told = messages.receive()
        if different := differences(told["facts"], _facts(built)):
            raise ValueError(
                f"this process is not like the first: {'; '.join(different[:3])}; start all of them with the same "
                "text, code and versions"
            )
        found = told["checkpoint"]
        checkpoint = None if found is None else Checkpoint.open(path / found, built.configuration)
        saved = Checkpoints(path, built.configuration, CheckpointPolicy(**task["policy"]), parallel=parallel)
        summary = _train(built, record=lambda record: None, checkpoints=saved, resume=checkpoint)
        if summary.status == "interrupted":
            messages.receive()  # rank 0 says so


def _as_pinned(spec: RunSpec, held: RunSpec) -> RunSpec:
    """A spec, on the commit that a run is on where the spec names none of the same data set."""
    asked, text = spec.objective, held.objective
    if isinstance(asked, LanguageModel) and isinstance(text, LanguageModel):
        from polargrad.lab.lm.sources import at_newest

        if at_newest(asked.corpus, text.corpus):
            return dataclasses.replace(spec, objective=dataclasses.replace(asked, corpus=text.corpus))
    return spec


def _tell_others(parallel: Parallel | None, spec: RunSpec, path: Path, options: RunSettings) -> None:
    """Have the other ranks build the run, in `serve`."""
    if parallel is not None and parallel.messages is not None:
        policy = dataclasses.asdict(options.policy)
        parallel.messages.send({"spec": spec.to_dict(), "folder": str(path.absolute()), "policy": policy})


def _execute(
    built: BuiltRun,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    options: RunSettings,
) -> Run:
    path, parallel = folder.path, built.parallel or Parallel()
    position = lambda: {"records": folder.position(), "records_sha256": folder.checksum()}  # noqa: E731
    checkpoints = Checkpoints(path / CHECKPOINTS, built.configuration, options.policy, position, parallel)

    def continues() -> str:
        step = checkpoints.last_step()
        return "begins again: there is no checkpoint" if step is None else f"continues after step {step}"

    if parallel.messages is not None:
        name = None if checkpoint is None else checkpoint.path.name
        parallel.messages.send({"checkpoint": name, "facts": _facts(built)})
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder)
        watch = stack.enter_context(watching(built.spec, path, options.tracking))

        def record(entry: dict[str, Any]) -> None:
            folder.record(entry)
            if watch is not None:
                watch(entry)

        try:
            with parallel.lost_processes():
                summary = _train(built, record=record, progress=progress, checkpoints=checkpoints, resume=checkpoint)
            if summary.status == "finished" and options.policy.keep_finished:
                _record_text(built, record, summary.steps)
            folder.finish(dataclasses.asdict(summary))
        except KeyboardInterrupt as interruption:
            raise Interrupted(path, getattr(interruption, "signal", "SIGINT"), continues()) from None
        except ConnectionError as error:
            raise ConnectionError(f"{error}; `polargrad resume {path}` {continues()}") from error
        except OSError as error:
            raise OSError(error.errno, f"{explained(error)}, then `polargrad resume {path}` {continues()}") from error
        except RuntimeError as error:
            if built.parallel is None:
                raise
            raise RuntimeError(f"{error}. `polargrad resume {path}` {continues()}") from error
    if summary.status == "interrupted":
        raise Interrupted(path, summary.reason or "SIGINT", continues())
    checkpoints.finish()
    return read_run(path)


def _train(built: BuiltRun, **options: Any) -> Summary:
    """The training loop, its draws (such as dropout) from the spec's seed; the caller's generators are left alone.

    The optimizer does not warn of updates it skipped: they are events of the record, which the pages tell of.
    """
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        warnings.catch_warnings(),
        tf32_products() if getattr(built.spec.objective, "precision", "") == "tf32" else contextlib.nullcontext(),
    ):
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

        with evaluation_weights(built.optimizer):
            text = sample(objective.module, objective.tokenizer, tokens=SAMPLED_TOKENS)
        record({"kind": "sample", "step": step, "prompt": "", "text": text})


def _event(folder: RunFolder, step: int, name: str, message: str) -> None:
    folder.record({"kind": "event", "step": step, "event": name, "message": message})


def _facts(built: BuiltRun) -> dict[str, Any]:
    """What every process of a run must have alike."""
    names = ("corpus_checksum", "tokenizer_checksum", *_VERSIONS)
    facts = {name: built.environment.get(name) for name in names}
    return {"run": built.spec.content_hash, **facts, **code_checksums(built.environment)}


def _machine(where: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that the last bits of a result depend on."""
    return {key: where.get(key) for key in (*_VERSIONS, "platform", "cpu", "device", "threads", "parallel", "mesh")}
