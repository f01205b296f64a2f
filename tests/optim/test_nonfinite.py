"""Gradients that are not finite touch nothing, are counted, and are named."""

import copy
import itertools
import warnings

import pytest
import torch

import polargrad

BAD = [float("nan"), float("inf"), -float("inf")]
ORDERS = ["momentum-first", "polar-first", "heavy-ball"]
SCALES = [("nuclear", "matrix"), ("rms", "matrix"), ("adaptive-nuclear", "matrix"), ("adaptive-nuclear", "group")]


def _step(optimizer, parameters, generator, spoil=None):
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p)
    if spoil is not None:
        spoil()
    optimizer.step()


def _step_and_read(optimizer, parameters, generator, spoil=None):
    _step(optimizer, parameters, generator, spoil)
    _ = optimizer.skipped


def _frozen(optimizer, p):
    return copy.deepcopy((p.detach(), optimizer.state[p]))


def _same(before, optimizer, p, index=...):
    weights, state = before
    assert torch.equal(p.detach()[index], weights[index])
    for key, value in state.items():
        now = optimizer.state[p][key]
        part = index if value.ndim else ...
        assert torch.equal(now[part], value[part]), key


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("order", "scale", "nesterov"), list(itertools.product(ORDERS, SCALES, [False, True])))
def test_a_bad_matrix_stays_and_the_others_step(order, scale, nesterov, bad, capturable):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    experts = torch.nn.Parameter(torch.randn(3, 4, 3, generator=generator))
    parameters = [first, second, experts]
    optimizer = polargrad.PolarGrad(
        [("first", first), ("second", second), ("experts", experts)],
        lr=0.1, momentum_order=order, nesterov=nesterov, scale=scale[0], scope=scale[1], method="svd",
        weight_decay=0.1, capturable=capturable,
    )  # fmt: skip
    _step(optimizer, parameters, generator)
    before = [_frozen(optimizer, p) for p in parameters]

    def spoil():
        first.grad[2, 1] = bad
        experts.grad[1, 0, 0] = bad

    with pytest.warns(UserWarning, match=r"'first', 'experts'"):
        (_step_and_read if capturable else _step)(optimizer, parameters, generator, spoil)
    assert optimizer.skipped == 2  # and no second warning
    _same(before[0], optimizer, first)
    _same(before[2], optimizer, experts, 1)
    for p, (weights, state), index in zip(parameters[1:], before[1:], [slice(None), [0, 2]], strict=True):
        assert (p.detach()[index] != weights[index]).all()
        assert (optimizer.state[p]["momentum_buffer"][index] != state["momentum_buffer"][index]).any()
    _step(optimizer, parameters, generator)
    assert all(p.isfinite().all() for p in parameters)
    assert (first.detach() != before[0][0]).all()


