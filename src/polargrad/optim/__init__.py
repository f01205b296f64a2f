"""The optimizer and the routing of a model's parameters to it."""

from polargrad.optim.polargrad import PolarGrad
from polargrad.optim.routing import parameter_groups

__all__ = ["PolarGrad", "parameter_groups"]
