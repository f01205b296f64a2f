"""The training loop, its schedules, its records and its probes."""

from polargrad.lab.train.checkpoint import Checkpoint, CheckpointError, CheckpointPolicy, Checkpoints
from polargrad.lab.train.journal import Summary
from polargrad.lab.train.loop import LoopConfig, Objective, train
from polargrad.lab.train.matrix_probe import MatrixProbe
from polargrad.lab.train.metrics import GradientProbe, matrix_metrics
from polargrad.lab.train.progress import Progress, StageLines, terminal_progress
from polargrad.lab.train.schedules import (
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
