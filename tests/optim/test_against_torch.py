"""PolarGrad follows torch's own optimizers where they coincide."""

import pytest
import torch

import polargrad


def _pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(5)]
    return torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone()), gradients


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48), (1, 20), (20, 1)])
@pytest.mark.parametrize(("scale", "adjust"), [("spectral", "original"), ("rms", "match_rms_adamw")])
def test_follows_torch_muon(shape, scale, adjust):
    ours, theirs, gradients = _pair(shape)
    a = polargrad.PolarGrad(
        [ours], lr=0.1, momentum=0.95, nesterov=True, weight_decay=0.1, scale=scale, method="newton-schulz", max_steps=5
    )
    b = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust)
    length = 0.1 * (max(1, shape[0] / shape[1]) ** 0.5 if scale == "spectral" else 0.2 * max(shape) ** 0.5)
    for step, gradient in enumerate(gradients, 1):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        # bfloat16 rounds each entry of a direction of spectral norm at most 1.2 to 2^-8; the five polynomial steps
        # amplify it by their slope near 1 (at most about 4).
        assert (ours - theirs).abs().max() <= step * length * 1.2 * 4 * 2**-8


def test_does_not_follow_muon_with_another_momentum():
    ours, theirs, gradients = _pair((32, 32))
    a = polargrad.PolarGrad([ours], lr=0.1, momentum=0.5, scale="spectral", method="newton-schulz", max_steps=5)
    b = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.95)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert (ours - theirs).abs().max() > 5 * 0.1 * 1.2 * 4 * 2**-8


def test_adamw_groups_are_torch_adamw():
    ours, theirs, gradients = _pair((7,))
    a = polargrad.PolarGrad(
        [{"params": [ours], "rule": "adamw", "lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}]
    )
    b = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        assert torch.equal(ours, theirs)


LAYOUTS = {
    "rows": lambda: torch.randn(5, 4, dtype=torch.float64),
    "transposed": lambda: torch.randn(4, 5, dtype=torch.float64).mT,
    "every second column": lambda: torch.randn(5, 8, dtype=torch.float64)[:, ::2],
    "channels last": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("capturable", [False, True], ids=["read", "capturable"])
@pytest.mark.parametrize("mode", ["plain", "cautious"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adamw_does_not_depend_on_how_a_weight_or_its_gradient_lies_in_memory(layout, dtype, mode, capturable):
    torch.manual_seed(0)
    strided = torch.nn.Parameter(LAYOUTS[layout]().to(dtype))
    plain, theirs = (torch.nn.Parameter(strided.detach().clone(memory_format=torch.contiguous_format)) for _ in "12")
    options = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    ours = {"rule": "adamw", "weight_decay_mode": mode, "capturable": capturable, **options}
    optimizers = [polargrad.PolarGrad([{"params": [p], **ours}]) for p in (strided, plain)]
    optimizers.append(torch.optim.AdamW([theirs], eps=1e-8, **options))
    for _ in range(3):
        gradient = torch.randn(plain.shape, dtype=dtype)
        strided.grad, plain.grad, theirs.grad = gradient, gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(strided, plain)
    if dtype == torch.float64:
        assert torch.allclose(strided, theirs, rtol=0, atol=1e-14) == (mode == "plain")
