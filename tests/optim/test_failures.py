"""A step that fails leaves each parameter stepped or untouched; the retry takes no gradient twice."""

import copy
import itertools

import pytest
import torch

import polargrad

VARIANTS = {
    "nuclear": {},
    "nesterov": {"nesterov": True, "weight_decay": 0.1},
    "heavy-ball": {"momentum_order": "heavy-ball", "scale": "rms"},
    "polar-first": {"momentum_order": "polar-first", "nesterov": True, "scale": "rms"},
    "adaptive": {"scale": "adaptive-nuclear"},
    "group": {"scale": "adaptive-nuclear", "scope": "group"},
    "rows": {"scale": "rms", "normalize_rows": 0.9, "weight_decay": 0.1, "weight_decay_mode": "cautious"},
    "masked": {"capturable": True, "scale": "adaptive-nuclear", "normalize_rows": 0.9, "weight_decay": 0.1},
    "whitened": {"scale": "rms", "whitening": {"name": "two-sided", "every": 2}},
    "float16": {"momentum_dtype": "float16", "scale": "rms"},
}
SHAPES = [(5, 4), (4, 6), (5, 4), (3, 3, 2)]


def made(**options):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    vector = torch.nn.Parameter(torch.randn(3))
    groups = [{"params": parameters, "method": "svd", **options}, {"params": [vector], "rule": "adamw"}]
    return polargrad.PolarGrad(groups, lr=0.1), [*parameters, vector]


def give_gradients(parameters, step):
    for i, p in enumerate(parameters):
        p.grad = torch.cos(torch.arange(p.numel()).view(p.shape) * (1.3 + i) + step).to(p.dtype)


def state_of(optimizer, p):
    state = {key: value.clone() for key, value in optimizer.state.get(p, {}).items()}
    return {"weights": p.detach().clone(), **state}


def same(one, other):
    # A state that the failed step made, zeros, is none.
    keys = one.keys() | other.keys()
    zero = torch.zeros(())
    return all(torch.equal(*torch.broadcast_tensors(one.get(k, zero), other.get(k, zero))) for k in keys)


class Failure(torch.overrides.TorchFunctionMode):
    """Runs out of memory at the n-th call that makes a tensor of some size."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")  # those that write in place end with "_"
        if not name.endswith("_") and (not name.startswith("_") or name.startswith("_foreach")):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("planted")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_wherever_a_step_fails_its_retry_ends_where_one_step_would(variant):
    reference, expected = made(**VARIANTS[variant])
    for step in range(3):
        give_gradients(expected, step)
        reference.step()
    failures = 0
    for at in itertools.count(1, 5):
        optimizer, parameters = made(**VARIANTS[variant])
        for step in range(2):
            give_gradients(parameters, step)
            optimizer.step()
        give_gradients(parameters, 2)
        before = [state_of(optimizer, p) for p in parameters]
        try:
            with Failure(at):
                optimizer.step()
            break
        except torch.OutOfMemoryError:
            failures += 1
        after = [state_of(optimizer, p) for p in parameters]
        optimizer.step()  # with the gradients of the step that failed
        for p, q, old, new in zip(parameters[:-1], expected, before, after, strict=False):
            whole = state_of(reference, q)
            if variant == "group":  # in the retry those that are left share their norms, among themselves
                assert same(new, old) or same(state_of(optimizer, p), new), at
                continue
            assert same(new, old) or same(new, whole), at
            assert same(state_of(optimizer, p), whole), at
    assert failures > 10


@pytest.mark.parametrize("mode", ["plain", "cautious"])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_parameter_of_adamw_steps_whole_or_not_at_all(mode, capturable):
    """Wherever torch's AdamW fails, at its beginning, between its operations, or at its end."""

    class Halt(torch.overrides.TorchFunctionMode):
        def __init__(self, at):
            super().__init__()
            self.left = at

        def __torch_function__(self, func, types, args=(), kwargs=None):
            # Not the last writes of `_foreach_copy_` and of the kernel, which allocate nothing.
            if not func.__name__.startswith("_") or func.__name__ in ("_foreach_mul_", "_foreach_add_"):
                self.left -= 1
                if self.left == 0:
                    raise MemoryError("planted")
            return func(*args, **(kwargs or {}))

    def stepped(at):
        parameters = [torch.nn.Parameter(torch.linspace(-1.0, 2.0, n)) for n in (3, 5)]
        groups = [{"params": parameters, "rule": "adamw", "weight_decay": 0.5, "weight_decay_mode": mode}]
        optimizer = polargrad.PolarGrad(groups, lr=0.1, capturable=capturable)
        give_gradients(parameters, 0)
        optimizer.step()
        give_gradients(parameters, 1)
        before = [state_of(optimizer, p) for p in parameters]
        failed = False
        try:
            with Halt(at):
                optimizer.step()
        except MemoryError:
            failed = True
        after = [state_of(optimizer, p) for p in parameters]
        if failed:
            optimizer.step()
        return failed, before, after, [state_of(optimizer, p) for p in parameters]

    _, _, whole, _ = stepped(10**6)
    for at in itertools.count(1):
        failed, before, after, retried = stepped(at)
        assert all(map(same, retried, whole)), at
        if not failed:
            break
        weights = [a["weights"] for a in after]
        assert all(
            torch.equal(w, b["weights"]) or same(a, n) for w, a, b, n in zip(weights, after, before, whole, strict=True)
        )
    assert at > 10


