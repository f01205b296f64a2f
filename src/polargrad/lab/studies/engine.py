"""The benchmark of the polar engine: time, residuals and memory of every method and of its peers.

Times are multiples of one matrix product of the same shape.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor

from polargrad.lab.options import unknown_name
from polargrad.lab.run.environment import environment, version
from polargrad.lab.studies.peak_memory import peak_bytes
from polargrad.linalg import available_methods, polar_factor

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
class MatrixBatch:
    """Matrices to decompose.

    Args:
        shape: (m, n), or (batch, m, n).
        dtype: name of a torch dtype.
        spectrum: key of `SPECTRA`.
        device: where the matrices are.

    Raises:
        ValueError: an impossible shape, or an unknown dtype, spectrum or device.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    spectrum: str = "gaussian"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"shape must be m x n or batch x m x n, got {self.shape}")
        if self.spectrum not in SPECTRA:
            raise unknown_name("spectrum", self.spectrum, SPECTRA)
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; for example float32, float64, bfloat16")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} is not available here; use cpu")

    @classmethod
    def parse(cls, shape: str, **options: str) -> MatrixBatch:
        """From "4096x1024" or "12x768x768".

        Example:
            >>> MatrixBatch.parse("12x768x768").shape
            (12, 768, 768)
        """
        try:
            sizes = tuple(int(size) for size in shape.split("x"))
        except ValueError:
            raise ValueError(f"shape must look like 4096x1024 or 12x768x768, got {shape!r}") from None
        return cls(sizes, **options)

    @property
    def name(self) -> str:
        """The shape as text, such as "12x768x768"."""
        return "x".join(map(str, self.shape))

    def matrices(self, seed: int = 0) -> Tensor:
        """P diag(sigma) Q^T with random orthonormal P and Q, made in double precision; Gaussian without a spectrum."""
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
class Contender:
    """A way to the unitary factor.

    Args:
        name: in tables and plots.
        run: A -> U.
        ours: a method of this library, rather than a peer or a baseline.
        allocates_in_torch: whether torch sees its memory.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    ours: bool = True
    allocates_in_torch: bool = True


def contenders(names: Sequence[str] = ()) -> list[Contender]:
    """The contenders of these names; without names every method of this library, then the peers that are installed.

    Raises:
        ValueError: an unknown name.
    """
    found = [
        *(Contender(name, lambda A, name=name: polar_factor(A, name)) for name in available_methods()),
        *(Contender(f"auto {a:g}", lambda A, a=a: polar_factor(A, accuracy=a)) for a in (1e-1, 1e-3)),
        Contender("qdwh 2 steps", lambda A: polar_factor(A, "qdwh", max_steps=2)),
        Contender("polar-express 5 steps", lambda A: polar_factor(A, "polar-express", max_steps=5)),
        Contender("torch SVD, one by one", lambda A: _each(A, _svd), ours=False),
        Contender("textbook QDWH", textbook_qdwh, ours=False),
        Contender("torch.optim Newton-Schulz", _torch_muon, ours=False),
    ]
    if util.find_spec("scipy"):
        found.append(Contender("scipy.linalg.polar", _scipy, ours=False, allocates_in_torch=False))
    if util.find_spec("jax"):
        found.append(Contender("jax.scipy polar", _jax, ours=False, allocates_in_torch=False))
    known = {contender.name: contender for contender in found}
    if unknown := [name for name in names if name not in known]:
        raise unknown_name("contender", unknown[0], known)
    return [known[name] for name in names or known]


def textbook_qdwh(A: Tensor) -> Tensor:
    """QDWH as in the paper that proposed it: a QR factorization of [sqrt(c) X; I] in every step, no reduction.

    Args:
        A: (*batch, m, n) real.

    Source: Nakatsukasa, Bai, Gygi (2010), eqs. (3.10) and (4.1).

    Example:
        >>> U = textbook_qdwh(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
        >>> U.round().tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    wide = A.shape[-2] < A.shape[-1]
    X = A.mT if wide else A
    m, n = X.shape[-2:]
    X = X / torch.linalg.matrix_norm(X, keepdim=True)
    eps = torch.finfo(X.dtype).eps
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(*X.shape[:-2], n, n)
    low = eps
    while 1.0 - low > 10 * eps:
        d = (4.0 * (1.0 - low**2) / low**4) ** (1 / 3)
        a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * math.sqrt(1 + d)))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        Q = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], dim=-2)).Q
        X = (b / c) * X + (a - b / c) / math.sqrt(c) * (Q[..., :m, :] @ Q[..., m:, :].mT)
        low = min(low * (a + b * low**2) / (1 + c * low**2), 1.0)
    return X.mT if wide else X


