"""Metrics of gradients, momenta and updates as matrices, and a recorder of those that a step computes."""

from polargrad.diagnostics.metrics import matrix_metrics
from polargrad.diagnostics.recorder import Recorder

__all__ = ["Recorder", "matrix_metrics"]
