"""A step asks the device for nothing, compiles into one graph, and is the same step."""

import copy
import itertools

import pytest
import torch
import torch._dynamo.utils

import polargrad

# Dynamo traces through cached pure functions of the engine, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")

VARIANTS = [
    {},
    {"momentum_order": "polar-first", "nesterov": True, "scale": "rms", "weight_decay": 0.1},
    {"momentum_order": "heavy-ball", "maximize": True, "weight_decay": 0.1, "weight_decay_mode": "cautious"},
    {"scale": "adaptive-nuclear", "scope": "group"},
    {"scale": "mean-singular", "geometry": "rows"},
    {"step_rule": "smoothness", "smoothness": 2.0},
]
METHODS = ["newton-schulz", "polar-express", "qdwh", "svd"]
SHAPES = [(4, 3), (4, 3), (5, 3, 2), (6, 3, 2, 2)]


def _parameters(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [torch.nn.Parameter(s.to(device, dtype)) for s in start]


def _run(step, parameters, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        step()


@pytest.mark.parametrize("momentum_dtype", [None, "float32"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_no_number_is_read_from_the_device(method, options, momentum_dtype):
    # Tensors on "meta" have no values: whatever reads one raises.
    polar = _parameters("meta", torch.bfloat16)
    vectors = [torch.nn.Parameter(torch.empty(4, device="meta"))]
    groups = [
        {"params": polar, **options, "momentum_dtype": momentum_dtype},
        {"params": vectors, "rule": "adamw", "lr": 0.1},
    ]
    optimizer = polargrad.PolarGrad(groups, lr=torch.tensor(0.1), method=method)
    for _ in range(2):
        for p in polar + vectors:
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert all(p.device.type == "meta" for p in polar)
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = optimizer.skipped


def test_reading_on_meta_raises():
    polar = _parameters("meta")
    optimizer = polargrad.PolarGrad(polar, on_nonfinite="raise")
    for p in polar:
        p.grad = torch.empty_like(p)
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.step()


@pytest.mark.parametrize(
    ("method", "options"),
    [("svd", options) for options in VARIANTS] + [pytest.param("newton-schulz", {}, marks=pytest.mark.slow)],
    ids=str,
)
def test_compiles_into_one_graph(method, options):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"method": method, "capturable": True, "lr": torch.tensor(0.1), **options}
    eager, compiled = _parameters(), _parameters()
    _run(polargrad.PolarGrad(eager, **options).step, eager)
    optimizer = polargrad.PolarGrad(compiled, **options)
    _run(torch.compile(optimizer.step, backend="eager", fullgraph=True), compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the first step makes the state
    for p, q in zip(eager, compiled, strict=True):
        assert torch.equal(p, q)


def test_compiled_learning_rate_is_not_baked_in():
    torch._dynamo.reset()
    lr = torch.tensor(0.1)
    parameters = _parameters()
    optimizer = polargrad.PolarGrad(parameters, lr=lr, method="svd", capturable=True)
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    _run(step, parameters)
    before = copy.deepcopy(parameters)
    lr.zero_()
    _run(step, parameters, steps=1)
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor():
    torch._dynamo.reset()
    options = {"method": "newton-schulz", "capturable": True, "lr": torch.tensor(0.1), "scale": "rms"}
    eager, compiled = _parameters(), _parameters()
    _run(polargrad.PolarGrad(eager, **options).step, eager)
    _run(torch.compile(polargrad.PolarGrad(compiled, **options).step), compiled)
    for p, q in zip(eager, compiled, strict=True):
        # bfloat16 products are summed in another order: 5 polynomial steps amplify by at most about 4 each time.
        torch.testing.assert_close(p, q, rtol=0, atol=4 * 0.1 * 4 * 2**-8)


@pytest.mark.gpu
@pytest.mark.parametrize(("options", "method"), list(itertools.product(VARIANTS, METHODS[:2])))
def test_cuda_graph(options, method):
    options = {"method": method, "capturable": True, **options}
    eager, captured = _parameters("cuda"), _parameters("cuda")
    _run(polargrad.PolarGrad(eager, **options).step, eager, steps=6)
    optimizer = polargrad.PolarGrad(captured, **options)
    generator = torch.Generator().manual_seed(1)
    for p in captured:
        p.grad = torch.zeros_like(p)
    graph = torch.cuda.CUDAGraph()

    def gradients():
        for p in captured:
            p.grad.copy_(torch.randn(p.shape, generator=generator))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        gradients()
        graph.replay()
    for p, q in zip(eager, captured, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.gpu
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_no_synchronization_on_cuda(options):
    parameters = _parameters("cuda")
    optimizer = polargrad.PolarGrad(parameters, method="newton-schulz", **options)
    _run(optimizer.step, parameters, steps=1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
