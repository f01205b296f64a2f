"""`polargrad pretrain` as a person meets it."""

import dataclasses
import json
import shutil
import sys

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.cli.pretrain import Pretrain
from polargrad.lab.launch import Launch
from polargrad.lab.recipes import RECIPES
from polargrad.lab.run import build
from polargrad.lab.run.folder import read_run
from polargrad.lab.run.spec import LanguageModel
from polargrad.lab.train import Checkpoints, Cosine, WarmupLinearDecay
from polargrad.optim.roles import roles
from tests.runs import tiny_text

SMALL = """
[model]
model = "demo"
hidden_size = 16
layers = 1
heads = 2
kv_heads = 2
mlp = 32
vocabulary = 300
sequence = 16

[schedule]
steps = 4

[training]
batch = 4
device = "cpu"

[evaluation]
eval_every = 2
evaluation_windows = 8
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A launch file of a run that takes a moment, and a folder to run in."""
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = tiny_text(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(SMALL + f'\n[data]\ndata = "{text}"\n')
    return path


def _run(capsys, *arguments):
    code = cli.main(["pretrain", *map(str, arguments)])
    return code, *capsys.readouterr()


def spec(*arguments):
    return Pretrain.read([str(argument) for argument in arguments]).spec()


def test_a_run_ends_with_a_report(capsys, small, tmp_path):
    code, out, err = _run(capsys, small, "--out", "here", "--diagnostics-every", "2", "--accumulation", "2")
    assert code == 0, err
    assert "tokens/s" in out
    assert "Report: here/report.html" in out
    assert (tmp_path / "here" / "report.html").is_file()
    run = read_run(tmp_path / "here")
    assert run.spec.objective.accumulation == 2
    assert run.spec.objective.shuffle == "documents"
    assert run.summary["status"] == "finished"
    assert run.summary["units"] == 4 * 4 * 16
    looked = {record["parameter"] for record in run.of_kind("matrix")}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < looked


def test_every_field_of_a_model_is_a_flag_and_a_key_of_a_launch_file(tmp_path):
    """An option is declared once, in the spec: one field, and its entry under Args."""
    wanted = LanguageModel(
        *("mixtral", 24, 2, 4, 2, 40, 300, 32, 4, 3, False),
        *("essays/", "small", "test", "body", 7, 0.1, "gpt2", "windows"),
        *(8, 2, "bfloat16", True, True, "cpu"),
        9,
    )
    flags, tables = [], {}
    for table in dataclasses.fields(Launch):
        for entry in dataclasses.fields(table.default_factory):
            if not hasattr(wanted, entry.name):
                continue
            key, value = entry.metadata.get("flag", entry.name), getattr(wanted, entry.name)
            assert value != getattr(Launch().language_model(), entry.name) or entry.name == "device"
            tables.setdefault(table.name, []).append(f"{key} = {json.dumps(value)}")
            flag = key.replace("_", "-")
            flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    assert sum(map(len, tables.values())) == len(dataclasses.fields(LanguageModel))
    path = tmp_path / "all.toml"
    path.write_text("".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in tables.items()))
    assert Launch.from_file(path).language_model() == wanted
    assert Pretrain.read(flags).language_model() == wanted
    assert {entry.name for entry in dataclasses.fields(wanted)} < set(wanted.to_dict())


def test_it_explains_itself(capsys):
    code, out, _ = _run(capsys, "--help")
    assert code == 0
    for words in ("Example: polargrad pretrain", "[data]", "--tokens", "--diagnostics-every", "--accumulation"):
        assert words in out


def test_flags_override_the_file(small):
    assert spec(small).loop.steps == 4
    changed = spec(small, "--steps", 7, "--recipe", "adamw", "--heads", 4, "--kv-heads", 4)
    assert (changed.loop.steps, changed.recipe, changed.objective.heads) == (7, "adamw", 4)
    assert changed.objective.hidden_size == 16


def test_what_is_asked_for_is_what_the_spec_says():
    made = spec(
        *("--model", "gpt2-small", "--recipe", "muon+polargrad", "--tokens", 1_000_000, "--batch", 32),
        *("--sequence", 512, "--schedule", "cosine", "--warmup", 5, "--final", 0.1, "--precision", "bfloat16-mixed"),
        *("--set", "hidden.lr=0.004", "--set", "tied.momentum=0.9", "--set", "*.weight_decay=0.01", "--clip", 1.0),
        *("--diagnostics-every", 10, "--seed", 7, "--device", "cpu", "--compile", "--activation-checkpointing"),
    )
    assert made.loop.steps == 62
    assert made.schedule == Cosine(total=62, warmup=5, final=0.1)
    assert made.loop.clip_grad_norm == 1.0
    # GPT-2 ties its embedding to its head, and has positions.
    assert set(made.optimizer) == {"hidden", "tied", "position", "vector"}
    assert made.optimizer["hidden"]["lr"] == 0.004
    assert made.optimizer["tied"]["momentum"] == 0.9
    assert {options["weight_decay"] for options in made.optimizer.values()} == {0.01}
    assert made.probe == (
        "transformer.wte.weight",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.11.mlp.c_proj.weight",
    )
    assert (made.objective.precision, made.objective.compiled, made.objective.activation_checkpointing) == (
        "bfloat16-mixed",
        True,
        True,
    )
    assert json.loads(made.to_json())["objective"]["sequence"] == 512


