"""`polargrad bench`: what is measured on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import option
from polargrad.lab.run import runner
from polargrad.lab.studies import bench_polar
from polargrad.lab.train.progress import time_left

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """Measure every polar method: time against one matrix product of the same shape, residuals, memory.

    Example: polargrad bench polar --shapes 4096x1024 --spectra gaussian log-1e6 --out runs/polar
    """

    what: Positional[Annotated[Literal["polar"], option(help="what to measure")]]
    shapes: Annotated[tuple[str, ...], option(metavar="MxN ...", help="of the matrices; BxMxN for a batch")] = (
        bench_polar.SHAPES
    )
    dtypes: Annotated[tuple[str, ...], option(metavar="DTYPE ...", help="of torch")] = ("float32",)
    spectra: Annotated[tuple[str, ...], option(metavar="NAME ...", help=", ".join(bench_polar.SPECTRA))] = (
        "gaussian",
        "log-1e6",
    )
    methods: Annotated[tuple[str, ...], option(metavar="NAME ...", help="methods and peers; all by default")] = ()
    repeats: Annotated[int, option(metavar="N", help="runs of which the fastest counts")] = 3
    device: Annotated[str, option(metavar="NAME", help="cpu or cuda")] = "cpu"
    out: Annotated[Path | None, option(metavar="DIR", help="the new folder; runs/bench-polar-DATE-TIME by default")] = (
        None
    )

    def __call__(self) -> None:
        """Print each measurement as it is made, then write table, plot and record; interrupted, those made so far."""
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")
        problems = list(bench_polar.problems(self.shapes, self.dtypes, self.spectra, self.device))
        total = len(problems) * len(bench_polar.choose(self.methods))
        out = self.out or terminal.dated("bench-polar")
        runner.refuse_existing(out)
        terminal.say_where(out)
        for key, value in bench_polar.machine().items():
            if value is not None:
                print(f"{key}: {value}")
        made: list[bench_polar.Measurement] = []
        began = time.monotonic()

        def report(measurement: bench_polar.Measurement) -> None:
            made.append(measurement)
            left = time_left(time.monotonic() - began, len(made) / total)
            print(f"{_line(measurement)}  [{len(made)} of {total}{left}]", flush=True)

        try:
            measured = bench_polar.benchmark(problems, self.methods, repeats=self.repeats, report=report)
        except KeyboardInterrupt:
            if not made:
                raise
            bench_polar.write(made, out)
            raise KeyboardInterrupt(
                f"interrupted; the {len(made)} of {total} measurements made until then are in {out}; a benchmark "
                "cannot go on, so measure the rest with --shapes, --spectra and --methods"
            ) from None
        for path in bench_polar.write(measured, out):
            print(f"Wrote {path}")


def _line(m: bench_polar.Measurement) -> str:
    figures = m.note if m.multiples is None else f"{m.multiples:8.2f} products  error {m.error:.1e}"
    return f"{m.shape:>12} {m.dtype} {m.spectrum:>14}  {m.contender:<26} {figures}"
