"""Tall and wide matrices in parts: factors at every condition number, and what travels for them."""

from __future__ import annotations

import torch

import polargrad
from tests.distributed.layouts import Place, arguments_of, parameters_on
from tests.distributed.traffic import counted
from tests.matrices import SPECTRA, with_singular_values


def gallery(dtype):
    """Tall matrices (m, d) by name, uneven for 2 and 4 ranks, at every condition number, with zero rows and columns."""
    m, d = 163, 20
    wide = {name: with_singular_values(m, d, spectrum(d), seed=i) for i, (name, spectrum) in enumerate(SPECTRA.items())}
    few = torch.zeros(m, d, dtype=torch.float64)
    few[[3, 70, 71, 162]] = torch.randn(4, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide["few rows"] = few
    wide["zero"] = torch.zeros_like(few)
    wide["zero columns"] = wide["log-1e3"] * (torch.arange(d) % 3 > 0)
    wide["tiny"], wide["huge"] = 1e-30 * wide["log-1e3"], 1e25 * wide["log-1e3"]
    wide["graded columns"] = wide["equal"] * torch.logspace(0, -11, d, dtype=torch.float64)
    return {name: A.to(dtype) for name, A in wide.items()}


def factors(rank, world, layout, dtype):
    """Whole unitary factors and nuclear norms of the gallery, and of its transpose, as a step shows them."""
    found = {}
    for transposed in (False, True):
        inputs = {name: A.mT.contiguous() if transposed else A for name, A in gallery(dtype).items()}
        # Columns of wide matrices are cut where rows of tall ones are.
        where = {"rows": "columns", "hsdp": "hsdp-columns"}[layout] if transposed else layout
        for scale in ("none", "nuclear"):
            zeros = [torch.zeros_like(A) for A in inputs.values()]
            parameters, places = parameters_on(where, world, zeros)
            group = {"params": parameters, **({"norm_floor": 0.0} if scale == "none" else {})}
            optimizer = polargrad.PolarGrad([group], lr=1.0, momentum=0.0, scale=scale, **arguments_of(layout))
            for p, place, A in zip(parameters, places, inputs.values(), strict=True):
                p.grad = place.put(A)
            with counted() as traffic:
                optimizer.step()
            assert "all_to_all_single" not in {one.name for one in traffic.sent}
            for name, p in zip(inputs, parameters, strict=True):
                step = -p.detach().full_tensor()
                found[name, transposed, scale] = step.mT if transposed else step
    return found


def sent(rank, world, shape, dtype):
    """Elements and bytes that this rank sends in one step of one matrix with cut rows, by collective."""
    place = Place(torch.Size(shape), "rows", world)
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.Parameter(place.put(torch.zeros(shape, dtype=dtype)))
    W.grad = place.put(torch.randn(shape, generator=generator, dtype=dtype))
    optimizer = polargrad.PolarGrad([W], method="svd")
    with counted() as traffic:
        optimizer.step()
    return traffic.sent