def _each(A: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(A) if A.ndim == 2 else torch.stack([function(a) for a in A.flatten(0, -3)]).reshape(A.shape)


def _svd(A: Tensor) -> Tensor:
    P, _, Qh = torch.linalg.svd(A, full_matrices=False)
    return P @ Qh


def _torch_muon(A: Tensor) -> Tensor:
    """The iteration inside torch.optim.Muon; a private function that torch may remove."""
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

    return _each(A, lambda a: _zeropower_via_newtonschulz(a, (DEFAULT_A, DEFAULT_B, DEFAULT_C), 5, 1e-7)).to(A.dtype)


def _scipy(A: Tensor) -> Tensor:
    from scipy import linalg

    return _each(A, lambda a: torch.from_numpy(linalg.polar(a.cpu().numpy())[0]))


@cache
def _jax_polar() -> Callable[[Any], Any]:
    polar = import_module("jax.scipy.linalg").polar
    return import_module("jax").jit(lambda a: polar(a, method="qdwh")[0])


def _jax(A: Tensor) -> Tensor:
    as_array = import_module("jax.numpy").asarray
    return _each(A, lambda a: torch.from_numpy(_jax_polar()(as_array(a.cpu().numpy())).__array__().copy()))


@dataclass(frozen=True)
class PolarMeasurement:
    """One contender on one batch. Times are the best of the repeats; residuals are relative, not divided by eps.

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


class _Reference:
    """Measures factors of one batch A in double precision; what depends on A alone is computed once.

    Orthogonality is taken on the right singular vectors that A determines: all of them if sigma_min >= 8 eps sigma_max,
    else those of sigma >= 100 eps sigma_max. On the others every value in [0, 1] is equally right.
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

    def residuals(self, U: Tensor) -> tuple[float, float, float]:
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
    contender: Contender, batch: MatrixBatch, A: Tensor, *, reference: _Reference | None = None, repeats: int = 3
) -> PolarMeasurement:
    """Time, residuals and memory of one contender; one product A^T A is timed before each of its runs.

    A contender that fails gives a measurement with a note and without numbers.

    Args:
        contender: what to measure.
        batch: what A is, for the record.
        A: (*batch, m, n) the matrices.
        reference: of A, where it is known already.
        repeats: number of runs, of which the fastest counts, since other load only adds time.
    """
    results: list[Tensor] = []
    about = (contender.name, contender.ours, batch.name, batch.dtype, batch.spectrum)
    gram: Callable[[], object] = (lambda: A.mT @ A) if A.shape[-2] >= A.shape[-1] else (lambda: A @ A.mT)
    device = batch.device
    try:
        _seconds(gram, device)
        pair = (_seconds(gram, device), _seconds(lambda: results.append(contender.run(A)), device))
        # The first run warms up, unless it was so long that warming up does not matter.
        pairs = [pair] if pair[1] > _LONG else []
        for _ in range(repeats if pair[1] <= _LONG else 0):
            pairs.append((_seconds(gram, device), _seconds(lambda: contender.run(A), device)))
        U = results.pop()
        peak = peak_bytes(lambda: contender.run(A), device) if contender.allocates_in_torch else None
    except Exception as error:  # whatever a peer raises belongs into the table
        return PolarMeasurement(*about, note=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    gemm, seconds = (min(times) for times in zip(*pairs, strict=True))
    orthogonality, backward_error, definiteness = (reference or _Reference(A)).residuals(U.to(A.device))
    return PolarMeasurement(
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


def benchmark(
    batches: Iterable[MatrixBatch],
    names: Sequence[str] = (),
    *,
    repeats: int = 3,
    report: Callable[[PolarMeasurement], None] = lambda _: None,
) -> list[PolarMeasurement]:
    """Measure every contender on every batch.

    Args:
        batches: what to decompose.
        names: as of `contenders`.
        repeats: as of `measure`.
        report: called with each measurement as it is made.
    """
    chosen = contenders(names)
    measured: list[PolarMeasurement] = []
    for batch in batches:
        A = batch.matrices()
        reference = _Reference(A)
        here = []
        for contender in chosen:
            here.append(measure(contender, batch, A, reference=reference, repeats=repeats))
            report(here[-1])
        # One product for all: the threads of a peer may still slow down the one timed after it.
        gemm = min((m.gemm_seconds for m in here if m.gemm_seconds), default=1.0)
        measured += [
            m if m.seconds is None else replace(m, gemm_seconds=gemm, multiples=m.seconds / gemm) for m in here
        ]
    return measured


def machine() -> dict[str, Any]:
    """The environment of the measurements, with the versions of the peers."""
    return {**environment(), "scipy": version("scipy"), "jax": version("jax"), "mpmath": version("mpmath")}


def _seconds(function: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start
