"""Several processes for tests, started as a user would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def torchrun(
    ranks: int, *arguments: str | os.PathLike[str], timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """`torchrun` of a module (`-m`, name, ...) or of a script, with one thread for each rank."""
    launcher: Sequence[str] = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
