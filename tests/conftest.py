"""Settings that every test shares."""

from __future__ import annotations

import os
import signal

import pytest
import torch

try:
    from hypothesis import settings
except ImportError:
    pass
else:
    # The same examples every time, no deadline on a shared machine and no data base to write.
    settings.register_profile("polargrad", derandomize=True, deadline=None, database=None, max_examples=25)
    settings.load_profile("polargrad")


def pytest_configure(config: pytest.Config) -> None:
    """Make every run alike: SIGINT and SIGHUP as in a terminal, and one thread for each xdist worker.

    A shell starts its background jobs with SIGINT ignored, and nohup those with SIGHUP, which children inherit. Small
    matrices do not gain from threads, and two workers must not fight over the cores.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
