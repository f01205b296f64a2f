"""A plain training loop with PolarGrad: train, save, resume.

    python examples/plain_loop.py

Needs torch and polargrad alone. Prints the losses of a run of 20 steps, and of one that was stopped after 10 steps,
saved, and taken up again from the file by objects made anew.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import polargrad
from polargrad.lab.train import WarmupLinearDecay, lr_scheduler

STEPS = 20
VOCABULARY = 64


def build() -> tuple[nn.Module, polargrad.PolarGrad, torch.optim.lr_scheduler.LambdaLR]:
    """A model that guesses the next token from the last one, one optimizer for all of it, and a schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, VOCABULARY)
    )
    optimizer = polargrad.PolarGrad(groups_of(model))
    schedule = WarmupLinearDecay(total=STEPS, warmup=2, decay_fraction=0.5)
    return model, optimizer, lr_scheduler(optimizer, schedule)


def groups_of(model: nn.Module) -> list[dict]:
    """One group for each role; a pass over an example shows which layer is the head."""
    return polargrad.parameter_groups(model, example=batch(0)[0], hidden={"lr": 0.01})


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (256,) and what follows each of them; a function of the step alone, so that resuming finds its place."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (256,), generator=generator)
    return tokens, (7 * tokens + 3) % VOCABULARY


def train(last: int, path: Path, *, resume: bool = False) -> dict[int, float]:
    """Train up to step `last`, from the file where asked, then save; the loss of each step."""
    model, optimizer, scheduler = build()
    first = 0
    if resume:
        saved = torch.load(path, weights_only=True)  # nothing but tensors and plain data in it
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first = saved["step"]
    losses = {}
    for step in range(first, last):
        tokens, following = batch(step)
        loss = nn.functional.cross_entropy(model(tokens), following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses[step + 1] = loss.item()
    saved = {
        "step": last,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(saved, path)
    return losses


def main(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """The losses of an uninterrupted run, and those of one that was interrupted half-way."""
    print(polargrad.describe_groups(groups_of(build()[0])))
    whole = train(STEPS, folder / "whole.pt")
    resumed = train(STEPS // 2, folder / "half.pt") | train(STEPS, folder / "half.pt", resume=True)
    return whole, resumed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = main(Path(folder))
    for step in whole:
        print(f"step {step:2d}  loss {whole[step]:.6f}  interrupted after {STEPS // 2}: {resumed[step]:.6f}")
    print(f"largest difference: {max(abs(whole[step] - resumed[step]) for step in whole):g}")
