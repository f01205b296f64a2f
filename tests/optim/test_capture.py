"""A capturable step is a fixed sequence of operations on fixed memory, which is what a CUDA graph replays.

Without a GPU it is walked in two ways: on "meta", whose tensors have no values, under a mode that refuses what a stream
refuses while it is captured; and on a CPU, where the operations of one step are recorded and repeated without a line of
Python between them.
"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polargrad

VARIANTS = [
    {},
    {"momentum_order": "polar-first", "nesterov": True, "scale": "rms", "weight_decay": 0.1},
    {"momentum_order": "heavy-ball", "maximize": True, "weight_decay": 0.1, "weight_decay_mode": "cautious"},
    {"scale": "adaptive-nuclear", "scope": "group"},
    {"scale": "mean-singular", "geometry": "rows"},
    {"step_rule": {"name": "smoothness", "smoothness": 2.0}, "momentum": 0.0},
    {"momentum_dtype": "bfloat16", "scale": "spectral", "workspace": 1},
    {"normalize_rows": 0.9, "scale": "rms"},
]
# A fixed number of steps, no value looked at: what the guide names for graphs.
METHODS = [
    ("newton-schulz", 5),
    ("gram-newton-schulz", None),
    ("polar-express", None),
    ("precond-newton-schulz", None),
    ("qdwh", 2),
]
SHAPES = [(4, 3), (4, 3), (3, 7), (5, 3, 2), (6, 3, 2, 2)]

# They read a value, have a shape that depends on one, or wait for the device to say whether a factorization failed.
REFUSED = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "_linalg_check_errors", "linalg_svd", "_linalg_svd", "_linalg_eigh",
}  # fmt: skip
COPIES = {"_to_copy", "copy_", "_foreach_copy_"}


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Capture(TorchDispatchMode):
    """Refuses what cannot be captured, and keeps the operations to repeat them on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in REFUSED:
            raise RuntimeError(f"{name} waits for the device")
        if name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1])):
            raise RuntimeError(f"{name} with a mask waits for the device")
        out = func(*args, **kwargs)
        devices = {t.device.type for t in _tensors((args, kwargs, out)) if t.ndim or name in COPIES}
        if len(devices) > 1:
            raise RuntimeError(f"{name} goes between {' and '.join(sorted(devices))}")
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            if not func.is_view:
                again = func(*args, **kwargs)
                if not func._schema.is_mutable:
                    for old, new in zip(_tensors(out), _tensors(again), strict=True):
                        old.copy_(new)


def _model(device="cpu", lr=0.1, **options):
    """A polar and an AdamW group, and their parameters."""
    generator = torch.Generator().manual_seed(0)
    polar, vectors = ([torch.nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in shapes]
                      for shapes in (SHAPES, [(4,), (6,)]))  # fmt: skip
    if "geometry" in options:
        options = {key: value for key, value in options.items() if key not in ("method", "max_steps")}
    groups = [{"params": polar, **options}, {"params": vectors, "rule": "adamw", "weight_decay": 0.1}]
    for p in polar + vectors:
        p.grad = torch.zeros_like(p)
    return polar + vectors, polargrad.PolarGrad(groups, lr=lr, capturable=True)


def _fill(parameters, generator, spoil=False):
    for p in parameters:
        p.grad.copy_(torch.randn(p.shape, generator=generator))
    if spoil:
        parameters[1].grad[0, 0] = torch.nan


every_variant = pytest.mark.parametrize(
    ("options", "method"), list(itertools.product(VARIANTS, METHODS)), ids=lambda value: str(value)
)


@every_variant
def test_a_step_can_be_captured(options, method):
    _, optimizer = _model("meta", method=method[0], max_steps=method[1], **options)
    # torch's fused AdamW has no form for "meta" that takes a tensor.
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    optimizer.step()
    with Capture() as capture:
        optimizer.step()
    assert capture.calls


