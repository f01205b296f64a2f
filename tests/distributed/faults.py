"""What ranks do when they disagree, see broken gradients, or die: run on the ranks, judged by the tests."""

from __future__ import annotations

import os
import time
import warnings

import torch
import torch.distributed as dist

import polargrad
from tests.distributed.layouts import arguments_of, layouts_of, local, parameters_on

SHAPES = [(6, 4), (6, 4), (40, 3), (3, 4, 2)]


def _made(layout, world, order=(0, 1, 2, 3), seed=0, named=True, **options):
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    parameters, places = parameters_on(layout, world, starts)
    chosen = [(f"p{i}", parameters[i]) if named else parameters[i] for i in order]
    group = {"params": chosen, "rule": options.pop("rule", "polar")}
    options = {"lr": 0.1, "method": "svd", **options}
    optimizer = polargrad.PolarGrad([group], **arguments_of(layout), **options)
    for p, place, start in zip(parameters, places, starts, strict=True):
        p.grad = place.put(torch.cos(start))
    return optimizer, parameters


def _raised(optimizer, parameters):
    """What the step says, whether it left the weights alone, and how long it took."""
    before = [local(p.detach()).clone() for p in parameters]
    start = time.monotonic()
    try:
        optimizer.step()
    except RuntimeError as error:
        same = all(torch.equal(local(p.detach()), b) for p, b in zip(parameters, before, strict=True))
        return str(error), same, time.monotonic() - start
    return "nothing", False, time.monotonic() - start


def disagreements(rank, world):
    """Every way to disagree, on a copied and on a cut layout; afterwards the same ranks step together."""
    last = rank == world - 1
    found = {}
    for layout in ("ddp", "rows"):
        optimizer, parameters = _made(layout, world)
        if last:
            parameters[1].grad = None
        found[layout, "gradients"] = _raised(optimizer, parameters)
        if last:
            parameters[1].grad = torch.zeros_like(parameters[1])
        optimizer.step()  # the ranks are still there for each other
        if last:
            optimizer.param_groups[0]["lr"] = 0.2
        found[layout, "options later"] = _raised(optimizer, parameters)
        found[layout, "options"] = _raised(*_made(layout, world, weight_decay=0.1 * last))
        found[layout, "names"] = _raised(*_made(layout, world, order=(1, 0, 2, 3) if last else (0, 1, 2, 3)))
        found[layout, "shapes"] = _raised(*_made(layout, world, (0, 2, 1, 3) if last else (0, 1, 2, 3), named=False))
        found[layout, "count"] = _raised(*_made(layout, world, order=(0, 1, 2) if last else (0, 1, 2, 3)))
    found["ddp", "values"] = _raised(*_made("ddp", world, seed=int(last)))
    order = (1, 0, 2, 3) if last else (0, 1, 2, 3)
    found["ddp", "order of nameless"] = _raised(*_made("ddp", world, order=order, named=False))
    return found


def refusals(rank, world):
    """What is refused when the optimizer, or its recorder, is made."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("here",))
    other = init_device_mesh("cpu", (1, world), mesh_dim_names=("one", "two"))
    cut = torch.nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)]))
    few = torch.nn.Parameter(DTensor.from_local(torch.ones(2, 3), other["one"], [Shard(0)]))
    partial = torch.nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Partial()]))
    plain = torch.nn.Parameter(torch.ones(3, 3))
    lies = torch.nn.Parameter(
        DTensor.from_local(torch.ones(2 + 2 * rank, 3), mesh, [Shard(0)], run_check=False, shape=(6, 3), stride=(3, 1))
    )
    one = dist.new_group([rank], use_local_synchronization=True)
    tries = {
        "partial": lambda: polargrad.PolarGrad([("odd", partial)]),
        "plain": lambda: polargrad.PolarGrad([("cut", cut), ("odd", plain)]),
        "other mesh": lambda: polargrad.PolarGrad([("cut", cut), ("odd", few)]),
        "lies": lambda: polargrad.PolarGrad([("odd", lies)]),
        "group": lambda: polargrad.PolarGrad([("cut", cut)], process_group=one),
        "recorder": lambda: polargrad.diagnostics.Recorder(polargrad.PolarGrad([("cut", cut)])),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
            said[name] = "nothing"
        except ValueError as error:
            said[name] = str(error)
    optimizer = polargrad.PolarGrad([("cut", cut)])
    cut.grad = DTensor.from_local(torch.ones(2 * world, 3), mesh, [Partial()])
    optimizer.step()  # a gradient that waits for its sum is summed
    optimizer.add_param_group({"params": [("vector", torch.nn.Parameter(torch.ones(3)))], "rule": "adamw"})
    try:
        optimizer.add_param_group({"params": [("odd", plain)]})
    except ValueError as error:
        said["added"] = str(error)
    said["groups"] = str(len(optimizer.param_groups))
    return said


def judged(rank, world):
    """Both, on ranks that are started once."""
    return disagreements(rank, world), refusals(rank, world)


def broken_gradients(rank, world):
    """For each layout: which weights stay when one rank's part holds NaN, against the single process."""
    found = {}
    for layout in layouts_of(world):
        for capturable in (False, True):
            for rule in ("polar", "adamw"):
                options = {"rule": rule, "capturable": capturable}
                (many, here), (single, alone) = _made(layout, world, **options), _alone(**options)
                for parameters in (here, alone):
                    _spoil(parameters)
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    for _ in range(2):
                        many.step()
                        single.step()
                    skips = many.skipped, single.skipped
                errors = [_error(p, q, layout, world) for p, q in zip(here, alone, strict=True)]
                found[layout, capturable, rule] = max(errors), skips, len(heard)
        optimizer, parameters = _made(layout, world, on_nonfinite="raise")
        _spoil(parameters)
        found[layout, "raise"] = _raised(optimizer, parameters)
    return found


def _alone(**options):
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    named = [(f"p{i}", p) for i, p in enumerate(parameters)]
    for p in parameters:
        p.grad = torch.cos(p.detach())
    group = {"params": named, "rule": options.pop("rule", "polar")}
    return polargrad.PolarGrad([group], lr=0.1, method="svd", **options), parameters


def _spoil(parameters):
    """NaN in the first entry of the second matrix and of the first expert, wherever that is."""
    for i in (1, 3):
        whole = parameters[i].grad
        part = local(whole)
        if not hasattr(whole, "device_mesh"):
            part[(0,) * part.ndim] = float("nan")
            continue
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        _, start = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, whole.placements)
        if part.numel() and not any(start):
            part[(0,) * part.ndim] = float("nan")


def _error(p, q, layout, world):
    from tests.distributed.layouts import Place

    difference = (local(p.detach()) - Place(q.shape, layout, world).part(q.detach())).abs()
    return float(difference.max()) if difference.numel() else 0.0


def killed(rank, world, layout):
    """The last rank dies between two steps; how the others hear of it."""
    optimizer, parameters = _made(layout, world)
    optimizer.step()
    dist.barrier()
    if rank == world - 1:
        os._exit(1)
    return _raised(optimizer, parameters)
