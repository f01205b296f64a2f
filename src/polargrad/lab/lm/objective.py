"""Next-token prediction on a file of tokens, as an objective of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from polargrad.lab.lm.batches import WindowBatches, window_count
from polargrad.lab.lm.tokens import TokenFile
from polargrad.lab.options import check_integer
from polargrad.linalg.precision import at_least_single

if TYPE_CHECKING:
    from polargrad.lab.lm.tokenizer import Tokenizer


class LanguageModelObjective:
    """Mean cross-entropy of the next token over windows of a token file.

    `loss(step) = -1/(B S) sum_{b,s} log p(x[b, s+1] | x[b, :s+1])` over B windows of S + 1 tokens. A step's batch is a
    function of (seed, step) alone (`WindowBatches`), which makes runs paired and resumable. Where the model has more
    tokens than the text, as one that is padded to a multiple of 64, p is over the text's alone, and the rest gets no
    gradient.

    Args:
        module: returns logits (B, S, V) as `module(input_ids=(B, S)).logits`; batches go to its device.
        train: tokens to train on.
        held_out: tokens to evaluate on.
        batch_size: B, windows in a step.
        sequence: S, predicted tokens in a window.
        seed: seed of the order of the windows.
        evaluation_windows: held-out windows that `evaluate` averages over, spread evenly over the file and always the
            same; all of them where there are fewer.
        shuffle: "documents" or "windows": what is reordered in each epoch.
        accumulation: number of parts of equal size that a step's batch is differentiated in, to save memory; a divisor
            of B.
        autocast: the dtype of the forward pass where torch deems it safe (`torch.autocast`), while weights keep their
            own; None: no conversion.
        forward: called instead of `module`, such as `DistributedDataParallel(module)`; None: `module` itself.
        compiled: whether the loss of the logits is one compiled function, which stores fewer copies of them in single
            precision; the module compiles itself.
        group: ranks that divide every batch and the evaluation among them: `loss` is the mean over this rank's part,
            `evaluate` over all of them. None: no division.

    Raises:
        ValueError: a file is shorter than one window, the vocabulary is larger than the module's, the windows are
            longer than the module's positions, a size is below 1, or the parts are not of equal size.
    """

    unit = "token"
    tokenizer: Tokenizer | None = None  # of the text, for whoever reads what the model writes

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
        shuffle: str = "windows",
        accumulation: int = 1,
        autocast: torch.dtype | None = None,
        forward: Callable[..., Any] | None = None,
        compiled: bool = False,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        for name, size in (("evaluation_windows", evaluation_windows), ("accumulation", accumulation)):
            check_integer(name, size)
        self.batches = WindowBatches(train, batch_size=batch_size, sequence=sequence, seed=seed, shuffle=shuffle)
        self._rank, self._ranks = (0, 1) if group is None else (group.rank(), group.size())
        if batch_size % (accumulation * self._ranks):
            ranks = f" times {self._ranks} ranks" if self._ranks > 1 else ""
            raise ValueError(
                f"accumulation {accumulation}{ranks} does not divide the batch of {batch_size} windows; choose a "
                "divisor of it"
            )
        config = getattr(module, "config", None)
        known = getattr(config, "vocab_size", None)
        if known is not None and train.vocab_size > known:
            raise ValueError(
                f"the text has a vocabulary of {train.vocab_size} tokens and the model one of {known}: build the model "
                f"with vocabulary={train.vocab_size}"
            )
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and sequence > longest:
            raise ValueError(
                f"sequence {sequence} is longer than the model's {longest} positions: build it for {sequence}"
            )
        self.module, self.accumulation = module, accumulation
        self.sequence, self.units_per_step = sequence, batch_size * sequence
        self._forward = module if forward is None else forward
        # Rows of a vocabulary beyond the text's are padding, which the loss leaves out.
        self._words = train.vocab_size if known is not None and train.vocab_size < known else None
        self._token_loss = torch.compile(_token_loss) if compiled else _token_loss
        self._group, self._autocast, self._held_out = group, autocast, held_out.tokens
        self._balancing = float(getattr(config, "router_aux_loss_coef", 0.0))
        available = window_count(held_out, sequence, "held-out")
        count = min(evaluation_windows, available)
        self._evaluation_starts = np.arange(count) * available // count * sequence

    def batch(self, step: int) -> Tensor:
        """The windows (B, S + 1) of a step, int64; steps count from 0."""
        return self._placed(self.batches.batch(step))

    def loss(self, step: int) -> Tensor:
        """The mean cross-entropy of a step's batch in nats, with a mixture's balancing loss; steps count from 0."""
        return self._objective(self._share(step))

    def parts(self, step: int) -> Iterator[Tensor]:
        """The summands of `loss(step)`, one for each part of the batch, each computed when it is reached."""
        for part in self._share(step).chunk(self.accumulation):
            yield self._objective(part) / self.accumulation

    def evaluate(self) -> dict[str, float]:
        """The mean cross-entropy over the fixed held-out windows, in nats: `{"val_loss": ...}`."""
        total = torch.zeros((), dtype=torch.float64, device=next(self.module.parameters()).device)
        at_once = self.batches.batch_size // (self.accumulation * self._ranks)
        for at in range(0, len(self._evaluation_starts), at_once * self._ranks):
            own = at + self._rank * at_once
            starts = self._evaluation_starts[own : own + at_once]
            # A rank without windows left still takes part in the forward pass, in which sharded weights are gathered.
            asked = starts if len(starts) else self._evaluation_starts[:1]
            windows = self._held_out[asked[:, None] + np.arange(self.sequence + 1)]
            total += self._cross_entropy(self._placed(windows))[0].double() * len(starts)
        if self._group is not None:
            torch.distributed.all_reduce(total, group=self._group)
        return {"val_loss": float(total) / len(self._evaluation_starts)}

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain values."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a position.

        Raises:
            ValueError: the state is of other data or of another order of batches.
        """
        self.batches.load_state_dict(state)

    def _share(self, step: int) -> Tensor:
        """This rank's part of a step's batch."""
        return self.batch(step).chunk(self._ranks)[self._rank]

    def _placed(self, windows: np.ndarray) -> Tensor:
        batch = torch.from_numpy(windows.astype(np.int64, copy=False))
        device = next(self.module.parameters()).device
        # Pinned, so that the copy does not wait for the steps that the device has still to finish.
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    def _objective(self, windows: Tensor) -> Tensor:
        loss, balance = self._cross_entropy(windows)
        return loss if balance is None else loss + self._balancing * balance

    def _cross_entropy(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss, and for a mixture of experts how unevenly the tokens were distributed over them."""
        dtype = self._autocast
        with contextlib.nullcontext() if dtype is None else torch.autocast(windows.device.type, dtype=dtype):
            output = self._forward(input_ids=windows[:, :-1])
        return self._token_loss(output.logits, windows[:, 1:], self._words), getattr(output, "aux_loss", None)


def _token_loss(logits: Tensor, tokens: Tensor, words: int | None) -> Tensor:
    """The mean cross-entropy of tokens (B, S) under the first `words` logits of (B, S, V), at least in float32."""
    logits = logits.flatten(0, 1)[:, :words]
    return F.cross_entropy(logits.to(at_least_single(logits.dtype)), tokens.flatten())
