"""How a model uses each of its parameters, read from the operators of one forward pass."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from polargrad.optim.matrix_view import layout_options
from polargrad.optim.restore import has_storage, restored, sharded_modules, view_key

__all__ = ["Usage", "watch"]

# The operands of products and what their dimensions are: b a batch, f free, c contracted.
_PRODUCTS: dict[str, tuple[tuple[int, str], ...]] = {
    "mm": ((0, "fc"), (1, "cf")),
    "addmm": ((1, "fc"), (2, "cf")),
    "_addmm_activation": ((1, "fc"), (2, "cf")),
    "bmm": ((0, "bfc"), (1, "bcf")),
    "baddbmm": ((1, "bfc"), (2, "bcf")),
    "mv": ((0, "fc"), (1, "c")),
    "addmv": ((1, "fc"), (2, "c")),
    "dot": ((0, "c"), (1, "c")),
    "vdot": ((0, "c"), (1, "c")),
    "_grouped_mm": ((0, "fc"), (1, "bcf")),
    "grouped_mm_fallback": ((0, "fc"), (1, "bcf")),
    "_trilinear": ((0, ""), (1, "fcc"), (2, "")),
}
# Operators that move numbers and copy them, with the view that would have moved them without a copy.
_COPIES = {
    "unsafe_split": torch.ops.aten.split.Tensor,
    "unsafe_split_with_sizes": torch.ops.aten.split_with_sizes.default,
    "split_with_sizes_copy": torch.ops.aten.split_with_sizes.default,
    "_unsafe_view": torch.ops.aten.view.default,
    "_reshape_copy": torch.ops.aten.view.default,
    "expand_copy": torch.ops.aten.expand.default,
    "repeat": lambda tensor, sizes: tensor.repeat(sizes),
    "_nested_get_values": lambda tensor: tensor,
    "_nested_view_from_jagged": lambda tensor, *_: tensor,
}
# Operators that keep the shape and treat all entries, or all rows along a dimension, alike.
_SAME_SHAPE = {"clone", "_to_copy", "contiguous", "native_dropout", "_softmax", "_log_softmax"}
_SAME_SHAPE |= {"lift_fresh_copy", "_weight_norm_interface", "complex", "polar"}
_JOINS = {"cat", "stack", "index_copy", "index_put", "scatter", "slice_scatter", "select_scatter"}
_LOOKUPS = {"embedding": 1, "_embedding_bag": 1, "_embedding_bag_forward_only": 1}
_LOOKUPS |= {"index": 1, "index_select": 2, "gather": 2}
# Operators after which an activation has the same rows, in an order that is not followed.
_SHUFFLES = {*_LOOKUPS, "flip", "roll", "constant_pad_nd", "masked_select", "take"}
_SUMS = {"add", "sub", "rsub", "where", "masked_fill", "copy", "lerp"}
# Names of arguments that count places or kinds of tokens, rather than hold tokens.
_PLACES = re.compile(
    r"(decoder_|encoder_|entity_|text_|image_|video_|visual_|(moe_)?mm_)?(position_ids|token_type_ids)"
    r"|(cache_)?positions?|pos|(task_|input_)?type_ids|token_types?|segments?|segment_ids|bbox|times?|time_?steps?"
)
# Names of outputs that no loss is taken of where there are others: hidden states, attentions, caches, features.
_STATES = re.compile(
    r"(\w+_)?(hidden_states?|attentions?|attn_weights|model_output|past_(key_values?|buckets_states))|pool(er|ed)_output"
)
_FEATURES = re.compile(r"(\w+_)?embeds|hidden|past")
# The most entries of a tensor whose origin is written out, where strides do not tell it; that of a larger one is lost.
_MOST_ENTRIES = 2**26


@dataclass(eq=False)
class _Product:
    """A product of activations with a parameter: which of its dimensions were what, and what became of the result.

    Args:
        parameter: its number.
        letters: k, o or i for each of its dimensions, as a layout is spelled; None where that is not clear.
        stack: how many operators the first dimension holds.
        sizes: of the outputs, whose product is the number of rows.
        kernel: whether it was a convolution.
        active: whether an activation was multiplied, rather than a constant.
        cuts: the sets of rows that were used by themselves.
        consumed: whether the result went into another product.
        logits: whether the result is an output of the model, or enters its loss.
        apart: whether what each index of the first dimension gave was used apart from the others, as by experts.
    """

    parameter: int
    letters: str | None
    stack: int
    sizes: tuple[int, ...]
    kernel: bool
    active: bool
    cuts: list[Tensor] = field(default_factory=list)
    consumed: bool = False
    logits: bool = False
    apart: bool = False

    @property
    def stackable(self) -> bool:
        """Whether the first of several dimensions of outputs may count operators instead."""
        return self.stack == 1 and self.letters is not None and self.letters[0] == "o" and self.letters.count("o") > 1

    def stacked(self) -> _Product:
        """The same with its first dimension as a stack, if it was used as one."""
        if not (self.apart and self.letters):
            return self
        cuts = [cut.view(self.sizes[0], -1).any(0) for cut in self.cuts]
        return dataclasses.replace(self, letters="k" + self.letters[1:], sizes=self.sizes[1:], cuts=cuts)

    @property
    def plain(self) -> bool:
        return self.letters is not None and not layout_options(len(self.letters), self.letters)

    def view(self, shape: tuple[int, ...], *, whole: bool) -> dict[str, Any]:
        """The options that split a parameter of `shape` into its matrices, parts that are used apart unless `whole`."""
        assert self.letters is not None
        options: dict[str, Any] = layout_options(len(shape), self.letters)
        if self.stack > 1:
            options["stack"] = self.stack
        return options if whole else options | _split_options(self.cuts)


class _Weight(NamedTuple):
    """The values of a parameter in a tensor.

    Args:
        parameter: its number.
        place: the indices of the parameter that its entries are of: a meta tensor strided over them, or the integers
            themselves; None if unknown.
        selected: whether an index has picked a part, such as an expert.
        inner: the dimensions of the parameter that products with other parameters have contracted.
        within: how many indices of the first dimension that were.
        patch: whether it was written over some rows of another tensor.
    """

    parameter: int
    place: Tensor | None
    selected: bool = False
    inner: frozenset[int] = frozenset()
    within: int = 1
    patch: bool = False


class _Feature(NamedTuple):
    """The results of a product with a parameter in an activation.

    Args:
        product: which.
        rows: the row of the parameter's matrix that each entry is of, in the activation's shape; None if unknown.
        used: a mask of the rows that are there.
        direct: whether nothing but other products and constants were added, so that this may be a head's output.
        spent: whether the rows have been used, so that only where the operators of a stack go is still to be seen.
        scaled: whether they have been multiplied with something else.
    """

    product: _Product
    rows: Tensor | None
    used: Tensor
    direct: bool
    spent: bool = False
    scaled: bool = False


class _Operand(NamedTuple):
    """A tensor that an operator reads, and what was known of it before."""

    tensor: Tensor
    weights: list[_Weight]
    features: list[_Feature]
    data: bool


class Usage(NamedTuple):
    """What a forward pass shows of a parameter.

    Args:
        role: of `polargrad.optim.roles.ROLES`.
        view: the options `layout`, `stack`, `split` and `interleave` by which it is split into matrices; None where no
            layout spells how it was multiplied.
        tells: what the pass did with it, in words.
    """

    role: str
    view: dict[str, Any] | None
    tells: str


def _dense(tensor: Any) -> Any:
    """The values of a nested tensor one below the other; anything else as it is."""
    return getattr(tensor, "_values", tensor) if type(tensor).__name__ == "NestedTensor" else tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if has_storage(tensor) else id(tensor)


def _moved(operator: Any, place: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Where the entries of an operator's results come from, for an operator that only moves them; empty if unknown."""
    try:
        if getattr(getattr(operator, "_schema", None), "name", "") in ("aten::view", "aten::_unsafe_view"):
            size = args[0] if args else kwargs["size"]
            try:
                return [place.view(size)]
            except RuntimeError:  # views of a copy whose order the parameter's own strides cannot tell
                return [_listed(place).reshape(size)] if place.numel() <= _MOST_ENTRIES else []
        results = operator(place, *args, **kwargs)
    except (RuntimeError, IndexError, TypeError):
        return []
    results = [results] if isinstance(results, Tensor) else list(results)
    # A copy is no view of the parameter's indices, and a view as another type none of its entries.
    if place.is_meta and any(_storage(one) != _storage(place) for one in results):
        return _moved(operator, _listed(place), args, kwargs) if place.numel() <= _MOST_ENTRIES else []
    return [] if any(one.dtype != place.dtype for one in results) else results


