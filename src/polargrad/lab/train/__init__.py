"""The training loop, its schedules, its records and its probe."""

from polargrad.lab.train.checkpoint import Checkpoint, CheckpointError, CheckpointPolicy, Checkpoints
from polargrad.lab.train.config import LoopConfig
from polargrad.lab.train.loop import Objective, StopRequest, train
from polargrad.lab.train.probe import MatrixProbe
from polargrad.lab.train.progress import Progress, StageLines, terminal_progress
from polargrad.lab.train.run_log import Record, Summary
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
    "LoopConfig",
    "MatrixProbe",
    "Objective",
    "Progress",
    "Record",
    "Schedule",
    "StageLines",
    "StepDecay",
    "StopRequest",
    "Summary",
    "WarmupLinearDecay",
    "lr_scheduler",
    "schedule_from_dict",
    "terminal_progress",
    "train",
]
