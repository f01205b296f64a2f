"""How a parameter is split into matrices: a view that splits a tensor of the parameter's shape and merges it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "VIEW_OPTIONS", "MatrixView", "layout_options", "matrix_view"]

# How a parameter of an operator with `out` outputs and `in` inputs is stored. "auto" goes by the dimensions: 2-D
# (out, in), 3-D (batch, out, in), 4-D and more (out, in, *kernel). Any other is spelled with a letter per dimension.
LAYOUTS = ("auto", "transposed", "convolution", "transposed-convolution")
# The options of a group that say how its parameters are split into matrices.
VIEW_OPTIONS = ("layout", "split", "heads", "stack", "interleave")


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
    def rows_share_dimensions(self) -> bool:
        """Whether a dimension counts matrices and also runs along their rows, so that `row_shape` cannot tell rows."""
        return False

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one number per row, which broadcasts against the parameter."""
        inputs = self.input_dimensions
        return tuple(1 if d in inputs else size for d, size in enumerate(self.shape))


@dataclass(frozen=True)
class FusedView(MatrixView):
    """A parameter whose dimensions have another order or meaning, or that holds several matrices one below the other.

    The tensor is brought to (stack, out, in) first; its rows are then cut into parts, and each part into heads of equal
    size, so that part i gives a batch (stack * heads_i, rows_i / heads_i, in).

    Args:
        stack: into how many equal pieces the first dimension is cut, each with matrices of its own.
        inner: the shape of a piece; without the first dimension where that is all stack.
        outputs: the dimensions of `inner` that are outputs, in order; the others are inputs.
        rows: of each part.
        heads: of each part.
        interleave: how many blocks of rows there are, each of which holds rows of every part.
    """

    stack: int
    inner: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    interleave: int

    @property
    def _order(self) -> list[int]:
        inputs = [d for d in range(len(self.inner)) if d not in self.outputs]
        return [0, *(1 + d for d in (*self.outputs, *inputs))]

    def _blocks(self, rows: int) -> tuple[int, int, int, int]:
        return self.stack, self.interleave, rows // self.interleave, -1

    def split(self, tensor: Tensor) -> list[Tensor]:
        whole = tensor.reshape(self.stack, *self.inner).permute(self._order).reshape(self._blocks(sum(self.rows)))
        parts = whole.split([rows // self.interleave for rows in self.rows], dim=2)
        return [part.reshape(batch) for part, batch in zip(parts, self.batches, strict=True)]

    def merge(self, batches: Sequence[Tensor]) -> Tensor:
        parts = [batch.reshape(self._blocks(rows)) for batch, rows in zip(batches, self.rows, strict=True)]
        return self._restore(parts, self.inner)

    def _restore(self, parts: list[Tensor], inner: tuple[int, ...]) -> Tensor:
        """Parts (stack, interleave, rows, columns) in the order of the parameter's dimensions, of which `inner`."""
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        order, sizes = self._order, (self.stack, *inner)
        restored = whole.reshape([sizes[d] for d in order]).permute([order.index(d) for d in range(len(order))])
        merged = len(inner) == len(self.shape)  # the stack lies within the first dimension
        return restored.reshape(self.stack * inner[0], *inner[1:]) if merged else restored

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        per_part = zip(values, self.rows, self.heads, strict=True)
        per_row = [v.reshape(self.stack, h).repeat_interleave(rows // h, dim=1) for v, rows, h in per_part]
        parts = [row.reshape(self._blocks(rows)) for row, rows in zip(per_row, self.rows, strict=True)]
        whole = self._restore(parts, tuple(size if d in self.outputs else 1 for d, size in enumerate(self.inner)))
        return whole.repeat_interleave(self.inner[0], dim=0) if self.rows_share_dimensions else whole

    @property
    def rows_share_dimensions(self) -> bool:
        return self.stack > 1 and len(self.inner) == len(self.shape) and 0 not in self.outputs

    @property
    def input_dimensions(self) -> tuple[int, ...]:
        skipped = len(self.shape) - len(self.inner)
        return tuple(d + skipped for d in range(len(self.inner)) if d not in self.outputs)


def _integers(option: str, value: Any) -> tuple[int, ...]:
    numbers: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not numbers or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in numbers):
        raise ValueError(f"{option} must be a positive integer or a list of them, got {value!r}")
    return numbers


def _letters(dimensions: int, layout: str) -> str:
    """A letter per dimension of a parameter: k where each index is another matrix, o for outputs, i for inputs."""
    named = {"auto": {3: "koi"}, "transposed": {2: "io", 3: "kio"}, "convolution": {}, "transposed-convolution": {}}
    if layout in named:
        letters = named[layout].get(dimensions, "oi" + "i" * (dimensions - 2))
        return letters if layout != "transposed-convolution" else "io" + letters[2:]
    return layout


def layout_options(dimensions: int, letters: str) -> dict[str, Any]:
    """The option `layout` for a parameter whose dimensions are spelled by letters, by its name where it has one.

    Example:
        >>> layout_options(2, "oi"), layout_options(2, "io"), layout_options(3, "ioo")
        ({}, {'layout': 'transposed'}, {'layout': 'ioo'})
    """
    name = next((name for name in LAYOUTS if _letters(dimensions, name) == letters), letters)
    return {} if name == "auto" else {"layout": name}


def _make(
    shape: tuple[int, ...], layout: str, split: tuple[int, ...] | None, heads: tuple[int, ...], stack: int, blocks: int
) -> MatrixView:
    if len(shape) < 2:
        raise ValueError(
            f"a parameter of shape {shape} is not a matrix; give vectors and scalars to a group with "
            "rule='adamw' (polargrad.parameter_groups does so)"
        )
    if layout == "transposed" and len(shape) > 3:
        raise ValueError(
            f"layout='transposed' is (in, out) or (batch, in, out), got shape {shape}; for the kernel of a transposed "
            "convolution use 'transposed-convolution'"
        )
    letters = _letters(len(shape), layout)
    if len(letters) != len(shape):
        raise ValueError(f"layout={layout!r} spells {len(letters)} dimensions, got a parameter of shape {shape}")
    inner = shape
    if letters.startswith("k"):
        if stack > 1:
            raise ValueError(f"stack={stack} cuts the first dimension, which layout={layout!r} gives to the matrices")
        stack, inner, letters = shape[0], shape[1:], letters[1:]
    elif shape[0] % stack:
        raise ValueError(f"stack={stack} does not divide the first dimension of a parameter of shape {shape}")
    else:
        inner = (shape[0] // stack, *shape[1:])
    outputs = tuple(d for d, letter in enumerate(letters) if letter == "o")
    m = math.prod(inner[d] for d in outputs)
    n = math.prod(inner) // max(1, m)
    plain = outputs == (0,) and (len(shape) == 3 if len(inner) < len(shape) else stack == 1)
    if plain and split is None and heads == (1,) and blocks == 1:
        return MatrixView(shape, ((stack, m, n),))
    rows = (m,) if split is None else split
    if sum(rows) != m:
        raise ValueError(
            f"split={list(rows)} adds up to {sum(rows)}, but a parameter of shape {shape} with layout={layout!r} has "
            f"{m} rows (outputs); give sizes that add up to {m}"
        )
    if uneven := [r for r in rows if r % blocks]:
        raise ValueError(f"a part of {uneven[0]} rows cannot be spread evenly over interleave={blocks} blocks")
    counts = heads * len(rows) if len(heads) == 1 else heads
    if len(counts) != len(rows):
        raise ValueError(f"heads={list(heads)} must be one number or one for each of the {len(rows)} parts of split")
    if uneven := [(r, h) for r, h in zip(rows, counts, strict=True) if r % h]:
        raise ValueError(f"a part of {uneven[0][0]} rows cannot be cut into {uneven[0][1]} heads of equal size")
    batches = tuple((stack * h, r // h, n) for r, h in zip(rows, counts, strict=True))
    return FusedView(shape, batches, stack, inner, outputs, rows, counts, blocks)


# Made when a group is checked; a step only looks them up, which a compiled step can do too.
_MADE: dict[tuple[Any, ...], MatrixView] = {}


def matrix_view(shape: torch.Size | tuple[int, ...], options: Mapping[str, Any] | None = None) -> MatrixView:
    """How a parameter of `shape` in a group with `options` is split into matrices.

    By default 2-D (m, n) is one matrix, 3-D (k, m, n) a batch such as experts, 4-D and more a convolution flattened to
    (out, in * kernel). The options of a group say otherwise, for each of its parameters:

    - `layout`: "transposed" for (in, out) and (k, in, out), "convolution" to flatten 3-D as well,
      "transposed-convolution" for (in, out, *kernel). Any other order is spelled with a letter per dimension: o for an
      output, i for an input, and k for a first dimension whose every index is another matrix, as in "ioo" for
      (in, heads, size). Rows are outputs in any case.
    - `stack`: how many operators the first dimension holds one after another: groups of a convolution, experts
      stored as (experts * out, in).
    - `split`: sizes along the rows of matrices stored one below the other, such as [q, k, v].
    - `interleave`: how many blocks of rows there are that hold, each, an equal share of every part of `split`:
      the number of heads where rows are stored as (heads, 3, size).
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
        >>> matrix_view((32, 4, 3, 3), {"stack": 8}).batches
        ((8, 4, 36),)
    """
    options = options or {}
    layout, split, heads = options.get("layout", "auto"), options.get("split"), options.get("heads", 1)
    stack, blocks = options.get("stack", 1), options.get("interleave", 1)
    key = (
        tuple(shape),
        layout,
        tuple(split) if isinstance(split, list) else split,
        tuple(heads) if isinstance(heads, list) else heads,
        stack,
        blocks,
    )
    if key not in _MADE:
        spelled = isinstance(layout, str) and set(layout.removeprefix("k")) == {"o", "i"}
        if layout not in LAYOUTS and not spelled:
            raise ValueError(
                f"layout must be one of {', '.join(map(repr, LAYOUTS))}, or a letter per dimension, o for outputs, i "
                f"for inputs and k for a stack that comes first, got {layout!r}"
            )
        sizes = None if split is None else _integers("split", split)
        (pieces,), (each,) = (_integers(name, [value]) for name, value in (("stack", stack), ("interleave", blocks)))
        view = _make(tuple(shape), layout, sizes, _integers("heads", heads), pieces, each)
        _MADE[key] = view
    view = _MADE[key]
    if options.get("normalize_rows") is not None and view.rows_share_dimensions:
        raise ValueError(
            f"normalize_rows does not know the rows of a parameter of shape {tuple(shape)} with layout={layout!r} and "
            f"stack={stack}, whose first dimension holds matrices and their inputs; leave normalize_rows out"
        )
    return view
