"""How a spec's language model is computed: precision, parts, checkpointed activations, compilation, its text."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from polargrad import parameter_groups
from polargrad.lab.lm import architecture
from polargrad.lab.recipes import optimizer_for
from polargrad.lab.run import runner
from polargrad.lab.run.build import build, build_objective, build_optimizer, check, torch_device
from polargrad.linalg.precision import is_lowered, stated_precision
from tests.runs import tiny_spec, tiny_text


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    return tiny_spec(tiny_text(tmp_path), polar=True)


def changed(spec, **options):
    return dataclasses.replace(spec, objective=dataclasses.replace(spec.objective, **options))


def gradients(spec):
    objective, _ = build_objective(spec)
    objective.module.train()
    loss = 0.0
    for part in objective.parts(0):
        part.backward()
        loss += part.item()
    return loss, {name: p.grad for name, p in objective.module.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"accumulation": 2},
        {"accumulation": 4, "activation_checkpointing": True},
        pytest.param({"compiled": True}, marks=pytest.mark.slow),
    ],
)
# torch's compiler asks logits for their gradient, and hides the warning by a filter that errors pass.
@pytest.mark.filterwarnings("ignore:Dynamo detected", "ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_how_a_step_is_computed_changes_only_its_rounding(spec, options):
    loss, exact = gradients(spec)
    other, found = gradients(changed(spec, **options))
    assert other == pytest.approx(loss, rel=1e-5)
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_whitening_that_reads_nothing_on_a_cpu_is_planned_without_numbers(spec):
    whitened = {"whitening": {"name": "two-sided", "every": 1}, "capturable": True}
    check(dataclasses.replace(spec, optimizer={**spec.optimizer, "hidden": {**spec.optimizer["hidden"], **whitened}}))


def test_the_comparison_of_gradients_can_fail(spec):
    _, exact = gradients(spec)
    _, other = gradients(dataclasses.replace(spec, seed=1))
    assert not torch.allclose(other["lm_head.weight"], exact["lm_head.weight"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "weights", "of_loss", "same"),
    [
        ("float32", torch.float32, torch.float32, True),
        ("bfloat16-mixed", torch.float32, torch.float32, False),
        ("bfloat16", torch.bfloat16, torch.float32, False),
        ("float64", torch.float64, torch.float64, True),
    ],
)
def test_precision_is_of_weights_and_of_the_forward_pass(spec, precision, weights, of_loss, same):
    exact, _ = gradients(spec)
    objective, _ = build_objective(changed(spec, precision=precision))
    assert {p.dtype for p in objective.module.parameters()} == {weights}
    loss = objective.loss(0)
    assert loss.dtype == of_loss
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert (loss.item() == pytest.approx(exact, rel=1e-6)) is same
    loss.backward()
    optimizer = build_optimizer(spec, objective.module)
    optimizer.step()
    assert {optimizer.state[p]["momentum_buffer"].dtype for p in optimizer.param_groups[0]["params"]} == {weights}


def test_tf32_is_a_setting_of_a_gpu_for_the_time_of_a_run(spec, monkeypatch):
    with pytest.raises(ValueError, match=r"tf32 is a precision of NVIDIA's GPUs, and the device is 'cpu'; give"):
        changed(spec, precision="tf32")
    seen, built, get = [], build(spec), torch._C._get_fp32_precision_getter
    on_a_gpu = dataclasses.replace(built, spec=changed(spec, device="cuda", precision="tf32"))

    def products(*_, **__):
        seen.append((get("cuda", "matmul"), is_lowered("cuda")))
        with stated_precision("cuda"):  # as the optimizer's step
            seen.append((get("cuda", "matmul"), is_lowered("cuda")))

    monkeypatch.setattr(runner, "train", products)
    before = get("cuda", "matmul"), torch.get_float32_matmul_precision()
    runner._train(on_a_gpu)
    assert seen == [("tf32", True), ("ieee", False)]
    seen.clear()
    runner._train(built)
    assert seen == [(before[0], False)] * 2
    assert before == (get("cuda", "matmul"), torch.get_float32_matmul_precision())


def test_a_mixture_of_experts_is_a_spec_like_any_other(spec, tmp_path):
    mixture = changed(spec, family="mixtral", experts=4, experts_per_token=2)
    options = {**mixture.optimizer, "expert": mixture.optimizer["hidden"]}
    run = runner.run(dataclasses.replace(mixture, optimizer=options, probe=()), tmp_path / "run")
    assert run.status == "finished"
    losses = [record["loss"] for record in run.of_kind("step")]
    assert losses[-1] < losses[0]


def test_a_device_that_is_not_there_is_said_so():
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="which torch does not know"):
        torch_device("abacus")
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="torch sees no accelerator"):
            torch_device("cuda")


def test_the_text_and_its_tokens_are_on_record(spec, tmp_path):
    _, facts = build_objective(spec)
    _, again = build_objective(changed(spec, vocabulary=290))
    assert facts["corpus"].endswith("text.txt")
    assert facts["tokenizer_checksum"] != again["tokenizer_checksum"]
    assert facts["corpus_checksum"] != again["corpus_checksum"]
    assert json.dumps(facts)


def test_a_data_set_in_the_hub_s_format_is_trained_on(spec, tmp_path):
    datasets = pytest.importorskip("datasets")
    text = (tmp_path / "text.txt").read_text().split("\n")
    rows = [{"body": "\n".join(text[at : at + 10])} for at in range(0, len(text), 10)]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train.parquet")
    chosen = changed(spec, corpus=str(tmp_path / "set"), field="body", documents=30, held_out=0.1, vocabulary=290)
    objective, facts = build_objective(chosen)
    assert facts["corpus"].endswith("(first 30)")
    assert objective.loss(0).item() == pytest.approx(5.67, abs=0.2)


def test_a_tokenizer_too_large_for_the_model_is_an_error(spec, tmp_path):
    build_objective(spec)
    (path,) = (tmp_path / "cache").rglob("tokenizer.json")
    with pytest.raises(ValueError, match="build the model with vocabulary=300"):
        build_objective(changed(spec, tokenizer=str(path), vocabulary=299))


@pytest.mark.parametrize(
    ("words", "message"), [(3, "and one sequence needs 17"), (60, "sequences of 16 tokens, fewer than a batch of 64")]
)
def test_text_shorter_than_a_batch_is_an_error(spec, tmp_path, words, message):
    short = tmp_path / "short.txt"
    short.write_text("polar\n" * words)
    build_objective(spec)
    (path,) = (tmp_path / "cache").rglob("tokenizer.json")
    with pytest.raises(ValueError, match=message):
        build_objective(changed(spec, corpus=str(short), tokenizer=str(path), batch=64))


@pytest.mark.parametrize("recipe", ["adamw", "muon+adamw", "muon+normalized-rows"])
def test_a_model_that_stores_its_weights_transposed_takes_every_recipe(recipe):
    model = architecture("gpt2-small").build(device="meta")
    options = optimizer_for(recipe, {group["role"] for group in parameter_groups(model)})
    optimizer = build_optimizer(SimpleNamespace(name=recipe, optimizer=options), model)
    hidden = next(group for group in optimizer.param_groups if group["role"] == "hidden")
    assert hidden.get("layout", "auto") == ("auto" if hidden["rule"] == "adamw" else "transposed")
