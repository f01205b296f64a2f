"""A small language model under torch's own wrappers: DDP, FSDP2, HSDP, tensor parallelism, and both at once.

A kind that ends in ", accumulated" computes a gradient in parts, which the ranks exchange with the last one.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import polargrad

VOCABULARY, WIDTH = 67, 8
BATCH, LENGTH = 8, 5
ACCUMULATED = ", accumulated"

PLAN = {
    "embedding": RowwiseParallel(input_layouts=Replicate()),  # rows of the vocabulary
    "blocks.0.up": ColwiseParallel(),
    "blocks.0.down": RowwiseParallel(),
    "blocks.1.up": ColwiseParallel(),
    "blocks.1.down": RowwiseParallel(),
}

OPTIONS = {
    "default": {},
    "polar": {
        "embedding": {"rule": "polar", "lr": 0.1, "scale": "nuclear", "method": "qdwh", "momentum": 0.5},
        "hidden": {"scale": "adaptive-nuclear", "method": "svd", "max_steps": None, "weight_decay": 0.1,
                   "normalize_rows": 0.9},
        "vector": {"lr": 1e-3, "weight_decay": 0.1},
    },
}  # fmt: skip


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.blocks[0].norm.requires_grad_(False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return torch.nn.functional.cross_entropy(self.head(x[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def wrapped(kind, world):
    """The model on the ranks, what to call, the share of the batch of this rank, and the process group."""
    torch.manual_seed(0)
    model = Model().double()
    rank = dist.get_rank()
    if kind == "ddp":
        return model, nn.parallel.DistributedDataParallel(model), (rank, world), dist.group.WORLD
    if kind == "fsdp":
        mesh, share = init_device_mesh("cpu", (world,)), (rank, world)
    elif kind == "hsdp":
        mesh, share = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copy", "cut")), (rank, world)
    else:
        data = 1 if kind == "tp" else 2
        whole = init_device_mesh("cpu", (data, world // data), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, whole["tensor"], PLAN)
        share, mesh = (rank // (world // data), data), whole["data"]
        if data == 1:
            return model, model, share, dist.group.WORLD
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, model, share, None


def backward(call, tokens, parts):
    """The gradient of the mean loss, in `parts` of the batch: all but the last without an exchange between ranks."""
    for i, part in enumerate(tokens.chunk(parts)):
        last = i == parts - 1
        if isinstance(call, FSDPModule):
            call.set_requires_gradient_sync(last)
        with contextlib.nullcontext() if last or isinstance(call, FSDPModule) else call.no_sync():
            (call(part) / parts).backward()


def trained(rank, world, kinds, steps):
    """For each kind and options the largest difference of a weight to those of the single process, relative."""
    return {(kind, which): _trained(kind, world, which, steps) for kind in kinds for which in OPTIONS}


def _trained(kind, world, which, steps):
    torch.manual_seed(0)
    alone = Model().double()
    model, call, (part, parts), group = wrapped(kind.removesuffix(ACCUMULATED), world)
    optimizers = []
    for one, process_group in ((alone, None), (model, group)):
        options = {role: dict(own) for role, own in OPTIONS[which].items()}
        groups = polargrad.parameter_groups(one, rules=[("head.weight", "head")], **options)
        for own in groups:
            if own.get("method") == "newton-schulz":  # in double precision, which is what is compared
                own["method"] = {"name": "newton-schulz", "dtype": None}
                own["max_steps"] = None
            if own.get("accuracy"):
                own["accuracy"] = "full"  # likewise: bfloat16 will do for a coarse one
        optimizers.append(polargrad.PolarGrad(groups, process_group=process_group))
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(steps):
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
        alone(tokens).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backward(call, tokens.chunk(parts)[part], 2 if kind.endswith(ACCUMULATED) else 1)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for (name, p), (_, q) in zip(alone.named_parameters(), model.named_parameters(), strict=True):
            here = q.detach().full_tensor() if hasattr(q, "full_tensor") else q.detach()
            error = float((here - p.detach()).abs().max() / p.detach().abs().max().clamp_min(1e-2))
            assert error == error, name
            worst = max(worst, error)
    return worst
