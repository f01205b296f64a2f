"""How a parameter is split into matrices: a view that splits a tensor of the parameter's shape and merges it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "MatrixView", "matrix_view"]

# How a parameter of an operator with `out` outputs and `in` inputs is stored. "auto" goes by the dimensions: 2-D
# (out, in), 3-D (batch, out, in), 4-D and more (out, in, *kernel).
LAYOUTS = ("auto", "transposed", "convolution", "transposed-convolution")


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
    # How many matrices there are in all, and whether the parameter is one matrix as it is.
    count: int = field(init=False, compare=False, repr=False)
    is_matrix: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", sum(k for k, _, _ in self.batches))
        object.__setattr__(self, "is_matrix", type(self) is MatrixView and len(self.shape) == 2)

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
        return values[0].reshape(self.batches[0][0], *(1,) * (len(self.shape) - 1))

    @property
    def input_dimensions(self) -> tuple[int, ...]:
        """The dimensions of the parameter that a row of its matrices runs over."""
        first = 2 if len(self.shape) == 3 and self.shape[:2] == self.batches[0][:2] else 1
        return tuple(range(first, len(self.shape)))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one number per row, which broadcasts against the parameter."""
        inputs = self.input_dimensions
        return tuple(1 if d in inputs else size for d, size in enumerate(self.shape))


@dataclass(frozen=True)
class FusedView(MatrixView):
    """A parameter that is stored the other way round, or that holds several matrices one below the other.

    The tensor is brought to (K, out, in) first; its rows are then cut into parts, and each part into heads of equal
    size, so that part i gives a batch (K * heads_i, rows_i / heads_i, in).

    Args:
        stack: K.
        outputs: the dimension of the outputs in `shape`.
        inputs: the dimension of the inputs, a neighbour of `outputs`.
        rows: of each part.
        heads: of each part.
    """

    stack: int
    outputs: int
    inputs: int
    rows: tuple[int, ...]
    heads: tuple[int, ...]

    def split(self, tensor: Tensor) -> list[Tensor]:
        if self.outputs > self.inputs:
            tensor = tensor.transpose(self.outputs, self.inputs)
        whole = tensor.reshape(self.stack, sum(self.rows), -1)
        return [part.reshape(batch) for part, batch in zip(whole.split(self.rows, 1), self.batches, strict=True)]

    def merge(self, batches: Sequence[Tensor]) -> Tensor:
        parts = [batch.reshape(self.stack, rows, -1) for batch, rows in zip(batches, self.rows, strict=True)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if self.outputs < self.inputs:
            return whole.reshape(self.shape)
        sizes = list(self.shape)
        sizes[self.outputs], sizes[self.inputs] = sizes[self.inputs], sizes[self.outputs]
        return whole.reshape(sizes).transpose(self.outputs, self.inputs)

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        per_part = zip(values, self.rows, self.heads, strict=True)
        per_row = [v.reshape(self.stack, h).repeat_interleave(rows // h, dim=1) for v, rows, h in per_part]
        sizes = [1] * len(self.shape)
        sizes[self.outputs] = sum(self.rows)
        if min(self.outputs, self.inputs) == 1:
            sizes[0] = self.stack
        return torch.cat(per_row, dim=1).reshape(sizes)

    @property
    def input_dimensions(self) -> tuple[int, ...]:
        rows = {self.outputs, 0} if min(self.outputs, self.inputs) == 1 else {self.outputs}
        return tuple(d for d in range(len(self.shape)) if d not in rows)


def _integers(option: str, value: Any) -> tuple[int, ...]:
    numbers: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not numbers or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in numbers):
        raise ValueError(f"{option} must be a positive integer or a list of them, got {value!r}")
    return numbers


def _make(shape: tuple[int, ...], layout: str, split: tuple[int, ...] | None, heads: tuple[int, ...]) -> MatrixView:
    if len(shape) < 2:
        raise ValueError(
            f"a parameter of shape {shape} is not a matrix; give vectors and scalars to a group with "
            "rule='adamw' (polargrad.parameter_groups does so)"
        )
    swapped = layout.startswith("transposed")
    if layout == "transposed" and len(shape) > 3:
        raise ValueError(
            f"layout='transposed' is (in, out) or (batch, in, out), got shape {shape}; for the kernel of a transposed "
            "convolution use 'transposed-convolution'"
        )
    stacked = len(shape) == 3 and not layout.endswith("convolution")
    first = 1 if stacked else 0
    outputs, inputs = (first + 1, first) if swapped else (first, first + 1)
    stack = shape[0] if stacked else 1
    m, n = shape[outputs], math.prod(shape[first:]) // max(1, shape[outputs])
    if not swapped and split is None and heads == (1,):
        return MatrixView(shape, ((stack, m, n),))
    rows = (m,) if split is None else split
    if sum(rows) != m:
        raise ValueError(
            f"split={list(rows)} adds up to {sum(rows)}, but a parameter of shape {shape} with layout={layout!r} has "
            f"{m} rows (outputs); give sizes that add up to {m}"
        )
    counts = heads * len(rows) if len(heads) == 1 else heads
    if len(counts) != len(rows):
        raise ValueError(f"heads={list(heads)} must be one number or one for each of the {len(rows)} parts of split")
    if uneven := [(r, h) for r, h in zip(rows, counts, strict=True) if r % h]:
        raise ValueError(f"a part of {uneven[0][0]} rows cannot be cut into {uneven[0][1]} heads of equal size")
    batches = tuple((stack * h, r // h, n) for r, h in zip(rows, counts, strict=True))
    return FusedView(shape, batches, stack, outputs, inputs, rows, counts)


# Made when a group is checked; a step only looks them up, which a compiled step can do too.
_MADE: dict[tuple[Any, ...], MatrixView] = {}


def matrix_view(shape: torch.Size | tuple[int, ...], options: Mapping[str, Any] | None = None) -> MatrixView:
    """How a parameter of `shape` in a group with `options` is split into matrices.

    By default 2-D (m, n) is one matrix, 3-D (k, m, n) a batch such as experts, 4-D and more a convolution flattened to
    (out, in * kernel). The options of a group say otherwise, for each of its parameters:

    - `layout`: "transposed" for (in, out) and (k, in, out), "convolution" to flatten 3-D as well,
      "transposed-convolution" for (in, out, *kernel). Rows are outputs in any case.
    - `split`: sizes along the rows of matrices stored one below the other, such as [q, k, v].
    - `heads`: how many heads of equal size each part is cut into along its rows; a number, or one for each part.

    Args:
        shape: the parameter's shape.
        options: the parameter group.

    Raises:
        ValueError: fewer than two dimensions, an option out of its range, sizes that do not fit the shape.

    Example:
        >>> matrix_view((8, 3, 5, 5)).batches
        ((1, 8, 75),)
        >>> matrix_view((64, 128), {"layout": "transposed", "split": [64, 32, 32], "heads": [4, 2, 2]}).batches
        ((4, 16, 64), (2, 16, 64), (2, 16, 64))
    """
    options = options or {}
    layout, split, heads = options.get("layout", "auto"), options.get("split"), options.get("heads", 1)
    key = (
        tuple(shape),
        layout,
        tuple(split) if isinstance(split, list) else split,
        tuple(heads) if isinstance(heads, list) else heads,
    )
    if key not in _MADE:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
        sizes = None if split is None else _integers("split", split)
        _MADE[key] = _make(tuple(shape), layout, sizes, _integers("heads", heads))
    return _MADE[key]
