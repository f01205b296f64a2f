"""Time, residuals and memory of every polar method, as multiples of one matrix product of the same shape."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polargrad.lab.run.environment import environment, version
from polargrad.lab.studies.allocations import peak_bytes
from polargrad.lab.studies.bench_contenders import Contender, contenders

__all__ = ["SHAPES", "SPECTRA", "Measurement", "Problem", "benchmark", "choose", "measure", "problems", "write"]

SPECTRA: dict[str, Callable[[int], Tensor] | None] = {
    "gaussian": None,
    "log-1e6": lambda k: torch.logspace(0, -6, k, dtype=torch.float64),
    "log-1e12": lambda k: torch.logspace(0, -12, k, dtype=torch.float64),
    "rank-deficient": lambda k: (torch.arange(k) < (k + 1) // 2).double(),
    "clustered": lambda k: torch.where(torch.arange(k) < (k + 1) // 2, 1.0, 1e-3).double(),
    "powers-of-two": lambda k: 2.0 ** -(torch.arange(k) % 20).double(),
}

SHAPES = ("50304x768", "4096x1024", "3072x768", "1024x1024", "12x768x768")


# Seconds beyond which one run is enough.
_LONG = 1.5


@dataclass(frozen=True)
class Problem:
    """A batch of matrices to decompose.

    Args:
        shape: (m, n), or (batch, m, n).
        dtype: name of a torch dtype.
        spectrum: key of `SPECTRA`.
        device: where the matrices live.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    spectrum: str = "gaussian"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"shape must be m x n or batch x m x n, got {self.shape}")
        if self.spectrum not in SPECTRA:
            raise ValueError(f"unknown spectrum {self.spectrum!r}; known: {', '.join(SPECTRA)}")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; for example float32, float64, bfloat16")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} is not available here; use cpu")

    @classmethod
    def parse(cls, shape: str, **options: str) -> Problem:
        """From "4096x1024" or "12x768x768".

        Example:
            >>> Problem.parse("12x768x768").shape
            (12, 768, 768)
        """
        try:
            return cls(tuple(int(size) for size in shape.split("x")), **options)
        except ValueError as error:
            if "invalid literal" in str(error):
                raise ValueError(f"shape must look like 4096x1024 or 12x768x768, got {shape!r}") from None
            raise

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    def matrices(self, seed: int = 0) -> Tensor:
        """P diag(sigma) Q^T with random orthonormal P and Q, made in double precision; Gaussian as it is."""
        generator = torch.Generator().manual_seed(seed)
        *_, m, n = self.shape
        spectrum = SPECTRA[self.spectrum]
        A = torch.randn(self.shape, dtype=torch.float64, generator=generator)
        if spectrum is not None:
            k = min(m, n)
            P = torch.linalg.qr(A if m >= n else A.mT).Q
            Q = torch.linalg.qr(torch.randn(*self.shape[:-2], k, k, dtype=torch.float64, generator=generator)).Q
            A = (P * spectrum(k)) @ Q
            A = A if m >= n else A.mT
        return A.to(getattr(torch, self.dtype)).contiguous().to(self.device)


