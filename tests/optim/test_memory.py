"""A step holds no more than `workspace` on top of weights, gradients and state."""

import itertools

import pytest
import torch

import polargrad
from polargrad.lab.studies.peak_memory import peak_bytes

ORDERS = ["momentum-first", "polar-first", "heavy-ball"]
SHAPES = [*[(24, 16)] * 40, *[(16, 24)] * 40, *[(32, 32)] * 20, *[(4, 12, 12)] * 20]
# What these matrices hold together, in float32.
ALL = 4 * sum(torch.Size(shape).numel() for shape in SHAPES)


def held(shapes, dtype=torch.float32, **options):
    """The peak of the second step, beyond what was there before it."""
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = polargrad.PolarGrad(parameters, lr=0.1, **options)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return peak_bytes(optimizer.step)


@pytest.mark.parametrize("method", ["newton-schulz", "gram-newton-schulz", "auto", "qdwh", "svd"])
@pytest.mark.parametrize(("order", "capturable"), list(itertools.product(ORDERS, [False, True])))
def test_a_step_stays_within_its_workspace(order, capturable, method):
    options = {"momentum_order": order, "nesterov": True, "capturable": capturable, "method": method}
    variants = [
        {},
        {"weight_decay": 0.1, "weight_decay_mode": "cautious", "scale": "adaptive-nuclear"},
        {"step_rule": {"name": "smoothness", "smoothness": 1.0}, "momentum": 0.0, "nesterov": False},
        {"normalize_rows": 0.9, "scale": "rms"},
    ]
    for more in variants:
        assert held(SHAPES, workspace=ALL, **{**options, **more}) <= ALL


@pytest.mark.parametrize("geometry", ["rows", "columns", "entrywise", "frobenius", "right-polar"])
def test_so_it_does_in_other_geometries(geometry):
    shapes = [shape for shape in SHAPES if shape[-2] >= shape[-1]]
    assert held(shapes, workspace=ALL, geometry=geometry, capturable=True, nesterov=True) <= ALL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("momentum_dtype", [None, "float32"])
def test_so_it_does_in_other_dtypes(dtype, momentum_dtype):
    for order, method in itertools.product(ORDERS, ["newton-schulz", "auto"]):
        options = {"momentum_order": order, "nesterov": True, "capturable": True, "method": method}
        assert held(SHAPES, dtype, workspace=ALL, momentum_dtype=momentum_dtype, **options) <= ALL


@pytest.mark.parametrize("whitening", [{"name": "two-sided", "every": 1}, {"name": "one-sided", "every": 3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_so_it_does_with_covariances(whitening, dtype):
    """Each parameter's new covariances and roots are forgotten when it has stepped."""
    options = {"whitening": whitening, "scale": "rms", "nesterov": True, "method": "newton-schulz"}
    for shape in ((8, 64), (32, 32), (64, 8)):
        for workspace in (held([shape], dtype, **options) * 2, held([shape] * 8, dtype, **options)):
            assert held([shape] * 24, dtype, workspace=workspace, **options) <= workspace


@pytest.mark.parametrize("chosen", [{"method": "newton-schulz"}, {"method": "auto"}, {"geometry": "rows"}], ids=str)
def test_so_it_does_where_weights_are_wider_than_their_momentum(chosen):
    more = {"weight_decay": 0.1, "weight_decay_mode": "cautious", "scale": "adaptive-nuclear", "nesterov": True}
    for dtype, momentum in ((torch.float64, "float32"), (torch.float32, "bfloat16")):
        options = {"momentum_dtype": momentum, "capturable": True, **chosen, **more}
        for workspace in (24 * 384 * 6, 24 * 384 * 13):
            assert held([(24, 16)] * 40, dtype, workspace=workspace, **options) <= workspace


@pytest.mark.parametrize("shape", [(48, 1), (4, 4), (1, 7)], ids=str)
def test_so_it_does_where_numbers_of_rows_and_matrices_weigh_as_much_as_entries(shape):
    options = {"normalize_rows": 0.9, "scale": "rms", "nesterov": True, "method": "newton-schulz", "capturable": True}
    entries = shape[0] * shape[1]
    for workspace in (24 * entries * 12, 24 * entries * 31):
        assert held([shape] * 64, workspace=workspace, **options) <= workspace


def test_without_a_bound_it_holds_more():
    for method in ("newton-schulz", "auto"):
        assert held(SHAPES * 4, nesterov=True, method=method, workspace=2**40) > ALL


def test_matrices_of_other_shapes_add_nothing():
    """The next bucket is not drawn before the last one is forgotten."""
    one = held([(48, 64)] * 8, nesterov=True, method="newton-schulz")
    many = held([(48, 64 + i) for i in range(9) for _ in range(8)], nesterov=True, method="newton-schulz")
    assert many <= one * 72 / 64 + 4096


def test_experts_of_one_parameter_go_through_the_method_in_pieces():
    """Of a whole parameter there are its source, its direction and little else."""
    size = 4 * 64 * 24 * 24
    everything = held([(64, 24, 24)], method="auto", nesterov=True)
    pieces = held([(64, 24, 24)], method="auto", nesterov=True, workspace=size)
    assert pieces < 4 * size < everything


def test_a_group_wide_scale_holds_the_directions_of_the_group():
    size = 4 * 24 * 16
    alone, shared = (held([(24, 16)] * 100, workspace=10 * size, scope=scope) for scope in ("matrix", "group"))
    assert alone <= 10 * size
    assert 100 * size < shared < 130 * size
