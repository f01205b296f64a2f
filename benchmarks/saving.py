"""The cost of a save: `python benchmarks/saving.py [MEGABYTES ...]`, of weights and momentum together.

Seconds of the whole save, which is on the disk when it ends, and of what could not be left to the background (a copy of
the state). Run on the disk that is meant: temporary files lie in the working folder.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from polargrad.distributed.checkpoint import save


def measured(megabytes: float) -> tuple[float, float, float]:
    """Megabytes, seconds of a save, seconds of a copy; each the least of three."""
    side, bytes_each = 1024, 2 * 4 * 1024**2
    count = max(1, round(megabytes * 1e6 / bytes_each))
    model = torch.nn.ModuleList(torch.nn.Linear(side, side, bias=False) for _ in range(count))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saves, copies = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for turn in range(3):
            began = time.perf_counter()
            save(Path(folder) / str(turn), model, optimizer)
            saves.append(time.perf_counter() - began)
            began = time.perf_counter()
            kept = [p.detach().clone() for p in model.parameters()]
            kept += [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
            copies.append(time.perf_counter() - began)
            del kept
    return count * bytes_each / 1e6, min(saves), min(copies)


def main() -> None:
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for megabytes in map(float, sys.argv[1:] or ["10", "100", "1000"]):
        size, saving, copying = measured(megabytes)
        print(
            f"{size:6.0f} MB: {saving:6.2f} s ({size / saving:5.0f} MB/s), of which a copy would take {copying:.2f} s"
        )


if __name__ == "__main__":
    main()
