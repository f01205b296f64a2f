"""What a watched forward pass tells of parameters, against the formulas of the modules."""

import random
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import polargrad
from polargrad.optim.matrix_view import VIEW_OPTIONS, matrix_view
from polargrad.optim.roles import roles
from polargrad.optim.usage import watch
from tests.optim.used_modules import CASES, Attention, D, Formula, Tables, tokens, vectors


def _build(case, seed=0):
    torch.manual_seed(seed)
    model, example = case.make(), case.example()
    model(**example) if isinstance(example, dict) else model(*example) if isinstance(example, tuple) else model(example)
    return model, example


def _matrices(group, p):
    view = matrix_view(p.shape, {key: group[key] for key in VIEW_OPTIONS if key in group})
    return [matrix for batch in view.split(p.detach()) for matrix in batch]


@pytest.mark.filterwarnings("ignore:without an example nothing tells")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_roles_and_matrices_are_those_of_the_formula(case):
    model, example = _build(case)
    p = model.get_parameter(case.name)
    for seen, role in ((example, case.role), (None, case.static or case.role)):
        groups = polargrad.parameter_groups(model, example=seen)
        (group,) = (one for one in groups if case.name in dict(one["params"]))
        assert group["role"] == role
        assert (group["rule"] == "polar") == (role not in ("position", "vector"))
        if seen is not None:
            assert (role in ("embedding", "position", "vector")) == (case.matrices is None)
            if case.matrices is not None:
                # In any order: each has a factor of its own.
                found = _matrices(group, p)
                expected = case.matrices(p.detach())
                assert sorted(m.shape for m in found) == sorted(m.shape for m in expected)
                assert all(any(torch.equal(m, e) for e in expected if e.shape == m.shape) for m in found)
    polargrad.PolarGrad(groups)


def test_a_fused_layer_is_stepped_as_its_parts_alone():
    """Queries, keys and values in one matrix, and in three with the same numbers, take the same steps."""
    torch.manual_seed(0)
    fused = Attention("heads").double()
    parts = [nn.Parameter(W.clone()) for W in CASES["fused attention, heads"].matrices(fused.qkv.weight.detach())]
    options = {"hidden": {"lr": 0.1, "scale": "spectral", "method": "svd", "momentum": 0.9}}
    groups = polargrad.parameter_groups(fused, example=vectors().double(), **options)
    together = polargrad.PolarGrad(groups)
    alone = polargrad.PolarGrad(parts, **options["hidden"], nesterov=True)
    for _ in range(3):
        x = vectors().double()
        loss = fused(x).square().mean()
        together.zero_grad()
        loss.backward()
        for p, g in zip(parts, CASES["fused attention, heads"].matrices(fused.qkv.weight.grad), strict=True):
            p.grad = g.clone()
        together.step()
        alone.step()
    for p, W in zip(parts, CASES["fused attention, heads"].matrices(fused.qkv.weight.detach()), strict=True):
        torch.testing.assert_close(p.detach(), W, rtol=1e-12, atol=1e-12)


