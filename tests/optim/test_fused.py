"""The kernels of a step against their plain twins, on a GPU; on a CPU, that nothing takes them."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

import polargrad
from polargrad.optim import fused

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
VARIANTS = {
    "muon": {"nesterov": True, "scale": "spectral", "weight_decay": 0.1},
    "average": {"scale": "nuclear"},
    "heavy-ball": {"momentum_order": "heavy-ball", "nesterov": True, "scale": "rms"},
    "cautious": {"weight_decay": 0.1, "weight_decay_mode": "cautious", "scale": "rms"},
    "ascent": {"maximize": True, "weight_decay": 0.1, "scale": "mean-singular"},
    "bfloat16 momentum": {"momentum_dtype": "bfloat16", "scale": "spectral"},
    "group": {"scale": "adaptive-nuclear", "scope": "group"},
}


# Run where TRITON_INTERPRET is set before Triton is imported: its interpreter takes tensors of a CPU.
INTERPRETED = """
import itertools, torch
from polargrad.optim import fused

torch.manual_seed(0)
random = lambda dtype: [torch.randn(53, 97).to(dtype) for _ in range(3)]
keep, flags = torch.tensor([True, False, True]), (False, True)
for dtype, heavy, nesterov, in_place in itertools.product((torch.float32, torch.bfloat16), flags, flags, flags):
    G, M = random(dtype), random(dtype)
    G[1][3, 4] = torch.nan
    before = [m.float().clone() for m in M]
    N = fused.momentum(G, M, keep, beta=0.9, heavy=heavy, nesterov=nesterov, in_place=in_place)
    for i, (g, m) in enumerate(zip([g.float() for g in G], before)):
        found = (M if in_place else N)[i].float()
        if nesterov and i == 1:
            assert found.isfinite().all()
            continue
        new = (0.9 * m + g if heavy else m + (1 - 0.9) * (g - m)) if i != 1 else m
        if nesterov:
            new = g + 0.9 * new if heavy else new + (1 - 0.9) * (g - new)
        torch.testing.assert_close(found, new, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
for dtype, cautious, sign in itertools.product((torch.float32, torch.bfloat16), flags, (1.0, -1.0)):
    W, D, length, rate = random(torch.float32), torch.stack(random(dtype)), [0.1, 0.0, 0.2], [0.01, 0.0, 0.02]
    D[1] = torch.nan
    before = [w.clone() for w in W]
    fused.update(W, D, torch.tensor(length), torch.tensor(rate), cautious=cautious, sign=sign)
    assert torch.equal(W[1], before[1])
    for i in (0, 2):
        w, d = before[i], D[i].float()
        decayed = torch.where(sign * d * w >= 0, 1 - rate[i], 1.0) if cautious else 1 - rate[i]
        torch.testing.assert_close(W[i], decayed * w - sign * length[i] * d, rtol=1e-6, atol=1e-6)
"""


@pytest.mark.skipif(fused.triton is None, reason="needs Triton, as in a CUDA build of torch")
def test_kernels_by_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


def test_tensors_on_a_cpu_are_not_taken():
    assert not fused.can_fuse([torch.randn(3, 4)])


class TestOnAGPU:
    pytestmark = gpu

    def run(self, monkeypatch, kernels, dtype, bad, **options):
        with monkeypatch.context() as patch:
            if not kernels:
                patch.setattr(fused, "can_fuse", lambda tensors: False)
            generator = torch.Generator("cuda").manual_seed(0)
            weights = [torch.randn(96, 64, device="cuda", generator=generator).to(dtype) for _ in range(3)]
            weights = [torch.nn.Parameter(weight) for weight in weights]
            optimizer = polargrad.PolarGrad(weights, lr=0.05, method="svd", **options)
            for step in range(4):
                for weight in weights:
                    weight.grad = torch.randn(96, 64, device="cuda", generator=generator).to(dtype)
                if bad and step == 2:
                    weights[1].grad[3, 4] = torch.nan
                optimizer.step()
            momenta = [optimizer.state[weight]["momentum_buffer"] for weight in weights]
            return torch.stack([*weights]).detach(), torch.stack(momenta), optimizer

    @pytest.mark.parametrize("bad", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_step_by_kernels_is_the_step(self, monkeypatch, variant, dtype, bad):
        assert fused.can_fuse([torch.zeros(3, 4, device="cuda")])
        options = VARIANTS[variant]
        W, M, optimizer = self.run(monkeypatch, True, dtype, bad, **options)
        V, N, plain = self.run(monkeypatch, False, dtype, bad, **options)
        eps = max(torch.finfo(dtype).eps, torch.finfo(N.dtype).eps)
        torch.testing.assert_close(M, N, rtol=8 * eps, atol=8 * eps)
        # The factor of a slightly different momentum differs by that over its smallest singular value.
        torch.testing.assert_close(W, V, rtol=0.0, atol=200 * eps)
        with pytest.warns(UserWarning, match="skipped") if bad else contextlib.nullcontext():
            assert optimizer.skipped == plain.skipped == int(bad)

    def test_a_matrix_that_does_not_step_stays_bit_for_bit(self):
        W = [torch.randn(70, 50, device="cuda") for _ in range(2)]
        before = [w.clone() for w in W]
        D = torch.full((2, 70, 50), torch.nan, device="cuda")
        D[0] = 1.0
        length, decay = torch.tensor([[0.1, 0.0], [0.01, 0.0]], device="cuda")
        fused.update(W, D, length, decay, cautious=False, sign=1.0)
        assert torch.equal(W[1], before[1])
        torch.testing.assert_close(W[0], before[0] * 0.99 - 0.1)
