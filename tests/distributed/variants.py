"""Variants of the optimizer by name, each a parameter group with shapes of its own, stepped together."""

from __future__ import annotations

import itertools
import warnings

import torch

import polargrad
import tests.geometry.outside  # noqa: F401 - registers "rank-one"
from tests.distributed.layouts import arguments_of, layouts_of, local, parameters_on

# Uneven for 2 and for 4 ranks; more ranks than rows; very tall and very wide; experts; a convolution.
SHAPES = [(9, 5), (5, 9), (2, 3), (33, 3), (3, 33), (5, 4, 3), (6, 2, 2, 2), (9, 5), (9, 5)]
TALL, WIDE = [(9, 5), (33, 3), (3, 2)], [(5, 9), (3, 33), (2, 3)]
ORDERS = ("momentum-first", "polar-first", "heavy-ball")
SCALES = ("nuclear", "mean-singular", "none", "spectral", "rms", "adaptive-nuclear")
GEOMETRIES = ("rows", "columns", "entrywise", "frobenius")

VARIANTS: dict[str, tuple[list[tuple[int, ...]], dict[str, object]]] = {
    **{f"{order} {scale}": (SHAPES, {"momentum_order": order, "scale": scale}) for order, scale in
       itertools.product(ORDERS, SCALES)},
    **{f"{order} nesterov": (SHAPES, {"momentum_order": order, "nesterov": True}) for order in ORDERS},
    **{f"group {scale}": (SHAPES, {"scope": "group", "scale": scale, "lr": 1e-3})
       for scale in ("nuclear", "mean-singular", "adaptive-nuclear")},
    **{f"{geometry} {order}": (SHAPES, {"geometry": geometry, "momentum_order": order, "lr": 1e-3})
       for geometry, order in itertools.product(GEOMETRIES, ORDERS)},
    "right-polar": (TALL, {"geometry": "right-polar", "scale": {"name": "nuclear", "alpha": 0.5}}),
    "left-polar": (WIDE, {"geometry": "left-polar", "scale": {"name": "nuclear", "alpha": 0.5}}),
    "rank-one": (SHAPES, {"geometry": "rank-one"}),
    "decay": (SHAPES, {"weight_decay": 0.3, "scale": "rms"}),
    "cautious": (SHAPES, {"weight_decay": 0.3, "weight_decay_mode": "cautious"}),
    "maximize": (SHAPES, {"maximize": True, "scale": "none"}),
    "smoothness": (SHAPES, {"step_rule": {"name": "smoothness", "smoothness": 30.0}, "lr": 1.0, "momentum": 0.0}),
    "smoothness entrywise": (SHAPES, {"step_rule": {"name": "smoothness", "smoothness": 30.0}, "lr": 1.0,
                                      "momentum": 0.0, "geometry": "entrywise", "scope": "group"}),
    "polyak": (SHAPES, {"step_rule": {"name": "polyak", "minimum": -1.0}, "lr": 0.1, "momentum": 0.0}),
    "capturable": (SHAPES, {"capturable": True, "weight_decay": 0.1}),
    "small workspace": (SHAPES, {"workspace": 400}),
    "qdwh": (SHAPES, {"method": "qdwh"}),
    "newton-schulz": (SHAPES, {"method": {"name": "newton-schulz", "dtype": None}, "scale": "spectral",
                               "nesterov": True}),
    "uneven": ([(2051, 192)], {"method": "auto"}),
    "heads": ([(12, 5), (24, 3)], {"heads": 4}),
    "split": ([(12, 5), (12, 60)], {"split": [6, 4, 2], "heads": [3, 2, 1], "scale": "adaptive-nuclear"}),
    "transposed": ([(5, 12), (40, 3), (4, 3, 6)], {"layout": "transposed", "geometry": "rows"}),
    "transposed experts": ([(5, 4, 6)], {"layout": "transposed", "split": [4, 2], "scale": "adaptive-nuclear"}),
    "stacks": ([(12, 5), (24, 3, 2, 2)], {"layout": "auto", "stack": 3, "scale": "spectral"}),
    "stacks of (in, out)": ([(12, 5), (24, 7)], {"layout": "transposed", "stack": 3, "scale": "adaptive-nuclear"}),
    "interleaved": ([(12, 5), (12, 60)], {"split": [6, 4, 2], "interleave": 2, "normalize_rows": 0.9}),
    "normalized rows": (SHAPES, {"normalize_rows": 0.9, "scale": "rms", "weight_decay": 0.1}),
    "normalized rows capturable": (SHAPES, {"normalize_rows": 0.9, "scale": "rms", "capturable": True}),
    "normalized rows polar-first": (SHAPES, {"normalize_rows": 0.9, "momentum_order": "polar-first"}),
    "normalized rows sums": (SHAPES, {"normalize_rows": 0.9, "scale": "rms", "geometry": "columns"}),
    "normalized rows split": ([(12, 5), (12, 60)], {"normalize_rows": 0.9, "scale": "rms", "split": [6, 4, 2],
                                                    "heads": [3, 2, 1]}),
    "normalized rows transposed": ([(5, 12), (40, 3), (4, 3, 6)], {"normalize_rows": 0.9, "scale": "rms",
                                                             "layout": "transposed"}),
    "normalized rows transposed experts": ([(5, 4, 6)], {"normalize_rows": 0.9, "layout": "transposed", "split": [4, 2],
                                                   "scale": "adaptive-nuclear"}),
    "normalized rows thin": ([(1, 7), (7, 1), (1, 5, 3)], {"normalize_rows": 0.9, "scale": "rms"}),
    "whitened": (SHAPES, {"whitening": {"name": "two-sided", "every": 3}, "scale": "rms"}),
    "whitened one side": (SHAPES, {"whitening": "one-sided", "normalize_rows": 0.9, "momentum_order": "heavy-ball"}),
    "whitened capturable": (SHAPES, {"whitening": {"name": "two-sided", "every": 1}, "capturable": True}),
    "whitened split": ([(12, 5), (12, 60)], {"whitening": "one-sided", "split": [6, 4, 2], "heads": [3, 2, 1]}),
    "whitened transposed experts": ([(5, 4, 6)], {"whitening": "two-sided", "layout": "transposed", "split": [4, 2]}),
    # A floor that the norms of these gradients lie below: what acts when a gradient has vanished.
    "floor": (SHAPES, {"norm_floor": 50.0, "scale": "rms"}),
    "floor polynomials": (SHAPES, {"norm_floor": 50.0, "scale": "spectral", "nesterov": True,
                                   "method": {"name": "newton-schulz", "dtype": None}}),
    "floor polar-first": (SHAPES, {"norm_floor": 50.0, "scale": "none", "momentum_order": "polar-first"}),
    "floor group": (SHAPES, {"norm_floor": 50.0, "scope": "group", "lr": 1e-3}),
    "floor adaptive": (SHAPES, {"norm_floor": 50.0, "scale": "adaptive-nuclear", "capturable": True}),
    "floor normalized rows": (SHAPES, {"norm_floor": 50.0, "scale": "rms", "normalize_rows": 0.9}),
    **{f"floor {geometry}": (SHAPES, {"norm_floor": 50.0, "scale": "rms", "geometry": geometry})
       for geometry in GEOMETRIES},
    "convolution": ([(6, 2, 3)], {"layout": "convolution"}),
    "adamw": ([(9, 5), (7,), (2,), (3, 4, 2)], {"rule": "adamw", "weight_decay": 0.1}),
    "adamw cautious": ([(9, 5), (7,), (1,)], {"rule": "adamw", "weight_decay": 0.1, "weight_decay_mode": "cautious"}),
    "adamw capturable": ([(9, 5), (7,)], {"rule": "adamw", "capturable": True}),
}  # fmt: skip

