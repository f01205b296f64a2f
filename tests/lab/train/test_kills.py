"""Kills at random moments: whatever hits a run, resumed it ends where the run ends that nothing hit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODES = {"SIGKILL": -9, "SIGTERM": 75, "SIGINT": 75}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and sends signals")


def killed(folder, signal, runs):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing.py")), str(folder), signal, str(runs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "POLARGRAD_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_three_runs_survive_their_kills(tmp_path):
    found = killed(tmp_path, ",".join(CODES), 3)
    assert found["differ"] == []
    assert found["kills"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_thirty_runs_survive_their_kills(tmp_path, signal):
    found = killed(tmp_path, signal, 30)
    print(found)
    assert found["differ"] == []
    assert found["killed"] >= 20
    assert found["kills"] >= 30
    assert CODES[signal] in found["codes"]
    if signal == "SIGKILL":
        assert found["writing"] >= 1
