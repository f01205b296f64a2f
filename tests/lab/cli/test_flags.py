"""Every flag of every command acts, or is refused: one table of the flags that act by themselves.

A flag that acts only together with another declares so (`Used`), and is tried here without it. A new flag is in
neither, and fails `test_every_flag_is_known_to_act`.
"""

import importlib
import subprocess
import typing

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.cli.completion import options_of
from polargrad.lab.options import Used, flag_of
from tests.runs import written_run

MATRIX = "--only --preset --size --repeat --eval-every --diagnostics --jobs --set --picture --ratings"
PROCESSES = "--parallel --mesh"
TRACKING = "--tensorboard --track"
# What each flag does is told by its help. Of `run` and `resume` some belong to one kind of thing: REFUSED has these.
ACTING = {
    "list": "",
    "info": "",
    "completion": "",
    "run": f"--steps --seed --out {MATRIX} {TRACKING} {PROCESSES}",
    "compare": f"--set --tune --seeds --seed --steps --minutes --out --dry-run --jobs --threads {TRACKING} {PROCESSES}",
    "pretrain": "--model --family --hidden-size --layers --heads --kv-heads --mlp --vocabulary --sequence --experts "
    "--experts-per-token --no-untied --data --subset --split --field --documents --held-out --tokenizer --shuffle "
    "--recipe --set --clip --steps --tokens --minutes --schedule --batch --accumulation --precision "
    "--activation-checkpointing --compile --device --seed --evaluation-windows --eval-every --log-every "
    f"--diagnostics-every {TRACKING} --name --dry-run --checkpoint-every --keep --resume {PROCESSES}",
    "protocol": "--model --baseline --set --steps --tokens --runs --tuner --seeds --data --text --documents --device "
    "--precision --compile --out --jobs --threads",
    "resume": f"--jobs --threads {PROCESSES}",
    "report": "--format",
    "runs": "--recipe --status --name --sort --last --format",
    "sample": "--tokens --temperature --top-k --seed",
    "export": "",
    "bench": "--shapes --dtypes --spectra --methods --repeats --device --out",
    "plan": "--model --mesh --optimizer --tokens --half --single --bandwidth --latency --full",
}
# Arguments whose last flag has nothing to act on, and what the error says.
REFUSED = [
    *(("run", ["adamw", *flag], "options of matrix problems, and adamw is not one; leave them out") for flag in (
        ("--only", "adam"), ("--preset", "paper"), ("--size", "full"), ("--repeat", "1"), ("--eval-every", "5"),
        ("--diagnostics", "0"), ("--jobs", "1"), ("--picture", "china"), ("--ratings", "r.csv"),
    )),
    ("run", ["adamw", "--set", "m=3"], "unknown option of rule 'adamw': 'm'"),
    ("run", ["theory", "--set", "m=3"], "--set: options of matrix problems, and theory is not one"),
    ("run", ["theory", "--steps", "3"], "leave --steps out"),
    ("run", ["theory", "--repeat", "1"], "leave them out"),
    ("run", ["theory", "--tensorboard"], "--tensorboard: theory is a study"),
    ("run", ["theory", "--parallel", "ddp"], "--parallel: theory runs on one process"),
    ("run", ["quadratic", "--mesh", "1x1x1"], "--mesh: quadratic runs on one process"),
    ("run", ["quadratic", "--picture", "china"], "unknown setting of quadratic 'picture'"),
    ("run", ["quadratic", "--ratings", "r.csv"], "unknown setting of quadratic 'file'"),
    ("run", ["adamw", "--mesh", "1x1x1"], "--mesh needs --parallel"),
    ("run", ["spec.json", "--seed", "42"], "--seed: spec.json fixes these; leave them out"),
    ("run", ["spec.json", "--steps", "3"], "--steps: spec.json fixes these; leave them out"),
    ("run", ["spec.json", "--set", "lr=1"], "--set: spec.json fixes these; leave them out"),
    ("compare", ["adamw", "--minutes", "1", "--steps", "3"], "give one of the two"),
    ("compare", ["adamw", "--mesh", "1x1x1"], "--mesh needs --parallel"),
    ("compare", ["phenomena", "--tune"], "leave --tune out"),
    ("pretrain", ["--steps", "3", "--tokens", "9"], "give one of them"),
    ("pretrain", ["--steps", "3", "--minutes", "9"], "give one of them"),
    ("pretrain", ["--device", "cpu", "--split", "test"], "is not one: leave them out"),
    ("pretrain", ["--device", "cpu", "--subset", "x"], "is not one: leave them out"),
    ("pretrain", ["--device", "cpu", "--field", "body"], "leave it out"),
    ("pretrain", ["--experts-per-token", "2"], "leave both out"),
    ("pretrain", ["--device", "cpu", "--mesh", "1x1x1"], "--mesh needs --parallel"),
    ("resume", ["one", "--jobs", "1"], "--jobs: one is a single run; leave them out"),
    ("resume", ["one", "--threads", "1"], "--threads: one is a single run; leave them out"),
    ("resume", ["one", "--mesh", "1x1x1"], "--mesh needs --parallel"),
]  # fmt: skip