def test_new_gradients_after_a_failure_are_a_new_step(monkeypatch):
    optimizer, parameters = made()
    give_gradients(parameters, 0)
    fail = _fail_at(monkeypatch, optimizer, 2)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    fail.undo()
    stepped = [p for p in parameters if p in optimizer.state and optimizer.state[p]["momentum_buffer"].any()]
    assert 0 < len(stepped) < len(parameters) - 1
    for change in ("again", "in place", "zeroed"):
        before = [p.detach().clone() for p in stepped]
        if change == "again":
            give_gradients(parameters, 1)
        elif change == "in place":
            for p in parameters:
                p.grad.add_(1.0)
        else:
            optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        assert all(not torch.equal(p, b) for p, b in zip(stepped, before, strict=True))


def _fail_at(monkeypatch, optimizer, call):
    """The call-th use of the polar method raises."""
    patch = pytest.MonkeyPatch()
    calls, factor = itertools.count(1), polargrad.polar_factor

    def failing(*args, **more):
        if next(calls) == call:
            raise torch.OutOfMemoryError("planted")
        return factor(*args, **more)

    for rule in optimizer._rules:
        if hasattr(rule, "lmo"):
            rule.lmo._resolved.clear()
    patch.setattr(polargrad.geometry.spectral, "unwidened_factor", failing)
    return patch


CHANGES = {
    "lr": [float("nan"), float("inf"), -1.0, "fast", None, torch.tensor(float("nan")), torch.ones(2)],
    "momentum": [1.0, float("nan"), "0.9"],
    "scale": ["bogus", {"name": "nuclear", "alpha": 2.0}, 3],
    "method": ["newton-schultz", 5],
    "geometry": ["cubic"],
    "weight_decay": [float("nan"), -0.1],
    "normalize_rows": [1.0],
    "norm_floor": [-1.0, float("nan"), "tiny"],
    "momentum_dtype": ["int8"],
    "step_rule": ["armijo"],
    "split": [[1, 2]],
    "rule": ["sgd"],
}