@dataclass(frozen=True)
class Measurement:
    """One contender on one problem. Times are the best of the repeats; residuals are relative, not divided by eps.

    `error` is the larger of orthogonality and backward error: what "exact to 1e-6" means in the tables.
    """

    contender: str
    ours: bool
    shape: str
    dtype: str
    spectrum: str
    seconds: float | None = None
    gemm_seconds: float | None = None
    multiples: float | None = None  # seconds / gemm_seconds
    orthogonality: float | None = None  # ||U^T U - I||_F / sqrt(k) on the singular vectors that A determines
    backward_error: float | None = None  # ||A - U H||_F / ||A||_F
    definiteness: float | None = None  # -lambda_min(H) / ||A||_2, or 0
    error: float | None = None
    peak_memory: float | None = None  # largest extra allocation / size of A
    note: str = ""


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _seconds(function: Callable[[], object], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


class _Yardstick:
    """Measures factors of one batch A in double precision; what depends on A alone is computed once.

    Orthogonality is taken on the right singular vectors that A determines: all of them if sigma_min >= 8 eps sigma_max,
    else those of sigma >= 100 eps sigma_max. Elsewhere any value in [0, 1] is as good as another.
    """

    def __init__(self, A: Tensor) -> None:
        self.A = (A if A.shape[-2] >= A.shape[-1] else A.mT).double()
        self.wide = A.shape[-2] < A.shape[-1]
        R = torch.linalg.qr(self.A, mode="r").R
        _, self.sigma, Qh = torch.linalg.svd(R)
        relative, eps = self.sigma / self.sigma[..., :1], torch.finfo(A.dtype).eps
        high = (relative >= 100 * eps) | (relative[..., -1:] >= 8 * eps)
        self.Q = Qh.mT * high.unsqueeze(-2)
        self.target = torch.diag_embed(high.double())

    def figures(self, U: Tensor) -> tuple[float, float, float]:
        """Orthogonality, backward error and definiteness, the worst of the batch."""
        V = (U.mT if self.wide else U).double()
        W = V @ self.Q
        orthogonality = torch.linalg.matrix_norm(W.mT @ W - self.target) / math.sqrt(V.shape[-1])
        K = V.mT @ self.A
        H = (K + K.mT) / 2
        backward_error = torch.linalg.matrix_norm(self.A - V @ H) / torch.linalg.vector_norm(self.sigma, dim=-1)
        definiteness = (-torch.linalg.eigvalsh(H)[..., 0] / self.sigma[..., 0]).clamp_min(0.0)
        return float(orthogonality.max()), float(backward_error.max()), float(definiteness.max())


def measure(
    contender: Contender,
    problem: Problem,
    A: Tensor,
    *,
    yardstick: _Yardstick | None = None,
    repeats: int = 3,
    memory: bool = True,
) -> Measurement:
    """Time, residuals and memory of one contender; one product A^T A is timed before each of its runs.

    A contender that cannot treat the problem gives a measurement with a note and without figures.
    """
    kept: list[Tensor] = []
    about = (contender.name, contender.ours, problem.name, problem.dtype, problem.spectrum)
    gram: Callable[[], object] = (lambda: A.mT @ A) if A.shape[-2] >= A.shape[-1] else (lambda: A @ A.mT)
    device = problem.device
    try:
        _seconds(gram, device)
        pair = (_seconds(gram, device), _seconds(lambda: kept.append(contender.run(A)), device))
        # The first run warms up, unless it was so long that warming up does not matter.
        pairs = [pair] if pair[1] > _LONG else []
        for _ in range(repeats if pair[1] <= _LONG else 0):
            pairs.append((_seconds(gram, device), _seconds(lambda: contender.run(A), device)))
        U = kept.pop()
        peak = peak_bytes(lambda: contender.run(A), device) if memory and contender.allocates_in_torch else None
    except Exception as error:  # whatever a peer raises belongs into the table
        return Measurement(*about, note=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    gemm, seconds = (min(times) for times in zip(*pairs, strict=True))
    orthogonality, backward_error, definiteness = (yardstick or _Yardstick(A)).figures(U.to(A.device))
    return Measurement(
        *about,
        seconds=seconds,
        gemm_seconds=gemm,
        multiples=seconds / gemm,
        peak_memory=None if peak is None else peak / (A.numel() * A.element_size()),
        orthogonality=orthogonality,
        backward_error=backward_error,
        definiteness=definiteness,
        error=max(orthogonality, backward_error),
    )


def choose(names: Sequence[str] | None) -> list[Contender]:
    """The contenders of these names, all that are installed by default.

    Raises:
        ValueError: a name that is not known.
    """
    known = contenders()
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"unknown contender {unknown[0]!r}; known: {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def benchmark(
    problems: Iterable[Problem],
    names: Sequence[str] | None = None,
    *,
    repeats: int = 3,
    memory: bool = True,
    report: Callable[[Measurement], None] = lambda _: None,
) -> list[Measurement]:
    """Measure every contender on every problem.

    Args:
        problems: what to decompose.
        names: of the contenders (`contenders()`); all that are installed by default.
        repeats: runs of which the fastest counts: whatever else the machine does only ever adds.
        memory: whether to measure the peak memory, which takes one more run.
        report: called with each measurement as it is made.

    Raises:
        ValueError: a name that is not known.
    """
    chosen = choose(names)
    made: list[Measurement] = []
    for problem in problems:
        A = problem.matrices()
        yardstick = _Yardstick(A)
        here = []
        for contender in chosen:
            here.append(measure(contender, problem, A, yardstick=yardstick, repeats=repeats, memory=memory))
            report(here[-1])
        made += _against_fastest_product(here)
    return made


def _against_fastest_product(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Multiples of the fastest product of all: the threads of a peer may still slow down the one timed after it."""
    gemm = min((m.gemm_seconds for m in measurements if m.gemm_seconds), default=None)
    return [
        m if m.seconds is None or gemm is None else replace(m, gemm_seconds=gemm, multiples=m.seconds / gemm)
        for m in measurements
    ]


def problems(
    shapes: Sequence[str], dtypes: Sequence[str], spectra: Sequence[str], device: str = "cpu"
) -> Iterator[Problem]:
    """Every combination."""
    for shape in shapes:
        for dtype in dtypes:
            for spectrum in spectra:
                yield Problem.parse(shape, dtype=dtype, spectrum=spectrum, device=device)


def machine() -> dict[str, Any]:
    """Where the numbers come from: the environment, and the versions of the peers."""
    return {**environment(), "scipy": version("scipy"), "jax": version("jax"), "mpmath": version("mpmath")}


def write(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Write polar.csv, polar.json (with the machine), polar.md and the Pareto plots into a folder.

    Raises:
        FileExistsError: the folder already holds a benchmark.
    """
    from polargrad.lab.studies.bench_plots import markdown, pareto_plot

    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "polar.csv"
    if table.exists():
        raise FileExistsError(f"{table} exists; choose another folder, or remove it")
    rows = [asdict(measurement) for measurement in measurements]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(Measurement.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(rows)
    record = folder / "polar.json"
    record.write_text(json.dumps({"machine": machine(), "measurements": rows}, indent=1) + "\n", encoding="utf-8")
    page = folder / "polar.md"
    page.write_text(markdown(measurements, machine()), encoding="utf-8")
    return [table, record, page, *pareto_plot(measurements, folder)]
