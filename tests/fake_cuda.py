"""CUDA tensors without a GPU: FakeTensorMode on a CPU build of torch, and what a device would be asked to do.

Fake tensors on "cuda" need a device guard, which a CPU build lacks. One that does nothing is compiled once (a few
seconds) and loaded; where there is no compiler the tests that need it are skipped.
"""

import contextlib
import functools
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""


@functools.cache
def _load_guard() -> str:
    """Compile and load the guard; what went wrong, or "" ."""
    if torch.cuda.is_available():
        return ""
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(_GUARD)
        command = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root}/include", str(source), "-o", str(library)]
        try:
            done = subprocess.run([*command, f"-L{root}/lib", "-lc10"], capture_output=True, text=True, check=False)
        except OSError as error:
            return str(error)
        if done.returncode:
            return done.stderr[-500:]
        torch.ops.load_library(os.fspath(library))
    return ""


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to do, views left out, and what the host would ask it for.

    Attributes:
        counts: calls of each operation that is no view.
        host_reads: calls that wait for the device: a number, a shape that depends on data, a copy to the host, a
            decomposition whose errors are looked at.
        moved: bytes of the tensors that these operations read and write; products are left out.
    """

    _UNMOVED = ("mm", "bmm", "addmm", "baddbmm", "empty", "empty_like", "new_empty", "empty_strided")
    _READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
    _CHECKED = ("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_linalg_solve_ex", "linalg_eig")

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.host_reads = Counter()
        self.moved = 0

    @property
    def total(self):
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        moves = name in ("_to_copy", "copy_") and _on_cuda(args) and not _on_cuda((out,))
        if name in self._READS + self._CHECKED or moves:
            self.host_reads[name] += 1
        if not func.is_view and func.namespace != "prim" and name not in ("detach", "_unsafe_view"):
            self.counts[name] += 1
            if name not in self._UNMOVED:
                tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if _is_dense(leaf)}
                self.moved += sum(t.numel() * t.element_size() for t in tensors.values())
        return out


def _is_dense(leaf):
    """Whether a leaf is a tensor of which every entry is somewhere in memory."""
    return isinstance(leaf, torch.Tensor) and 0 not in leaf.stride()


def _on_cuda(values):
    return any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in values)


@contextlib.contextmanager
def fake_cuda():
    """A context in which tensors on "cuda" have shapes and devices and no memory."""
    if problem := _load_guard():
        pytest.skip(f"no device guard could be compiled: {problem}")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