@every_variant
def test_a_replayed_step_is_the_step(options, method, monkeypatch):
    # On a CPU the engine looks at values, since that is free there; not so in a compiled step, nor on another device.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (eager, a), (captured, b) = (
        _model(lr=torch.tensor(0.1), method=method[0], max_steps=method[1], **options) for _ in range(2)
    )
    capture, generator = Capture(), torch.Generator().manual_seed(1)
    for t in range(6):
        _fill(eager, generator, spoil=t == 4)
        for p, q in zip(captured, eager, strict=True):
            p.grad.copy_(q.grad)
        for optimizer in (a, b):
            for group in optimizer.param_groups:
                group["lr"].fill_(0.1 / (t + 1))
        a.step()
        if t < 2:
            b.step()
            memory = _memory(captured, b)
        elif t == 2:
            with capture:
                b.step()
        else:
            capture.replay()
        assert all(torch.equal(p, q) for p, q in zip(captured, eager, strict=True)), t
    assert _memory(captured, b) == memory
    with pytest.warns(UserWarning, match="skipped updates of parameter 1"):
        assert (a.skipped, b.skipped) == (1, 1)


def _memory(parameters, optimizer):
    tensors = _tensors([*parameters, *(dict(optimizer.state[p]) for p in parameters)])
    return [t.data_ptr() for t in tensors]


def _refuses(step):
    with pytest.raises((RuntimeError, NotImplementedError)), Capture():
        step()


def test_the_mode_refuses_what_a_graph_would():
    W, host = torch.ones(3, 3, device="meta"), torch.ones(3, 3)
    for read in (
        lambda: host.sum().item(),
        lambda: bool((host > 0).all()),
        lambda: host[host > 0],
        lambda: host.nonzero(),
        lambda: torch.linalg.cholesky(host),
        lambda: torch.linalg.svd(host),
        lambda: W.copy_(host),
        lambda: host.to("meta"),
        lambda: torch.tensor(0.1).to("meta"),
    ):
        _refuses(read)
    for options in ({"method": "svd"}, {"method": "newton-schulz", "lr": torch.tensor(0.1)}):
        _, optimizer = _model("meta", **options)
        _refuses(optimizer.step)
    _, optimizer = _model(method="newton-schulz")
    optimizer.param_groups[0]["capturable"] = False
    _refuses(optimizer.step)


def test_a_replay_does_not_follow_a_number_of_the_host(monkeypatch):
    """The recording is no second run of the Python code: a learning rate that is no tensor stays what it was."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    W = torch.nn.Parameter(torch.ones(3, 3))
    W.grad = torch.eye(3)
    optimizer = polargrad.PolarGrad([W], lr=0.1, method="newton-schulz", capturable=True)
    optimizer.step()
    with Capture() as capture:
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    before = W.detach().clone()
    capture.replay()
    assert not torch.equal(W, before)


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestOnCuda:
    pytestmark = gpu

    @every_variant
    def test_a_graph_replays_the_step(self, options, method):
        (eager, a), (captured, b) = (
            _model("cuda", lr=torch.tensor(0.1, device="cuda"), method=method[0], max_steps=method[1], **options)
            for _ in range(2)
        )
        generator = torch.Generator().manual_seed(1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                _fill(captured, generator)
                b.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            b.step()
        generator.manual_seed(1)
        for _ in range(3):
            _fill(eager, generator)
            a.step()
        for t in range(3):
            _fill(eager, generator, spoil=t == 1)
            a.param_groups[0]["lr"].fill_(0.1 / (t + 1))
            b.param_groups[0]["lr"].fill_(0.1 / (t + 1))
            for p, q in zip(captured, eager, strict=True):
                p.grad.copy_(q.grad)
            a.step()
            graph.replay()
            for p, q in zip(captured, eager, strict=True):
                torch.testing.assert_close(p, q)
        with pytest.warns(UserWarning, match="skipped updates of parameter 1"):
            assert (a.skipped, b.skipped) == (1, 1)

    @every_variant
    def test_nothing_waits_for_the_device(self, options, method):
        parameters, optimizer = _model("cuda", method=method[0], max_steps=method[1], **options)
        _fill(parameters, torch.Generator().manual_seed(1))
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
