"""What gradients, momenta and updates look like as matrices: figures, and a recorder of those that a step computes."""

from polargrad.diagnostics.figures import matrix_metrics
from polargrad.diagnostics.recorder import Recorder

__all__ = ["Recorder", "matrix_metrics"]
