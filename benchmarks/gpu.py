"""Everything that only a GPU can say, in one run of at most nine minutes; each result is on disk at once.

    python benchmarks/gpu.py --out gpu-results                   on a machine with a GPU
    python benchmarks/gpu.py --out gpu-results --tiny            on a CPU, seconds: does the script run
    python benchmarks/gpu.py --out gpu-results --parts engine steps

Parts, the most valuable first. One that fails, or runs over its time, is recorded and leaves the others alone:

    kernels      `pytest -m gpu` of the kernels of a step and of products, compiled, against their plain twins
    symmetric    X^T X and b G + c G^2 by tiles of half the result, in several cuts, beside cuBLAS's whole product
    profile      the kernels that a step of GPT-2 Medium consists of, by their time
    steps        optimizer steps of three models beside torch.optim.Muon and fused AdamW, with and without a graph
    ceilings     products in each precision, copies, LAPACK calls: what anything else can be compared with
    reads        how often a step waits for the device, for each method and option (0 is claimed)
    accuracy     factors against float64, spectra from well conditioned to singular
    engine       every method beside torch's Newton-Schulz and SVD: time and memory
    train        GPT-2 Small under a plain loop with fused AdamW, then four recipes, rates searched alike
    qwen         Qwen2.5 of 540 million parameters, 20 steps
    tests        `pytest -m gpu tests/optim/test_capture.py`
    capture      a CUDA graph of each method's step; last, since a capture that fails spoils the process

Results: OUT/results.jsonl, a line each, with the seconds since the start. Text for the training parts: a file of uint16
token ids, `--tokens`, made by benchmarks/gpu_text.py; random ids otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import polargrad
from polargrad.linalg import PolarExpress, available_methods
from polargrad.linalg.arithmetic import arithmetic
from polargrad.linalg.qdwh import halley_weights

START = time.monotonic()
MUON = {"momentum": 0.95, "nesterov": True, "scale": "spectral", "weight_decay": 0.1}
NS5 = {"method": "newton-schulz", "max_steps": 5}
# Options of a step that change what it computes; each with Newton-Schulz, unless it says another.
VARIANTS: list[dict[str, Any]] = [
    {"momentum_order": "polar-first", "nesterov": True, "scale": "rms", "weight_decay": 0.1, **NS5},
    {"momentum_order": "heavy-ball", "weight_decay": 0.1, "weight_decay_mode": "cautious", **NS5},
    {"scale": "adaptive-nuclear", "scope": "group", **NS5},
    {"geometry": "right-polar"},
    {"normalize_rows": 0.9, "scale": "rms", **NS5},
    {"momentum_dtype": "bfloat16", "scale": "spectral", **NS5},
]
HIDDEN = {  # how many of which shape, the hidden matrices of each model; the slowest beside torch first
    "gpt2-medium": [(24, (3072, 1024)), (24, (1024, 1024)), (24, (4096, 1024)), (24, (1024, 4096))],
    "gpt2-small": [(12, (2304, 768)), (12, (768, 768)), (12, (3072, 768)), (12, (768, 3072))],
    "qwen2.5-540m": [(48, (1024, 1024)), (24, (4864, 1024)), (12, (1024, 4864))],
}


class Bench:
    """Where results go, what device they are of, and how things are timed."""

    def __init__(self, out: Path, tiny: bool, tokens: Path | None, seconds: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.tiny, self.tokens, self.seconds = out, tiny, tokens, seconds
        self.device = "cpu" if tiny else "cuda"
        self.file = (out / "results.jsonl").open("a", buffering=1)

    def say(self, part: str, **facts: Any) -> None:
        """Write a result to disk at once."""
        line = json.dumps({"t": round(time.monotonic() - START, 1), "part": part, **facts}, default=str)
        self.file.write(line + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        print(line[:300], flush=True)

    @contextlib.contextmanager
    def guarded(self, part: str, seconds: float, **facts: Any) -> Iterator[None]:
        """Record what fails in here, or takes longer than so many seconds, and go on."""

        def late(*_: object) -> None:
            raise TimeoutError(f"longer than {seconds} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "polargrad" in f.filename][-3:]
            self.say(part, failed=f"{type(error).__name__}: {str(error)[:300]}", where=where, **facts)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.tiny:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], budget: float = 0.2) -> float:
        """The median time of a call after warm-up, by events on a GPU; calls of seconds are timed once."""
        self.synchronize()
        begin = time.perf_counter()
        call()
        self.synchronize()
        first = time.perf_counter() - begin
        if first > 1.0:
            return first * 1e3
        times = []
        call()
        if self.tiny:
            for _ in range(3):
                begin = time.perf_counter()
                call()
                times.append((time.perf_counter() - begin) * 1e3)
            return statistics.median(times)
        self.synchronize()
        begin = time.perf_counter()
        call()
        self.synchronize()
        count = max(3, min(30, int(budget / max(time.perf_counter() - begin, 1e-5))))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        self.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))

    def extra_bytes(self, call: Callable[[], Any]) -> int | None:
        """The most memory that a call holds beyond what was held before it."""
        if self.tiny:
            return None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A call that replays the CUDA graph of a call."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def ceilings(bench: Bench) -> None:
    """Products, copies and LAPACK."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,power.draw", "--format=csv,noheader"]
    card = "none" if bench.tiny else subprocess.run(query, capture_output=True, text=True).stdout.strip()
    known = arithmetic(bench.device)
    bench.say("machine", torch=torch.__version__, card=card, arithmetic=str(known), threads=torch.get_num_threads())
    n = 256 if bench.tiny else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False), (torch.float64, False)):
        with bench.guarded("product", 20, dtype=str(dtype), tf32=tf32):
            size = n // 2 if dtype == torch.float64 else n
            A, B = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                ms = bench.milliseconds(lambda A=A, B=B: A @ B)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False
            bench.say("product", dtype=str(dtype), tf32=tf32, n=size, ms=ms, tflops=2 * size**3 / ms / 1e9)
    with bench.guarded("copy", 10):
        x = torch.randn(2**20 if bench.tiny else 2**29, device=bench.device)
        y = torch.empty_like(x)
        bench.say("copy", tb_per_s=8 * x.numel() / bench.milliseconds(lambda: y.copy_(x)) / 1e9)
    for n, k in ((64, 1),) if bench.tiny else ((768, 1), (768, 12), (1024, 1), (4096, 1)):
        A = torch.randn(k, 2 * n, n, device=bench.device, dtype=torch.float64)
        G = A.mT @ A / n
        calls = {
            "product": lambda G=G: G @ G,
            "cholesky_ex": lambda G=G: torch.linalg.cholesky_ex(G),
            "cholesky_inverse": lambda G=G: torch.cholesky_inverse(G),
            "solve_triangular": lambda G=G, A=A: torch.linalg.solve_triangular(G, A, upper=True, left=False),
            "qr": lambda A=A: torch.linalg.qr(A),
            "eigh": lambda G=G: torch.linalg.eigh(G),
        }
        for name, call in calls.items():
            if name in ("eigh", "qr") and k * n > 1024:
                continue
            with bench.guarded("lapack", 12, call=name, n=n, k=k):
                bench.say("lapack", call=name, n=n, k=k, ms=bench.milliseconds(call, 0.1))


