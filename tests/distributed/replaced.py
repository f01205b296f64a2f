"""What frameworks do to parameters after the optimizer was made: run on the ranks, judged by `test_replaced.py`."""

from __future__ import annotations

import copy
import io
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import polargrad
from tests.distributed.wrapped import BATCH, LENGTH, VOCABULARY, Model

SCALES = ("nuclear", "mean-singular", "none", "spectral", "rms", "adaptive-nuclear")
# Every role, each polar one with every scale; the widths are 8, the vocabulary 67: even and uneven over two ranks.
CASES = {scale: {"hidden": {"scale": scale}, "head": {"scale": scale, "normalize_rows": 0.9}} for scale in SCALES}
CASES["all polar"] = {"embedding": {"rule": "polar", "scale": "rms", "lr": 0.01, "method": "svd"}}


def optimizer_of(model, options):
    groups = polargrad.parameter_groups(model, rules=[("head.weight", "head")], **copy.deepcopy(options))
    for group in groups:
        if group.get("rule", "polar") == "polar":  # in double precision, which is what is compared
            group.update(method="svd", max_steps=None)
    return polargrad.PolarGrad(groups)


def accelerated(model, optimizer):
    """Model and optimizer as accelerate prepares them for FSDP2."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"],
        reshard_after_forward=True,
    )  # fmt: skip
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # It takes FSDP for something of GPUs alone; the swap is the same.
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2
    model, wrapped = accelerator.prepare(model, optimizer)
    assert wrapped.optimizer is optimizer
    return model


def _batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator) for _ in range(steps)]


def _step(model, optimizer, tokens, part=0, parts=1):
    model(tokens.chunk(parts)[part]).backward()
    optimizer.step()
    optimizer.zero_grad()


def _error(model, alone):
    """The largest difference of a weight, relative."""
    worst = 0.0
    for (name, p), q in zip(alone.named_parameters(), model.parameters(), strict=True):
        here = q.detach().full_tensor() if isinstance(q, DTensor) else q.detach()
        error = float((here - p.detach()).abs().max() / p.detach().abs().max().clamp_min(1e-2))
        assert error == error, name
        worst = max(worst, error)
    return worst


def swapped(rank, world, names, before, steps):
    """Errors against one process where accelerate replaces the parameters after so many steps on plain ones."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                      ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")  # fmt: skip
    found = {}
    for name in names:
        torch.manual_seed(0)
        alone = Model().double()
        model = copy.deepcopy(alone)
        one, many = optimizer_of(alone, CASES[name]), optimizer_of(model, CASES[name])
        batches = _batches(before + steps)
        for tokens in batches[:before]:  # every rank takes the whole batch
            _step(alone, one, tokens)
            _step(model, many, tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = accelerated(model, many)
            worst = 0.0
            for tokens in batches[before:]:
                _step(alone, one, tokens)
                _step(model, many, tokens, rank, world)
                worst = max(worst, _error(model, alone))
        distributed = [p for group in many.param_groups for p in group["params"] if isinstance(p, DTensor)]
        found[name] = worst, len(distributed), all(p in many.state for p in distributed), len(many.state)
    return found


def flat(rank, world):
    """What is said of FSDP1, whose parameters are flat vectors or views of one, before and after the optimizer."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    said = {}
    for original in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
            early = polargrad.PolarGrad(polargrad.parameter_groups(model))
            wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
            attempts = {"later": lambda w=wrapped: polargrad.PolarGrad(polargrad.parameter_groups(w))}
            if original:
                wrapped(torch.randn(3, 6)).sum().backward()
                attempts["before"] = early.step
            for name, attempt in attempts.items():
                try:
                    attempt()
                    said[original, name] = "nothing"
                except ValueError as error:
                    said[original, name] = str(error)
    return said


def copies(rank, world):
    """Copies and pickles of an optimizer with a process group, which must step as it does."""
    torch.manual_seed(0)
    start = torch.randn(6, 4, dtype=torch.float64)
    W = nn.Parameter(start.clone())
    optimizer = polargrad.PolarGrad([W], lr=0.1, method="svd", process_group=dist.group.WORLD)
    gradients = torch.randn(4, 6, 4, dtype=torch.float64)
    W.grad = gradients[0].clone()
    optimizer.step()
    W.grad = None
    copied = copy.deepcopy(optimizer)
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    pickled = torch.load(buffer, weights_only=False)
    found = []
    for one in (optimizer, copied, pickled):
        (p,) = one.param_groups[0]["params"]
        for gradient in gradients[1:]:
            p.grad = gradient.clone()
            one.step()
        found.append(p.detach().clone())
    other = dist.new_group([0, 1])
    try:
        torch.save(polargrad.PolarGrad([W], process_group=other), io.BytesIO())
        said = "nothing"
    except TypeError as error:
        said = str(error)
    return [bool(torch.equal(found[0], one)) for one in found], said


def all_of_it(rank, world):
    """Everything, on ranks that are started once."""
    return {
        "first": swapped(rank, world, list(CASES), 0, 3),
        "later": swapped(rank, world, ["adaptive-nuclear", "all polar"], 2, 3),
        "flat": flat(rank, world),
        "copies": copies(rank, world),
    }
