"""Progress displays: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO, TypeVar, cast

T = TypeVar("T")
_BAR = 24  # characters of a bar


class Progress(Protocol):
    """Progress display of a run. The training loop makes all calls off the timed path."""

    def start(self, total: int, unit: str) -> None:
        """The run begins: `total` steps, each consuming some of the unit, such as "token"."""

    def update(self, step: int, loss: float, units: int, seconds: float) -> None:
        """`step` steps are finished and consumed `units` units in `seconds` training seconds."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation was made after `step` steps."""

    def finish(self, status: str) -> None:
        """The run is over."""


def terminal_progress(label: str, stream: TextIO | None = None) -> Progress:
    """A bar if the stream is a terminal and rich is installed, else plain lines.

    Args:
        label: name of the run.
        stream: where to write; None: stderr.

    Returns:
        The progress display, for `train(..., progress=...)`.
    """
    output = cast(TextIO, _Lasting(sys.stderr if stream is None else stream))
    if output.isatty():
        try:
            return ProgressBar(label, output)
        except ImportError:
            pass
    return ProgressLines(label, output)


class _Lasting:
    """A stream that may be closed on the other side, as when a terminal hangs up: what is written then is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressLines(Progress):
    """A line at the first step, whenever `every` seconds have passed, and at the end, for logs.

    Args:
        label: name of the run.
        stream: where to write.
        every: seconds between two lines.
    """

    def __init__(self, label: str, stream: TextIO, every: float = 10.0) -> None:
        self._label, self._stream, self._every = label, stream, every
        self._loss = self._metrics = ""

    def start(self, total: int, unit: str) -> None:
        self._total, self._unit, self._estimate = total, unit, _Estimate(total)
        self._began, self._last = time.monotonic(), -float("inf")

    def update(self, step: int, loss: float, units: int, seconds: float) -> None:
        now = time.monotonic()
        self._loss = f"  loss {loss:.4g}"
        left = self._estimate.left(step, seconds, now)
        if now - self._last >= self._every:
            self._last = now
            rate = _rate(units, seconds, self._unit)
            self._write(f"step {step}/{self._total}{self._loss}{self._metrics}  {rate}  {left} left")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics = _listed(metrics)

    def finish(self, status: str) -> None:
        self._write(f"{status} after {_clock(time.monotonic() - self._began)}{self._loss}{self._metrics}")

    def _write(self, line: str) -> None:
        self._stream.write(f"{self._label}  {line}\n")
        self._stream.flush()


class ProgressBar(Progress):
    """A line that is rewritten: steps, loss and time left, and where there is room name, bar, metrics and speed.

    It is redrawn only when called, at most ten times a second: a thread of its own would take time from short steps.

    Args:
        label: name of the run.
        stream: the terminal.
    """

    def __init__(self, label: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import TextColumn
        from rich.table import Column

        column = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="crop"))
        self._bar = Bar(column, console=Console(file=stream), auto_refresh=False)
        self._label = label

    def start(self, total: int, unit: str) -> None:
        self._total, self._unit, self._estimate, self._drawn = total, unit, _Estimate(total), 0.0
        self._began, self._step = time.monotonic(), 0
        self._loss = self._metrics = self._rate = self._left = ""
        self._task = self._bar.add_task("", total=total, line=self._line())
        self._bar.start()

    def update(self, step: int, loss: float, units: int, seconds: float) -> None:
        now = time.monotonic()
        self._step, self._loss = step, f"loss {loss:.4g}"
        self._left = f"{self._estimate.left(step, seconds, now)} left"
        self._rate = _rate(units, seconds, self._unit)
        if now - self._drawn >= 0.1:
            self._drawn = now
            self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step, self._metrics = step, _listed(metrics).strip()
        self._draw()

    def finish(self, status: str) -> None:
        if status != "finished":
            self._label = f"{self._label} ({status})"
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self._step, line=self._line(), refresh=True)

    def _line(self) -> str:
        done = round(_BAR * self._step / self._total)
        parts = {
            "label": self._label,
            "bar": "━" * done + "─" * (_BAR - done),
            "count": f"{self._step}/{self._total}",
            "loss": self._loss,
            "metrics": self._metrics,
            "rate": self._rate,
            "elapsed": _clock(time.monotonic() - self._began),
            "left": self._left,
        }
        return fitted(
            parts, ("count", "loss", "left", "label", "metrics", "rate", "bar", "elapsed"), self._bar.console.width
        )


def fitted(parts: Mapping[str, str], order: Sequence[str], width: int) -> str:
    """The parts that fit into a width, two spaces apart in their own order, those first in `order` before the others.

    Example:
        >>> parts = {"name": "adamw", "count": "3/5", "loss": "loss 2.5"}
        >>> fitted(parts, ("count", "loss", "name"), 40), fitted(parts, ("count", "loss", "name"), 14)
        ('adamw  3/5  loss 2.5', '3/5  loss 2.5')
    """
    chosen: set[str] = set()
    for name in order:
        if parts[name] and len("  ".join(parts[key] for key in parts if key in {*chosen, name})) <= width:
            chosen.add(name)
    return "  ".join(parts[key] for key in parts if key in chosen)


class _Estimate:
    """The time left of `total` steps: by the clock since the first step seen here, since a run may be resumed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first: tuple[int, float] | None = None

    def left(self, step: int, seconds: float, now: float) -> str:
        """After `step` steps, which took `seconds` training seconds, at the time `now`."""
        if self._first is None:
            self._first = (step, now)
        before, then = self._first
        per_step = seconds / step if step == before else (now - then) / (step - before)
        return _clock(per_step * (self._total - step))


