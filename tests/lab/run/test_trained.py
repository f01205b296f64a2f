"""The trained model of a run folder: what it writes, and the same model read by transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polargrad.lab.cli import main as cli
from polargrad.lab.comparison.comparison import Comparison, run_comparison
from polargrad.lab.comparison.page import Findings
from polargrad.lab.lm.generation import sample
from polargrad.lab.recipes import by_role
from polargrad.lab.run import build, runner
from polargrad.lab.run.folder import read_run
from polargrad.lab.run.spec import LanguageModel
from polargrad.lab.run.trained import trained
from polargrad.lab.train import CheckpointPolicy
from polargrad.optim.roles import roles
from tests.runs import ADAMW, StopsAt, tiny_spec, tiny_text
from tests.torchrun import torchrun

FAMILIES = {
    "qwen2": {},
    "qwen2-tied": {"untied": False},
    "gpt2": {"family": "gpt2", "untied": False},
    "mixtral": {"family": "mixtral", "experts": 3, "experts_per_token": 2},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Runs a tiny decoder of some sizes into a folder."""
    text = tiny_text(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(folder="run", steps=3, **sizes):
        spec = tiny_spec(text, steps=steps)
        sizes = {**dataclasses.asdict(spec.objective), "mlp": None, **sizes}
        model = LanguageModel(**sizes)
        present = set(roles(model.build(device="meta")).values())
        optimizer = {role: options for role, options in by_role(ADAMW, ADAMW).items() if role in present}
        return runner.run(dataclasses.replace(spec, objective=model, optimizer=optimizer, probe=()), folder)

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_gives_the_same_logits(made, tmp_path, capsys, family):
    made(**FAMILIES[family])
    assert cli.main(["export", "run", "models/mine"]) == 0, capsys.readouterr().err
    found = trained("run")
    assert found.step == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "mine").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "mine")
    text = "ban dort lest fill mon, and \u00fcber a byte"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :16]
    assert ids.tolist() == [found.tokenizer.encode([text])[0][:16]]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with torch.no_grad():
        logits, own = model(ids).logits, found.module.eval()(input_ids=ids).logits
    assert (logits - own).abs().max() <= 1e-6
    assert own.std() > 1e-3  # the comparison can fail
    assert (tmp_path / "models" / "mine" / "model.safetensors").is_file()
    assert not list((tmp_path / "models").glob(".new-*"))
    card = (tmp_path / "models" / "mine" / "README.md").read_text()
    assert "trained by polargrad's recipe tiny" in card
    assert model.config.eos_token_id == tokenizer.eos_token_id == found.tokenizer.end_of_text


def test_the_weights_are_those_that_training_ended_with(made):
    """Evaluated again, the model has the loss that the run recorded."""
    run = made()
    found = trained("run")
    objective, _ = build.build_objective(run.spec)
    objective.module.eval()
    with torch.no_grad():
        before = objective.evaluate()["val_loss"]
        objective.module.load_state_dict(found.module.state_dict())
        assert objective.evaluate()["val_loss"] == run.of_kind("eval")[-1]["val_loss"]
    assert before != run.of_kind("eval")[-1]["val_loss"]


def test_a_run_records_a_text_and_its_page_shows_it(made, tmp_path):
    run = made()
    (record,) = run.of_kind("sample")
    assert record["step"] == 3
    assert record["text"]
    page = Findings([run]).write_page(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Text that the models write" in page


def test_a_model_that_knows_its_text_writes_it(made):
    made(steps=120, batch=16)
    found = trained("run")
    words = sample(found.module, found.tokenizer, "ban bart ", tokens=30, temperature=0.0).split()
    assert sum(word[:1] in "bdfglm" for word in words) > len(words) / 2


def test_sampling_follows_its_seed_and_its_temperature(made, capsys):
    made()
    said = []
    for flags in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--temperature", "0"], ["--top-k", "1"]):
        assert cli.main(["sample", "run", "ban ", "--tokens", "20", *flags]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert said[3] == said[4]
    assert all(text.startswith("ban ") for text in said)
    before = torch.get_rng_state()
    found = trained("run")
    sample(found.module, found.tokenizer, tokens=40)  # more than the model has positions
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_was_stopped_gives_the_model_of_its_last_checkpoint(made, tmp_path, capsys):
    run = made()
    with pytest.raises(runner.Interrupted):
        runner.run(run.spec, "stopped", progress=StopsAt(2), policy=CheckpointPolicy(every_steps=1))
    step = trained("stopped").step
    assert step in (1, 2)
    assert cli.main(["export", "stopped", "models/stopped"]) == 0
    assert f"after {step} steps" in capsys.readouterr().out


def test_the_runs_of_a_comparison_write_a_text_and_those_of_a_grid_keep_no_model(made, capsys):
    spec = made().spec
    run_comparison(Comparison((spec,)), "both")
    assert cli.main(["sample", "both/tiny", "ban ", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("ban ")
    assert "Text that the models write" in Findings.read(Path("both")).write_page("both.html").read_text("utf-8")
    run_comparison(Comparison((spec,), sweep=("rates=1,2",)), "grid")
    assert cli.main(["sample", "grid/tiny@rates=1"]) == 2
    assert "runs of a search or a grid keep none" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_model_trained_by_several_processes_is_exported(tmp_path, monkeypatch, capsys, layout):
    text = tiny_text(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    sizes = "--layers 1 --hidden-size 16 --heads 2 --kv-heads 1 --vocabulary 300 --sequence 16 --batch 4 --steps 3"
    flags = ["pretrain", "--data", text, *sizes.split(), "--eval-every", "1", "--recipe", "muon+adamw"]
    done = torchrun(2, "-m", "polargrad", *flags, "--parallel", layout, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert cli.main(["export", "run", "model"]) == 0, capsys.readouterr().err
    found, run = trained("run"), read_run("run")
    objective, _ = build.build_objective(run.spec)
    objective.module.load_state_dict(found.module.state_dict())
    ended = run.of_kind("eval")[-1]["val_loss"]
    objective.module.eval()
    with torch.no_grad():
        assert objective.evaluate()["val_loss"] == pytest.approx(ended, rel=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert (model(ids).logits - found.module.eval()(input_ids=ids).logits).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nothing"], "is not a run folder"),
        (["sample", "run", "x", "--tokens", "0"], "tokens must be an integer of at least 1"),
        (["sample", "run", "x", "--temperature", "-1"], "temperature must be"),
        (["export", "run", "run"], "run exists and is left as it is"),
        (["export", "bare", "out"], "bare has no checkpoint"),
    ],
)
def test_what_cannot_be_had(made, tmp_path, capsys, arguments, message):
    made()
    (tmp_path / "bare").mkdir()
    for name in ("spec.json", "records.jsonl", "environment.json", "summary.json"):
        (tmp_path / "bare" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_changed_text_is_not_exported_with_another_vocabulary(made, tmp_path, capsys):
    made()
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    path = tmp_path / "text.txt"
    assert spec["objective"]["corpus"] == str(path)
    path.write_text(path.read_text()[::-1])
    build._corpus.cache_clear()  # as in a process of its own
    assert cli.main(["export", "run", "out"]) == 2
    assert "corpus_checksum was" in capsys.readouterr().err
