"""The training loop, its schedules, its records and its probes."""

from .journal import Summary
from .loop import LoopConfig, Objective, train
from .metrics import GradientProbe, matrix_metrics
from .progress import Progress, terminal_progress
from .schedules import Constant, Cosine, Schedule, StepDecay, WarmupLinearDecay, schedule_from_dict

__all__ = [
    "Constant",
    "Cosine",
    "GradientProbe",
    "LoopConfig",
    "Objective",
    "Progress",
    "Schedule",
    "StepDecay",
    "Summary",
    "WarmupLinearDecay",
    "matrix_metrics",
    "schedule_from_dict",
    "terminal_progress",
    "train",
]
