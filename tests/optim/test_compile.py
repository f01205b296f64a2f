"""A step asks the device for nothing, compiles into one graph, and is the same step."""

import copy

import pytest
import torch
import torch._dynamo.utils

import polargrad

VARIANTS = [
    {},
    {"momentum_order": "polar-first", "nesterov": True, "scale": "rms", "weight_decay": 0.1},
    {"momentum_order": "heavy-ball", "maximize": True, "weight_decay": 0.1, "weight_decay_mode": "cautious"},
    {"scale": "adaptive-nuclear", "scope": "group"},
    {"scale": "mean-singular", "geometry": "rows"},
    {"step_rule": {"name": "smoothness", "smoothness": 2.0}, "momentum": 0.0},
    {"normalize_rows": 0.9, "scale": "rms"},
    {"whitening": {"name": "two-sided", "every": 1}, "scale": "rms"},
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
    [("newton-schulz", options) for options in VARIANTS]
    + [(method, {}) for method in ("svd", "gram-newton-schulz", "polar-express")]
    + [pytest.param("qdwh", {}, marks=pytest.mark.slow)],
    ids=str,
)
def test_compiles_into_one_graph(method, options):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"capturable": True, "lr": torch.tensor(0.1), **options}
    if "geometry" not in options:
        options["method"] = method
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