@pytest.mark.parametrize("capturable", [False, True])
def test_the_good_expert_steps_as_if_alone(capturable):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, 3, generator=generator)
    experts, alone = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[0].clone())
    options = {"lr": 0.1, "scale": "adaptive-nuclear", "method": "svd", "capturable": capturable}
    a, b = polargrad.PolarGrad([experts], **options), polargrad.PolarGrad([alone], **options)
    for _ in range(3):
        experts.grad = torch.randn(2, 4, 3, generator=generator)
        alone.grad = experts.grad[0].clone()
        experts.grad[1] = float("nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a.step()
        b.step()
    torch.testing.assert_close(experts[0], alone)
    assert torch.equal(experts[1], start[1])


@pytest.mark.parametrize("mode", ["plain", "cautious"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_adamw_groups(bad, capturable, mode):
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.nn.Parameter(torch.randn(5, generator=generator)) for _ in range(2)]
    optimizer = polargrad.PolarGrad(
        [{"params": vectors, "rule": "adamw", "weight_decay": 0.1, "weight_decay_mode": mode}], capturable=capturable
    )
    _step(optimizer, vectors, generator)
    before = _frozen(optimizer, vectors[0]), _frozen(optimizer, vectors[1])
    with pytest.warns(UserWarning, match=r"parameter 0 of shape \(5,\)"):
        _step_and_read(optimizer, vectors, generator, lambda: vectors[0].grad.fill_(bad))
    _same(before[0], optimizer, vectors[0])
    if capturable:  # one fused call for the group, which steps as a whole or not at all
        assert optimizer.skipped == 2
        _same(before[1], optimizer, vectors[1])
    else:
        assert optimizer.skipped == 1
        assert (vectors[1].detach() != before[1][0]).all()
        assert optimizer.state[vectors[1]]["step"] == 2


def test_masked_adamw_is_adamw():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    plain, masked = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    for mode in ("plain", "cautious"):
        group = {"rule": "adamw", "weight_decay": 0.1, "weight_decay_mode": mode, "lr": 0.1}
        a = polargrad.PolarGrad([{"params": [plain], **group}])
        b = polargrad.PolarGrad([{"params": [masked], **group, "capturable": True}])
        for _ in range(5):
            plain.grad = torch.randn(5, generator=generator)
            masked.grad = plain.grad.clone()
            a.step()
            b.step()
            torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("rule", ["polar", "adamw"])
def test_raise_stops_before_anything_is_stepped(rule):
    generator = torch.Generator().manual_seed(0)
    good, bad = (torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    optimizer = polargrad.PolarGrad(
        [{"params": [("good", good)]}, {"params": [("bad", bad)], "rule": rule}], on_nonfinite="raise"
    )
    before = good.detach().clone()
    with pytest.raises(RuntimeError, match=r"gradient of 'bad' holds NaN or infinity"):
        _step(optimizer, [good, bad], generator, lambda: bad.grad.fill_(float("inf")))
    assert torch.equal(good, before)
    assert not optimizer.state
    _step(optimizer, [good, bad], generator)
    assert not torch.equal(good, before)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_zero_gradients_give_zero_polar_parts(order, capturable):
    W = torch.nn.Parameter(torch.ones(4, 3))
    for scale, scope in [*SCALES, ("nuclear", "group"), ("mean-singular", "matrix"), ("spectral", "matrix")]:
        for rule in (
            ({}, {"step_rule": {"name": "smoothness", "smoothness": 1.0}, "momentum": 0.0})
            if scale == "nuclear"
            else ({},)
        ):
            optimizer = polargrad.PolarGrad(
                [W], lr=0.1, scale=scale, scope=scope, momentum_order=order, capturable=capturable, **rule
            )
            for _ in range(3):
                W.grad = torch.zeros(4, 3)
                optimizer.step()
            assert torch.equal(W, torch.ones(4, 3)), (scale, scope)
            assert optimizer.skipped == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_numbers_do_not_overflow_the_momentum(order, dtype):
    W = torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))
    optimizer = polargrad.PolarGrad([W], lr=1e-3, momentum_order=order, method="svd", scale="rms")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sign in (1, 1, -1, -1) * 5:
            W.grad = torch.full((4, 3), sign * torch.finfo(dtype).max, dtype=dtype)
            optimizer.step()
            W.grad = torch.full((4, 3), sign * torch.finfo(dtype).max / 41, dtype=dtype)
            optimizer.step()
    assert optimizer.state[W]["momentum_buffer"].isfinite().all()
    assert W.isfinite().all()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_a_direction_that_is_not_finite_is_not_taken(order, capturable, monkeypatch):
    W = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = polargrad.PolarGrad([W], momentum_order=order, capturable=capturable)
    monkeypatch.setattr(polargrad.geometry.spectral, "unwidened_factor", lambda G, **_: G * float("nan"))
    with pytest.warns(UserWarning, match="skipped updates"):
        _step_and_read(optimizer, [W], torch.Generator())
    assert optimizer.skipped == 1
    assert torch.equal(W, torch.ones(4, 3))
    assert optimizer.state[W]["momentum_buffer"].isfinite().all()


def test_scaled_and_clipped_gradients_as_with_adamw():
    W = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = polargrad.PolarGrad([W], lr=0.1, method="svd")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((W**2).sum()).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(W.grad, 2 * torch.ones(4, 3))
    torch.nn.utils.clip_grad_norm_([W], 1.0)
    scaler.step(optimizer)
    scaler.update()
    moved = W.detach().clone()
    assert (moved < 1).all()
    scaler.scale((W * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(W, moved)
    assert scaler.get_scale() == 512.0


def test_a_lost_model_is_told_once_and_briefly():
    """After an absurd learning rate every gradient is NaN: one short warning, however many steps follow."""
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(6)])
    optimizer = polargrad.PolarGrad(polargrad.parameter_groups(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(5):
            for p in model.parameters():
                p.grad = torch.full_like(p, torch.nan)
            optimizer.step()
    assert optimizer.skipped == 5 * 12
    (warning,) = caught
    assert "and 4 others" in str(warning.message)
    assert "too large a learning rate" in str(warning.message)


def test_skips_of_every_group_are_read_in_one_copy(monkeypatch):
    matrices, vectors = ([torch.nn.Parameter(torch.ones(shape)) for _ in range(3)] for shape in ((4, 3), (5,)))
    groups = [{"params": matrices, "method": "svd"}, {"params": vectors, "rule": "adamw", "lr": 0.1}]
    optimizer = polargrad.PolarGrad(groups, capturable=True)
    generator = torch.Generator().manual_seed(0)

    def spoil():
        matrices[1].grad[0, 0] = vectors[2].grad[0] = torch.nan

    _step(optimizer, [*matrices, *vectors], generator, spoil)
    copies, whole = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: copies.append(self.shape) or whole(self))
    with pytest.warns(UserWarning, match="skipped updates"):
        assert optimizer.skipped == 4  # with capturable=True a group of AdamW steps as a whole or not at all
    assert copies == [(6,)]
