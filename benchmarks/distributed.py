"""Seconds of one optimizer step on several local ranks (gloo, one thread each), against every rank for itself.

    python benchmarks/distributed.py                     # 2 ranks, 8 layers of width 384
    python benchmarks/distributed.py --ranks 4 --layers 12 --width 768 --method newton-schulz

Prints the machine, and for each way the median over the steps, as a ratio to "alone" (every rank computes everything,
without a process group): "one rank" is the protocol on a single rank, which shares nothing and shows its overhead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import polargrad

WAYS = ("alone", "one rank", "copies", "copies, momentum in parts", "rows")


def parameters(way: str, layers: int, width: int, ranks: int) -> list[torch.nn.Parameter]:
    """The matrices of some decoder layers, the same on every rank, with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    made = []
    for shape in shapes:
        tensors = [torch.randn(shape, generator=generator) for _ in range(2)]
        if way == "rows":
            mesh = init_device_mesh("cpu", (ranks,))
            tensors = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in tensors]
        p = torch.nn.Parameter(tensors[0])
        p.grad = tensors[1]
        made.append(p)
    return made


def rank(here: int, args: argparse.Namespace, store: str) -> None:
    """All ways on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=here, world_size=args.ranks)
    own = [dist.new_group([r]) for r in range(args.ranks)][here]
    groups = {
        "one rank": {"process_group": own},
        "copies": {"process_group": dist.group.WORLD},
        "copies, momentum in parts": {"process_group": dist.group.WORLD, "shard_momentum": True},
    }
    optimizers = {
        way: polargrad.PolarGrad(
            parameters(way, args.layers, args.width, args.ranks), method=args.method, **groups.get(way, {})
        )
        for way in WAYS
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for step in range(args.steps + 1):
        for way, optimizer in optimizers.items():
            dist.barrier()
            start = time.perf_counter()
            optimizer.step()
            dist.barrier()
            if step:  # the first makes state and routes
                seconds[way].append(time.perf_counter() - start)
    if here == 0:
        alone = statistics.median(seconds["alone"])
        for way in WAYS:
            median, best = statistics.median(seconds[way]), min(seconds[way]) / min(seconds["alone"])
            print(f"{way:28}{median:8.3f} s   {median / alone:6.3f}   best {best:6.3f}")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--method", default="auto")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}"
    )
    print(f"{args.ranks} ranks, {args.layers} layers of width {args.width}, float32, {args.method}, {args.steps} steps")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=rank, args=(r, args, f"{folder}/store")) for r in range(args.ranks)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()


if __name__ == "__main__":
    main()