def small_optimizer(bench: Bench, lr: float | torch.Tensor = 0.1, **options: Any):
    """Four matrices and two vectors with gradients, and their optimizer."""
    matrices = [torch.randn(shape, device=bench.device) for shape in ((96, 64), (96, 64), (64, 64), (256, 64))]
    vectors = [torch.randn(shape, device=bench.device) for shape in (4, 6)]
    weights = [torch.nn.Parameter(value) for value in matrices + vectors]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    groups = [{"params": weights[:4], **options}, {"params": weights[4:], "rule": "adamw"}]
    return weights, polargrad.PolarGrad(groups, lr=lr, capturable=not bench.tiny)


def every_step() -> list[dict[str, Any]]:
    """The options of each step that is looked at."""
    return [{"method": name} for name in available_methods()] + [{"method": "qdwh", "max_steps": 2}, NS5, *VARIANTS]


def reads(bench: Bench) -> None:
    """How often a step waits for the device."""
    if bench.tiny:
        return
    for options in every_step():
        with bench.guarded("reads", 15, options=options):
            _, optimizer = small_optimizer(bench, **options)
            optimizer.step()
            optimizer.step()
            bench.synchronize()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    optimizer.step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits = [w for w in seen if "synchroniz" in str(w.message) and "prototype" not in str(w.message)]
            where = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})[:6]
            bench.say("reads", options=options, waits=len(waits), where=where)