def test_the_usual_run_is_the_demo():
    made = spec("--device", "cpu")
    assert made.loop.steps == 200
    assert made.schedule == WarmupLinearDecay(total=200, warmup=13)
    assert made.probe == ()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["demo", "gpt2-small", "moe-demo"])
def test_every_recipe_has_options_for_every_model(recipe, model):
    made = spec("--model", model, "--recipe", recipe, "--device", "cpu")
    present = set(roles(made.objective.build(device="meta")).values())
    assert set(made.optimizer) == present


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt3"], "unknown model 'gpt3'"),
        (["--recipe", "muon+adam"], "did you mean 'muon+adamw'"),
        (["--steps", "5", "--tokens", "100"], "give one of them"),
        (["--tokens", "5", "--minutes", "1"], "give one of them"),
        (["--minutes", "-1"], "--minutes must be a finite number above 0; got -1.0"),
        (["--steps", "0"], "steps must be"),
        (["--tokens", "0"], "--tokens must be an integer of at least 1"),
        (["--batch", "6", "--accumulation", "4"], "it may be one of 1, 2, 3, 6"),
        (["--hidden-size", "100"], "not a multiple of heads"),
        (["--experts", "4"], "'mixtral' takes at least 2"),
        (["--set", "hidden.lr"], "write ROLE.OPTION=VALUE"),
        (["--set", "conv.lr=1"], "the model has no role 'conv'"),
        (["--set", "hidden.lr=fast"], "the lr of 'hidden' is 'fast'"),
        (["--schedule", "constant", "--warmup", "5"], "--warmup is not used by --schedule constant"),
        (["--warmup", "500"], "does not fit"),
        (
            ["--schedule", "cosine", "--decay", "0.5"],
            "--decay is not used by --schedule cosine",
        ),
        (["--final", "0.1"], "--final is not used by --schedule warmup-linear-decay; leave it out, or take cosine"),
        (["--matrices", "lm_head.weight"], "add --diagnostics-every"),
        (["--devices", "8", "--tflops", "100"], "--devices, --tflops: options of a dry run"),
        (["--resume", "here", "--out", "there"], "--out: a resumed run stays in its folder"),
        (
            ["--field", "body", "--device", "cpu"],
            "field 'body' is an entry of JSON lines",
        ),
        (["--set", "hidden.momentum=1"], "momentum"),
        (["--set", "hidden.momentumm=0.9"], "momentumm"),
        (["--set", "hidden.weight_decay=NaN"], "weight_decay"),
        (["--dry-run", "--set", "hidden.momentum=1"], "momentum"),
        (["--dry-run", "--decay", "nan"], "decay"),
        (["--clip", "inf"], "clip"),
        (["--vocabulary", "1000000000"], "vocabulary"),
        (["--hidden-size", "1000000000"], "hidden"),
        (["--seed", str(2**64)], "seed must be an integer of at most"),
        (["--steps", str(2**64)], "steps must be an integer of at most"),
        (["--minutes", "inf"], "minutes"),
        (["--batch", str(2**62)], "batch"),
        (["--batch", str(2**62), "--accumulation", "3"], "it may be one of 1, 2, 4, 8, 16"),
        (["--diagnostics-every", "5", "--matrices", "lm_head"], "no matrix 'lm_head'; it has lm_head.weight"),
        (["--device", "abacus"], "which torch does not know"),
        (["--seed", "-1"], "seed must be an integer of at least 0"),
        (["--held-out", "1.5"], "the share of documents"),
        (["--bacth", "4"], "--bacth"),
        (["--precision", "half"], "--precision"),
        (["nowhere.toml"], "there is no launch file nowhere.toml"),
        (["--parallel", "ddp"], "torchrun"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(capsys, small, tmp_path, arguments, message):
    code, out, err = _run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("polargrad: ")
    assert message in last
    assert not out
    assert not (tmp_path / "cache").exists() or "device" in message or "torch" in message


@pytest.fixture
def every_checkpoint_stays(monkeypatch):
    monkeypatch.setattr(Checkpoints, "finish", lambda checkpoints: None)


def test_a_stopped_run_goes_on_with_its_own_options_only(capsys, small, tmp_path, every_checkpoint_stays):
    for out in ("whole", "stopped"):
        assert _run(capsys, small, "--out", out, "--checkpoint-every", "2", "--name", "same")[0] == 0
    # As if it had been killed after its checkpoint at step 2.
    (tmp_path / "stopped" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000004")
    code, _, err = _run(capsys, small, "--resume", "stopped", "--name", "same", "--batch", "8")
    assert code == 2
    assert "another configuration" in err
    assert "batch" in err
    code, out, err = _run(capsys, small, "--resume", "stopped", "--name", "same")
    assert code == 0, err
    whole, resumed = (read_run(tmp_path / name) for name in ("whole", "stopped"))
    assert resumed.summary["status"] == "finished"
    assert [event["step"] for event in resumed.of_kind("event") if event["event"] == "resumed"] == [2]
    losses = [[record["loss"] for record in run.of_kind("step")] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_run_does_not_go_on_with_another_vocabulary(capsys, small, tmp_path, every_checkpoint_stays):
    from polargrad.lab.lm import open_source, train_bpe

    source, words = open_source(str(tmp_path / "text.txt")), tmp_path / "tokenizer.json"
    train_bpe(source, 290).backend.save(str(words))
    options = (small, "--tokenizer", words, "--checkpoint-every", "2", "--name", "same")
    assert _run(capsys, *options, "--out", "run")[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train_bpe(source, 280).backend.save(str(words))
    build._corpus.cache_clear()  # another process would not have it
    code, _, err = _run(capsys, *options, "--resume", "run")
    assert code == 2
    assert "tokenizer_checksum" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_two_processes_train_as_one(small, tmp_path):
    from tests.torchrun import torchrun

    assert cli.main(["pretrain", str(small), "--accumulation", "2", "--name", "same", "--out", "one"]) == 0
    options = ("--accumulation", 2, "--name", "same", "--parallel", "ddp", "--tensorboard", "--out", tmp_path / "two")
    done = torchrun(2, "-m", "polargrad", "pretrain", small, *options)
    assert done.returncode == 0, done.stderr
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    losses = [[record["loss"] for record in run.of_kind("step")] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert list((tmp_path / "two" / "tensorboard").iterdir())


def test_figures_go_to_a_tracker(capsys, small, tmp_path, monkeypatch):
    stand_in = "logged = []\n\ndef init(**_): pass\n\ndef finish(): logged.append('end')\n\nlog = logged.append\n"
    (tmp_path / "trackio.py").write_text(stand_in)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    code, _, err = _run(capsys, small, "--track", "trackio", "--tensorboard", "--out", "run")
    assert code == 0, err
    *logged, end = sys.modules.pop("trackio").logged
    assert [figures["step"] for figures in logged if "train/loss" in figures] == [1, 2, 3, 4]
    assert end == "end"


def test_minutes_become_steps(capsys, small, tmp_path):
    small.write_text(small.read_text().replace("steps = 4", "minutes = 0.005"))
    code, _, err = _run(capsys, small, "--out", "timed")
    assert code == 0, err
    steps = read_run(tmp_path / "timed").spec.loop.steps
    assert f"0.005 minutes are {steps} steps here" in err
    code, _, err = _run(capsys, small, "--resume", "timed")
    assert code == 2
    assert "resume with --steps" in err


def test_an_existing_folder_is_left_alone(capsys, small, tmp_path):
    (tmp_path / "there").mkdir()
    code, _, err = _run(capsys, small, "--out", "there")
    assert code == 2
    assert "there exists and is left as it is" in err
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nbacth = 4", "[training]: unknown key 'bacth'; did you mean 'batch'?"),
        ("[trainning]\nbatch = 4", "unknown table 'trainning'; did you mean 'training'?"),
        ("[training]\nbatch = 'four'", "[training] batch must be an integer of at least 1; got 'four'"),
        ("[training]\nbatch = true", "[training] batch must be an integer of at least 1; got True"),
        ("[training]\nprecision = 'half'", "allowed are 'float32'"),
        ("[optimizer]\nset = 'hidden.lr=1'", "give a list of strings"),
        ("batch = 4", "unknown table 'batch'; the allowed names are 'model'"),
        ("training = 4", "training is a table"),
        ("[training", "cannot be read as TOML"),
    ],
)
def test_a_launch_file_is_checked(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Launch.from_file(path)
    assert message in str(caught.value)


def test_a_launch_file_may_hold_anything_a_flag_can(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '[optimizer]\nset = ["hidden.lr=0.1"]\nclip = 1\n'
        '[run]\nout = "a/b"\n[evaluation]\nmatrices = ["lm_head.weight"]\n'
    )
    made = Launch.from_file(path)
    assert made.optimizer.set == ("hidden.lr=0.1",)
    assert made.optimizer.clip_grad_norm == 1.0
    assert str(made.run.out) == "a/b"
    assert made.evaluation.matrices == ("lm_head.weight",)
