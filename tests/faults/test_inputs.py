"""Input that cannot be used: one sentence and exit code 2, before any work, whatever the flag."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import polargrad
from polargrad.lab.cli import main as cli
from tests.runs import tiny_text

INTEGERS = (
    "vocabulary",
    "hidden-size",
    "layers",
    "heads",
    "batch",
    "sequence",
    "steps",
    "keep",
    "accumulation",
    "seed",
)
NUMBERS = ("clip", "held-out", "decay", "minutes")
BAD_INTEGERS = ("-1", str(2**64), "1e9", "nan", "many", "")
BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "many")
SMALL = ("--model", "demo", "--device", "cpu", "--data", "text.txt", "--vocabulary", "300", "--out", "run")


def refused(capsys, folder, arguments):
    """One sentence, exit code 2, and nothing written."""
    code = cli.main(["pretrain", *SMALL, *arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2, said
    assert said[-1].startswith("polargrad: ")
    assert "Traceback" not in "".join(said)
    assert not [path for path in folder.iterdir() if path.name != "text.txt"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    tiny_text(tmp_path)
    return tmp_path


@pytest.mark.faults
@pytest.mark.parametrize("value", BAD_INTEGERS)
@pytest.mark.parametrize("flag", INTEGERS)
def test_integers_out_of_range(capsys, folder, flag, value):
    refused(capsys, folder, (f"--{flag}={value}",))


@pytest.mark.faults
@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers_out_of_range(capsys, folder, flag, value):
    refused(capsys, folder, (f"--{flag}={value}",))


@pytest.mark.parametrize("change", ["momentum=1", "momentum=NaN", "weight_decay=Infinity", "lr=-1", "nosuch=1"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_of_the_optimizer(capsys, folder, change, dry):
    refused(capsys, folder, ("--set", f"hidden.{change}", *dry))


def child(folder, script, **options):
    environment = {**os.environ, "POLARGRAD_CACHE": str(folder / "cache")}
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("{polargrad} list >&-", 0),
        ("{polargrad} list 2>&-", 0),
        ("{polargrad} list >/dev/full", 1),
        ("{polargrad} list | true; exit ${{PIPESTATUS[0]}}", None),
        ("{polargrad} list </dev/null", 0),
        ("{polargrad} run $'\\xff\\xfe.json'", 2),
        ("{polargrad} run adamw --out /proc/nowhere/run", None),
        ("{polargrad} report /nonexistent", 2),
        ("python3 -c 'print(\"[\" * 200000)' > deep.json; {polargrad} run deep.json", 2),
        ('python3 -c \'print("a = " + "[" * 200000)\' > deep.toml; {polargrad} pretrain deep.toml', 2),
    ],
)
def test_hostile_places(folder, script, code):
    done = child(folder, script.format(polargrad=f"{sys.executable} -m polargrad"))
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("polargrad: ")]) <= 1
    if code is not None:
        assert done.returncode == code, done.stderr


SOURCE = Path(polargrad.__file__).parent
# Where a process is started (git, for the commit), and where objects cross between processes of one job.
ALLOWED = {"subprocess.run": {"lab/run/environment.py"}}
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "os.system", "os.popen"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "eval", "exec"),
    *("joblib.load", "dill.load", "yaml.load", "numpy.load", "np.load"),
}


def violations(text, place=""):
    """Calls of a file that unpickle, use a shell or start a program."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(name)
        if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name}(shell or allow_pickle)")
        if name in FORBIDDEN and place not in ALLOWED.get(name, ()):
            found.append(name)
        writes = name == "open" and any("'w" in ast.unparse(argument) for argument in node.args)
        if writes and "os.devnull" not in ast.unparse(node):
            found.append(f"{name} to write")
        if name.endswith((".write_text", ".write_bytes")) and not ast.unparse(node.func).startswith("part."):
            found.append(name)
    return found


def test_nothing_unpickles_uses_a_shell_or_writes_beside_the_one_function():
    found = {}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        if wrong := violations(path.read_text(), place):
            found[place] = wrong
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "path.write_text('x')",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_static_rule_can_fail(text):
    assert violations(text)