def capture(bench: Bench) -> None:
    """A CUDA graph of each step: does it record, and do the weights move when it is replayed."""
    if bench.tiny:
        return
    for options in every_step():
        if options.get("method") in ("svd", "newton", "zolo-pd"):
            continue  # LAPACK calls that synchronize; a failed capture would spoil what comes after
        with bench.guarded("capture", 20, options=options):
            weights, optimizer = small_optimizer(bench, torch.tensor(0.1, device=bench.device), **options)
            replay = bench.graph(optimizer.step)
            before = [weight.detach().clone() for weight in weights]
            replay()
            bench.synchronize()
            moved = all(not torch.equal(a, b) for a, b in zip(weights, before, strict=True))
            finite = all(bool(weight.isfinite().all()) for weight in weights)
            bench.say("capture", options=options, moved=moved, finite=finite)


def _matrix(shape: tuple[int, int], spectrum: str, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(1)
    A = torch.randn(shape, device=device, dtype=torch.float64, generator=generator)
    if spectrum == "gaussian":
        return A
    n = min(shape)
    V = torch.linalg.qr(torch.randn(n, n, device=device, dtype=torch.float64, generator=generator))[0]
    if spectrum == "rank n/2":
        sigma = (torch.arange(n, device=device) < n // 2).double()
    else:
        sigma = torch.logspace(0, -float(spectrum), n, dtype=torch.float64, device=device)
    return (torch.linalg.qr(A)[0] * sigma) @ V.mT


def accuracy(bench: Bench) -> None:
    """Backward error ||A - U H|| / ||A|| and singular values of U, in float64, for each method on the device."""
    shapes = ((60, 40),) if bench.tiny else ((300, 256), (1024, 1024), (8192, 512))
    for shape in shapes:
        for spectrum in ("gaussian", "6", "9", "rank n/2"):
            A = _matrix(shape, spectrum, bench.device)
            for name in available_methods():
                if name == "newton" and shape[0] != shape[1]:
                    continue
                with bench.guarded("accuracy", 15, shape=shape, spectrum=spectrum, method=name):
                    U = polargrad.polar_factor(A.float(), name).double()
                    K = U.mT @ A
                    sigma = torch.linalg.svdvals(U)
                    error = torch.linalg.matrix_norm(A - U @ (K + K.mT) / 2) / torch.linalg.matrix_norm(A)
                    bench.say(
                        "accuracy", shape=shape, spectrum=f"10^-{spectrum}" if spectrum.isdigit() else spectrum,
                        method=name, backward_error=error.item(), smallest=sigma.min().item(),
                        largest=sigma.max().item(),
                    )  # fmt: skip


def qdwh_by_qr(A: torch.Tensor) -> torch.Tensor:
    """The textbook's QDWH in the matrix's own precision, by Householder QR where the weight is above 100."""
    X = A / torch.linalg.matrix_norm(A, keepdim=True)
    eye = torch.eye(A.shape[-1], device=A.device).expand(*A.shape[:-2], -1, -1)
    for a, b, c in halley_weights(1e-7, 1e-6):
        if c > 100.0:
            Q, _ = torch.linalg.qr(torch.cat([c**0.5 * X, eye], dim=-2))
            Y = Q[..., : A.shape[-2], :] @ Q[..., A.shape[-2] :, :].mT / c**0.5
        else:
            Y = torch.cholesky_solve(X.mT, torch.linalg.cholesky(eye + c * X.mT @ X)).mT
        X = b / c * X + (a - b / c) * Y
    return X


def peers() -> dict[str, Callable[[torch.Tensor], Any]]:
    """Newton-Schulz of torch, QDWH of the textbook, and of other libraries those that are installed."""
    from torch.optim._muon import _zeropower_via_newtonschulz as torch_newton_schulz

    def torch_muon(A: torch.Tensor) -> list[torch.Tensor]:
        return [torch_newton_schulz(a, (3.4445, -4.775, 2.0315), 5, 1e-7) for a in A.reshape(-1, *A.shape[-2:])]

    found: dict[str, Callable[[torch.Tensor], Any]] = {"torch muon": torch_muon, "qdwh by qr": qdwh_by_qr}
    try:
        from gram_newton_schulz import POLAR_EXPRESS_COEFFICIENTS, GramNewtonSchulz
    except ImportError:
        return found
    found["gram_newton_schulz"] = GramNewtonSchulz(
        ns_coefficients=POLAR_EXPRESS_COEFFICIENTS, gram_newton_schulz_reset_iterations=[2]
    )
    return found


def engine(bench: Bench) -> None:
    """Every method beside those of others, and torch's SVD."""
    big = ((1024, 1024), (4096, 1024), (12, 3072, 768), (50304, 768), (1000, 64, 64), (100000, 3, 3), (4096, 4096))
    contenders: dict[str, Callable[[torch.Tensor], Any] | dict[str, Any]] = {
        **peers(),
        "newton-schulz": NS5,
        "gram-newton-schulz": {"method": "gram-newton-schulz"},
        "polar-express 5 bfloat16": {"method": PolarExpress(max_steps=5, dtype="bfloat16")},
        "polar-express": {"method": "polar-express"},
        "auto": {},
        "auto 0.3": {"accuracy": 0.3},
        "auto 1e-3": {"accuracy": 1e-3},
        "qdwh": {"method": "qdwh"},
        "qdwh 2": {"method": "qdwh", "max_steps": 2},
        "zolo-pd": {"method": "zolo-pd"},
        "svd": {"method": "svd"},
    }
    for shape in ((96, 64),) if bench.tiny else big:
        A = torch.randn(shape, device=bench.device)
        for name, options in contenders.items():
            slow = name in ("svd", "zolo-pd", "qdwh", "qdwh by qr") and (
                min(shape[-2:]) > 1024 or A.numel() // shape[-1] > 20000
            )
            if slow or (name == "torch muon" and shape[0] >= 1000 and len(shape) == 3):
                continue
            with bench.guarded("engine", 40 if name == "gram_newton_schulz" else 8, shape=shape, method=name):
                own = functools.partial(polargrad.polar_factor, **options) if isinstance(options, dict) else options
                call = functools.partial(own, A)
                extra = bench.extra_bytes(call)
                ms = bench.milliseconds(call, 0.15)
                graphed = None
                if not bench.tiny and name in ("newton-schulz", "gram-newton-schulz", "auto", "torch muon"):
                    graphed = bench.milliseconds(bench.graph(call), 0.1)
                mib = None if extra is None else round(extra / 2**20)
                bench.say("engine", shape=shape, method=name, ms=ms, graph_ms=graphed, extra_mib=mib)


def symmetric(bench: Bench) -> None:
    """Products with a symmetric result, in bfloat16."""
    if bench.tiny:
        return
    for shape in ((24, 1024, 1024), (24, 4096, 1024), (12, 768, 768), (12, 3072, 768), (1, 1024, 1024), (1, 4096, 4096),
                  (8, 512, 512)):  # fmt: skip
        with bench.guarded("symmetric", 20, shape=shape):
            _symmetric(bench, torch.randn(shape, device=bench.device, dtype=torch.bfloat16))


def _symmetric(bench: Bench, X: torch.Tensor) -> None:
    from polargrad.linalg.kernels import tiled

    cuts = [tiled.Tiling(*cut) for cut in ((128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 4), (128, 128, 8, 3),
                                           (64, 64, 4, 4), (64, 128, 4, 3))]  # fmt: skip
    G = tiled.symmetric_product(X.mT, X)
    exact = X.double().mT @ X.double()
    R = G / torch.linalg.matrix_norm(G.float(), keepdim=True).to(G.dtype)
    error = (torch.linalg.matrix_norm(G.double() - exact) / torch.linalg.matrix_norm(exact)).max().item()
    calls: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "X^T X": (lambda: X.mT @ X, lambda cut: tiled.symmetric_product(X.mT, X, tiling=cut)),
        "b G + c G^2": (
            lambda: torch.baddbmm(R, R, R, beta=-4.775, alpha=2.03),
            lambda cut: tiled.symmetric_product(R, R, R, beta=-4.775, alpha=2.03, tiling=cut),
        ),
    }
    if X.shape[1] == X.shape[2]:
        calls["X X^T"] = (lambda: X @ X.mT, lambda cut: tiled.symmetric_product(X, X.mT, tiling=cut))
    for name, (plain, by_tiles) in calls.items():
        times = {str(tuple(cut)): bench.milliseconds(functools.partial(by_tiles, cut), 0.05) for cut in cuts}
        whole, shape = bench.milliseconds(plain, 0.05), tuple(X.shape)
        bench.say("symmetric", shape=shape, call=name, whole=whole, cuts=times, error=error)


def profile(bench: Bench) -> None:
    """What a step of GPT-2 Medium spends its time on, Newton-Schulz plain and in the Gram form."""
    if bench.tiny:
        return
    for model, method in (("gpt2-medium", "newton-schulz"), ("gpt2-medium", "gram-newton-schulz")):
        with bench.guarded("profile", 30, model=model, method=method):
            shapes = [shape for k, shape in HIDDEN[model] for _ in range(k)]
            weights = [torch.nn.Parameter(torch.randn(shape, device=bench.device) * 0.02) for shape in shapes]
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer = polargrad.PolarGrad(weights, lr=0.02, **MUON, method=method, capturable=True)
            for _ in range(3):
                optimizer.step()
            bench.synchronize()
            activities = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as seen:
                optimizer.step()
                bench.synchronize()
            events = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)
            for event in events[:16]:
                ms = event.device_time_total / 1e3
                bench.say("profile", model=model, method=method, kernel=event.key[:90], count=event.count, ms=ms)
            total = sum(event.device_time_total for event in events) / 1e3
            bench.say("profile", model=model, method=method, total_ms=total)


