"""The environment of a run: versions, machine, commit; no paths, no user and no host name."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LAB_PACKAGES = ("numpy", "transformers", "tokenizers", "tyro", "rich", "matplotlib", "tensorboard", "jinja2")


def environment() -> dict[str, Any]:
    """Versions, platform, device and threads, as plain data.

    Returns:
        Versions of python and of the packages that matter, platform, cpu, cores, device, threads, commit; None for what
        is not installed or not known.
    """
    return {
        "python": platform.python_version(),
        "polargrad": version("polargrad"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "tokenizers": version("tokenizers"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def idle_threads() -> int:
    """How many of torch's threads would have a core to themselves beside the programs that run now, at least one.

    The processors that this process may use are watched for half a second; all threads where they cannot be.

    Example:
        >>> 1 <= idle_threads() <= torch.get_num_threads()
        True
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return threads
    import psutil

    try:
        busy = psutil.cpu_percent(interval=0.5, percpu=True)
        cores = psutil.cpu_count(logical=False) or len(busy)
    except (OSError, psutil.Error):
        return threads
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(busy)))
    if max(usable) >= len(busy):  # a container that counts its cores otherwise
        return threads
    # Where torch has a thread for each core of two processors, an idle processor is half of one.
    share = min(1.0, max(cores / len(busy), threads / len(usable)))
    idle = share * sum(1.0 - busy[processor] / 100.0 for processor in usable)
    return max(1, min(threads, round(idle)))


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def chosen_device(name: str) -> str:
    """The device of that name; "auto" is the accelerator where there is one, else the CPU.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    if name != "auto":
        return name
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def device_name() -> str:
    """The accelerator's name where there is one, else "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    if sys.platform.startswith("linux"):
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that polargrad is imported from, with a "+" if files differ; None outside of one."""
    here = Path(__file__).resolve().parent
    head = _git(here, "rev-parse", "--short=12", "HEAD")
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    if not head or not tracked:
        return None
    return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
