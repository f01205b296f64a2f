"""How a parameter is seen as matrices: one object per parameter that takes a tensor apart and puts it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["MatrixView", "matrix_view"]


@dataclass(frozen=True)
class MatrixView:
    """A parameter of `shape` as one or several batches of matrices.

    The optimizer keeps momentum and weights in the parameter's own shape and asks the view for three things: the
    matrices of a tensor, a tensor of matrices, and a number per matrix spread over the parameter's shape. This class
    is the plain view, a single batch (k, m, n) that is a reshape; other layouts override the three methods.

    Args:
        shape: the parameter's shape.
        batches: (k, m, n) of each batch of matrices.
    """

    shape: tuple[int, ...]
    batches: tuple[tuple[int, int, int], ...]

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The batches (k, m, n) of a tensor of the parameter's shape; views where strides allow."""
        return [tensor.reshape(self.batches[0])]

    def merge(self, batches: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`: a tensor of the parameter's shape."""
        return batches[0].reshape(self.shape)

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """One number per matrix, (k,) for each batch, as a tensor that broadcasts against the parameter.

        Example:
            >>> import torch
            >>> matrix_view((3, 4, 2)).spread([torch.ones(3)]).shape
            torch.Size([3, 1, 1])
        """
        if self.batches[0][0] == 1:
            return values[0].reshape((1,) * len(self.shape))
        if len(self.shape) == 3 and len(self.batches) == 1:
            return values[0].reshape(-1, 1, 1)
        full = [v.reshape(-1, 1, 1).expand(batch) for v, batch in zip(values, self.batches, strict=True)]
        return self.merge(full)


@lru_cache(maxsize=4096)
def _plain(shape: torch.Size | tuple[int, ...]) -> MatrixView:
    if len(shape) < 2:
        raise ValueError(
            f"a parameter of shape {tuple(shape)} is no matrix; give vectors and scalars to a group with "
            "rule='adamw' (polargrad.parameter_groups does so)"
        )
    if len(shape) == 3:
        return MatrixView(tuple(shape), ((shape[0], shape[1], shape[2]),))
    columns = 1
    for size in shape[1:]:
        columns *= size
    return MatrixView(tuple(shape), ((1, shape[0], columns),))


def matrix_view(shape: torch.Size | tuple[int, ...], options: Mapping[str, Any] | None = None) -> MatrixView:
    """How a parameter of `shape` in a group with `options` is seen as matrices.

    2-D (m, n) is one matrix, 3-D (k, m, n) a batch such as experts, 4-D and more a convolution flattened to
    (out, in * kernel).

    Args:
        shape: the parameter's shape.
        options: the parameter group, for options that ask for another layout.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> matrix_view((8, 3, 5, 5)).batches
        ((1, 8, 75),)
    """
    return _plain(tuple(shape))
