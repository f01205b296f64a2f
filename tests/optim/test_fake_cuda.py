"""Steps on CUDA tensors without a GPU: operations asked of the device, numbers read from it, and devices mixed up."""

import pytest
import torch

import polargrad
from polargrad.geometry import Spectral
from polargrad.linalg import available_methods
from polargrad.optim.update import GeometryLMO
from tests.fake_cuda import Operations, fake_cuda

NS5 = {"method": "newton-schulz", "max_steps": 5}
VARIANTS = {
    "muon": {"nesterov": True, "scale": "spectral", "weight_decay": 0.1, **NS5},
    "polar-first": {"momentum_order": "polar-first", "nesterov": True, "scale": "rms", "weight_decay": 0.1, **NS5},
    "cautious": {"momentum_order": "heavy-ball", "weight_decay": 0.1, "weight_decay_mode": "cautious", **NS5},
    "group": {"scale": "adaptive-nuclear", "scope": "group", **NS5},
    "right-polar": {"geometry": "right-polar"},
    "rows": {"geometry": "rows"},
    "entrywise": {"geometry": "entrywise"},
    "frobenius": {"geometry": "frobenius"},
    "normalize-rows": {"normalize_rows": 0.9, "scale": "rms", **NS5},
    "bfloat16 momentum": {"momentum_dtype": "bfloat16", "scale": "spectral", **NS5},
    "split": {"split": [32, 32], "heads": [2, 1], **NS5},
    "smoothness": {"step_rule": {"name": "smoothness", "smoothness": 3.0}, "momentum": 0.0},
    "no momentum": {"momentum": 0.0, **NS5},
    "polyak": {"step_rule": {"name": "polyak", "minimum": 0.0}, "momentum": 0.0},
    "capped polyak": {"step_rule": {"name": "capped-polyak", "minimum": 0.0}, "momentum": 0.0, "scope": "group"},
}
# The hidden matrices and the vectors of GPT-2 Small; its table of tokens is tied to the head.
MATRICES = [(12, (2304, 768)), (12, (768, 768)), (12, (3072, 768)), (12, (768, 3072))]
VECTORS = [(50, (768,)), (12, (2304,)), (12, (3072,)), (24, (768,))]


def parameters(shapes, dtype=torch.float32):
    made = [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for k, shape in shapes for _ in range(k)]
    for p in made:
        p.grad = torch.empty_like(p)
    return made


def step(groups, **options):
    """What a step asks of the device, once the state is there; its loss is on the device too."""
    optimizer, loss = polargrad.PolarGrad(groups, **options), torch.empty((), device="cuda")
    optimizer.step(lambda: loss)
    with Operations() as seen:
        optimizer.step(lambda: loss)
    return seen


@pytest.mark.parametrize("shape", [(64, 32), (64, 5, 6)], ids=str)
@pytest.mark.parametrize("method", available_methods())
def test_no_method_but_the_svd_reads_from_the_device(method, shape):
    with fake_cuda():
        assert bool(step(parameters([(3, shape)]), method=method).host_reads) == (method == "svd")


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_option_reads_from_the_device(variant, dtype, capturable):
    with fake_cuda():
        weights = parameters([(2, (64, 32)), (1, (64, 64)), (1, (64, 16))], dtype)
        if variant == "right-polar":
            weights = weights[:2]
        groups = [{"params": weights, **VARIANTS[variant]}, {"params": parameters([(3, (7,))]), "rule": "adamw"}]
        assert not step(groups, capturable=capturable).host_reads


def test_whitening_waits_for_its_eigenvalues_and_says_so():
    with fake_cuda():
        options = {"whitening": {"name": "two-sided", "every": 1}, **NS5}
        assert step(parameters([(2, (64, 32))]), **options).host_reads
        with pytest.raises(
            ValueError, match="on cuda:0, where the host waits for the eigendecompositions of whitening"
        ):
            polargrad.PolarGrad(parameters([(2, (64, 32))]), capturable=True, **options)


def test_cautious_decay_of_vectors_reads_nothing():
    with fake_cuda():
        group = {
            "params": parameters([(3, (7,))]),
            "rule": "adamw",
            "weight_decay": 0.1,
            "weight_decay_mode": "cautious",
        }
        assert not step([group]).host_reads


@pytest.mark.parametrize(("shape", "most"), [((2, 4096, 512), 18), ((2, 512, 4096), 22)], ids=str)
def test_a_direction_computed_in_half_precision_is_not_widened(shape, most):
    """Bytes per entry, products left out: largest 4, scaling 6, norm 2, division 4, sum 2, transposing 4."""
    lmo = GeometryLMO(Spectral("newton-schulz"), dual_norms=False)
    with fake_cuda():
        M = torch.empty(shape, device="cuda")
        lmo(M)
        with Operations() as seen:
            found = lmo(M)
    assert found.direction.dtype == torch.bfloat16
    assert seen.moved / M.numel() <= most + 0.01, (seen.moved / M.numel(), seen.counts)


def test_operations_do_not_grow_with_the_number_of_matrices():
    with fake_cuda():
        few, many = (step(parameters([(k, (64, 32))]), **VARIANTS["muon"]).total for k in (2, 40))
    assert few == many


def test_the_vectors_of_a_model_take_one_fused_call():
    with fake_cuda():
        seen = step([{"params": parameters(VECTORS), "rule": "adamw"}])
    assert seen.total <= 60, seen.counts
    assert seen.counts["_fused_adamw_"] == 1


def test_a_step_of_a_model_is_a_few_hundred_operations():
    with fake_cuda():
        hidden, vectors = parameters(MATRICES), parameters([(1, (50304, 768)), (1, (1024, 768)), *VECTORS])
        seen = step([{"params": hidden, **VARIANTS["muon"]}, {"params": vectors, "rule": "adamw"}])
    assert not seen.host_reads
    assert seen.total <= 300, seen.counts


def test_a_step_of_the_default_recipe_reads_nothing_and_its_tables_cost_a_few_more_operations():
    with fake_cuda():
        groups = [{"params": parameters(MATRICES), **VARIANTS["muon"]}]
        table = {"method": "auto", "accuracy": 0.15, "nesterov": True, "normalize_rows": 0.95}
        groups += [{"params": parameters([(1, (50304, 768))]), "momentum": 0.7, "scale": "spectral", **table}]
        groups += [{"params": parameters([(1, (50304, 768))]), "momentum": 0.5, "scale": "rms", **table}]
        groups += [{"params": parameters([(1, (1024, 768)), *VECTORS]), "rule": "adamw"}]
        seen = step(groups)
    assert not seen.host_reads
    assert seen.total <= 500, seen.counts
