"""The model of operations, bytes, memory and time: against real parts, against hand counts, and against itself."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from polargrad.distributed.cost import Machine
from polargrad.distributed.strategy import Strategy
from polargrad.geometry import GEOMETRIES, Geometry, Spectral
from polargrad.lab import estimate as module
from polargrad.lab.cli import main as cli
from polargrad.lab.cli.pretrain import Pretrain
from polargrad.lab.estimate import estimate, steps_within
from polargrad.lab.lm import architecture
from polargrad.lab.recipes import recipe
from polargrad.lab.run.build import build_optimizer
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig
from polargrad.linalg import PolarMethod, available_methods
from polargrad.linalg import method as methods
from polargrad.optim.update import GeometryLMO

SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "mlp": 64}


def of(name="muon+adamw", mesh=(1, 1, 1), machine=None, *, tokens=None, **changed):
    """The estimate of a small model."""
    return estimate(LanguageModel(**{**SMALL, **changed}), recipe(name).optimizer, mesh, machine, tokens=tokens)


def of_model(model, mesh, name="muon+polargrad", tokens=16384, machine=None):
    sizes = dataclasses.asdict(architecture(model))
    return estimate(LanguageModel(**sizes), recipe(name).optimizer, mesh, machine, tokens=tokens)


@pytest.mark.parametrize("name", ["adamw", "muon+adamw", "muon+polargrad", "muon+normalized-rows", "rownorm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_weights_and_state_are_counted_exactly(name, precision):
    found = of(name, precision=precision)
    model = LanguageModel(**SMALL, precision=precision)
    built = model.build().to(model.dtype)
    options = {role: options for role, options in recipe(name).optimizer.items() if role not in ("conv", "expert")}
    spec = RunSpec("x", model, {role: options[role] for role in ("hidden", "embedding", "head", "vector")})
    optimizer = build_optimizer(spec, built)
    built(input_ids=torch.arange(32).reshape(2, 16)).logits.square().mean().backward()
    optimizer.step()
    held = sum(p.numel() * p.element_size() + p.grad.numel() * p.grad.element_size() for p in built.parameters())
    assert found.weights == held
    state = sum(
        value.numel() * value.element_size()
        for p in built.parameters()
        for value in optimizer.state[p].values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    assert found.optimizer.state == state


def test_parts_and_devices_divide_what_is_kept():
    whole = of(batch=16)
    parts, devices = of(batch=16, accumulation=4), of(batch=16, mesh=(4, 1, 1))
    assert parts.logits == devices.logits == whole.logits / 4
    assert parts.activations == whole.activations / 4
    assert parts.passes == whole.passes
    assert devices.passes.single == whole.passes.single / 4
    assert parts.tokens == devices.tokens == whole.tokens == 16 * 128
    with pytest.raises(ValueError, match="3 devices times 2 parts do not divide the batch of 16"):
        of(batch=18 - 2, accumulation=2, mesh=(3, 1, 1))


def test_shards_divide_weights_and_state_and_copies_do_not():
    whole, copies, shards = of(), of(mesh=(2, 1, 1)), of(mesh=(1, 2, 1))
    assert copies.weights == whole.weights
    assert shards.weights == pytest.approx(whole.weights / 2, rel=0.01)
    assert shards.optimizer.state == pytest.approx(whole.optimizer.state / 2, rel=0.01)


def test_activation_checkpointing_trades_time_for_memory():
    usual, lean = of(), of(activation_checkpointing=True)
    assert lean.activations < usual.activations
    assert lean.passes.single == pytest.approx(4 / 3 * usual.passes.single)


def test_pure_bfloat16_halves_what_is_held():
    usual, half = of(), of(precision="bfloat16")
    assert half.weights * 2 == usual.weights
    assert half.optimizer.state * 2 == usual.optimizer.state


def test_passes_are_counted_in_the_precision_that_they_run_in():
    single, mixed = of(), of(precision="bfloat16-mixed")
    assert (single.passes.half, mixed.passes.single) == (0.0, 0.0)
    assert single.passes.single == mixed.passes.half


def test_a_mixture_computes_with_the_experts_that_a_token_goes_to():
    one, two = (of(family="mixtral", experts=8, experts_per_token=count) for count in (1, 2))
    assert one.parameters == two.parameters
    assert one.passes.single < two.passes.single


def test_operations_are_six_for_each_weight_and_token():
    found = of()
    named = dict(LanguageModel(**SMALL).build(device="meta").named_parameters())
    weights = sum(p.numel() for name, p in named.items() if "embed_tokens" not in name)
    assert found.passes.single == (6 * weights + 12 * 2 * 32 * 128) * 16 * 128


def test_memory_is_the_larger_of_two_moments():
    found = of("muon+polargrad")
    held = found.weights + found.optimizer.state
    assert found.memory == held + found.activations + found.logits
    few = of("muon+polargrad", batch=1, sequence=1)
    assert few.memory == held + few.optimizer.workspace


def test_the_rest_is_priced_at_the_rates_of_the_machine():
    slow, fast = (of(machine=Machine(single=rate)) for rate in (1e12, 2e12))
    assert slow.pass_seconds == 2 * fast.pass_seconds
    assert 0.0 < slow.optimizer_share < 1.0
    assert slow.seconds == slow.pass_seconds + slow.optimizer.seconds


@pytest.mark.parametrize("name", available_methods())
def test_every_method_is_priced_as_it_declares(name):
    options = {role: {"rule": "adamw", "lr": 1.0} for role in ("embedding", "head", "vector")}
    found = estimate(LanguageModel(**SMALL), {**options, "hidden": {"rule": "polar", "lr": 1.0, "method": name}})
    geometry = Spectral(name)
    shapes = [cost.layout.shape for cost in found.optimizer.costs if cost.strategy is not None]
    assert len(shapes) == 14
    work = found.optimizer.operations
    assert work.half + work.single == pytest.approx(sum(geometry.operations(m, n, torch.float32) for m, n in shapes))
    assert work.half + work.single > 0.0
    assert found.optimizer.workspace == GeometryLMO(geometry).held(torch.float32, torch.device("meta")) * 32 * 64


@pytest.fixture
def newcomers(monkeypatch):
    """A polar method and a geometry that the package has never seen."""

    @dataclasses.dataclass(frozen=True)
    class Slow(PolarMethod):
        name: ClassVar[str] = "slow"
        peak_memory: ClassVar[float] = 50.0

        def iterate(self, X):
            raise NotImplementedError

        def operations(self, m, n, dtype=torch.float32):
            return 1e12 * m * n

    @dataclasses.dataclass(frozen=True)
    class Costly(Geometry):
        name: ClassVar[str] = "costly"

        def lmo(self, G):
            raise NotImplementedError

        def squared_length(self, m, n):
            return 1.0

        def operations(self, m, n, dtype=torch.float32):
            return 1e12 * m * n

        def working_dtype(self, dtype):
            return torch.bfloat16

    monkeypatch.setitem(methods.METHODS, "slow", Slow)
    monkeypatch.setitem(GEOMETRIES, "costly", Costly)


@pytest.mark.parametrize(
    ("options", "rate"), [({"method": "slow"}, "single"), ({"geometry": "costly"}, "half")], ids=["method", "geometry"]
)
def test_what_is_new_is_priced_without_another_word(newcomers, request, capsys, options, rate):
    from polargrad.lab import recipes

    request.addfinalizer(lambda: recipes.RECIPES.pop("newcomer"))
    optimizer = recipes.by_role({"rule": "polar", "lr": 0.1, **options}, *recipes.tables())
    recipes.register("newcomer", "Something new on hidden matrices.", optimizer)
    found = estimate(LanguageModel(**SMALL), optimizer)
    entries = sum(math.prod(cost.layout.shape) for cost in found.optimizer.costs if cost.strategy is not None)
    assert getattr(found.optimizer.operations, rate) == pytest.approx(1e12 * entries)
    declared = 50.0 if "method" in options else 4.0
    assert found.optimizer.workspace == (declared + 2.0) * 4 * 32 * 64  # and the matrix, and what it was stacked from
    assert cli.main(["plan", "--model", "demo", "--mesh", "1x1x1", "--optimizer", "newcomer"]) == 0
    assert "442 P" in capsys.readouterr().out  # 1e12 for each entry of six matrices of 192 x 384


def test_plan_and_dry_run_agree(capsys):
    arguments = ["--model", "gpt2-small", "--precision", "bfloat16-mixed", "--device", "cpu", "--batch", "128"]
    dry = Pretrain.read([*arguments, "--dry-run", "--devices", "8", "--recipe", "muon+polargrad", "--steps", "60"])
    spec = dry.spec()
    found = dry._estimate(spec)
    assert found == of_gpt2(found.optimizer.machine)
    dry()
    assert f"{found.optimizer_share:.0%} of it in the optimizer" in capsys.readouterr().out
    assert cli.main(["plan", "--model", "gpt2-small", "--mesh", "8x1x1", "--tokens", str(16 * 1024)]) == 0
    said = capsys.readouterr().out
    assert f"it takes {1e3 * found.optimizer.seconds:.2f} ms" in said
    assert f"{found.optimizer_share:.1%} of a step" in said


def of_gpt2(machine):
    model = LanguageModel(**dataclasses.asdict(architecture("gpt2-small")), precision="bfloat16-mixed")
    return estimate(model, recipe("muon+polargrad").optimizer, (8, 1, 1), machine, tokens=16 * 1024)


def test_a_dry_run_of_minutes_asks_the_same_estimate(capsys):
    arguments = ["--device", "cpu", "--minutes", "1"]
    dry = Pretrain.read([*arguments, "--dry-run"])
    dry()
    steps = int(60 / dry._estimate(dry.spec()).seconds)
    assert f"{steps:,} steps of 16 x 128 tokens" in capsys.readouterr().out


def test_a_demo_model_on_four_shards():
    found = of_model("demo", (1, 4, 1))
    assert found.parameters == 1_895_424
    by_role = {}
    for cost in found.optimizer.costs:
        by_role.setdefault(cost.role, set()).add(cost.strategy)
    assert by_role["embedding"] == by_role["head"] == {Strategy.GRAM}
    assert by_role["hidden"] == {Strategy.OWNER}
    assert by_role["vector"] == {None}


def test_copies_send_directions_and_no_parts():
    hidden = [cost for cost in of_model("demo", (4, 1, 1)).optimizer.costs if cost.role == "hidden"]
    numbers = sum(cost.layout.tiles[0].numel for cost in hidden)
    assert sum(sum(cost.traffic.sent) for cost in hidden) == 3 * (4 * numbers + 8 * len(hidden))


def test_a_thousand_gpus_and_tensor_parallel_ranks():
    found = of_model("qwen2.5-540m", (16, 64, 1))
    assert found.optimizer.world == 1024
    assert found.parameters == 540_865_536
    assert max(found.optimizer.sent) < 1e9
    cut = of_model("qwen2.5-540m", (1, 2, 2), tokens=1024)
    layouts = {cost.name: str(cost.layout) for cost in cut.optimizer.costs}
    assert layouts["model.layers.0.self_attn.q_proj.weight"].count("dimension 0") == 2
    assert "dimension 1 cut by 2" in layouts["model.layers.0.mlp.down_proj.weight"]
    whole = of_model("qwen2.5-540m", (1, 2, 1), tokens=1024)
    assert cut.passes.single == whole.passes.single / 2
    assert whole.activations / 2 < cut.activations < whole.activations


def test_another_library_s_optimizer_has_a_state_and_no_price():
    found = of("soap")
    assert found.unpriced == "pytorch_optimizer:SOAP"
    assert found.optimizer.operations == (0.0, 0.0)
    matrix = next(cost for cost in found.optimizer.costs if cost.name.endswith("mlp.up_proj.weight"))
    assert matrix.state == 8 * 64 * 32 + 8 * (64**2 + 32**2)
    with pytest.raises(ValueError, match="pytorch_optimizer:SOAP works on one process"):
        of("soap", (2, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dema", "1x1x1"), "did you mean 'demo'"),
        (("demo", "1x1x1", "adam"), "unknown recipe 'adam'; did you mean 'adamw'"),
        (("demo", "1x1x1", "soap"), "the operations of pytorch_optimizer:SOAP"),
        (("gpt2-small", "1x1x2"), "tensor parallelism is known for qwen2"),
        (("demo", "1x1x5"), "divide neither the 3 heads"),
        (("demo", "2x4"), "cannot read the mesh '2x4'"),
        (("demo", "1x1x1", "adamw", "--bandwidth", "0"), "bandwidth must be positive"),
        (("demo", "1x1x1", "adamw", "--tokens", "0"), "--tokens must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_planned(capsys, arguments, message):
    model, mesh, *rest = arguments
    flags = ["--optimizer", *rest] if rest else []
    assert cli.main(["plan", "--model", model, "--mesh", mesh, *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_a_table_and_what_it_adds_up_to(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["plan", "--model", "demo", "--mesh", "2x4x1"]) == 0
    out = capsys.readouterr().out
    assert "model.embed_tokens.weight" in out
    assert "1,895,424 parameters on 8 ranks." in out
    assert "% of a step" in out
    assert cli.main(["plan", "--model", "demo", "--mesh", "2x4x1", "--full"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {name for name, _ in LanguageModel().build(device="meta").named_parameters()} < set(names)


def test_minutes_become_steps(monkeypatch):
    steps = [{"kind": "step", "seconds": 100.0 + 2.0 * k} for k in range(module._TIMED + module._WARMING)]
    steps[0]["seconds"] = 0.0
    monkeypatch.setattr("polargrad.lab.run.runner.train_unrecorded", lambda spec: steps)
    spec = RunSpec("x", LanguageModel(), {"hidden": {"lr": 1.0}}, loop=LoopConfig(steps=1))
    assert steps_within(spec, 3.0) == 90
    with pytest.raises(ValueError, match="do not suffice"):
        steps_within(spec, 0.001)