class Changing(nn.Module):
    """Changes all that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, D, max_norm=0.1)
        self.norm, self.drop = nn.BatchNorm1d(D), nn.Dropout(0.5)
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(D, D))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids):
        self.seen = self.seen + 1
        noise = random.random() + np.random.random()  # noqa: NPY002
        return self.layer(self.drop(self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2))) + noise


def test_the_model_and_every_random_state_stay_as_they_were():
    model, ids = Changing(), tokens()
    model.table.weight.grad = torch.ones_like(model.table.weight)
    seen, gradient = model.seen, model.table.weight.grad
    before = {name: t.clone() for name, t in model.state_dict(keep_vars=True).items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    modes = [module.training for module in model.modules()]
    assert roles(model, ids)["table.weight"] == "embedding"
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.seen is seen
    assert model.table.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "table.weight")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert [module.training for module in model.modules()] == modes
    # The control: a plain pass does change them.
    model(ids)
    assert not torch.equal(before["table.weight"], model.table.weight)
    assert not torch.equal(before["norm.running_mean"], model.norm.running_mean)


@pytest.mark.parametrize("name", ["fused attention, heads", "LSTM, states", "experts, interleaved", "spectral norm"])
def test_a_model_on_the_meta_device_shows_the_same(name):
    model, example = _build(CASES[name])
    with torch.device("meta"):
        watched = watch(model.to("meta"), example)
    assert watched == watch(_build(CASES[name])[0], example)


def test_wrappers_autocast_and_checkpoints_hide_nothing():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention("heads")

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=True)

    plain = watch(Attention("heads"), vectors())
    assert watch(Outer(), vectors()) == {f"inner.{name}": usage for name, usage in plain.items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert watch(Attention("heads"), vectors()) == plain


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_parameters_that_fsdp_has_sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = Attention("heads")
        plain = watch(model, vectors())
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        sharded = list(model.parameters())
        assert watch(model, vectors()) == plain
        assert all(a is b for a, b in zip(model.parameters(), sharded, strict=True))
        gradients = [torch.ones_like(p) for p in sharded]
        for p, gradient in zip(sharded, gradients, strict=True):
            p.grad = gradient.clone()
        kept = [p.grad for p in sharded]

        def meddle(module, args):  # what a model's forward may do to its sharded parameters
            for i, p in enumerate(sharded):
                p.grad.mul_(3)
                p.grad = None if i else torch.zeros_like(p)
                p.requires_grad_(i == 1)
            module.register_parameter("another", nn.Parameter(torch.ones(2)))

        hook = model.register_forward_pre_hook(meddle)
        assert watch(model, vectors()).keys() <= plain.keys()
        hook.remove()
        assert all(a is b for a, b in zip(model.parameters(), sharded, strict=True))
        assert all(p.requires_grad and p.grad is one for p, one in zip(sharded, kept, strict=True))
        assert all(
            torch.equal(p.grad.full_tensor(), one.full_tensor()) for p, one in zip(sharded, gradients, strict=True)
        )
        optimizer = polargrad.PolarGrad(polargrad.parameter_groups(model, example=vectors()))
        for _ in range(2):
            optimizer.zero_grad()
            model(vectors()).square().mean().backward()
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_and_scripted_models():
    layers = nn.Sequential(nn.Linear(D, 12), nn.GLU(), nn.Linear(6, 3))
    plain = watch(layers, vectors())
    assert plain["0.weight"].view == {"split": [6, 6]}
    assert watch(torch.compile(layers, backend="eager"), vectors()) == {f"_orig_mod.{k}": u for k, u in plain.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of scripting
        assert watch(torch.jit.script(layers), vectors()) == plain


def test_a_model_that_takes_gradients_itself():
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 2))

        def forward(self, x):
            x = x.requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    assert {watch(Forces(), vectors())[f"energy.{i}.weight"].role for i in (0, 2)} == {"hidden"}


def test_what_the_example_does_not_reach_says_so_and_keeps_its_static_role():
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.bare = nn.Linear(D, 3), nn.Linear(D, 3), nn.Parameter(torch.randn(4, D))

        def forward(self, x):
            return self.used(x)

    with pytest.warns(UserWarning, match="does not reach bare"):
        groups = polargrad.parameter_groups(Partial(), example=vectors())
    found = {name: group["role"] for group in groups for name, _ in group["params"]}
    assert found == {"used.weight": "head", "idle.weight": "hidden", "bare": "position"} | dict.fromkeys(
        ("used.bias", "idle.bias"), "vector"
    )
    table = polargrad.describe_groups(groups)
    assert "idle.weight and 2 more: not reached by the example" in table or "not reached by the example" in table
    assert "used.weight: multiplied into the output; by its module alone: hidden" in table


def test_rules_win_over_what_was_watched_and_a_polar_step_of_a_table_of_positions_warns():
    model, rules = Attention("heads"), [("qkv.weight", {"split": [12, 12]})]
    groups = polargrad.parameter_groups(model, example=vectors(), rules=rules)
    (group,) = (g for g in groups if "qkv.weight" in dict(g["params"]))
    assert [m.shape for m in _matrices(group, model.qkv.weight)] == [(12, D), (12, D)]
    assert torch.equal(_matrices(group, model.qkv.weight)[0], model.qkv.weight[:12])
    groups = polargrad.parameter_groups(Tables(), example=tokens(), rules=[("tokens.weight", "position")])
    assert [g["role"] for g in groups if "tokens.weight" in dict(g["params"])] == ["position"]
    with pytest.warns(UserWarning, match="polar steps with A_log, which the example shows to be used entry by entry"):
        groups = polargrad.parameter_groups(Tables(), example=tokens(), rules=[("A_log", "hidden")])
    assert [g["rule"] for g in groups if "A_log" in dict(g["params"])] == ["polar"]
    with pytest.warns(UserWarning, match="nothing tells the use of bare, latents, relative .stepped"):
        polargrad.parameter_groups(Tables(), rules=[("A_log", "hidden")])


def test_an_operator_that_cannot_be_followed_is_named(monkeypatch):
    def fails(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("polargrad.optim.usage._Watcher._convolve", fails)
    model, example = _build(CASES["convolution"])
    with pytest.warns(
        UserWarning, match=r"not be followed through aten.convolution.default \(RuntimeError in.*planted"
    ):
        groups = polargrad.parameter_groups(model, example=example)
    assert [g["role"] for g in groups if "0.weight" in dict(g["params"])] == ["conv"]


def test_an_operator_from_outside_is_named_and_the_parameter_keeps_its_static_role():
    @torch.library.custom_op("polargrad_tests::linear", mutates_args=())
    def linear(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return x @ W.T

    linear.register_autograd(lambda context, gradient: (gradient, None))
    model = nn.Sequential(nn.Linear(D, D), Formula({"W": (6, D)}, lambda m, x: linear(x, m.W), 6))
    with pytest.warns(UserWarning, match="through polargrad_tests::linear .LookupError.*not one of torch's own"):
        groups = polargrad.parameter_groups(model, example=vectors(), rules=[("1.W", "hidden")])
    assert [g["role"] for g in groups if "1.W" in dict(g["params"])] == ["hidden"]


def test_a_static_guess_is_named():
    with pytest.warns(UserWarning, match="nothing tells the use of bare, latents, relative, A_log .stepped by AdamW.;"):
        groups = polargrad.parameter_groups(Tables())
    assert "bare and 3 more: its use is not known; give an example" in polargrad.describe_groups(groups)
    with pytest.warns(UserWarning, match=r"how the rows of qkv.weight are cut .stepped as one matrix"):
        polargrad.parameter_groups(Attention("heads"))
    ruled = polargrad.parameter_groups(Attention("heads"), rules=[("qkv.weight", {"split": [D] * 3, "interleave": 2})])
    assert [g["split"] for g in ruled if "split" in g] == [[D] * 3]


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (3, TypeError, "example must be a tensor, a tuple or list of positional arguments, or a dict.*got int"),
        (torch.randn(2, 7), ValueError, "does not run on this example .RuntimeError.*one call of the model takes"),
        ({"y": torch.randn(2, D)}, ValueError, "does not run on this example .TypeError"),
    ],
)
def test_examples_that_do_not_run(example, error, message):
    model = nn.Sequential(nn.Linear(D, 3))
    with pytest.raises(error, match=message):
        polargrad.parameter_groups(model, example=example)


def test_a_meta_model_that_branches_on_values():
    model = Formula({"W": (D, D)}, lambda m, x: x @ m.W if x.sum() > 0 else x).to("meta")
    with pytest.raises(ValueError, match="on the meta device it cannot branch on values"):
        watch(model, vectors())


def test_keyword_arguments_and_the_positions_among_them():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.head = nn.Embedding(11, D), nn.Embedding(9, D), nn.Linear(D, 11)

        def forward(self, input_ids, position_ids=None):
            return self.head(self.words(input_ids) + self.places(position_ids))

    found = roles(Model(), {"input_ids": tokens(), "position_ids": torch.arange(5)})
    assert (found["words.weight"], found["places.weight"], found["head.weight"]) == ("embedding", "position", "head")


class Rewriting(nn.Module):
    """Replaces and adds what a module holds, and takes gradients of its own."""

    def __init__(self, shape=(D, D)):
        super().__init__()
        self.layer, self.other, self.flat = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.randn(2, D))
        self.generators = [torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)]
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.layer.weight.data = self.layer.weight.data * 0.5
        self.layer.bias.requires_grad_(False)
        self.seen.data = torch.ones(4)
        self.other.weight = nn.Parameter(torch.zeros(D, D))
        self.register_buffer("late", torch.ones(1))
        self.register_parameter("added", nn.Parameter(torch.ones(1)))
        self.head = nn.Linear(D, D)
        self.eval()
        _ = torch.rand(1, generator=self.generators[0]), self.generators[1].random(), self.generators[2].random()
        x.mul_(2)
        y = self.other(self.layer(x)) + self.flat[0]
        y.sum().backward()
        y = self.layer(x)
        del self.layer.weight
        self.layer.weight = torch.zeros(D, D)  # a plain attribute
        return y


def test_what_a_pass_replaces_adds_or_accumulates_is_put_back():
    model, x = Rewriting(), vectors()
    model.flat.grad = torch.ones_like(model.flat)
    held = {name: (t, t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    gradient, x_before = model.flat.grad, x.clone()
    draws = [np.random.default_rng(1).random(), random.Random(1).random()]
    watch(model, x)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(held)
    for name, (tensor, values, required) in held.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)
        assert tensor.requires_grad == required
    assert model.layer.weight is after["layer.weight"]
    assert model.training
    assert model.layer.training
    assert model.flat.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert model.layer.weight.grad is None
    assert torch.equal(x, x_before)
    assert torch.equal(model.generators[0].get_state(), torch.Generator().manual_seed(1).get_state())
    assert [model.generators[1].random(), model.generators[2].random()] == draws
    # The control: a plain pass does change them.
    model(x)
    assert list(model.state_dict()) != list(held)
    assert not torch.equal(gradient, torch.ones_like(gradient))


def test_two_parameters_of_one_storage_are_both_put_back():
    flat = torch.randn(2, D, D)
    model = Formula({"A": (D, D), "B": (D, D)}, lambda m, x: x @ m.A.detach().mul_(2) @ m.B)
    model.A.data, model.B.data = flat[0], flat[1]
    before = flat.clone()
    watch(model, vectors())
    assert torch.equal(flat, before)


def test_an_expanded_buffer_of_nan_does_not_keep_others_from_being_put_back():
    model = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(5))
    model.register_buffer("first", torch.full((1, 1), torch.nan).expand(2, 3))
    model[1].register_buffer("overlap", torch.zeros(()).expand(4))
    model[0].register_buffer("sparse", torch.eye(3).to_sparse())
    before = {name: t.clone() for name, t in model.state_dict().items() if t.layout is torch.strided}
    watch(model, vectors())
    after = model.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items() if name != "first")
    assert after["first"].isnan().all()


def test_inference_mode_hides_nothing():
    model, x = Attention("heads"), vectors()
    plain = watch(model, x)
    with torch.inference_mode():
        assert watch(model, vectors()) == plain
        x = vectors()
    assert watch(model, x) == plain
    assert roles(model, x)["qkv.weight"] == "hidden"


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: torch.Tensor


class Opaque:
    def __init__(self, value):
        self.inner = SimpleNamespace(scores=value)


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.head, self.wrap = nn.Linear(D, D), nn.Linear(D, 3), wrap

    def forward(self, x):
        y = torch.tanh(self.body(x))
        return self.wrap(self.head(y), y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z, y: Output(z, y),
        lambda z, y: (Output(z, y), None),
        lambda z, y: {"unembedded": z, "last_hidden_state": y},
        lambda z, y: {"embedding": z},
        lambda z, y: {"a": {"pooling_score": z}},
        lambda z, y: namedtuple("Pair", "scores attentions")(z, y),
        lambda z, y: Opaque(z),
        lambda z, y: {"hidden": z},
        lambda z, y: {"text_embeds": z, "past": y},
        lambda z, y: torch.distributions.Normal(z, torch.ones(()), validate_args=False),
    ],
)  # fmt: skip
def test_the_head_is_found_in_any_output(wrap):
    assert roles(Returning(wrap), vectors())["head.weight"] == "head"


def test_outputs_that_no_loss_is_taken_of_are_no_head():
    for wrap in (
        lambda z, y: {"logits": y, "router_states": z},
        lambda z, y: {"text_embeds": z, "scores": y},
        lambda z, y: Output(y, z),
        lambda z, y: {"encoder": {"hidden_states": (y, z)}},  # an encoder, whose loss is taken of something else
    ):
        assert roles(Returning(wrap), vectors())["head.weight"] == "hidden"
    with pytest.warns(UserWarning, match="returned no tensor that could be found in its int"):
        assert roles(Returning(lambda z, y: 3), vectors())["head.weight"] == "hidden"


class TwoTables(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.kinds, self.head = nn.Embedding(11, D), nn.Embedding(11, D), nn.Linear(D, 11)


class Items(TwoTables):
    def forward(self, ids, item_type_ids):
        return self.head(self.words(ids) + self.kinds(item_type_ids))


class Segments(TwoTables):
    def forward(self, ids, segment_ids=None):
        return self.head(self.words(ids) + self.kinds(segment_ids))


class Passing(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_arguments_go_by_their_whole_names_however_they_are_passed():
    a, b = tokens(), tokens()
    assert roles(Items(), (a, b))["kinds.weight"] == "embedding"
    assert roles(Items(), {"ids": a, "item_type_ids": b})["kinds.weight"] == "embedding"
    for model in (Segments(), Passing(Segments()), torch.compile(Segments(), backend="eager")):
        for example in ((a, b), {"ids": a, "segment_ids": b}):
            found = {
                name.split(".", 1)[-1] if name[0] in "m_" else name: r for name, r in roles(model, example).items()
            }
            assert (found["words.weight"], found["kinds.weight"]) == ("embedding", "position")
    # One tensor for both counts as tokens.
    for example in ((a, a), {"ids": a, "segment_ids": a}):
        assert roles(Segments(), example)["words.weight"] == "embedding"
    stored = torch.stack([a, b])
    assert roles(Segments(), tuple(stored))["kinds.weight"] == "position"


def test_names_inside_a_batch():
    class Batched(TwoTables):
        def forward(self, batch):
            return self.head(self.words(batch["ids"]) + self.kinds(batch["position_ids"]))

    found = roles(Batched(), ({"ids": tokens(), "position_ids": tokens()},))
    assert (found["words.weight"], found["kinds.weight"]) == ("embedding", "position")


@pytest.mark.parametrize("example", [None, vectors()])
@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_says_to_run_the_model_first(lazy, example):
    with pytest.raises(ValueError, match="its module is lazy; run the model once first"):
        polargrad.parameter_groups(nn.Sequential(nn.Linear(D, D), lazy), example=example)


@pytest.mark.parametrize(
    ("shape", "case", "given", "sizes"),
    [
        ((24, D), "fused attention, heads", {"layout": "transposed"}, [(8, 24)]),
        ((24, D), "fused attention, heads", {"stack": 4}, [(6, 8)] * 4),
        ((24, D), "fused attention, heads", {"heads": 2}, [(4, 8)] * 6),
        ((24, D), "fused attention, heads", {"split": [12, 12]}, [(12, 8)] * 2),
        ((24, D), "experts, (in, out) below", {"split": [3, 5]}, [(3, 6), (5, 6)] * 4),
        ((24, D), "experts, (in, out) below", {"split": [12, 12]}, [(12, 8)] * 2),
        ((D, 6), "matmul", {"split": [3, 3]}, [(3, 8)] * 2),
    ],
)
def test_what_a_rule_says_of_the_matrices_is_not_mixed_with_what_was_found(shape, case, given, sizes):
    model, example = _build(CASES[case])
    name = CASES[case].name
    groups = polargrad.parameter_groups(model, example=example, rules=[(name, given)])
    (group,) = (g for g in groups if name in dict(g["params"]))
    p = model.get_parameter(name)
    assert p.shape == shape
    assert sorted(tuple(m.shape) for m in _matrices(group, p)) == sorted(sizes)
    polargrad.PolarGrad(groups)
