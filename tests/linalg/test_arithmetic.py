import os
import subprocess
import sys

import pytest
import torch

from polargrad.linalg import GramNewtonSchulz, NewtonSchulz, arithmetic, newton_schulz, polar_factor
from polargrad.linalg.arithmetic import Arithmetic


def test_a_gpu_of_the_data_centre_multiplies_double_precision_fast():
    found = arithmetic.arithmetic("cuda")
    assert found.half == "bfloat16"
    if not torch.cuda.is_available():
        assert found.double


@pytest.mark.parametrize(
    ("capability", "half", "double"),
    [((7, 0), None, True), ((8, 0), "bfloat16", True), ((8, 6), "bfloat16", False), ((8, 9), "bfloat16", False),
     ((9, 0), "bfloat16", True), ((10, 0), "bfloat16", True), ((12, 0), "bfloat16", False)],
)  # fmt: skip
def test_what_a_compute_capability_says(monkeypatch, capability, half, double):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    found = arithmetic._of_cuda(torch.device("cuda"))
    assert (found.half, found.double) == (half, double)
    assert ".".join(map(str, capability)) in str(found)


def test_a_cpu_without_native_bfloat16_is_told_apart():
    """oneDNN limited to AVX2 stands for a CPU that has no more."""
    script = "from polargrad.linalg.arithmetic import arithmetic; print(arithmetic('cpu').half)"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=limited, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize("method", [NewtonSchulz, GramNewtonSchulz])
def test_polynomials_take_the_dtype_that_the_device_multiplies_fast(monkeypatch, method):
    A = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    for half in (None, "bfloat16"):
        monkeypatch.setattr(newton_schulz, "arithmetic", lambda device, half=half: Arithmetic("x", half, True, ""))
        assert torch.equal(polar_factor(A, method()), polar_factor(A, method(dtype=half)))
    assert not torch.equal(polar_factor(A, method(dtype=None)), polar_factor(A, method(dtype="bfloat16")))