@pytest.mark.parametrize(("option", "value"), [(k, v) for k, values in CHANGES.items() for v in values], ids=str)
def test_an_option_changed_in_the_middle_of_a_run_is_looked_at_before_anything_is_stepped(option, value):
    optimizer, parameters = made(scale="rms")
    give_gradients(parameters, 0)
    optimizer.step()
    before, good = [state_of(optimizer, p) for p in parameters], optimizer.param_groups[0][option]
    optimizer.param_groups[0][option] = value
    with pytest.raises((ValueError, TypeError), match=r"group 0"):
        optimizer.step()
    assert all(same(state_of(optimizer, p), b) for p, b in zip(parameters, before, strict=True))
    optimizer.param_groups[0][option] = good
    optimizer.step()
    del optimizer.param_groups[0][option]
    with pytest.raises(ValueError, match=rf"group 0 has lost its option '{option}'"):
        optimizer.step()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_damaged_momentum_is_named_and_starts_again(bad, capturable):
    optimizer, parameters = made(capturable=capturable)
    give_gradients(parameters, 0)
    optimizer.step()
    optimizer.state[parameters[3]]["momentum_buffer"][1, 0, 0] = bad
    before = parameters[3].detach().clone()
    with pytest.warns(UserWarning, match=r"parameter 3 .*: the momentum held NaN or infinity"):
        _ = (optimizer.step(), optimizer.skipped)  # with `capturable` it is the second that hears of it
    assert optimizer.skipped == 1
    assert torch.equal(parameters[3][1], before[1])
    assert not torch.equal(parameters[3][0], before[0])
    optimizer.step()
    assert optimizer.skipped == 1
    assert not torch.equal(parameters[3][1], before[1])


def test_a_damaged_momentum_raises_where_that_is_asked_for():
    optimizer, parameters = made(on_nonfinite="raise")
    give_gradients(parameters, 0)
    optimizer.step()
    optimizer.state[parameters[0]]["momentum_buffer"][0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"parameter 0 .* its gradient is finite, but its momentum"):
        optimizer.step()


def test_parameters_that_were_replaced_keep_their_momentum():
    """By position, as frameworks do it; the numbers are those of an optimizer whose parameters stayed."""
    (one, stays), (other, moves) = made(scale="adaptive-nuclear"), made(scale="adaptive-nuclear")
    for step in range(4):
        for parameters in (stays, moves):
            give_gradients(parameters, step)
        one.step()
        other.step()
        if step == 1:
            for group in other.param_groups:
                group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
            moves = [p for group in other.param_groups for p in group["params"]]
    assert all(torch.equal(p, q) for p, q in zip(stays, moves, strict=True))
    assert len(other.state) == len(moves)


def test_parameters_in_another_order_keep_their_own_momentum():
    """And one that is new begins at zero, unless it stands in the place of one that is gone."""
    a, b, c = (torch.nn.Parameter(torch.eye(3)) for _ in range(3))
    optimizer = polargrad.PolarGrad([a, b, c], lr=0.1)
    for i, p in enumerate((a, b, c)):
        p.grad = (i + 1.0) * torch.eye(3)
    optimizer.step()
    held = {p: optimizer.state[p]["momentum_buffer"].clone() for p in (a, b, c)}
    group = optimizer.param_groups[0]

    def momenta(*parameters):
        group["params"] = list(parameters)
        _ = optimizer.executor
        return [optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]

    assert all(map(torch.equal, momenta(c, a, b), (held[c], held[a], held[b])))
    assert all(map(torch.equal, momenta(a, b, c), (held[a], held[b], held[c])))
    d = torch.nn.Parameter(torch.eye(3))
    first, second, new = momenta(a, c, d)
    assert torch.equal(first, held[a])
    assert torch.equal(second, held[c])
    assert new is None
    e = torch.nn.Parameter(torch.eye(3))
    assert torch.equal(momenta(a, e, d)[1], held[c])  # the control: replaced
    assert all(map(torch.equal, momenta(e, a, b), (held[c], held[a], held[b])))


