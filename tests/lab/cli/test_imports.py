"""Each command imports what it runs: the layers of the laboratory that it loads, in a process of its own."""

import json
import os
import random
import string
import subprocess
import sys

import pytest

from polargrad.lab import matrix
from polargrad.lab.cli import main as cli
from tests.runs import tiny_spec, tiny_text, written_run

# Every spec holds a decoder's sizes.
BASE = {
    "lab",
    "lab.options",
    "lab.files",
    "lab.exit_codes",
    "lab.cli",
    "lab.run",
    "lab.train",
    "lab.lm.models",
}
TRAINED = {"lab.comparison", "lab.lm", "lab.report"}
RUN_MATRIX = ["run", "quadratic", "--size", "small", "--steps", "2", "--only", "adam", "--diagnostics", "0"]
BENCH = ["bench", "polar", "--shapes", "6x4", "--methods", "svd", "--spectra", "gaussian", "--repeats", "1"]
PROTOCOL = [
    *("protocol", "muon+adamw", "adamw", "--steps", "1", "--tokens", "64", "--runs", "1", "--seeds", "2"),
    *("--data", "words.txt", "--text", "more.txt"),
]
# command -> arguments, and the layers that it may load besides BASE.
COMMANDS = {
    "list": (["list"], {"lab.recipes", "lab.matrix", "lab.studies"}),
    "run": (["run", "spec.json"], {"lab.recipes", *TRAINED}),
    "run a matrix problem": (RUN_MATRIX, {"lab.recipes", "lab.matrix", "lab.studies", "lab.comparison", "lab.report"}),
    "compare": (["compare", "spec.json"], {"lab.recipes", "lab.launch", "lab.estimate", *TRAINED}),
    "protocol": (PROTOCOL, {"lab.recipes", *TRAINED}),
    "pretrain": (["pretrain", "small.toml"], {"lab.launch", "lab.recipes", *TRAINED}),
    "resume": (["resume", "begun"], TRAINED),
    "runs": (["runs", "ended"], {"lab.comparison", "lab.recipes"}),
    "report": (["report", "ended"], {"lab.comparison", "lab.report"}),
    "sample": (["sample", "trained", "--tokens", "2"], TRAINED),
    "export": (["export", "trained", "model"], TRAINED),
    "bench": (BENCH, {"lab.studies", "lab.report"}),
    "plan": (["plan", "--model", "demo", "--mesh", "1x2x1"], {"lab.estimate", "lab.recipes", "lab.lm.tensor_parallel"}),
    "info": (["info"], set()),
}
# Like `compare`, they load transformers and matplotlib.
SLOW = ("run", "pretrain", "resume", "protocol", "sample", "export")
# Files of matrix problems: all are listed, and a problem runs by its own.
PROBLEM_FILES = {file for file, _ in matrix._PROBLEMS.values()}
SCRIPT = """
import json, sys
from polargrad.lab.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(name for name in sys.modules if name.startswith("polargrad.lab"))]))
"""
SMALL = """
[model]
hidden_size = 16
layers = 1
heads = 2
kv_heads = 2
mlp = 32
vocabulary = 300
sequence = 16
[schedule]
steps = 2
[training]
batch = 4
device = "cpu"
[evaluation]
evaluation_windows = 8
[data]
data = "text.txt"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, a spec, a launch file, a run that has ended and one that has only begun."""
    made = tmp_path_factory.mktemp("imports")
    spec = tiny_spec(tiny_text(made).name, steps=1)
    (made / "spec.json").write_text(spec.to_json())
    (made / "small.toml").write_text(SMALL)
    for name in ("words.txt", "more.txt"):  # with enough in them for a vocabulary of 1024
        words = ["".join(random.Random(f"{name}{i}").choices(string.ascii_lowercase, k=7)) for i in range(2000)]
        lines = [" ".join(random.Random(f"{name} {i}").choices(words, k=12)) for i in range(2000)]
        (made / name).write_text("\n".join(lines))
    written_run(made / "ended", [(0, 8.0), (2, 6.0)])
    (made / "begun").mkdir()
    (made / "begun" / "spec.json").write_text(spec.to_json())
    (made / "begun" / "records.jsonl").write_text("")
    return made


def loaded(folder, arguments):
    environment = {**os.environ, "POLARGRAD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return [module.removeprefix("polargrad.") for module in modules]


def outside(modules, allowed):
    """The modules of layers that are not allowed; the package of `lab.lm.models` is no layer of its own."""
    return {
        module
        for module in modules
        if not any(module == layer or module.startswith(f"{layer}.") for layer in allowed - {"lab"})
        and module not in ("lab", "lab.lm")
    }


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in COMMANDS]
)
def test_a_command_imports_what_it_runs(folder, command):
    arguments, layers = COMMANDS[command]
    if "trained" in arguments and not (folder / "trained").exists():
        loaded(folder, ["run", "spec.json", "--out", "trained"])
    modules = loaded(folder, arguments)
    assert not outside(modules, BASE | layers)
    problems = {name for name in modules if name.removeprefix("lab.matrix.") in PROBLEM_FILES}
    assert command == "list" or problems <= {f"lab.matrix.{name}" for name in arguments[1:2]}
    others = {f"lab.cli.{name}" for name in cli.COMMANDS} - {f"lab.cli.{arguments[0]}", "lab.cli.report"}
    assert not others & set(modules)


def test_the_rule_of_imports_can_fail():
    assert outside(["lab", "lab.lm", "lab.lm.models", "lab.lm.tokens", "lab.run.spec"], BASE) == {"lab.lm.tokens"}


def test_every_command_is_looked_at():
    # The one that completes the others' flags reads them all.
    assert {arguments[0] for arguments, _ in COMMANDS.values()} == set(cli.COMMANDS) - {"completion"}
