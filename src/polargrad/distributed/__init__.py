"""Many processes: the executor over torch.distributed, and checkpoints that fit any number of ranks."""

from polargrad.distributed.layout import Layout
from polargrad.distributed.processes import ManyProcesses

__all__ = ["Layout", "ManyProcesses"]
