import contextlib
import io
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from polargrad.lab.train import progress
from polargrad.lab.train.progress import (
    ProgressBar,
    ProgressLines,
    StageLines,
    interruptible,
    terminal_progress,
    tokenization_progress,
    vocabulary_progress,
)
from polargrad.lab.train.run_log import DeviceTimer


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(display, steps=5):
    display.start(steps, "token")
    for step in range(max(1, steps - 40), steps + 1):
        display.update(step, 4.0 / step, 2048 * step, 0.1 * step)
        display.evaluated(step, {"val_loss": 5.0})
    display.finish("finished")


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    display = ProgressLines("adamw", stream, every=10.0)
    display.start(100, "token")
    for step in range(1, 101):
        now[0] += 0.5
        display.update(step, 4.0, 2048 * step, 0.4 * step)
    display.evaluated(100, {"val_loss": 4.25})
    display.finish("finished")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[0] == "adamw  step 1/100  loss 4  5.12k tokens/s  0:40 left"
    assert lines[-1] == "adamw  finished after 0:50  loss 4  val_loss 4.25"


def test_the_time_left_of_a_run_that_is_taken_up_knows_nothing_of_the_pause(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    display = ProgressLines("adamw", stream, every=10.0)
    display.start(100, "token")
    display.update(60, 4.0, 60, 24.0)
    now[0] += 10.0
    display.update(80, 4.0, 80, 32.0)
    assert [line.rpartition("  ")[2] for line in stream.getvalue().splitlines()] == ["0:16 left", "0:10 left"]


def test_a_terminal_gets_a_bar(monkeypatch):
    # What the bar shows must not hang on the tester's own terminal.
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    display = terminal_progress("muon", stream)
    assert isinstance(display, ProgressBar)
    drive(display)
    shown = stream.getvalue()
    for part in ("muon", "5/5", "val_loss 5", "k tokens/s", "0:00 left"):
        assert part in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_narrow_terminal_keeps_counts_loss_and_time_left(monkeypatch, width):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    drive(terminal_progress("muon+normalized-rows@hidden.lr=0.0125,seed=42 [x]", stream), steps=12000)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    drawn = [line.rstrip() for line in lines if line.strip()]
    assert all(len(line) <= width for line in drawn)
    for part in ("12000/12000", "loss 0.0003333", "0:00 left"):
        assert part in drawn[-1]
    assert ("seed=42 [x]" in drawn[-1]) == (width >= 100)


def test_without_a_terminal_or_rich_there_are_lines(monkeypatch):
    assert isinstance(terminal_progress("x", io.StringIO()), ProgressLines)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(terminal_progress("x", Terminal()), ProgressLines)


@pytest.mark.parametrize("status", ["diverged", "interrupted", "failed"])
def test_a_run_that_ends_early_says_so(status, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for display in (ProgressBar("x", stream := Terminal()), ProgressLines("x", stream)):
        display.start(5, "iteration")
        display.finish(status)
        assert status in stream.getvalue()


def test_rates_are_readable():
    assert progress._rate(2048, 0.0, "token") == "0 tokens/s"
    assert progress._rate(900, 1.0, "iteration") == "900 iterations/s"
    assert progress._rate(15_000_000, 1.0, "token") == "15M tokens/s"
    assert progress._clock(3700) == "61:40"


def test_a_cpu_timer_counts_seconds():
    timer = DeviceTimer(torch.device("cpu"))
    start = timer.stamp()
    assert 0.0 <= timer.seconds(start, timer.stamp()) < 60.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_timer_counts_the_device_s_time():
    device = torch.device("cuda")
    timer = DeviceTimer(device)
    A = torch.randn(4096, 4096, device=device)
    start = timer.stamp()
    for _ in range(50):
        A = A @ A / 64
    queued = timer.stamp()
    assert timer.seconds(start, queued) > 1e-3


def test_stages_say_how_much_lies_behind_and_ahead():
    stream, seconds = io.StringIO(), iter([100.0, 100.0, 130.0])
    stages = StageLines(stream, clock=lambda: next(seconds))
    stages("first", 0.0)
    stages("second", 0.25)
    assert stream.getvalue() == "  0%  first\n 25%  second  1:30 left\n"


def test_ctrl_c_is_heard_at_once_where_a_library_hears_no_signal():
    """The work holds the main thread of a process for as long as it likes; here it derives a key, deaf to signals."""
    script = (
        "import hashlib; from polargrad.lab.train.progress import interruptible;"
        "work = lambda: hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9); print('begun', flush=True);"
        "interruptible(work, lambda seconds: None)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"begun\n"
        child.send_signal(signal.SIGINT)
        child.wait(timeout=30)
        assert b"KeyboardInterrupt" in child.stderr.read()


def test_interruptible_work_answers_raises_and_ticks():
    ticks = []
    assert interruptible(lambda: time.sleep(0.35) or 3, ticks.append) == 3
    assert len(ticks) >= 2
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)


def test_quiet_phases_have_a_line_that_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", watched := Terminal())
    with tokenization_progress("a-text-of-a-long-name") as progress:
        progress(512, 1_000_000)
        progress(1024, 2_000_000)
    lines = watched.getvalue().removesuffix("\n").split("\r")[1:]
    assert lines[-1].startswith("encoding a-text-of-a-long-name: ")
    assert all(len(line.removesuffix("\x1b[K")) < 40 for line in lines)
    with contextlib.suppress(KeyboardInterrupt), vocabulary_progress("text", 8192) as progress:
        progress(1.0)
        raise KeyboardInterrupt
    assert watched.getvalue().endswith("\n")
    monkeypatch.setattr(sys, "stderr", lines := io.StringIO())
    with vocabulary_progress("text", 8192) as progress:
        progress(0.5)
        progress(61.2)
    assert lines.getvalue().endswith("training a vocabulary of 8,192 tokens on text: 1:01\n")
