"""The training loop, its schedules, its records and its probes."""

from polargrad.train.checkpoint import Checkpoint, CheckpointError, CheckpointPolicy, Checkpoints
from polargrad.train.journal import Summary
from polargrad.train.loop import LoopConfig, Objective, train
from polargrad.train.matrix_probe import MatrixProbe
from polargrad.train.metrics import GradientProbe, matrix_metrics
from polargrad.train.progress import Progress, StageLines, terminal_progress
from polargrad.train.schedules import (
    Constant,
    Cosine,
    Schedule,
    StepDecay,
    WarmupLinearDecay,
    lr_scheduler,
    schedule_from_dict,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointPolicy",
    "Checkpoints",
    "Constant",
    "Cosine",
    "GradientProbe",
    "LoopConfig",
    "MatrixProbe",
    "Objective",
    "Progress",
    "Schedule",
    "StageLines",
    "StepDecay",
    "Summary",
    "WarmupLinearDecay",
    "lr_scheduler",
    "matrix_metrics",
    "schedule_from_dict",
    "terminal_progress",
    "train",
]