def _listed(place: Tensor) -> Tensor:
    """The indices themselves for indices given by strides."""
    return _indices(place, range(place.ndim)) if place.is_meta else place


class _Watcher(TorchDispatchMode):
    """Follows the values of parameters, and the results of products with them, through every operator."""

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor], example: Iterable[Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.shapes = [tuple(p.shape) for p in parameters]
        self.products: list[_Product] = []
        self.lookups: dict[int, set[bool]] = {}
        self.columns: set[int] = set()  # parameters of which columns are looked up
        self.entrywise: dict[int, set[str]] = {}
        self.lost: dict[str, Exception] = {}  # operators that could not be followed
        self.originals: list[tuple[Tensor, Tensor]] = []  # what the pass writes into, and clones from before
        self._unwritten: dict[int, list[Tensor]] = {}
        for tensor in (t for p in model.parameters() for t in (p, p.grad) if t is not None):
            for own in (tensor, getattr(tensor, "_local_tensor", None)):  # the latter of a DTensor
                if own is not None:
                    self._unwritten.setdefault(_storage(own), []).append(own)
        self._weights: dict[tuple[Any, ...], list[_Weight]] = {}
        self._features: dict[tuple[Any, ...], list[_Feature]] = {}
        self._data: set[int] = set()
        self._made: set[int] = set()  # what parameters made of constants, such as a first hidden state
        self._indices: set[int] = set()
        self._alive: list[Any] = []
        numbers = {id(p): i for i, p in enumerate(parameters)}
        self.places = {
            (module, attribute): numbers[id(p)]
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
            for attribute, p in module._parameters.items()
            if id(p) in numbers
        }
        for i, p in enumerate(parameters):
            self._weights[view_key(p)] = [_Weight(i, torch.empty(p.shape, device="meta"))]
        for tensor in example:
            self._data.add(_storage(tensor))
            if not tensor.is_floating_point():
                self._indices.add(_storage(tensor))

    def are_places(self, tensors: Iterable[Tensor]) -> None:
        """Take integers of the example for positions or kinds of tokens, rather than for tokens."""
        self._indices.difference_update(map(_storage, tensors))

    def adopt(self, module: nn.Module, args: Any) -> None:
        """Before a module's forward: what stands in its parameters' places, such as those that FSDP has gathered."""
        for attribute, p in module._parameters.items():
            number = self.places.get((module, attribute))
            if number is not None and p is not None and p is not self.parameters[number]:
                self._weights[view_key(p)] = [_Weight(number, torch.empty(p.shape, device="meta"))]

    # What is known of a tensor

    def weights(self, tensor: Any) -> list[_Weight]:
        return self._weights.get(view_key(tensor), []) if isinstance(tensor, Tensor) else []

    def features(self, tensor: Any) -> list[_Feature]:
        return self._features.get(view_key(tensor), []) if isinstance(tensor, Tensor) else []

    def is_data(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and _storage(tensor) in self._data

    def consume(self, features: Iterable[_Feature], *, product: bool = False, loss: bool = False) -> None:
        """Note that these rows were used together."""
        for feature in (f for f in features if not f.spent):
            feature.product.cuts.append(feature.used)
            feature.product.consumed |= product
            feature.product.logits |= loss and feature.direct

    def enter(self, weights: Iterable[_Weight], how: str) -> None:
        """Note that a parameter met an activation entry by entry, or became one."""
        for w in weights:
            if how == "added" and w.place is None and w.parameter in self.lookups:
                continue  # what was looked up is added to positions; a table that is added as a whole is no embedding
            # A row that was picked of a matrix of biases, such as that of an expert, is a bias.
            if how == "added" and w.selected and w.place is not None:
                wide = len(_varying(w.place, range(w.place.ndim), self.shapes[w.parameter])) > 1
                self.entrywise.setdefault(w.parameter, set()).add(how if wide else "added to all")
            else:
                self.entrywise.setdefault(w.parameter, set()).add(how)

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = self._written(func, args, kwargs)
        inputs = [_dense(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        operands = [_Operand(t, self.weights(t), self.features(t), self.is_data(t)) for t in inputs]
        result = func(*args, **kwargs)
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass of the model's own
            try:
                self._follow(func, tree_map(_dense, args), kwargs, operands, written, tree_map(_dense, result))
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                self.lost.setdefault(str(func), error)
        return result

    def _follow(
        self, func: Any, args: Any, kwargs: Any, operands: list[_Operand], written: list[Tensor], result: Any
    ) -> None:
        """Take what was known of an operator's operands to its results."""
        inputs = [one.tensor for one in operands]
        data = any(one.data for one in operands)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._alive.append(outputs)
        space, name = func._schema.name.rstrip("_").split("::")
        name = name if space == "aten" or name == "grouped_mm_fallback" else func._schema.name
        pointwise = torch.Tag.pointwise in func.tags
        for out in (*outputs, *written):
            self._features.pop(view_key(out), None)
            if data:
                self._data.add(_storage(out))
            if any(_storage(t) in self._made for t in inputs):
                self._made.add(_storage(out))
            counted = not out.is_floating_point() and out.dtype != torch.bool
            moves = (
                pointwise or func.is_view or name in _JOINS | _SAME_SHAPE | set(_COPIES) | {"index", "slice", "copy"}
            )
            if counted and moves and any(_storage(t) in self._indices for t in inputs if t.dtype != torch.bool):
                self._indices.add(_storage(out))
        shapes_alone = name.startswith("new_") or name.endswith("_like")
        if shapes_alone or not any(one.weights or one.features for one in operands):
            return
        outputs = outputs or written
        if name == "linear":  # of nested tensors; of others it is a product of matrices
            self._multiply([(args[0], "f" * (args[0].ndim - 1) + "c"), (args[1], "fc")], outputs[0])
            self.enter(self.weights(args[2]) if len(args) > 2 else [], "added")
        elif name in _PRODUCTS:
            # A bilinear map of one output is a matrix between its inputs.
            form = name == "_trilinear" and args[1].shape[0] == 1
            self._multiply([(args[i], "bfc" if form and spec else spec) for i, spec in _PRODUCTS[name]], outputs[0])
            added = operands[0].weights if "add" in name else []
            if self.is_data(outputs[0]):
                self.enter(added, "added")
            else:
                added = [w._replace(place=_expanded(w.place, outputs[0].shape)) for w in added]
                self._set(outputs[0], [*added, *self.weights(outputs[0])], [])
        elif name == "convolution":
            self.enter(self.weights(args[2]), "added")
            self._convolve(args, outputs[0])
        elif name in _LOOKUPS and self.weights(args[0]):
            self._look_up(name, args, outputs)
        elif name == "glu":
            chunk, rest = torch.ops.aten.chunk.default, (2, args[1] if len(args) > 1 else -1)
            halves = [half for f in operands[0].features for half in self._move(f, chunk, rest, {})]
            self.consume(halves)
            self._set(outputs[0], [], _spent(halves, outputs[0]))
        elif func.is_view or name in _COPIES:
            self._move_all(_COPIES.get(name, func), name, operands[0], args[1:], kwargs, outputs)
        elif name in _JOINS:
            self._join(name, operands, data, outputs[0], args)
        elif pointwise or name in _SAME_SHAPE:
            if name == "copy" and args[0].numel() < args[0].untyped_storage().nbytes() // args[0].itemsize:
                self.consume(self.features(args[1]))  # into a part of a tensor, whose other parts come from elsewhere
            self._combine(name, operands[1:] if name == "copy" else operands, outputs)
        elif "batch_norm" in name:  # channel by channel, of an activation or of a weight
            self.enter([w for one in operands[0 if data else 1 :] for w in one.weights], "multiplied")
            kept = [] if data else operands[0].weights
            self._set(outputs[0], kept, [f._replace(direct=False) for f in operands[0].features])
        elif name in _SHUFFLES:
            rest = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) and not x.is_meta else x, args[1:])
            rest = (rest[0], -1) if name == "constant_pad_nd" else rest  # no row at all
            self._move_all(func, name, operands[0]._replace(weights=[]), rest, kwargs, outputs)
            for out in outputs:
                self._set(out, [w._replace(place=None) for w in operands[0].weights], [])
        else:
            self._apply(name, operands, data, outputs)
            for feature in operands[0].features if name in ("sum", "mean") and len(args) > 1 else ():
                feature.product.apart |= _runs_over_stack(feature, args[1] or range(args[0].ndim))

    def _written(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors that an operator writes into; a parameter or gradient among them is cloned first."""
        if not func._schema.is_mutable:
            return []
        written = []
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if argument.is_write and isinstance(value, Tensor):
                written.append(value)
                for tensor in self._unwritten.pop(_storage(value), ()):
                    self.originals.append((tensor, tensor.detach().clone()))
        return written

    def _set(self, out: Tensor, weights: Sequence[_Weight], features: Sequence[_Feature]) -> None:
        if weights:
            self._weights[view_key(out)] = list(weights)
        if features:
            self._features[view_key(out)] = list(features)

    def _move(self, piece: Any, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The pieces of the results of an operator that only moves numbers."""
        if isinstance(piece, _Weight):
            places = [] if piece.place is None else _moved(operator, piece.place, args, kwargs)
            return [piece._replace(place=place) for place in places]
        rows = [] if piece.rows is None else _moved(operator, piece.rows, args, kwargs)
        return [piece._replace(rows=r, used=piece.used if r is None else _mask(r, len(piece.used))) for r in rows]

    def _move_all(
        self, operator: Any, name: str, one: _Operand, args: Any, kwargs: Mapping[str, Any], outputs: list[Tensor]
    ) -> None:
        weights = one.weights
        if name in ("select", "unbind"):
            weights = [w._replace(selected=True) for w in weights]
        moved = []
        for piece in (*weights, *one.features):
            results = self._move(piece, operator, args, kwargs)
            shapes = [one.place if isinstance(one, _Weight) else one.rows for one in results]
            if len(results) != len(outputs) or any(
                t is not None and t.shape != o.shape for t, o in zip(shapes, outputs, strict=True)
            ):
                results = [piece._replace(place=None) if isinstance(piece, _Weight) else _lost(piece)] * len(outputs)
            moved.append(results)
        for i, out in enumerate(outputs):
            pieces = [results[i] for results in moved]
            self._set(
                out, [p for p in pieces if isinstance(p, _Weight)], [p for p in pieces if isinstance(p, _Feature)]
            )

    def _join(self, name: str, operands: Sequence[_Operand], data: bool, out: Tensor, args: Sequence[Any]) -> None:
        """Tensors that are put together: one beside the other, or some over rows of another."""
        weights = [w for one in operands for w in one.weights]
        if data:
            self.enter(weights, "joined")
            weights = []
        if name == "stack":
            dim = args[1] if len(args) > 1 else 0
            weights = [w if w.place is None else w._replace(place=w.place.unsqueeze(dim)) for w in weights]
        elif name != "cat":
            first = {id(w) for w in operands[0].weights}
            weights = [w if id(w) in first else w._replace(patch=True) for w in weights]
        if lost := [w for w in weights if w.place is None or w.place.ndim != out.ndim]:
            self.enter(lost, "an entry of another tensor")
        features = _merged([f for one in operands for f in one.features], joined=True)
        if name == "cat":
            features = [f._replace(rows=self._joined_rows(f.product, args, out)) for f in features]
        else:
            features = [_lost(f) for f in features]
        self._set(out, [w for w in weights if w.place is not None and w.place.ndim == out.ndim], features)

    def _joined_rows(self, product: _Product, cat: Sequence[Any], out: Tensor) -> Tensor | None:
        """Where the rows of a product are in tensors that are put together, -1 where there are none."""
        parts, dim = [], (cat[1] if len(cat) > 1 else 0) % out.ndim
        for tensor in (t for t in cat[0] if t.ndim == out.ndim):  # not the empty vector, which may stand anywhere
            rows = [f.rows for f in self.features(tensor) if f.product is product]
            if rows and rows[0] is None:
                return None
            parts.append(rows[0] if rows else torch.tensor(-1, dtype=torch.int32, device="cpu").expand(tensor.shape))
        # Dimensions along which all rows are the same stay unwritten.
        alike = [d for d in range(out.ndim) if d != dim and all(part.stride(d) == 0 for part in parts)]
        for d in alike:
            parts = [part.narrow(d, 0, min(1, part.shape[d])) for part in parts]
        return _expanded(torch.cat(parts, dim), out.shape) if sum(p.numel() for p in parts) <= _MOST_ENTRIES else None

    def _combine(self, name: str, operands: Sequence[_Operand], outputs: Sequence[Tensor]) -> None:
        """An operator on entries of the same place."""
        sums = name in _SUMS or len(operands) == 1
        weights = [w for one in operands for w in one.weights]
        spent = [f for one in operands for f in one.features if f.spent]
        operands = [one._replace(features=[f for f in one.features if not f.spent]) for one in operands]
        featured = [one.features for one in operands if one.features]
        features = [f for fs in featured for f in fs]
        alone = any(one.data and not one.features and one.tensor.dtype != torch.bool for one in operands)
        if any(one.data for one in operands):
            self.enter(weights, "added" if sums else "multiplied")
            weights = []
        gated = not _alike(featured) or any(_storage(one.tensor) in self._made and not one.features for one in operands)
        if alone if sums else gated:
            self.consume(features)
            spent += features
            features = []
        if not sums and any(one.tensor.ndim and not one.features for one in operands):
            features = [f._replace(scaled=True) for f in features]
        # Scales and shifts: one part was multiplied with something else before another part of the same is added.
        apart = [f for f in features for g in features if f.product is g.product and f.scaled != g.scaled and sums
                 and not bool((f.used & g.used).any())]  # fmt: skip
        self.consume(apart, product=True)
        spent += apart
        features = [f for f in features if all(f is not one for one in apart)]
        merged = [f._replace(direct=f.direct and not alone) for f in _merged(features)]
        for out in outputs:
            self._set(
                out,
                [w._replace(place=_expanded(w.place, out.shape)) for w in weights if _fits(w, out)],
                [*(f._replace(rows=_expanded(f.rows, out.shape)) for f in merged), *_spent(spent, out)],
            )

    def _apply(self, name: str, operands: Sequence[_Operand], data: bool, outputs: Sequence[Tensor]) -> None:
        """Any other operator: it ends what is followed, but for functions of a parameter."""
        weights = [w for one in operands for w in one.weights]
        features = [f for one in operands for f in one.features]
        self.consume(features, loss="loss" in name)
        if outputs:
            self._set(outputs[0], [], _spent(features, outputs[0]))
        same = [w for one in operands for w in one.weights if outputs and one.tensor.shape == outputs[0].shape]
        if "::" in name and weights and data and max(len(self.shapes[w.parameter]) for w in weights) > 1:
            self.lost.setdefault(name, LookupError("it is not one of torch's own, and may do anything"))
            self._data.update(map(_storage, outputs))
        elif data or (same and len({w.parameter for w in weights}) > 1):
            first = [] if data else operands[0].weights
            self.enter(first, "an activation itself")
            self.enter([w for w in weights if all(w is not one for one in first)], "multiplied")
            self._data.update(map(_storage, outputs))
        elif same:
            self._set(outputs[0], same, [])
        elif len({w.parameter for w in weights}) == 1 and all(one.weights for one in operands):
            for out in outputs:  # such as its Fourier transform, or another size of a picture of positions
                self._set(out, [w._replace(place=None) for w in weights], self.features(out))

    def _look_up(self, name: str, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        index = args[_LOOKUPS[name]]
        picked = [i for i, one in enumerate(index) if one is not None] if name == "index" else [0]
        picked = [args[1] % args[0].ndim] if name in ("index_select", "gather") else picked
        indices = [t for t in tree_leaves(index) if isinstance(t, Tensor)]
        kept = []
        for weight in self.weights(args[0]):
            if weight.place is None or name == "gather":
                rest: list[int] = []
            else:
                rest = [d for d in range(weight.place.ndim) if d not in picked]
            if len(_varying(weight.place, rest, self.shapes[weight.parameter])) < 2:
                sources = any(_storage(t) in self._indices for t in indices)
                self.lookups.setdefault(weight.parameter, set()).add(sources)
                along = _varying(weight.place, picked, self.shapes[weight.parameter])
                if along and 0 not in along and len(self.shapes[weight.parameter]) == 2:
                    self.columns.add(weight.parameter)
                if not sources:  # positions, or biases of the experts that a router has picked
                    self._data.difference_update(map(_storage, outputs))
                continue
            place = None
            if picked == [0] and len(indices) == 1 and weight.place is not None:
                place = _expanded(weight.place.select(0, 0), outputs[0].shape)
            kept.append(weight._replace(place=place, selected=True))
        if kept:  # experts that a router has picked are still weights
            self._data.discard(_storage(outputs[0]))
            self._set(outputs[0], kept, [])

    # Products

    def _multiply(self, operands: Sequence[tuple[Tensor, str]], out: Tensor) -> None:
        pieces = [[] if self.is_data(t) else self.weights(t) for t, _ in operands]
        self.consume([f for t, _ in operands for f in self.features(t)], product=True)
        for (tensor, spec), partners in zip(operands, pieces[::-1] if len(pieces) == 2 else pieces, strict=True):
            batch, contracted = ([d for d, letter in enumerate(spec) if letter == one] for one in "bc")
            # Either another stack meets them one by one, or their sum is taken, as weights of a router do.
            stacks = any(0 in _varying(w.place, [0], self.shapes[w.parameter]) for w in partners) if batch else False
            for f in self.features(tensor):
                f.product.apart |= (stacks and _runs_over_stack(f, batch)) or _runs_over_stack(f, contracted)
        if len(operands) == 2 and all(pieces):
            # Of two parameters, those that are both contracted over their last dimension, as a linear layer does with
            # its input, are an activation and its weight; others are two factors of one weight.
            last = [self._contracts_last(ps, spec) for ps, (_, spec) in zip(pieces, operands, strict=True)]
            if all(last):
                self.enter(pieces[0], "an activation itself")
                pieces[0] = []
        both, kept, results = len(operands) == 2 and all(pieces), [], []
        for i, (ps, (tensor, spec)) in enumerate(zip(pieces, operands, strict=True)):
            others = [t for j, (t, _) in enumerate(operands) if j != i]
            data = any(self.is_data(t) or self.entered(t) for t in others)
            for weight in ps:
                if weight.patch or not spec:
                    self.enter([weight], "added" if weight.patch else "multiplied")
                elif both:
                    kept.append(self._factor(weight, tensor, spec, out, i))
                elif data:
                    result = self._product(weight, spec, out, True, first=i == 0, kernel=False)
                    results += [] if result is None else [result]
                    self._data.add(_storage(out))
                elif torch.is_grad_enabled():  # a constant: the estimate of a norm, or all that the model knows
                    self._product(weight, spec, out, False, first=i == 0, kernel=False)
                    self._made.add(_storage(out))
        self._set(out, kept, results)

    def entered(self, tensor: Tensor) -> bool:
        """Whether a tensor holds a parameter that serves as an activation."""
        return any("an activation itself" in self.entrywise.get(w.parameter, ()) for w in self.weights(tensor))

    def _contracts_last(self, pieces: Sequence[_Weight], spec: str) -> bool:
        for w in pieces:
            if w.place is not None:
                at = [d for d, letter in enumerate(spec) if letter == "c"]
                if _varying(w.place, at, self.shapes[w.parameter]) == {len(self.shapes[w.parameter]) - 1}:
                    return True
        return False

    def _factor(self, weight: _Weight, tensor: Tensor, spec: str, out: Tensor, which: int) -> _Weight:
        """What a product with another parameter leaves of a parameter."""
        if weight.place is None:
            return weight
        at = [d for d, letter in enumerate(spec) if letter == "c"]
        shape = self.shapes[weight.parameter]
        return weight._replace(
            place=_free(weight.place, spec, out.shape, first=which == 0),
            inner=weight.inner | _varying(weight.place, at, shape),
            within=weight.within * _extent(weight.place, at, shape),
        )

    def _convolve(self, args: Sequence[Any], out: Tensor) -> None:
        channelwise = args[8] == args[0].shape[1] == out.shape[1]
        passed = self.features(args[0]) if channelwise else []
        self.consume([f for t in args[channelwise:2] for f in self.features(t)], product=True)
        self._set(out, [], [f._replace(rows=_along_channels(f.rows, out), direct=False) for f in passed])
        if self.is_data(args[1]):
            return
        transposed, groups = args[6], args[8]
        kernel = "c" * (args[1].ndim - 2)
        spec = ("cf" if transposed else "fc") + kernel
        results = []
        for weight in self.weights(args[1]):
            result = self._product(weight, spec, out, True, first=True, kernel=True, groups=groups)
            if result is not None and groups == 1 and result.rows is not None:
                results.append(result)
        self._data.add(_storage(out))
        self._set(out, [], results or self.features(out))

    def _product(
        self, weight: _Weight, spec: str, out: Tensor, active: bool, *, first: bool, kernel: bool, groups: int = 1
    ) -> _Feature | None:
        """Note a product of a parameter with activations.

        Returns:
            What the result holds of it; None where its rows cannot be followed.
        """
        shape, place = self.shapes[weight.parameter], weight.place
        letters, stack = None, groups
        dims = {letter: [d for d, one in enumerate(spec) if one == letter] for letter in "bfc"}
        free, contracted, apart = (_varying(place, dims[letter], shape) for letter in "fcb")
        if place is not None and place.numel():
            letters = _spelled(shape, free or weight.inner, contracted | weight.inner if free else contracted)
            inside = _extent(place, [*dims["f"], *dims["c"]], shape) * weight.within
            if letters and letters[0] != "k" and (weight.selected or apart) and shape[0] % inside == 0:
                stack *= shape[0] // inside
        inner = (shape[0] // stack, *shape[1:])
        sizes = tuple(n for n, letter in zip(inner, letters or "", strict=False) if letter == "o")
        product = self._registered(_Product(weight.parameter, letters, stack, sizes, kernel, active))
        if place is None or letters is None or not free or not place.numel():
            return None
        flat = _indices(place, dims["f"])
        row = torch.zeros_like(flat)
        for size, letter, coordinate in zip(inner, letters, torch.unravel_index(flat, shape), strict=True):
            row = row * size + coordinate % size if letter == "o" else row
        after = out.ndim - 2 if kernel else int(first and out.ndim > row.ndim)
        rows = _expanded(row.to(torch.int32).reshape(*row.shape, *(1,) * after), out.shape)
        return _Feature(product, rows, _mask(row, math.prod(sizes)), True)

    def _registered(self, product: _Product) -> _Product:
        for one in self.products:
            if one.parameter == product.parameter and (one.letters, one.stack, one.kernel) == (
                product.letters, product.stack, product.kernel
            ):  # fmt: skip
                one.active |= product.active
                return one
        self.products.append(product)
        return product

    # What it comes to

    def usage(self, parameter: int) -> Usage | None:
        """What the pass did with a parameter; None if it never met an activation."""
        shape = self.shapes[parameter]
        wide = sum(size > 1 for size in shape) > 1
        products = [p for p in self.products if p.parameter == parameter]
        heads = [p for p in products if p.logits and not p.consumed and not p.kernel]
        looked_up, entrywise = self.lookups.get(parameter), self.entrywise.get(parameter)
        tells = ["looked up"] * (looked_up is not None) + sorted(entrywise or ())
        if products and wide and not (looked_up == {False} and not heads):  # which is a codebook, and its distances
            # A product with activations counts before one with constants, such as that of a spectral norm's estimate.
            products, heads = [p.stacked() for p in products], [p.stacked() for p in heads]
            product = max(heads or products, key=lambda p: (p.letters is not None, p.active, p.kernel, p.plain))
            view = None if product.letters is None else product.view(shape, whole=bool(heads))
            many = product.stack > 1 or ((product.letters or "").startswith("k") and shape[0] > 1)
            role = "head" if heads else "conv" if product.kernel else "expert" if many else "hidden"
            role = "tied" if heads and looked_up is not None and True in looked_up else role
            verb = "convolved" if product.kernel else "multiplied into the output" if heads else "multiplied"
            return Usage(role, view, ", ".join(dict.fromkeys([verb, *tells])))
        if looked_up is not None:
            role = "embedding" if True in looked_up and "added" not in (entrywise or ()) else "position"
        elif entrywise is not None:
            role = "position" if wide and entrywise & {"added", "joined", "an activation itself"} else "vector"
        elif products:
            role, tells = "vector", ["multiplied"]
        else:
            return None
        view = {"layout": "transposed"} if role == "embedding" and parameter in self.columns else {}
        return Usage(role if wide else "vector", view if wide else {}, ", ".join(tells))

    def finish(self, outputs: Iterable[Tensor]) -> None:
        """Note the products whose result is an output of the model."""
        for tensor in outputs:
            for feature in (f for f in self.features(tensor) if not f.spent):
                feature.product.logits |= feature.direct
                feature.product.cuts.append(feature.used)


def _split_options(cuts: Sequence[Tensor]) -> dict[str, Any]:
    """`split` and `interleave` for rows that are used in disjoint sets, of which the largest count."""
    sets = [cut for i, cut in enumerate(cuts) if not any(torch.equal(cut, other) for other in cuts[:i])]
    largest = [a for a in sets if not any(a is not b and torch.equal(a & b, a) for b in sets)]
    if len(largest) < 2 or not bool((torch.stack(largest).sum(0) == 1).all()):
        return {}
    part = torch.stack(largest).int().argmax(0)
    runs, lengths = torch.unique_consecutive(part, return_counts=True)
    count = len(largest)
    blocks, left = divmod(len(runs), count)
    regular = not left and all(
        torch.equal(one, one[:count].repeat(blocks)) for one in (runs, lengths)
    ) and len(runs[:count].unique()) == count  # fmt: skip
    if not regular:
        return {}
    split = {"split": [int(length) * blocks for length in lengths[:count]]}
    return split | {"interleave": blocks} if blocks > 1 else split


def _members(value: Any) -> dict[str, Any] | None:
    """The named parts of a mapping, a named tuple, a dataclass or another plain object; None for anything else."""
    if isinstance(value, Mapping):
        return {str(key): one for key, one in value.items()}
    if isinstance(value, tuple):
        return cast(Any, value)._asdict() if hasattr(value, "_fields") else None
    if isinstance(value, nn.Module | list) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name, None) for one in dataclasses.fields(value)}
    return getattr(value, "__dict__", None)


def _tensors(
    value: Any,
    chosen: Callable[[dict[str, Any]], dict[str, Any]] = lambda members: members,
    name: str = "",
    seen: set[int] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a value with the name of each, down through sequences and the `chosen` of named parts."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield name, value
    elif id(value) not in seen:
        seen.add(id(value))
        members = _members(value)
        if members is not None:
            for key, one in chosen(members).items():
                yield from _tensors(one, chosen, key, seen)
        elif isinstance(value, list | tuple | set | frozenset):
            for one in value:
                yield from _tensors(one, chosen, name, seen)


def _logits(members: dict[str, Any]) -> dict[str, Any]:
    """The named outputs that a loss is taken of: what is called logits, or all but hidden states and caches."""
    found = {key: one for key, one in members.items() if "logits" in key.split("_")}
    return found or {key: one for key, one in _features(members).items() if not _FEATURES.fullmatch(key)}


def _features(members: dict[str, Any]) -> dict[str, Any]:
    """The named outputs but for states and caches: of a model without logits, what its loss is taken of."""
    return {key: one for key, one in members.items() if not _STATES.fullmatch(key)}


def _varying(place: Tensor | None, dims: Sequence[int], shape: tuple[int, ...]) -> set[int]:
    """The dimensions of a parameter of `shape` that some dimensions of a tensor with its values run over."""
    varying: set[int] = set()
    if place is None:
        return varying
    for d in dims:
        coordinates = torch.unravel_index(_indices(place, [d]), shape)
        varying.update(j for j, c in enumerate(coordinates) if c.numel() and bool(c.min() < c.max()))
    return varying


def _extent(place: Tensor, dims: Sequence[int], shape: tuple[int, ...]) -> int:
    """How many indices of the first dimension of a parameter some dimensions of a tensor run over."""
    along = [d for d in dims if 0 in _varying(place, [d], shape)]
    return torch.unravel_index(_indices(place, along), shape)[0].unique().numel()


def _indices(place: Tensor, dims: Sequence[int]) -> Tensor:
    """The indices of a parameter that lie along some dimensions of a tensor with its values, the others at zero."""
    if not place.is_meta:
        for d in reversed(range(place.ndim)):
            place = place if d in dims else place.select(d, 0)
        return place
    indices = torch.tensor(place.storage_offset(), device="cpu")
    for d in dims:
        indices = indices.unsqueeze(-1) + torch.arange(place.shape[d], device="cpu") * place.stride(d)
    return indices


def _spelled(shape: tuple[int, ...], outputs: Iterable[int], inputs: Iterable[int]) -> str | None:
    """The layout with these outputs and inputs; None where a dimension is both, or a stack does not come first."""
    outputs, inputs = set(outputs), set(inputs)
    single = [d for d, size in enumerate(shape) if size == 1]
    if not outputs and single:
        outputs = {single[0]}
    if not inputs - outputs and (rest := [d for d in single if d not in outputs]):
        inputs = {rest[-1]}
    letters = "".join(
        "o" if d in outputs else "i" if d in inputs or (d and size == 1) else "k" for d, size in enumerate(shape)
    )
    clear = not outputs & inputs and "k" not in letters[1:] and "o" in letters and "i" in letters
    return letters if clear else None


def _expanded(tensor: Tensor | None, shape: torch.Size) -> Tensor | None:
    try:
        return None if tensor is None else tensor.expand(shape)
    except RuntimeError:
        return None


def _along_channels(rows: Tensor | None, out: Tensor) -> Tensor | None:
    """The rows of (batch, channels, *places), if they only depend on the channel, for another number of places."""
    for d in range(2, out.ndim):
        if rows is None or not bool((rows == rows.narrow(d, 0, 1)).all()):
            return None
        rows = rows.narrow(d, 0, 1)
    return _expanded(rows, out.shape)


def _fits(weight: _Weight, out: Tensor) -> bool:
    return weight.place is None or _expanded(weight.place, out.shape) is not None


def _free(place: Tensor, spec: str, shape: torch.Size, *, first: bool) -> Tensor | None:
    """What is left of the values of a parameter in the result of a product with another one."""
    for d in reversed(range(place.ndim)):
        if spec[d] == "c":
            place = place.select(d, 0)
    aside = place.ndim < len(shape) and (first or place.ndim > 1)
    return _expanded(place.unsqueeze(-1 if first else -2) if aside else place, shape)


def _mask(rows: Tensor, count: int) -> Tensor:
    """Which of `count` rows occur."""
    for d in range(rows.ndim):
        if rows.stride(d) == 0 and rows.shape[d]:
            rows = rows.narrow(d, 0, 1)
    mask = torch.zeros(count, dtype=torch.bool, device="cpu")
    found = rows.reshape(-1).long()
    mask[found[found >= 0]] = True
    return mask


def _spent(features: Iterable[_Feature], out: Tensor) -> list[_Feature]:
    """What is left to follow of used rows: where the first dimension of a parameter that may be a stack went."""
    left = {id(f.product): f for f in features if f.product.stackable and _expanded(f.rows, out.shape) is not None}
    return [f._replace(rows=_expanded(f.rows, out.shape), direct=False, spent=True) for f in left.values()]


def _runs_over_stack(feature: _Feature, dims: Iterable[int]) -> bool:
    """Whether some dimensions of an activation run over the first of a parameter's outputs, and the others do not."""
    if feature.rows is None or not feature.product.stackable:
        return False
    dims = {d % feature.rows.ndim for d in dims}
    rows = feature.rows
    for d in range(rows.ndim):
        rows = rows.narrow(d, 0, 1) if rows.stride(d) == 0 and rows.shape[d] else rows
    count = feature.product.sizes[0]
    within = math.prod(feature.product.sizes[1:])
    along, others = _indices(rows, list(dims)), _indices(rows, [d for d in range(rows.ndim) if d not in dims])
    return (
        torch.equal((along // within).unique(), torch.arange(count, device="cpu"))
        and (along % within).unique().numel() == 1
        and (others // within).unique().numel() == 1
    )


def _lost(feature: _Feature) -> _Feature:
    return feature._replace(rows=None)


def _alike(operands: Sequence[Sequence[_Feature]]) -> bool:
    """Whether all operands hold the same rows of the same products."""
    rows = [{id(f.product): f.used for f in fs} for fs in operands]
    return all(one.keys() == rows[0].keys() and all(torch.equal(one[k], rows[0][k]) for k in one) for one in rows)


def _merged(features: Iterable[_Feature], *, joined: bool = False) -> list[_Feature]:
    """One feature per product, with the rows of all: added entry by entry, or put one beside the other."""
    merged: dict[int, _Feature] = {}
    for f in features:
        old = merged.get(id(f.product))
        if old is None:
            merged[id(f.product)] = f
            continue
        rows = old.rows if not joined and _same(old.rows, f.rows) else None
        direct, spent, scaled = old.direct and f.direct, old.spent and f.spent, old.scaled and f.scaled
        merged[id(f.product)] = _Feature(f.product, rows, old.used | f.used, direct, spent, scaled)
    return list(merged.values())


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors of rows are known and equal."""
    if a is None or b is None or a.shape != b.shape:
        return False
    for d in range(a.ndim):
        if a.stride(d) == b.stride(d) == 0 and a.shape[d]:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
    return torch.equal(a, b)


def watch(model: nn.Module, example: Any) -> dict[str, Usage]:
    """Run the model once on an example and read from its operators how it uses each trainable parameter.

    The pass runs on a copy of the example in the model's present mode, with gradients recorded but none computed.
    Parameters, buffers and submodules, gradients, modes and random generators, global or held by a module, are
    afterwards what they were.

    Args:
        model: any module; on the meta device it computes nothing, and then must not branch on values.
        example: its input: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

    Returns:
        Usage by the parameter's qualified name, without those that the pass did not reach.

    Raises:
        TypeError: an example of another type.
        ValueError: an example on which the model does not run.
    """
    for module in sharded_modules(model):
        cast(Any, module).reshard()  # as it is before a step, whose parameters are those of an optimizer
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode(False):  # in which operators of autograd would not be seen
        args, kwargs = _copied(_as_arguments(example), device)
        given = [(name, t) for name, t in _tensors(_by_argument(model, args, kwargs))]
        watcher = _Watcher(model, [p for _, p in named], [t for _, t in given])
        tokens = {id(t) for name, t in given if not _PLACES.fullmatch(name)}
        watcher.are_places(t for _, t in given if id(t) not in tokens)
        with restored(model, watcher.originals), _plain_operators():
            hooks = [m.register_forward_pre_hook(watcher.adopt) for m in {module for module, _ in watcher.places}]
            try:
                with torch.enable_grad(), watcher:
                    output = model(*args, **kwargs)
            except Exception as error:
                meta = "; on the meta device it cannot branch on values" if device.type == "meta" else ""
                raise ValueError(
                    f"the model does not run on this example ({type(error).__name__}: {error}){meta}; give what one "
                    "call of the model takes: a tensor, a tuple of positional arguments, or a dict of keyword arguments"
                ) from error
            finally:
                for hook in hooks:
                    hook.remove()
            logits, features = ([t for _, t in _tensors(output, chosen)] for chosen in (_logits, _features))
            watcher.finish(logits or features)
    if next(_tensors(output), None) is None:
        warnings.warn(
            f"the model returned no tensor that could be found in its {type(output).__name__}, so that no product is "
            "known to be its output; give its head by a rule, or return a tensor, a tuple, a dict or a dataclass",
            UserWarning,
            stacklevel=2,
        )
    if watcher.lost:
        name, error = next(iter(watcher.lost.items()))
        warnings.warn(
            f"the pass could not be followed through {', '.join(watcher.lost)} ({type(error).__name__} in {name}: "
            f"{error}); look at describe_groups, and give rules for what is wrong there",
            UserWarning,
            stacklevel=2,
        )
    usages = {name: watcher.usage(i) for i, (name, _) in enumerate(named)}
    return {name: usage for name, usage in usages.items() if usage is not None}


def _as_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        "example must be a tensor, a tuple or list of positional arguments, or a dict of keyword arguments of the "
        f"model, got {type(example).__name__}"
    )


def _copied(example: Any, device: torch.device) -> Any:
    """The example on a device, in tensors of its own; one that is given twice is one tensor there as well."""
    copies: dict[int, Tensor] = {}

    def copied(x: Any) -> Any:
        if isinstance(x, Tensor) and id(x) not in copies:
            copies[id(x)] = x.detach().to(device, copy=True).requires_grad_(x.requires_grad)
        return copies.get(id(x), x)

    return tree_map(copied, example)


def _by_argument(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by their names in the model's forward, through wrappers that pass on whatever they are given."""
    wrapped = ("_orig_mod", "module", "base_model", "model")
    try:
        if isinstance(model, torch.jit.ScriptModule):
            names = [one.name for one in cast(Any, model).forward.schema.arguments[1:]]
            return dict(zip(names, args, strict=False)) | kwargs
        signature = inspect.signature(model.forward)
        kinds = {name: one.kind for name, one in signature.parameters.items()}
        passes_on = inspect.Parameter.VAR_POSITIONAL in kinds.values() or hasattr(model, "_orig_mod")
        inner = next((m for name in wrapped if isinstance(m := getattr(model, name, None), nn.Module)), None)
        if passes_on and inner is not None:
            return _by_argument(inner, args, kwargs)
        bound = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError, AttributeError, RuntimeError):  # no signature, or not one for these
        return {"": args} | kwargs
    extra = {name: bound.pop(name) for name in [*bound] if kinds[name] is inspect.Parameter.VAR_KEYWORD}
    return bound | next(iter(extra.values()), {})


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Without kernels that hide products: whole recurrent layers, compiled regions."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
