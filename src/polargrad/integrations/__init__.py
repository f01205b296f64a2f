"""Thin bridges to training frameworks, which are imported only where a bridge needs them.

A plain loop and accelerate need no bridge: `PolarGrad` is a `torch.optim.Optimizer`.
"""

from polargrad.integrations import lightning, skorch, torchtitan, transformers

__all__ = ["lightning", "skorch", "torchtitan", "transformers"]
