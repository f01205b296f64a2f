"""Many processes: the optimizer's protocol over torch.distributed."""

from polargrad.distributed.layout import Layout
from polargrad.distributed.processes import ManyProcesses

__all__ = ["Layout", "ManyProcesses"]