class StageLines:
    """A line for each stage of work that has no steps: the share of the work done, and about how long the rest takes.

    Args:
        stream: where to write; None: stderr.
        clock: returns the time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = clock()

    def __call__(self, stage: str, share: float) -> None:
        """A stage begins; `share` of all the work is done."""
        self._stream.write(f"{share:4.0%}  {stage}{time_left(self._clock() - self._began, share)}\n")
        self._stream.flush()


def time_left(elapsed: float, share: float) -> str:
    """How long the rest takes at the speed so far; empty where no share is done.

    Example:
        >>> time_left(30.0, 0.25)
        '  1:30 left'
    """
    return f"  {_clock(elapsed / share - elapsed)} left" if share > 0 else ""


def _listed(metrics: Mapping[str, float]) -> str:
    return "".join(f"  {name} {value:.4g}" for name, value in metrics.items())


def _rate(units: int, seconds: float, unit: str) -> str:
    rate = units / seconds if seconds > 0 else 0.0
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{letter} {unit}s/s"
    return f"{rate:.3g} {unit}s/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def tokenization_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how much of a text is encoded; nothing if it is encoded at once.

    On a terminal one line is written again and again, elsewhere a line every 10 seconds.

    Args:
        name: name of the text.

    Returns:
        A function to call with the numbers of documents and tokens so far.
    """
    began = time.monotonic()
    with _one_line() as show:

        def progress(documents: int, tokens: int) -> None:
            speed = tokens / max(time.monotonic() - began, 1e-9)
            show(f"encoding {name}: {documents:,} documents, {tokens:,} tokens, {speed:,.0f} tokens/s")

        yield progress


@contextlib.contextmanager
def vocabulary_progress(name: str, size: int) -> Iterator[Callable[[float], None]]:
    """Show that a vocabulary is being trained, as `tokenization_progress` shows the encoding.

    Returns:
        A function to call with the seconds so far.
    """
    with _one_line() as show:
        yield lambda seconds: show(f"training a vocabulary of {size:,} tokens on {name}: {_clock(seconds)}")


@contextlib.contextmanager
def _one_line() -> Iterator[Callable[[str], None]]:
    """A function that shows a line: on a terminal in place of the one before, within its width; else now and then."""
    output = sys.stderr
    watched, shown, last = output.isatty(), 0.0, ""

    def write(line: str) -> None:
        if watched:
            line = f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K"
        output.write(line if watched else f"{line}\n")
        output.flush()

    def show(line: str) -> None:
        nonlocal shown, last
        last, now = line, time.monotonic()
        if now - shown >= (0.1 if watched else 10.0):
            shown = now
            write(line)

    try:
        yield show
    finally:
        if last:
            write(last)
            output.write("\n" if watched else "")


def interruptible(work: Callable[[], T], tick: Callable[[float], object] = lambda seconds: None) -> T:
    """Do work of a library that hears no signal in a thread of its own, so that Ctrl-C is heard at once.

    What is interrupted goes on until the process ends, and its result is lost.

    Args:
        work: what is done; it must give up the interpreter's lock.
        tick: called several times a second with the seconds so far.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((True, work()))
        except BaseException as error:
            answers.put((False, error))

    began = time.monotonic()
    threading.Thread(target=answer, daemon=True).start()
    while True:
        try:
            good, found = answers.get(timeout=0.1)
        except queue.Empty:
            tick(time.monotonic() - began)
            continue
        if not good:
            raise found
        return found
