"""Runs that are killed at random moments and resumed until they end: `python killing.py FOLDER SIGNAL,... RUNS`.

There are more runs, up to three times as many, until there were RUNS kills. Prints one JSON object: how many runs
were killed, how often, how often while a checkpoint was being written, and which runs ended elsewhere than the one that
nobody killed. Every attempt is a process of its own, forked before anything is built, whose global generators are
somewhere else each time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from polargrad.distributed.checkpoint import Saved
from polargrad.lab.run import runner
from polargrad.lab.run.build import build_objective
from polargrad.lab.run.folder import CHECKPOINTS, RECORDS
from polargrad.lab.train import CheckpointPolicy
from tests.runs import tiny_spec, tiny_text

STEPS = 24
UNTIMED = ("seconds", "optimizer_seconds")


def attempt(spec, path, number):
    """Fork a process that runs or resumes; give its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.manual_seed(number)
        runner.run_or_resume(spec, path, policy=CheckpointPolicy(every_steps=1))
        code = 0
    except runner.Interrupted:
        code = 75
    finally:
        os._exit(code)


def outcome(path):
    """Losses, rates and evaluations of every step, and the last checkpoint's tensors."""
    records = [json.loads(line) for line in (path / RECORDS).read_text().splitlines()]
    kept = [{k: v for k, v in r.items() if k not in UNTIMED} for r in records if r["kind"] != "event"]
    last = max((path / CHECKPOINTS).iterdir())
    saved = Saved.open(last)
    assert not saved.damage()
    state = saved.extra["state"]
    # A spec seeds torch's generator alone, so Python's own differs between processes from the start.
    return kept, saved.files, saved.groups, saved.state, state["data"], state["random"]["torch"]


def main(folder, names, runs):
    """Do it and print what happened."""
    torch.set_num_threads(1)
    chance = random.Random(names[0])
    spec = tiny_spec(tiny_text(folder), steps=STEPS, polar=True)
    build_objective(spec)  # the vocabulary is trained once
    durations = []
    for name in ("whole", "again", "once more"):
        began = time.monotonic()
        os.waitpid(attempt(spec, folder / name, 0), 0)
        durations.append(time.monotonic() - began)
    duration = min(durations)  # kills that come too late are none
    reference = outcome(folder / "whole")
    kills = killed = writing = 0
    differing, codes = [], set()
    for number in range(1, 3 * runs + 1):
        if number > runs and kills >= runs:
            break
        path, hits, name = folder / f"run-{number}", 0, names[number % len(names)]
        while True:
            child = attempt(spec, path, 1000 * number + hits)
            time.sleep(duration * chance.random() * (0.9 if hits == 0 else 1.6))
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                break
            os.kill(child, getattr(signal, name))
            _, status = os.waitpid(child, 0)
            hits += 1
            writing += any((path / CHECKPOINTS).glob("*.part"))
            codes.add(os.waitstatus_to_exitcode(status))
        kills, killed = kills + hits, killed + bool(hits)
        if outcome(path) != reference:
            differing.append(number)
    print(json.dumps({"kills": kills, "killed": killed, "writing": writing, "codes": list(codes), "differ": differing}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]))