# A few that between them take every way through the code, on fewer shapes, for every run of the tests.
FEW = ("momentum-first nuclear", "polar-first adaptive-nuclear", "group nuclear", "right-polar", "left-polar",
       "rank-one", "rows momentum-first", "columns polar-first", "frobenius heavy-ball", "smoothness entrywise",
       "polyak", "capturable", "split", "transposed experts", "adamw cautious", "normalized rows",
       "normalized rows split", "stacks of (in, out)", "whitened", "whitened split")  # fmt: skip
FEW_SHAPES = [(9, 5), (2, 3), (33, 3), (5, 4, 3), (9, 5)]


def on_layout(layout, names):
    """The variants that a layout takes."""
    refused = {"polar-first"} if layout == "ddp, momentum in parts" else set()
    return [name for name in names if VARIANTS[name][1].get("momentum_order") not in refused]


def problem(names, seed=0):
    """Whole starting values of all parameters of the variants, their groups, and gradients that change by step."""
    generator = torch.Generator().manual_seed(seed)
    starts, groups = [], []
    for name in names:
        shapes, options = VARIANTS[name]
        if shapes is SHAPES and len(names) <= len(FEW):
            shapes = FEW_SHAPES
        first = len(starts)
        starts += [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        groups.append((range(first, len(starts)), options))
    targets = [torch.randn(start.shape, generator=generator, dtype=torch.float64) for start in starts]

    def gradient(i, weights, step):
        if (step + i) % 7 == 3:  # in some steps, some have none
            return None
        return weights.double() + torch.cos(torch.tensor(step + i / 3)).double() * targets[i]

    return starts, groups, gradient


def distances(rank, world, names, layouts, steps, dtype):
    """For each (layout, variant) the largest difference to the single process in any step, relative, on this rank."""
    found = {}
    for layout in layouts or layouts_of(world):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            possible = on_layout(layout, names)
            for name, worst in zip(possible, _distances(layout, world, possible, steps, dtype), strict=True):
                found[layout, name] = worst
        found[layout, "warnings"] = [str(warning.message) for warning in heard]
    return found


def _distances(layout, world, names, steps, dtype):
    starts, groups, gradient = problem(names)
    starts = [start.to(dtype) for start in starts]
    alone = [torch.nn.Parameter(start.clone()) for start in starts]
    here, places = parameters_on(layout, world, starts)
    single, many = (
        polargrad.PolarGrad(
            [{"params": [parameters[i] for i in which], **options} for which, options in groups],
            lr=0.01, method="svd", **more,
        )
        for parameters, more in ((alone, {}), (here, arguments_of(layout)))
    )  # fmt: skip
    worst = [0.0] * len(names)
    for step in range(steps):
        # Both take the gradient at the weights of the single process: only the optimizer is compared.
        for i, (p, q, place) in enumerate(zip(alone, here, places, strict=True)):
            g = gradient(i, p.detach(), step)
            p.grad = None if g is None else g.to(dtype)
            q.grad = None if g is None else place.put(g.to(dtype))
        single.step(lambda: 1.0)
        many.step(lambda: 1.0)
        for v, (which, _) in enumerate(groups):
            for i in which:
                expected = alone[i].detach()
                error = (local(here[i].detach()) - places[i].part(expected)).abs()
                assert not error.isnan().any()
                if error.numel():
                    worst[v] = max(worst[v], float(error.max() / expected.abs().max()))
    assert single.skipped == many.skipped == 0
    return worst


def momentum_moves(rank, world):
    """Momentum in parts: what a rank holds of it, and the steps after it was loaded as a whole, and in parts again."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    gradients = torch.randn(9, 10, 4, generator=generator, dtype=torch.float64)
    weights, state, held = start, None, []
    for layout in ("ddp, momentum in parts", "ddp", "ddp, momentum in parts"):
        W = torch.nn.Parameter(weights.clone())
        optimizer = polargrad.PolarGrad([W], lr=0.1, method="svd", **arguments_of(layout))
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(3):
            W.grad = gradients[len(held)]
            optimizer.step()
            held.append(local(optimizer.state[W]["momentum_buffer"]).numel())
        weights, state = W.detach(), optimizer.state_dict()
    alone = torch.nn.Parameter(start.clone())
    single = polargrad.PolarGrad([alone], lr=0.1, method="svd")
    for gradient in gradients:
        alone.grad = gradient
        single.step()
    return held, float((weights - alone.detach()).abs().max())


def whitening_changes(rank, world):
    """What is said when whitening is turned on late; it is turned off; and the owners before and after a new group."""

    def made(whitening):
        stacks = [torch.nn.Parameter(torch.ones(3, 4, 4, dtype=torch.float64)) for _ in range(3)]
        for p in stacks:
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return stacks, polargrad.PolarGrad(stacks, method="svd", whitening=whitening, **arguments_of("ddp"))

    _, late = made(None)
    late.param_groups[0]["whitening"] = "two-sided"
    said = ""
    try:
        late.step()
    except ValueError as error:
        said = str(error)
    stacks, optimizer = made("two-sided")
    optimizer.step()
    owners = [[optimizer.executor.owns(p) for p in stacks]]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(64, 64, dtype=torch.float64))]})
    owners.append([optimizer.executor.owns(p) for p in stacks])
    optimizer.param_groups[0]["whitening"] = None
    optimizer.step()
    return said, owners