def kind_of(command):
    return getattr(importlib.import_module(f"polargrad.lab.cli.{command}"), command.capitalize())


def conditions(entry):
    used = entry.metadata.get("used", ())
    return (used,) if isinstance(used, Used) else used


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_is_known_to_act(command):
    flags = {flag_of(entry) for entry, _ in options_of(kind_of(command)) if not conditions(entry)}
    assert flags == set(ACTING[command].split())


def declared():
    """Every flag that is declared to act only together with another: the arguments without the other, and its flag."""
    for command in cli.COMMANDS:
        every = {entry.name: (entry, hint) for entry, hint in options_of(kind_of(command))}
        for entry, hint in every.values():
            for used in conditions(entry):
                other, other_hint = every[used.option]
                partner = []
                if used.values:
                    partner = [flag_of(other), next(v for v in typing.get_args(other_hint) if v not in used.values)]
                elif used.unless:
                    partner = argument(other, other_hint)
                yield command, [*partner, *argument(entry, hint)], flag_of(entry), flag_of(other), used.unless


def argument(entry, hint):
    """A flag with a value that it may have; its default where it has one, which is refused no less."""
    if hint is bool:
        return [flag_of(entry)]
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if typing.get_origin(kind) is typing.Literal]
    sample = typing.get_args(kinds[0])[0] if kinds else "3"
    value = sample if entry.default in (None, ()) else entry.default
    return [flag_of(entry), str(value)]


@pytest.mark.parametrize(("command", "arguments", "flag", "other", "unless"), list(declared()))
def test_a_flag_without_its_partner_is_refused(capsys, tmp_path, monkeypatch, command, arguments, flag, other, unless):
    monkeypatch.chdir(tmp_path)
    names = {"compare": ["adamw"]}.get(command, [])
    assert cli.main([command, *names, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert flag in said
    assert unless or other in said
    assert "leave it out" in said or "leave them out" in said
    assert not list(tmp_path.iterdir())


def test_flags_are_declared_to_need_others():
    assert {flag for _, _, flag, *_ in declared()} >= {
        *("--ratio", "--extend", "--no-halving", "--sweep", "--decay", "--final", "--warmup", "--matrices"),
        *("--devices", "--tflops", "--optimizer-tflops", "--out"),
    }


@pytest.mark.parametrize(("command", "arguments", "message"), REFUSED)
def test_a_flag_with_nothing_to_act_on_is_refused(capsys, tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    if command == "resume":
        written_run(tmp_path / "one", [(0, 8.0), (2, 6.0)])
    assert cli.main([command, *arguments]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["polargrad", "pre"], {"pretrain"}),
        (["polargrad", "compare", "muon+norm"], {"muon+normalized-rows", "muon+normalized-tables"}),
        (["polargrad", "compare", "adamw", "--tun"], {"--tune", "--tuner"}),
        (["polargrad", "run", "proc"], {"procrustes"}),
        (["polargrad", "pretrain", "--no-u"], {"--no-untied"}),
        (["polargrad", "resume", "runs"], set()),
    ],
)
def test_a_shell_completes(capsys, words, wanted):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    script += f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _polargrad; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted
    assert not done.stderr
