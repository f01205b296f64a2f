"""PolarGrad behind torchtitan's optimizer contract: two pipeline stages, a checkpoint, and another cut on resuming.

    python examples/torchtitan_style.py

Needs torch and polargrad alone, and runs in one process. In torchtitan a training spec takes

    build_optimizers_fn=lambda parts, *_: torchtitan.build_optimizers(parts, rules=[("output.weight", "head")])

Prints the losses of a run of 12 steps in two stages, and of one that was stopped after 6 of them, saved by
`torch.distributed.checkpoint`, and taken up as one stage.
"""

import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from polargrad.integrations import torchtitan
from polargrad.lab.train import WarmupLinearDecay

STEPS = 12
VOCABULARY = 64


class Stage(nn.Module):
    """Some of the layers of a model, under their names in the whole model; a stage lacks the others."""

    def __init__(self, layers: range) -> None:
        super().__init__()
        torch.manual_seed(0)
        embedding, output = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        blocks = {str(i): nn.Linear(32, 32) for i in range(4)}
        self.tok_embeddings = embedding if 0 in layers else None
        self.layers = nn.ModuleDict({name: block for name, block in blocks.items() if int(name) in layers})
        self.output = output if 3 in layers else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (n,) into the first stage, hidden states (n, 32) between stages, logits out of the last."""
        if self.tok_embeddings is not None:
            x = self.tok_embeddings(x)
        for layer in self.layers.values():
            x = x + nn.functional.gelu(layer(x))
        return x if self.output is None else self.output(x)


def train(cut: list[range], first: int, last: int, folder: Path) -> dict[int, float]:
    """Train a cut of the model from step `first`, whose checkpoint is taken up, and save after step `last`."""
    parts = [Stage(layers) for layers in cut]
    optimizers = torchtitan.build_optimizers(parts, rules=[("output.weight", "head")], hidden={"lr": 0.01})
    schedule = WarmupLinearDecay(total=STEPS, warmup=2, decay_fraction=0.5)
    schedulers = torchtitan.build_lr_schedulers(optimizers, schedule)
    weights = {name: weight for part in parts for name, weight in part.state_dict().items()}
    if first:
        state = {"model": weights, "optimizer": optimizers.state_dict(), "lr_scheduler": schedulers.state_dict()}
        dcp.load(state, checkpoint_id=folder / f"step-{first}", no_dist=True)  # in place for the weights
        optimizers.load_state_dict(state["optimizer"])
        schedulers.load_state_dict(state["lr_scheduler"])
    losses = {}
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(VOCABULARY, (256,), generator=generator)
        x = tokens
        for part in parts:
            x = part(x)
        loss = nn.functional.cross_entropy(x, (7 * tokens + 3) % VOCABULARY)
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        schedulers.step()
        losses[step + 1] = loss.item()
    state = {"model": weights, "optimizer": optimizers.state_dict(), "lr_scheduler": schedulers.state_dict()}
    dcp.save(state, checkpoint_id=folder / f"step-{last}", no_dist=True)
    return losses


def main(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """The losses of an uninterrupted run of two stages, and of one that changes to a single stage half-way."""
    two, one = [range(2), range(2, 4)], [range(4)]
    whole = train(two, 0, STEPS, folder / "whole")
    resumed = train(two, 0, STEPS // 2, folder / "half") | train(one, STEPS // 2, STEPS, folder / "half")
    return whole, resumed


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch.distributed")  # that no process group is needed
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = main(Path(folder))
    for step in whole:
        print(f"step {step:2d}  loss {whole[step]:.6f}  one stage from {STEPS // 2} on: {resumed[step]:.6f}")
    print(f"largest difference: {max(abs(whole[step] - resumed[step]) for step in whole):g}")
