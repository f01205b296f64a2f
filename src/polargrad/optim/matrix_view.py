"""How a parameter is seen as matrices."""

from __future__ import annotations

from torch import Tensor

__all__ = ["as_matrices"]


def as_matrices(tensor: Tensor) -> Tensor:
    """A parameter's tensor as a batch (k, m, n) of matrices; a view where strides allow.

    2-D (m, n) is one matrix, 3-D (k, m, n) a batch such as experts, 4-D and more a convolution flattened to
    (out, in * kernel).

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> import torch
        >>> as_matrices(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([1, 8, 75])
    """
    if tensor.ndim < 2:
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is no matrix; give vectors and scalars to a group with "
            "rule='adamw' (parameter_groups does so)"
        )
    if tensor.ndim == 3:
        return tensor
    return tensor.reshape(1, tensor.shape[0], -1)
