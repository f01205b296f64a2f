"""PolarGrad in a LightningModule: configure_optimizers, checkpoint, resume.

    pip install "polargrad[integrations]"
    python examples/lightning_module.py

Prints the losses of a run of two epochs of 6 steps, and of one that takes up the checkpoint after the first epoch. (In
the middle of an epoch Lightning takes up everything but the place in a plain DataLoader.)
"""

import logging
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import polargrad
from polargrad.lab.train import WarmupLinearDecay

STEPS = 12
VOCABULARY = 64


class NextToken(LightningModule):
    """Guesses the next token from the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.hidden = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, VOCABULARY)
        self.losses: dict[int, float] = {}

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch (64,) of tokens and what follows each of them."""
        tokens, following = batch
        loss = nn.functional.cross_entropy(self.head(self.hidden(self.embedding(tokens))), following)
        self.losses[self.global_step + 1] = loss.item()
        return loss

    def configure_optimizers(self) -> dict:
        """PolarGrad for all of it; a rule says which layer is the head."""
        return polargrad.integrations.lightning.configure_optimizers(
            self,
            schedule=WarmupLinearDecay(total=STEPS, warmup=2, decay_fraction=0.5),
            rules=[("head.weight", "head")],
            hidden={"lr": 0.01},
        )


def fit(folder: Path, checkpoint: Path | None = None) -> NextToken:
    """Train, from a checkpoint where one is given; after every epoch one is written into the folder."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (STEPS // 2 * 64,), generator=generator)
    data = torch.utils.data.TensorDataset(tokens, (7 * tokens + 3) % VOCABULARY)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = NextToken()
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return module


def main(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """The losses of an uninterrupted run, and those of one resumed from its checkpoint half-way."""
    whole = fit(folder)
    resumed = fit(folder / "resumed", folder / f"step={STEPS // 2}.ckpt")
    return whole.losses, resumed.losses


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = main(Path(folder))
    for step in resumed:
        print(f"step {step:2d}  loss {whole[step]:.6f}  resumed after {STEPS // 2}: {resumed[step]:.6f}")
    print(f"largest difference: {max(abs(whole[step] - resumed[step]) for step in resumed):g}")
