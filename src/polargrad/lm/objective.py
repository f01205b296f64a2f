"""Next-token prediction on a file of tokens, as an objective of the training loop."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polargrad.lm.tokenization import TokenFile


class LanguageModelObjective:
    """Mean cross-entropy of the next token over windows of a token file.

    `loss(step) = -1/(B S) sum_{b,s} log p(x[b, s+1] | x[b, :s+1])` over B windows of S + 1 tokens. An epoch is a
    permutation of the file's windows, drawn from (seed, epoch), and shifts the windows' borders; a step's batch is
    therefore a function of (seed, step) alone, which makes runs paired and resumable.

    Args:
        module: gives logits (B, S, V) as `module(input_ids=(B, S)).logits`; its device is where batches go.
        train: tokens to train on.
        held_out: tokens to evaluate on.
        batch_size: B, windows in a step.
        sequence: S, predicted tokens in a window.
        seed: of the order of the windows.
        evaluation_windows: held-out windows that `evaluate` averages over, spread evenly over the file and always the
            same; all of them where there are fewer.

    Raises:
        ValueError: a file is shorter than one window, the vocabulary is larger than the module's, the windows are
            longer than the module's positions, or a size is below 1.
    """

    unit = "token"

    def __init__(
        self,
        module: torch.nn.Module,
        train: TokenFile,
        held_out: TokenFile,
        *,
        batch_size: int = 16,
        sequence: int = 128,
        seed: int = 0,
        evaluation_windows: int = 256,
    ) -> None:
        for name, size in (
            ("batch_size", batch_size),
            ("sequence", sequence),
            ("evaluation_windows", evaluation_windows),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {size!r}")
        if seed < 0:
            raise ValueError(f"seed must not be negative; got {seed}")
        _check_fit(module, train, sequence)
        self.module = module
        self.batch_size = batch_size
        self.sequence = sequence
        self.seed = seed
        self.units_per_step = batch_size * sequence
        self._tokens = train.tokens
        # One window fewer than fit leaves the borders room to shift by a whole sequence.
        self._windows = max(1, _window_count(train, sequence, "training") - 1)
        self._held_out = held_out.tokens
        available = _window_count(held_out, sequence, "held-out")
        count = min(evaluation_windows, available)
        self._evaluation_starts = np.arange(count) * available // count * sequence
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int) -> Tensor:
        """The windows (B, S + 1) of a step, int64; steps count from 0."""
        drawn = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(drawn, self._windows)
        starts = [self._starts(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]
        return self._gather(self._tokens, np.asarray(starts))

    def loss(self, step: int) -> Tensor:
        """The mean cross-entropy of a step's batch, in nats; steps count from 0."""
        return self._cross_entropy(self.batch(step))

    def evaluate(self) -> dict[str, float]:
        """The mean cross-entropy over the fixed held-out windows, in nats: `{"val_loss": ...}`."""
        total = torch.zeros((), dtype=torch.float64)
        for at in range(0, len(self._evaluation_starts), self.batch_size):
            starts = self._evaluation_starts[at : at + self.batch_size]
            total += self._cross_entropy(self._gather(self._held_out, starts)).double().cpu() * len(starts)
        return {"val_loss": float(total) / len(self._evaluation_starts)}

    def _starts(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            room = len(self._tokens) - 1 - self._windows * self.sequence
            shift = int(random.integers(min(room, self.sequence - 1) + 1))
            self._epoch = (epoch, random.permutation(self._windows) * self.sequence + shift)
        return self._epoch[1]

    def _gather(self, tokens: np.ndarray, starts: np.ndarray) -> Tensor:
        windows = tokens[starts[:, None] + np.arange(self.sequence + 1)]
        return torch.from_numpy(windows.astype(np.int64)).to(next(self.module.parameters()).device)

    def _cross_entropy(self, windows: Tensor) -> Tensor:
        logits = self.module(input_ids=windows[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def _window_count(file: TokenFile, sequence: int, role: str) -> int:
    count = (len(file.tokens) - 1) // sequence
    if count < 1:
        raise ValueError(
            f"the {role} text has {len(file.tokens)} tokens, and one sequence needs {sequence + 1}: give more text, or "
            f"a sequence of at most {max(1, len(file.tokens) - 1)}"
        )
    return count


def _check_fit(module: torch.nn.Module, train: TokenFile, sequence: int) -> None:
    config = getattr(module, "config", None)
    known = getattr(config, "vocab_size", None)
    if known is not None and train.vocab_size > known:
        raise ValueError(
            f"the text has a vocabulary of {train.vocab_size} tokens and the model one of {known}: build the model "
            f"with vocab_size={train.vocab_size}"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and sequence > longest:
        raise ValueError(f"sequence {sequence} is longer than the model's {longest} positions: build it for {sequence}")
