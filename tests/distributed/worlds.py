"""Local ranks on gloo, started once for many checks."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...], timeout: float):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        result = ("returned", function(rank, world, *args))
    except Exception:
        result = ("raised", traceback.format_exc())
    torch.save(result, f"{folder}/result{rank}")
    # Ranks that go early would look dead to the others.
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    os._exit(0)


def spawn(
    world: int, folder: Path, function: Callable[..., Any], *args: Any, timeout: float = 120.0
) -> list[tuple[str, Any] | None]:
    """Run function(rank, world, *args) on every rank.

    Args:
        world: how many ranks.
        folder: an empty one.
        function: of a module that children can import.
        args: picklable.
        timeout: of the process group, in seconds, after which ranks that are left are killed too.

    Returns:
        For each rank ("returned", value) or ("raised", traceback); None for one that died.
    """
    folder.mkdir(exist_ok=True, parents=True)
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_rank, args=(rank, world, str(folder), function, args, timeout), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout + 60.0
    for process in ranks:
        process.join(max(0.1, end - time.monotonic()))
        if process.is_alive():
            process.kill()
    paths = [folder / f"result{rank}" for rank in range(world)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]
