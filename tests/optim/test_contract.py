"""What torch's own suite asks of every optimizer, asked of PolarGrad through an `OptimizerInfo` of ours."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

import polargrad
from tests.optim.optimizer_info import INFO

INPUTS = INFO.optim_inputs_func("cpu")
every_input = pytest.mark.parametrize("chosen", INPUTS, ids=lambda chosen: chosen.desc)


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape in [(4, 3), (4, 3), (3, 5), (2, 3, 4), (4, 2, 3, 3)]
    ]


def make(chosen, parameters, **more):
    kwargs = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in chosen.kwargs.items()}
    return INFO.optim_cls(parameters, **kwargs, **more)


def drive(optimizer, parameters, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("given", INFO.optim_error_inputs_func("cpu", torch.float32), ids=lambda e: e.error_regex)
def test_errors_at_construction(given):
    assert given.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    chosen = given.optimizer_error_input
    params = [torch.nn.Parameter(torch.randn(2, 3))] if chosen.params is None else chosen.params
    if given.error_type is UserWarning:
        with pytest.warns(UserWarning, match=given.error_regex):
            INFO.optim_cls(params, **chosen.kwargs)
    else:
        with pytest.raises(given.error_type, match=given.error_regex):
            INFO.optim_cls(params, **chosen.kwargs)


@every_input
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("schedulers", [(), *INFO.scheduler_inputs], ids=len)
def test_loss_goes_the_right_way(chosen, contiguous, schedulers):
    generator = torch.Generator().manual_seed(0)
    if contiguous:
        weight = torch.nn.Parameter(torch.randn(10, 5, generator=generator))
    else:
        weight = torch.nn.Parameter(torch.randn(10, 5, 2, generator=generator)[..., 0])
    data = torch.randn(5, 1, generator=generator)
    optimizer = make(chosen, [weight])
    running = [make_scheduler(optimizer) for make_scheduler in schedulers]

    def closure():
        optimizer.zero_grad()
        loss = (weight.mm(data) ** 2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in running:
            scheduler.step(loss.item()) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    last = closure().item()
    assert last > first if chosen.kwargs.get("maximize") else last < first


@every_input
def test_state_dict_goes_on_as_if_nothing_had_happened(chosen):
    parameters = tensors()
    optimizer = make(chosen, parameters)
    drive(optimizer, parameters, seed=1)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    others = copy.deepcopy(parameters)
    resumed = make(chosen, others)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    drive(optimizer, parameters, seed=2)
    drive(resumed, others, seed=2)
    assert same(parameters, others)


@every_input
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on_alike(chosen, way):
    parameters = tensors()
    optimizer = make(chosen, parameters)
    drive(optimizer, parameters, seed=1)
    twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    others = twin.param_groups[0]["params"]
    assert same(parameters, others)
    drive(optimizer, parameters, seed=2)
    drive(twin, others, seed=2)
    assert same(parameters, others)
    assert twin.skipped == 0
    twin.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3, 3))]})


@every_input
def test_loading_into_another_dtype_keeps_the_own_dtypes_of_the_state(chosen):
    parameters = tensors()
    optimizer = make(chosen, parameters)
    drive(optimizer, parameters, seed=1)
    others = tensors(torch.float64)
    resumed = make(chosen, others)
    resumed.load_state_dict(optimizer.state_dict())
    drive(resumed, others, seed=2)
    for p in others:
        for key, value in resumed.state[p].items():
            own = chosen.kwargs.get("momentum_dtype") or "float64"
            if key == "step":
                own = "float32"
            elif key.startswith(("dual_norm", "row_")):
                own = "float64" if own == "float64" else "float32"
            assert value.dtype == getattr(torch, own), key


def test_float32_momentum_of_bfloat16_weights_survives_a_checkpoint():
    parameters = tensors(torch.bfloat16)
    options = {"momentum_dtype": "float32", "scale": "adaptive-nuclear"}
    optimizer = polargrad.PolarGrad(parameters, **options)
    drive(optimizer, parameters, seed=1)
    others = copy.deepcopy(parameters)
    resumed = polargrad.PolarGrad(others, **options)
    resumed.load_state_dict(optimizer.state_dict())
    for p, q in zip(parameters, others, strict=True):
        assert resumed.state[q].keys() == optimizer.state[p].keys()
        for key, value in optimizer.state[p].items():
            assert resumed.state[q][key].dtype == torch.float32
            assert torch.equal(resumed.state[q][key], value)
            assert resumed.state[q][key] is not value
    drive(optimizer, parameters, seed=2)
    drive(resumed, others, seed=2)
    assert same(parameters, others)


@pytest.mark.parametrize("momentum_dtype", [None, "float32", "bfloat16"])
def test_bfloat16_weights_follow_float32_ones(momentum_dtype):
    # Momentum rounds to 2^-9 relative, the direction and the weights once more in every step.
    low = tensors(torch.bfloat16)
    high = [torch.nn.Parameter(p.detach().float()) for p in low]
    a = polargrad.PolarGrad(low, lr=0.1, scale="rms", momentum_dtype=momentum_dtype)
    b = polargrad.PolarGrad(high, lr=0.1, scale="rms")
    drive(a, low, seed=1)
    drive(b, [*high], seed=1)
    assert all(a.state[p]["momentum_buffer"].dtype == getattr(torch, momentum_dtype or "bfloat16") for p in low)
    for p, q in zip(low, high, strict=True):
        torch.testing.assert_close(p.float(), q, rtol=0.05, atol=0.05)


def test_hooks():
    W = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polargrad.PolarGrad([W])
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        optimizer.register_state_dict_pre_hook(lambda *_: calls.append("save")),
        optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved")),
        optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load")),
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded")),
    ]
    W.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert sorted(calls[:2]) == ["global pre", "pre"]
    assert sorted(calls[2:4]) == ["global post", "post"]
    assert calls[4:] == ["save", "saved", "load", "loaded"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(calls) == 8


def test_a_load_hook_may_replace_what_is_loaded():
    W = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = polargrad.PolarGrad([W], momentum_dtype="float32")
    W.grad = torch.ones_like(W)
    optimizer.step()

    def replace(_, state):
        state = copy.deepcopy(state)
        state["state"][0]["momentum_buffer"].fill_(1 / 3)
        return state

    optimizer.register_load_state_dict_pre_hook(replace)
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(optimizer.state[W]["momentum_buffer"], torch.full((2, 2), 1 / 3))


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    W = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polargrad.PolarGrad([W])

    def closure():
        assert torch.is_grad_enabled()
        loss = W.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert optimizer.step() is None


def test_none_and_empty_gradients_are_left_out():
    W, V, E = (torch.nn.Parameter(torch.ones(shape)) for shape in [(2, 2), (2, 2), (0, 2)])
    optimizer = polargrad.PolarGrad([W, V, E], scale="adaptive-nuclear", scope="group")
    optimizer.step()
    assert not optimizer.state
    W.grad, E.grad = torch.ones(2, 2), torch.ones(0, 2)
    optimizer.step()
    assert set(optimizer.state) == {W}
    assert torch.equal(V, torch.ones(2, 2))


@pytest.mark.parametrize("rule", ["polar", "adamw"])
def test_sparse_gradients_are_refused_by_name(rule):
    W = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polargrad.PolarGrad([{"params": [("embedding", W)], "rule": rule}])
    W.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="'embedding' has a sparse gradient"):
        optimizer.step()


def test_gradients_are_not_touched():
    for chosen in INPUTS:
        parameters = tensors()
        optimizer = make(chosen, parameters)
        drive(optimizer, parameters, seed=1, steps=1)
        gradients = [p.grad.clone() for p in parameters]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(parameters, gradients, strict=True)), chosen.desc


def test_named_parameters_are_kept_and_order_decides_on_load():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
    optimizer = polargrad.PolarGrad(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "1.weight"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "1.weight"]
    unnamed = polargrad.PolarGrad(model.parameters())
    unnamed.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(polargrad.PolarGrad(model.parameters()).state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "1.weight"]


def test_an_older_state_without_an_option_gets_the_default():
    W = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polargrad.PolarGrad([W], normalize_rows=0.5)
    old = optimizer.state_dict()
    del old["param_groups"][0]["normalize_rows"]
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["normalize_rows"] == 0.5
    optimizer.step()


def test_a_state_with_an_option_out_of_range_is_refused():
    optimizer = polargrad.PolarGrad([torch.nn.Parameter(torch.ones(2, 2))])
    state = optimizer.state_dict()
    state["param_groups"][0]["scale"] = "cubic"
    with pytest.raises(ValueError, match="scale must be one of"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["scale"] == "nuclear"


def test_groups_are_plain_data_whatever_the_method_was_given_as():
    W = torch.nn.Parameter(torch.ones(2, 2))
    method = polargrad.linalg.NewtonSchulz(max_steps=3, dtype=None)
    optimizer = polargrad.PolarGrad([{"params": [W], "method": method}], method=polargrad.linalg.QDWH(max_steps=2))
    assert optimizer.defaults["method"]["name"] == "qdwh"
    assert optimizer.param_groups[0]["method"]["name"] == "newton-schulz"
    other = polargrad.PolarGrad([torch.nn.Parameter(torch.ones(2, 2))], method="newton-schulz", max_steps=5)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    W.grad = other.param_groups[0]["params"][0].grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer.step()
    other.step()
    assert torch.equal(W, other.param_groups[0]["params"][0])


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = polargrad.PolarGrad([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="not a matrix"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1


def test_a_changed_learning_rate_is_used():
    for lr in (0.1, torch.tensor(0.1)):
        W = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = polargrad.PolarGrad([W], lr=lr)
        if isinstance(lr, torch.Tensor):
            lr.zero_()
        else:
            optimizer.param_groups[0]["lr"] = 0.0
        W.grad = torch.ones(2, 2)
        optimizer.step()
        assert torch.equal(W, torch.ones(2, 2))


def test_repr_shows_the_options():
    assert "momentum_order: momentum-first" in repr(polargrad.PolarGrad([torch.nn.Parameter(torch.ones(2, 2))]))
