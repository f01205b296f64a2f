"""Fine-tuning on a CPU: AdamW, Muon and PolarGrad, each at the best of a grid of rates, on seeds that chose nothing.

    python benchmarks/finetuning.py --part vision
    python benchmarks/finetuning.py --part lora

`vision`: a small convolutional network learns scikit-learn's digits 0 to 4, and is then fine-tuned on all ten with few
examples of each. `lora`: a decoder, trained on Python sources by the command that is printed (or given as `--run DIR`),
gets low-rank factors beside its linear layers, which alone learn English prose: the descriptions of data sets that
scikit-learn ships.

Every optimizer is tried at the same rates on a seed and on held-out data of the search's own: four rates a factor of
eight apart, then four around the best of them. The result is the mean and standard deviation over three other seeds, on
other held-out data. A best rate at either end of them all is marked with !: the range was too narrow.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import polargrad
from polargrad.lab.run.environment import cpu_name
from polargrad.lab.train import WarmupLinearDecay, lr_scheduler

MUON = {"momentum": 0.9, "nesterov": True, "scale": "rms", "method": "newton-schulz", "max_steps": 5}
POLAR = {"momentum": 0.9, "scale": "nuclear", "method": "auto"}
VECTORS = {"rule": "adamw", "betas": (0.9, 0.95)}
COARSE = [2.0**k for k in (-11, -8, -5, -2)]
FINE = [1 / 4, 1 / 2, 2.0, 4.0]
TUNING = 100  # the seed of the search
# The optimizer over matrices and other parameters at a rate.
Make = Callable[[list[nn.Parameter], list[nn.Parameter], float], torch.optim.Optimizer]


def polar_over(options: dict, vectors_lr: float) -> Make:
    def make(matrices: list[nn.Parameter], others: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        groups = [{"params": matrices, "lr": lr, **options}]
        return polargrad.PolarGrad([*groups, *([{"params": others, "lr": vectors_lr, **VECTORS}] if others else [])])

    return make


OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda matrices, others, lr: torch.optim.AdamW(
        [*matrices, *others], lr=lr, betas=(0.9, 0.95), weight_decay=0.0
    ),
    "Muon + AdamW": polar_over(MUON, 2e-3),
    "PolarGrad + AdamW": polar_over(POLAR, 2e-3),
}


def train(module: nn.Module, make: Make, lr: float, steps: int, loss: Callable[[int], Tensor]) -> None:
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = make([p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2], lr)
    scheduler = lr_scheduler(optimizer, WarmupLinearDecay(total=steps, warmup=steps // 20, decay_fraction=0.7))
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        scheduler.step()


def compared(title: str, run: Callable[[Make, float, int], float], seeds: Iterable[int]) -> None:
    """Print a row for each optimizer: `run(make, lr, seed)` returns a loss."""
    print(f"\n{title}\n| optimizer | rate | loss of the seeds | mean |\n|---|---|---|---|")
    for name, make in OPTIMIZERS.items():
        tried: dict[float, float] = {}
        for rates in (COARSE, FINE):
            around = 1.0 if rates is COARSE else min(tried, key=tried.__getitem__)
            found = {around * rate: run(make, around * rate, TUNING) for rate in rates}
            tried |= {rate: math.inf if math.isnan(loss) else loss for rate, loss in found.items()}
        best = min(tried, key=tried.__getitem__)
        edge = "!" if best in (COARSE[0] * FINE[0], COARSE[-1] * FINE[-1]) else ""
        losses = [run(make, best, seed) for seed in seeds]
        spread = f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        print(f"| {name} | {best:g}{edge} | {', '.join(f'{loss:.4f}' for loss in losses)} | {spread} |", flush=True)


def vision(steps: int, seeds: Iterable[int]) -> None:
    from sklearn.datasets import load_digits

    pictures, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    X, y = pictures.float().reshape(-1, 1, 8, 8) / 8.0 - 1.0, labels.long()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    test, rest = order[:600], order[600:]
    few = torch.cat([rest[y[rest] == digit][:12] for digit in range(10)])  # twelve of each to fine-tune on

    def batch(numbers: Tensor, seed: int, step: int, module: nn.Module) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 100003 + step)
        chosen = numbers[torch.randint(len(numbers), (32,), generator=draw)]
        return F.cross_entropy(module(X[chosen]), y[chosen])

    torch.manual_seed(0)
    body = nn.Sequential(
        *(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        ),
        *(nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    known = rest[y[rest] < 5]
    train(body, OPTIMIZERS["AdamW"], 2e-3, 300, lambda step: batch(known, 1, step, body))

    def run(make: Make, lr: float, seed: int) -> float:
        module = copy.deepcopy(body)
        torch.manual_seed(seed)
        module[-1].reset_parameters()
        train(module, make, lr, steps, lambda step: batch(few, seed, step, module))
        judged = test[:300] if seed == TUNING else test[300:]
        with torch.no_grad():
            return F.cross_entropy(module(X[judged]), y[judged]).item()

    compared(f"vision: digits, {len(few)} pictures, {steps} steps, loss on 300 others", run, seeds)


class LowRank(nn.Module):
    """x -> W x + b + B A x, of which A (r, n) and B (m, r) are trained; B begins at zero."""

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        super().__init__()
        self.inner = inner
        self.A = nn.Parameter(torch.randn(rank, inner.in_features) / math.sqrt(inner.in_features))
        self.B = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.A.T @ self.B.T


def with_factors(module: nn.Module, rank: int) -> nn.Module:
    """The module with factors beside each linear layer of its blocks; all else is frozen."""
    module.requires_grad_(False)
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear) and "lm_head" not in name:
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], LowRank(child, rank))
    return module


def lora(steps: int, seeds: Iterable[int], folder: Path | None, model: str, rank: int = 8) -> None:
    import sklearn.datasets

    from polargrad.lab.cli.main import main
    from polargrad.lab.run.trained import trained

    if folder is None:
        folder = Path(tempfile.mkdtemp()) / "decoder"
        command = f"pretrain --model {model} --batch 8 --sequence 128 --steps 150"
        print(f"polargrad {command}", flush=True)
        main([*command.split(), "--out", str(folder)])
    found = trained(folder)
    pages = sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    texts = [page.read_text(encoding="utf-8") for page in pages]
    tokens = [torch.tensor(ids) for ids in found.tokenizer.encode(texts)]
    choosing, judging, learned = torch.cat(tokens[:3]), torch.cat(tokens[3:6]), torch.cat(tokens[6:])
    length = found.module.config.max_position_embeddings

    def loss_at(module: nn.Module, text: Tensor, starts: Iterable[int]) -> Tensor:
        windows = torch.stack([text[start : start + length + 1] for start in starts])
        logits = module(input_ids=windows[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    @torch.no_grad()
    def held_out_loss(module: nn.Module, text: Tensor) -> float:
        return loss_at(module.eval(), text, range(0, len(text) - length - 1, length)).item()

    def run(make: Make, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        module = with_factors(copy.deepcopy(found.module), rank).train()

        def loss(step: int) -> Tensor:
            draw = torch.Generator().manual_seed(seed * 100003 + step)
            return loss_at(module, learned, torch.randint(len(learned) - length - 1, (4,), generator=draw).tolist())

        train(module, make, lr, steps, loss)
        return held_out_loss(module, choosing if seed == TUNING else judging)

    before = held_out_loss(found.module, judging)
    title = f"LoRA of rank {rank} on {len(learned):,} tokens of prose, {steps} steps"
    compared(f"{title}; loss on {len(judging):,} other tokens, {before:.4f} before", run, seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("vision", "lora"), default="vision")
    parser.add_argument("--steps", type=int, help="200 of the vision part and 40 of the other by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="laptop", help="decoder of the lora part: demo (1.9M), laptop (10.6M), ...")
    parser.add_argument("--run", type=Path, help="run folder of a trained decoder")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} threads")
    if given.part == "vision":
        vision(given.steps or 200, given.seeds)
    else:
        lora(given.steps or 40, given.seeds, given.run, given.model)