def steps(bench: Bench) -> None:
    """Optimizer steps over the hidden matrices of three models."""
    ours = {
        "newton-schulz 5": NS5,
        "gram-newton-schulz": {"method": "gram-newton-schulz"},
        "polar-express 5 bfloat16": {"method": PolarExpress(max_steps=5, dtype="bfloat16")},
        "qdwh 2": {"method": "qdwh", "max_steps": 2},
        "auto": {},
    }
    for model, shapes in list(HIDDEN.items())[: 1 if bench.tiny else None]:
        chosen = [(1, (64, 32))] if bench.tiny else shapes
        weights = [
            torch.nn.Parameter(torch.randn(shape, device=bench.device) * 0.02) for k, shape in chosen for _ in range(k)
        ]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        lr = torch.tensor(0.02, device=bench.device)
        makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "torch Muon": lambda w=weights: torch.optim.Muon(w, lr=0.02, weight_decay=0.1),
            "torch AdamW": lambda w=weights, lr=lr: torch.optim.AdamW(
                w, lr=lr, fused=not bench.tiny, capturable=not bench.tiny
            ),
        }
        for name, options in ours.items():
            makers[name] = lambda w=weights, lr=lr, o=options: polargrad.PolarGrad(
                w, lr=lr, **MUON, **o, capturable=not bench.tiny
            )
        for name, make in makers.items():
            with bench.guarded("step", 20, model=model, optimizer=name):
                optimizer = make()
                optimizer.step()
                extra = bench.extra_bytes(optimizer.step)
                ms = bench.milliseconds(optimizer.step, 0.3)
                begin = time.perf_counter()
                optimizer.step()
                host = (time.perf_counter() - begin) * 1e3
                mib = None if extra is None else round(extra / 2**20)
                bench.say("step", model=model, optimizer=name, ms=ms, host_ms=host, extra_mib=mib)
                if not bench.tiny and name != "torch Muon":
                    replayed = bench.milliseconds(bench.graph(optimizer.step), 0.2)
                    bench.say("step graph", model=model, optimizer=name, ms=replayed)
            optimizer = None
            gc.collect()
        del weights
        if not bench.tiny:
            torch.cuda.empty_cache()


