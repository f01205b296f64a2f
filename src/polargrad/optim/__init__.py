"""The optimizer and the routing of a model's parameters to it."""

from polargrad.optim.polargrad import PolarGrad
from polargrad.optim.routing import describe_groups, parameter_groups

__all__ = ["PolarGrad", "describe_groups", "parameter_groups"]
