"""Options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from polargrad.lab.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals between evaluations, reads of the loss, and diagnostics.

    Args:
        eval_every: steps between evaluations; 0: only before the first step and after the last.
        log_every: steps between reads of the loss; every step is recorded, and a larger number lets a GPU run ahead.
        probe_every: steps between computations of singular values, off the timed path; 0: none.
    """

    eval_every: int = option(0, least=0)
    log_every: int = 1
    probe_every: int = option(0, flag="diagnostics_every", least=0)


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Whether gradients are clipped.

    Args:
        clip_grad_norm: largest Frobenius norm of all gradients together; None: no clipping.
    """

    clip_grad_norm: float | None = option(None, flag="clip", metavar="NORM", above=0)


@dataclass(frozen=True)
class LoopConfig(Clipping, Intervals):
    """Length of a run, `Intervals` of what is recorded, `Clipping`, and when a run counts as diverged.

    Args:
        steps: optimizer steps.
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
    divergence_factor: float | None = option(10.0, above=1)
    nonfinite_limit: int | None = 10
    spike_threshold: float | None = option(8.0, above=0)

    def __post_init__(self) -> None:
        check_options(self)
