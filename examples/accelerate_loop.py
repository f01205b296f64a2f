"""PolarGrad under accelerate: gradient accumulation, clipping, save_state and load_state.

    pip install "polargrad[integrations]"
    python examples/accelerate_loop.py

accelerate needs no bridge: `prepare` takes PolarGrad as it takes every torch optimizer. Prints the losses of a run of
12 optimizer steps, and of one that was stopped after 6 of them, saved, and taken up by objects made anew.
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import polargrad
from polargrad.lab.train import WarmupLinearDecay, lr_scheduler

STEPS = 12
ACCUMULATION = 2
VOCABULARY = 64


def build(accelerator: Accelerator) -> tuple:
    """Model, optimizer, data and schedule, as accelerate wants them."""
    set_seed(0)
    model = nn.Sequential(
        nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, VOCABULARY)
    )
    groups = polargrad.parameter_groups(model, rules=[("4.weight", "head")], hidden={"lr": 0.01})
    optimizer = polargrad.PolarGrad(groups)
    schedule = WarmupLinearDecay(total=STEPS, warmup=2, decay_fraction=0.5)
    scheduler = lr_scheduler(optimizer, schedule)
    tokens = torch.randint(VOCABULARY, (STEPS * ACCUMULATION * 64,))
    data = torch.utils.data.TensorDataset(tokens, (7 * tokens + 3) % VOCABULARY)
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    return accelerator.prepare(model, optimizer, loader, scheduler)


def train(last: int, folder: Path, *, resume: bool = False) -> dict[int, float]:
    """Train up to optimizer step `last`, from the folder where asked, then save; the loss of each step."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    model, optimizer, loader, scheduler = build(accelerator)
    first = 0
    if resume:
        accelerator.load_state(str(folder))
        first = scheduler.scheduler.last_epoch
        loader = accelerator.skip_first_batches(loader, first * ACCUMULATION)
    losses: dict[int, float] = {}
    step = first
    for tokens, following in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(tokens), following)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses[step + 1] = losses.get(step + 1, 0.0) + loss.item() / ACCUMULATION
        step += accelerator.sync_gradients
        if step == last:
            break
    accelerator.save_state(str(folder))
    return losses


def main(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """The losses of an uninterrupted run, and those of one that was interrupted half-way."""
    whole = train(STEPS, folder / "whole")
    resumed = train(STEPS // 2, folder / "half") | train(STEPS, folder / "half", resume=True)
    return whole, resumed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = main(Path(folder))
    for step in whole:
        print(f"step {step:2d}  loss {whole[step]:.6f}  interrupted after {STEPS // 2}: {resumed[step]:.6f}")
    print(f"largest difference: {max(abs(whole[step] - resumed[step]) for step in whole):g}")
