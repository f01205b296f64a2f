"""The optimizer, and parameter groups for it from a model."""

from polargrad.optim.nonfinite import clip_gradients
from polargrad.optim.polargrad import PolarGrad
from polargrad.optim.roles import describe_groups, parameter_groups

__all__ = ["PolarGrad", "clip_gradients", "describe_groups", "parameter_groups"]