class Subject:
    """A model with its text on the device, trained again and again from the same weights on the same batches."""

    def __init__(self, bench: Bench, model: str, *, batch: int, accumulation: int) -> None:
        from polargrad.lab import lm

        sizes = lm.architecture("demo" if bench.tiny else model)
        # Products with a number of columns that is a multiple of 64 take the fast kernels; the loss leaves them out.
        sizes = dataclasses.replace(sizes, vocabulary=-(-sizes.vocabulary // 64) * 64)
        self.bench, self.model = bench, model
        self.net = sizes.build(seed=0).to(bench.device)
        self.start = {name: value.clone() for name, value in self.net.state_dict().items()}
        text = text_of(bench, sizes.vocabulary)
        options = {"batch_size": batch, "sequence": sizes.sequence, "accumulation": accumulation}
        autocast = torch.bfloat16
        self.plain = lm.LanguageModelObjective(
            self.net, *text, **options, evaluation_windows=batch, autocast=autocast, forward=self.net.forward
        )
        self.objective = lm.LanguageModelObjective(
            self.net, *text, **options, autocast=autocast, compiled=not bench.tiny
        )
        if not bench.tiny:
            self.net.compile()
            with bench.guarded("compile", 120, model=model):
                begin = time.monotonic()
                next(iter(self.objective.parts(0))).backward()
                bench.synchronize()
                bench.say("compile", model=model, seconds=time.monotonic() - begin)
                return
            self.objective = self.plain

    def train(
        self,
        name: str,
        make: Callable[[torch.nn.Module], torch.optim.Optimizer],
        *,
        steps: int,
        seconds: float,
        evaluate: bool = False,
        **facts: Any,
    ) -> float:
        """The held-out loss, or the mean of the last five; warm-up over a tenth, decay over the last 70%."""
        bench, result = self.bench, math.inf
        with bench.guarded("train", seconds, model=self.model, optimizer=name, **facts):
            self.net.load_state_dict(self.start)
            self.net.zero_grad(set_to_none=True)
            if not bench.tiny:
                torch.cuda.reset_peak_memory_stats()
            optimizer = make(self.net)
            rates = [group["lr"] for group in optimizer.param_groups]
            losses, marks = [], []
            for step in range(steps):
                factor = min((step + 1) / (0.1 * steps), 1.0, (steps - step) / (0.7 * steps))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                marks.append([_mark(bench)])
                total = torch.zeros((), device=bench.device)
                for loss in self.objective.parts(step):
                    loss.backward()
                    total += loss.detach()
                marks[-1].append(_mark(bench))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                marks[-1].append(_mark(bench))
                losses.append(total)
            bench.synchronize()
            late = marks[len(marks) // 2 :]
            model_ms = statistics.median(_between(bench, a, b) for a, b, _ in late)
            optimizer_ms = statistics.median(_between(bench, b, c) for _, b, c in late)
            values = [loss.item() for loss in losses]
            last = statistics.mean(values[-5:])
            held_out = None
            if evaluate:
                with torch.no_grad():
                    held_out = self.plain.evaluate()["val_loss"]
            bench.say(
                "train", model=self.model, optimizer=name, steps=steps, first=values[0], last=last, held_out=held_out,
                model_ms=model_ms, optimizer_ms=optimizer_ms, share=optimizer_ms / (model_ms + optimizer_ms),
                tokens_per_s=self.objective.units_per_step / (model_ms + optimizer_ms) * 1e3,
                skipped=getattr(optimizer, "skipped", 0), **facts,
                peak_gb=None if bench.tiny else torch.cuda.max_memory_allocated() / 1e9,
                curve=[round(v, 3) for v in values[:: max(1, len(values) // 25)]],
            )  # fmt: skip
            found = last if held_out is None else held_out
            result = found if math.isfinite(found) else math.inf
        return result


def text_of(bench: Bench, vocabulary: int) -> Any:
    """The tokens to train on and those held out: the file with its facts beside it, or random ones."""
    import numpy as np

    from polargrad.lab.lm.tokens import EncodedCorpus, TokenFile

    if bench.tokens is None:
        ids = (np.random.default_rng(0).zipf(1.3, 500_000) % vocabulary).astype("<u2")
        return EncodedCorpus(*(TokenFile(part, vocabulary, "random") for part in (ids[:400_000], ids[400_000:])))
    facts = json.loads(bench.tokens.with_suffix(".json").read_text())
    ids, count = np.memmap(bench.tokens, dtype="<u2", mode="r"), facts["train_tokens"]
    files = (TokenFile(part, facts["vocab_size"], facts["sha256"]) for part in (ids[:count], ids[count:]))
    return EncodedCorpus(*files)


def _recipe(name: str, factors: dict[str, float] | None = None) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    """A recipe of the laboratory with its rates, each times a factor of its role."""
    from polargrad.lab.recipes import optimizer_for

    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        groups = polargrad.parameter_groups(model)
        options = optimizer_for(name, {group["role"] for group in groups})
        made = []
        for group in groups:
            chosen = dict(options[group["role"]])
            chosen["lr"] *= 1.0 if factors is None else factors[group["role"]]
            facts = ("params", "role") if chosen["rule"] == "adamw" else ("params", "role", "layout")
            made.append({**{key: group[key] for key in facts if key in group}, **chosen})
        return polargrad.PolarGrad(made)

    return make


def _mark(bench: Bench) -> Any:
    if bench.tiny:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(bench: Bench, begin: Any, end: Any) -> float:
    """Milliseconds."""
    return (end - begin) * 1e3 if bench.tiny else begin.elapsed_time(end)


def train(bench: Bench) -> None:
    """GPT-2 Small at an eighth of the track's batch: speed beside a plain loop, then recipes, rates searched alike."""

    def fused(net: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=not bench.tiny)

    begin = time.monotonic()
    subject = Subject(bench, "gpt2-small", batch=4 if bench.tiny else 64, accumulation=2)
    brief, runs = (2, 3) if bench.tiny else (20, 6)
    loops = ("plain loop, torch AdamW fused", fused), ("adamw", _recipe("adamw"))
    for name, make in loops:
        compiled = time.monotonic()
        subject.train(name, make, steps=brief, seconds=30)
    one = (time.monotonic() - compiled) / brief  # of a step
    names = ("muon+adamw", "muon+normalized-tables", "adamw", "normuon+normalized-tables")
    left = bench.seconds - (time.monotonic() - begin)
    # Recipes' optimizers take up to a tenth of a step more than AdamW, and each run is evaluated.
    steps = 3 if bench.tiny else max(60, int(left / (runs * len(names)) / (1.1 * one)))
    for name in names:
        search(subject, name, steps, runs)


def search(subject: Subject, name: str, steps: int, runs: int) -> None:
    """Search a recipe's rates: those of some roles doubled or halved one after the other, the better kept.

    Every run has the length that is judged: what wins at 40 steps was too high for 147.
    """
    together = (("hidden",), ("embedding", "head", "tied"), ("vector", "position"))
    moves = list(itertools.product(together, (2.0, 0.5)))
    best: dict[str, float] = {role: 1.0 for roles, _ in moves for role in roles}
    tried = [best]
    least = subject.train(name, _recipe(name, best), steps=steps, seconds=60, evaluate=True, factors=best)
    while len(tried) < runs:
        near = ({role: v * by if role in roles else v for role, v in best.items()} for roles, by in moves)
        new = next((point for point in near if point not in tried), None)
        if new is None:
            break
        tried.append(new)
        loss = subject.train(name, _recipe(name, new), steps=steps, seconds=60, evaluate=True, factors=new)
        if loss < least:
            best, least = new, loss


def qwen(bench: Bench) -> None:
    """Qwen2.5 of 540 million parameters for 20 steps."""
    subject = Subject(bench, "qwen2.5-540m", batch=4 if bench.tiny else 16, accumulation=1)
    subject.train("muon+polargrad", _recipe("muon+polargrad"), steps=2 if bench.tiny else 20, seconds=60)


def tests_of(name: str, *files: str) -> Callable[[Bench], None]:
    """A part that runs the gpu tests of some files in another process, and keeps their output."""

    def part(bench: Bench) -> None:
        if bench.tiny:
            return
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        (bench.out / f"{name}.txt").write_text(done.stdout[-200_000:] + done.stderr[-20_000:])
        bench.say(name, code=done.returncode, tail=done.stdout.strip().splitlines()[-4:])

    return part


PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {  # with the latest second at which each may begin
    "kernels": (tests_of("kernels", "tests/optim/test_fused.py", "tests/linalg/test_kernels.py"), 30),
    "symmetric": (symmetric, 60),
    "profile": (profile, 80),
    "steps": (steps, 100),
    "ceilings": (ceilings, 150),
    "reads": (reads, 180),
    "accuracy": (accuracy, 210),
    "engine": (engine, 270),
    "train": (train, 350),
    "qwen": (qwen, 460),
    "tests": (tests_of("tests", "tests/optim/test_capture.py"), 500),
    "capture": (capture, 530),
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU, to try the script")
    parser.add_argument("--tokens", type=Path, help="tokens.bin of benchmarks/gpu_text.py, its tokens.json beside it")
    parser.add_argument("--seconds", type=float, default=280, help="of the part train, for the steps of its runs")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="which parts; default all")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --tiny tries the script on a CPU")
    bench = Bench(given.out, given.tiny, given.tokens, given.seconds)
    for name in given.parts:
        part, latest = PARTS[name]
        if time.monotonic() - START > latest and len(given.parts) > 1:
            bench.say(name, skipped="too late")
            continue
        with bench.guarded(name, 600):
            part(bench)
        bench.say(name, done=True)


if __name__ == "__main__":
    main()
