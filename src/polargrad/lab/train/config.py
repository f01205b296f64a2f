"""What a person sets of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from polargrad.lab.checks import check_integer


@dataclass(frozen=True)
class LoopConfig:
    """Length of a run, intervals of what is recorded, and when a run counts as diverged.

    Args:
        steps: optimizer steps.
        eval_every: steps between evaluations, besides the ones before the first and after the last step; 0: only those.
        log_every: steps between reads of the loss. Every step is recorded; a larger number lets a GPU run ahead.
        probe_every: steps between calls of the probe, besides the first step's; 0: none.
        clip_grad_norm: the largest Frobenius norm of all gradients together; None: no clipping.
        divergence_factor: a loss above this many times the first step's ends the run, if that one is positive; None: no
            limit.
        nonfinite_limit: number of steps in a row, whose loss is not finite or of which every update was skipped, that
            ends the run; fewer are events. Between reads of the loss (`log_every`), only the last step's skips are
            known. None: no limit.
        spike_threshold: a loss further above the median of the last 32 than this many times their median absolute
            deviation is an event, recorded once until the loss is back; None: no such events.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> LoopConfig(steps=100, eval_every=20).log_every
        1
    """

    steps: int
    eval_every: int = 0
    log_every: int = 1
    probe_every: int = 0
    clip_grad_norm: float | None = None
    divergence_factor: float | None = 10.0
    nonfinite_limit: int | None = 10
    spike_threshold: float | None = 8.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("eval_every", 0), ("log_every", 1), ("probe_every", 0)):
            check_integer(name, getattr(self, name), least)
        if self.nonfinite_limit is not None:
            check_integer("nonfinite_limit", self.nonfinite_limit)
        for name, least in (("clip_grad_norm", 0), ("divergence_factor", 1), ("spike_threshold", 0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ValueError(f"{name} must be above {least}, or None to do without; got {value!r}")
