"""Many processes: the optimizer's protocol over torch.distributed."""

from polargrad.distributed.layout import Layout

__all__ = ["Layout"]
