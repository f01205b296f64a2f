"""`polargrad bench`: measure polar methods on this machine."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import Positional
from polargrad.lab.options import Options, option
from polargrad.lab.studies import engine
from polargrad.lab.train.progress import time_left


@dataclass(frozen=True)
class Bench(Options):
    """Measure every polar method: time against one matrix product of the same shape, residuals, memory.

    Example: polargrad bench polar --shapes 4096x1024 --spectra gaussian log-1e6

    Args:
        what: what to measure
        shapes: shapes of the matrices; BxMxN is a batch
        dtypes: torch dtypes
        spectra: gaussian, log-1e6, log-1e12, rank-deficient, clustered, powers-of-two
        methods: methods and peers; all by default
        repeats: number of runs, of which the fastest counts
        device: cpu or cuda
        out: new folder; runs/bench-polar-DATE-TIME by default
    """

    what: Positional[Literal["polar"]]
    shapes: tuple[str, ...] = option(engine.SHAPES, metavar="MxN ...")
    dtypes: tuple[str, ...] = ("float32",)
    spectra: tuple[str, ...] = ("gaussian", "log-1e6")
    methods: tuple[str, ...] = ()
    repeats: int = 3
    device: str = "cpu"
    out: Path | None = None

    def __call__(self) -> None:
        """Print each measurement as it is made, then write table, plot and record; interrupted, those made so far."""
        from polargrad.lab.studies.engine_report import write

        batches = [
            engine.MatrixBatch.parse(shape, dtype=dtype, spectrum=spectrum, device=self.device)
            for shape, dtype, spectrum in itertools.product(self.shapes, self.dtypes, self.spectra)
        ]
        total = len(batches) * len(engine.contenders(self.methods))
        out = terminal.new_folder(self.out, "bench-polar")
        for key, value in engine.machine().items():
            if value is not None:
                print(f"{key}: {value}")
        made: list[engine.PolarMeasurement] = []
        began = time.monotonic()

        def report(measurement: engine.PolarMeasurement) -> None:
            made.append(measurement)
            left = time_left(time.monotonic() - began, len(made) / total)
            print(f"{_line(measurement)}  [{len(made)} of {total}{left}]", flush=True)

        try:
            measured = engine.benchmark(batches, self.methods, repeats=self.repeats, report=report)
        except KeyboardInterrupt:
            if not made:
                raise
            write(made, out)
            raise KeyboardInterrupt(
                f"interrupted; the {len(made)} of {total} measurements made until then are in {out}; a benchmark "
                "cannot be resumed, so measure the rest with --shapes, --spectra and --methods"
            ) from None
        for path in write(measured, out):
            print(f"Wrote {path}")


def _line(m: engine.PolarMeasurement) -> str:
    numbers = m.note if m.multiples is None else f"{m.multiples:8.2f} products  error {m.error:.1e}"
    return f"{m.shape:>12} {m.dtype} {m.spectrum:>14}  {m.contender:<26} {numbers}"
