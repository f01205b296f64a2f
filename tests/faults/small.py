"""A run that takes a tenth of a second, and what must not change about it."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from polargrad.lab.matrix.problem import ProblemSpec
from polargrad.lab.run import runner
from polargrad.lab.run.folder import CHECKPOINTS, RECORDS, SUMMARY, Run
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import CheckpointPolicy, LoopConfig

SPEC = RunSpec(
    "small",
    ProblemSpec("quadratic", {"rows": 6, "m": 5, "n": 4, "columns": 5}),
    {"matrix": {"rule": "polar", "lr": 1e-2, "method": "svd"}},
    loop=LoopConfig(6, eval_every=2),
)
EVERY_STEP = CheckpointPolicy(every_steps=1, keep=6)


def losses(run: Run) -> list[float]:
    """The losses on record."""
    return [record["loss"] for record in run.of_kind("step")]


def stopped(path: Path, steps: int = 4) -> None:
    """A run folder as a kill after so many steps leaves it."""
    runner.run(SPEC, path, policy=EVERY_STEP)
    (path / SUMMARY).unlink()
    for checkpoint in (path / CHECKPOINTS).iterdir():
        if int(checkpoint.name.removeprefix("step-")) > steps:
            shutil.rmtree(checkpoint)
    lines = [line for line in (path / RECORDS).read_text().splitlines(True) if json.loads(line)["step"] <= steps + 1]
    (path / RECORDS).write_text("".join(lines))


def goes_on(path: Path, whole: list[float]) -> str:
    """Resume a run that was hit: "went on" to the same losses, or the one sentence with which it was refused.

    Raises:
        AssertionError: other losses, or an error that is not a sentence.
    """
    said = ""
    with contextlib.suppress(ValueError, OSError):
        try:
            run = runner.resume(path)
            found = losses(run)
        except (ValueError, OSError) as error:
            said = str(error)
            raise
        if any(event["event"] == "altered" for event in run.of_kind("event")):
            return "went on, and says that its records were changed"
        assert found == whole, "a wrong number was loaded"
        return "went on"
    assert said.strip(), "an error that says nothing"
    assert "Traceback" not in said
    assert "\n" not in said.strip()
    return said