def test_groups_that_were_put_in_place_by_hand_are_followed():
    """In another order, restored as copies, or appended: the numbers are those of groups that stayed."""
    (one, stays), (other, moves) = made(scale="adaptive-nuclear"), made(scale="adaptive-nuclear")
    for step in range(4):
        for optimizer, parameters in ((one, stays), (other, moves)):
            give_gradients(parameters, step)
            optimizer.step()
        if step == 1:
            other.param_groups.reverse()
        other.param_groups = [dict(group) for group in other.param_groups]
    assert all(torch.equal(p, q) for p, q in zip(stays, moves, strict=True))
    extra, gone = torch.nn.Parameter(torch.eye(3)), other.param_groups.pop()["params"]
    other.param_groups.append({"params": [extra], "lr": 0.1, "momentum": 0.0})
    before = [p.detach().clone() for p in gone]
    extra.grad = torch.eye(3)
    other.step()
    assert all(map(torch.equal, gone, before))
    torch.testing.assert_close(extra.detach(), 0.7 * torch.eye(3))  # lr times the nuclear norm


@pytest.mark.parametrize("where", ["closure", "before", "after"])
def test_what_is_raised_around_a_step_leaves_it_undone_or_done(where):
    (one, stays), (other, same) = made(), made()
    give_gradients(stays, 0)
    give_gradients(same, 0)
    before = [p.detach().clone() for p in stays]

    def fails(*arguments):
        raise KeyError(where)

    hook = {"before": one.register_step_pre_hook, "after": one.register_step_post_hook}.get(where)
    handle = hook(fails) if hook else None
    with pytest.raises(KeyError):
        one.step(None if hook else fails)
    if where == "after":
        other.step()
    assert all(map(torch.equal, stays, same if where == "after" else before))
    if handle:
        handle.remove()
    give_gradients(stays, 1)
    give_gradients(same, 1)
    one.step()
    other.step()
    assert all(map(torch.equal, stays, same))


def test_a_model_that_is_cast_is_followed():
    optimizer, parameters = made(scale="adaptive-nuclear", normalize_rows=0.9)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for p in parameters:
            p.data = p.data.to(dtype)
        give_gradients(parameters, 0)
        for p in parameters:
            p.grad = p.grad.to(dtype)
        optimizer.step()
        for p in parameters[:-1]:
            assert optimizer.state[p]["momentum_buffer"].dtype == dtype
            assert optimizer.state[p]["row_rms"].dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert optimizer.state[parameters[-1]]["exp_avg"].dtype == dtype
    for p in parameters:
        p.data, p.grad = p.data.to(torch.float32), None
    parameters[0].data = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"parameter 0 .* has momentum_buffer of shape \(5, 4\), where .* \(2, 2\)"):
        optimizer.step()


@pytest.mark.parametrize("key", ["momentum_buffer", "dual_norm_rms", "row_rms", "row_weight", "exp_avg", "step"])
@pytest.mark.parametrize("damage", ["shape", "kind", "nan"])
def test_every_entry_of_a_state_is_looked_at_before_anything_is_loaded(key, damage):
    optimizer, parameters = made(scale="adaptive-nuclear", normalize_rows=0.9)
    give_gradients(parameters, 0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    state = saved["state"][4 if key in ("exp_avg", "step") else 1]
    state[key] = {"shape": torch.ones(7, 7), "kind": [1.0], "nan": state[key] * torch.nan}[damage]
    optimizer.step()
    before = [state_of(optimizer, p) for p in parameters]
    with pytest.raises(ValueError, match=rf"{key}"):
        optimizer.load_state_dict(saved)
    assert all(same(state_of(optimizer, p), b) for p, b in zip(parameters, before, strict=True))


def test_copies_step_alike():
    optimizer, parameters = made(scale="adaptive-nuclear")
    give_gradients(parameters, 0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    others = [p for group in copied.param_groups for p in group["params"]]
    assert not {id(p) for p in others} & {id(p) for p in parameters}
    for one, own in ((optimizer, parameters), (copied, others)):
        give_gradients(own, 1)
        one.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))
