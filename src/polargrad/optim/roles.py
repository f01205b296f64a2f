"""Parameter groups from a model: a parameter's role follows from its use, or from the module that it belongs to."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from polargrad.optim.matrix_view import VIEW_OPTIONS, layout_options, matrix_view
from polargrad.optim.options import inherited_options, plain_options, without_accuracy
from polargrad.optim.usage import Usage, watch

__all__ = ["ROLES", "Rule", "describe_groups", "parameter_groups", "roles"]

ROLES = ("hidden", "embedding", "head", "tied", "conv", "expert", "position", "vector")

_MUON: dict[str, Any] = {
    "rule": "polar",
    "lr": 0.028,
    "momentum": 0.9,
    "nesterov": True,
    "scale": "spectral",
    "method": "newton-schulz",
    "max_steps": 5,
}
_ROWS: dict[str, Any] = {"rule": "polar", "nesterov": True, "normalize_rows": 0.95, "method": "auto", "accuracy": 0.15}
_ADAMW: dict[str, Any] = {"rule": "adamw", "lr": 6e-2, "betas": (0.9, 0.95), "eps": 1e-8}
# The recipe that won the comparison of 2026-11-26 in docs/log.md; the rate of tied tables is of 2026-11-27.
# Convolutions and experts take the hidden rate and positions a sixth of that of the vectors; both are unmeasured.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hidden": _MUON,
    "conv": _MUON,
    "expert": _MUON,
    "embedding": {**_ROWS, "lr": 0.12, "momentum": 0.5, "scale": "rms"},
    "head": {**_ROWS, "lr": 0.056, "momentum": 0.7, "scale": "spectral"},
    "tied": {**_ROWS, "lr": 0.224, "momentum": 0.7, "scale": "spectral"},
    "position": {**_ADAMW, "lr": 1e-2},
    "vector": _ADAMW,
}

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED_CONVOLUTIONS)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_MATRICES = ("hidden", "head", "tied", "conv", "expert")

# Names of layers whose rows are often those of several maps: they tell that it is so, and not in which order.
_FUSED = re.compile(r"c_attn|att_proj|\w*qkv\w*|query_key_value|(to_)?kv|kv_\w*proj\w*|in_proj_\w+|gate_up_proj|Wi")
# In transformers these lie one below the other, but for some classes, which store them head by head or in turn.
_GATES = ("gate_up_proj", "Wi")
_ATTENTIONS = ("c_attn", "att_proj", "qkv", "Wqkv", "qkv_proj", "qkv_linear", "query_key_value")
_BY_HEAD = {"GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "PersimmonAttention", "FalconAttention"}
_BY_HEAD |= {"GPTBigCodeAttention", "MiniMaxLightningAttention"}
_IN_TURN = {"GptOssExperts", "OpenAIPrivacyFilterExperts"}
# What bare parameters are in classes of transformers: the role and the letters of the layout.
_BARE: dict[str, dict[str, tuple[str, str]]] = {
    "XLNetRelativeAttention": {**dict.fromkeys("qkvr", ("hidden", "ioo")), "o": ("hidden", "oii"),
                               "seg_embed": ("position", "")},
    "FunnelRelMultiheadAttention": {"r_kernel": ("hidden", "ioo"), "seg_embed": ("position", "")},
    "RecurrentGemmaRglru": dict.fromkeys(("input_gate_weight", "recurrent_gate_weight"), ("expert", "kio")),
    **{f"{family}Mixer": {"A_log": ("vector", "")} for family in ("Mamba", "FalconMamba", "JambaMamba")},
}  # fmt: skip

Predicate = str | type | tuple[type, ...] | Callable[[str, nn.Module, Tensor], bool]
Rule = tuple[Predicate, "str | Mapping[str, Any]"]


@dataclass(frozen=True)
class _Static:
    """What follows from the module that owns a parameter.

    Args:
        role: of `ROLES`.
        view: options of the matrix view.
        guess: whether nothing tells the role.
        declared: whether the model says so itself.
        fused: whether its rows are probably those of several maps, in an order that nothing tells.
    """

    role: str
    view: dict[str, Any] = field(default_factory=dict)
    guess: bool = False
    declared: bool = False
    fused: bool = False


class _Parameter(NamedTuple):
    """A trainable parameter: its first name, the modules that use it, its role and matrices, and a remark on them."""

    name: str
    parameter: Tensor
    modules: list[nn.Module]
    role: str
    view: dict[str, Any]
    note: str
    entrywise: bool
    unknown: bool
    fused: bool


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear map with its weight stored as (in, out); imports nothing."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)


def _by_module(module: nn.Module, attribute: str, p: Tensor, hints: _Hints) -> _Static | None:
    """What a parameter is that stands for an attribute of a module; None where the module does not say."""
    shape, weight = tuple(p.shape), attribute == "weight"
    if weight and module in hints.heads:
        return _Static("head", {"layout": "transposed"} if _is_transposed_linear(module) else {}, declared=True)
    if attribute in (known := _BARE.get(_class(module), {})):
        role, letters = known[attribute]
        return _Static(role, layout_options(p.ndim, letters) if letters else {})
    if isinstance(module, _NORMS):
        return _Static("vector")
    if weight and isinstance(module, _TABLES):
        role = "position" if module in hints.positions else "embedding"
        return _Static(role, declared=module in hints.declared)
    if weight and isinstance(module, _CONVOLUTIONS):
        swapped = isinstance(module, _TRANSPOSED_CONVOLUTIONS)
        view = layout_options(p.ndim, ("io" if swapped else "oi") + "i" * (p.ndim - 2))
        return _Static("conv", view | ({"stack": module.groups} if module.groups > 1 else {}))
    if weight and (_is_transposed_linear(module) or isinstance(module, nn.Linear)):
        transposed = _is_transposed_linear(module)
        owner, name = hints.owners.get(module, (module, ""))
        split = _fused(owner, name, shape[transposed])
        return _Static("hidden", ({"layout": "transposed"} if transposed else {}) | (split or {}), fused=split is None)
    if weight and isinstance(module, nn.Bilinear):
        # A linear map of the outer product of its inputs; with one output, that of a form x^T W y.
        return _Static("hidden", layout_options(3, "koi" if shape[0] == 1 else "oii"))
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and p.ndim == 2:
        gates = 1 if "weight_hr" in attribute else shape[0] // module.hidden_size
        return _Static("hidden", {"split": [module.hidden_size] * gates} if gates > 1 else {})
    if isinstance(module, nn.MultiheadAttention) and p.ndim == 2:
        return _Static("hidden", {"split": [shape[0] // 3] * 3} if attribute == "in_proj_weight" else {})
    return None


def _class(module: nn.Module) -> str:
    """The name of a class of transformers; empty for any other, whose name says nothing."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""


def _fused(owner: nn.Module, name: str, rows: int) -> dict[str, Any] | None:
    """How the rows of a layer or a stack of that name are cut; empty if they are not, None if nothing tells."""
    if not _FUSED.fullmatch(name):
        return None if name in ("in_proj", "x_proj") and hasattr(owner, "A_log") else {}  # of a state-space layer
    kind, facts = _class(owner), vars(owner)
    if name in _GATES:
        halves = [rows // 2] * 2
        return ({"split": halves} | ({"interleave": rows // 2} if kind in _IN_TURN else {})) if kind else None
    heads = facts.get("num_heads") or facts.get("num_attention_heads")
    heads = heads or getattr(facts.get("config"), "num_attention_heads", None)
    if kind == "CodeGenAttention":  # in the parts of the four cores that it was trained on
        return {"split": [rows // 3] * 3, "interleave": 4}
    if kind in _BY_HEAD and not facts.get("multi_query") and not facts.get("new_decoder_architecture"):
        return {"split": [rows // 3] * 3, "interleave": heads} if heads else None
    groups = facts["num_kv_heads"] if kind == "FalconAttention" else 1
    each = facts.get("num_kv_heads") if kind == "FalconAttention" else facts.get("num_key_value_heads")
    keys = facts.get("kv_dim") or (each or 0) * (facts.get("head_dim") or 0) or rows // 3
    split = {"split": [rows - 2 * keys, keys, keys]} | ({"interleave": groups} if groups > 1 else {})
    return split if kind and name in _ATTENTIONS and rows > 2 * keys and (rows - 2 * keys) % keys == 0 else None


def _by_shape(module: nn.Module, attribute: str, p: Tensor) -> _Static:
    """What a parameter of an unknown module is, from its shape and the module's other parameters."""
    shape = tuple(p.shape)
    if p.ndim < 2 or p.numel() == max(shape) or getattr(p, "_no_weight_decay", False):
        return _Static("vector")
    matrices = [q for q in module.parameters(recurse=False) if q.ndim == 3 and min(q.shape[1:]) > 1]
    stacks = [q for q in matrices if q.shape[0] == shape[0]]
    if p.ndim == 2 and stacks and shape[0] > 1:
        return _Static("vector")  # one bias per expert
    if p.ndim == 2 and attribute == "weight":
        return _Static("hidden")
    if p.ndim == 3 and shape[0] > 1:
        # Experts come as maps there and back: the outputs of one are, but for two gates, the inputs of the other.
        others = [tuple(q.shape) for q in stacks if q.shape != p.shape]
        kept = any(other[2] == shape[1] or other[1] == shape[2] for other in others)
        turned = bool(others) and all(_leads_back_transposed(shape, other) for other in others)
        if attribute == "weight" or kept or turned or getattr(module, "is_transposed", False):
            transposed = getattr(module, "is_transposed", turned)
            split = _fused(module, attribute, shape[2 if transposed else 1])
            return _Static("expert", ({"layout": "transposed"} if transposed else {}) | (split or {}))
    experts = [v for k, v in vars(module).items() if "num" in k and "expert" in k and isinstance(v, int) and v > 1]
    if p.ndim == 2 and any(shape[0] % count == 0 and shape[0] > count for count in experts):
        return _Static("expert", {"stack": experts[0]}, guess=True)
    # A lookup table, positions, queries, or a matrix: nothing here tells.
    return _Static("position", guess=shape[0] > 1)


def _leads_back_transposed(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether (k, d, 2 f) and (k, f, d), in either order, are experts stored as (k, in, out)."""
    wide, narrow = (a, b) if a[1:] == (b[2], 2 * b[1]) else (b, a)
    return wide[1:] == (narrow[2], 2 * narrow[1])


def _statically(uses: Sequence[tuple[nn.Module, str]], p: Tensor, hints: _Hints) -> _Static:
    """What a parameter is that stands for attributes of modules: what is table and map is tied, else a head first."""
    found = [one for module, attribute in uses if (one := _by_module(module, attribute, p, hints))]
    found.sort(key=lambda one: {"head": 0, "embedding": 1, "position": 1}.get(one.role, 2))
    static = found[0] if found else _by_shape(*uses[0], p)
    table = any(attribute == "weight" and isinstance(module, _TABLES) for module, attribute in uses)
    if table and (static.role == "head" or (static.role == "embedding" and len({one.role for one in found}) > 1)):
        static = replace(static, role="tied")
    return static if _has_spectrum(p, static.role, static.view) else _Static("vector")


def _has_spectrum(p: Tensor, role: str, view: Mapping[str, Any]) -> bool:
    """Whether a matrix of a parameter has more than one row and column; a filter of a depthwise convolution has not."""
    if role not in _MATRICES:
        return True
    return p.ndim > 1 and any(min(m, n) > 1 for _, m, n in matrix_view(p.shape, view).batches)


def _uses(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that each parameter belongs to and the attributes that it stands for, through parametrizations."""
    lists = {}
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for attribute, originals in cast(nn.ModuleDict, module.parametrizations).items():
                lists[originals] = (module, attribute)
    uses: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for attribute, p in own.items():
            use = module, attribute
            # Of what an attribute is computed from, the largest stands for it: not the lengths of weight normalization.
            if module in lists:
                use = lists[module] if p.numel() == max(q.numel() for q in own.values()) else use
            else:
                name = attribute.removesuffix("_v").removesuffix("_orig")
                whole = vars(module).get(name)
                use = (module, name) if isinstance(whole, Tensor) and whole.shape == p.shape else use
            uses.setdefault(id(p), []).append(use)
    return uses


def _find(model: nn.Module, example: Any) -> Iterator[_Parameter]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ValueError(f"{lazy[0]} has no shape yet, since its module is lazy; run the model once first")
    uses, hints = _uses(model), _hints_of(model)
    hints.owners.update((child, (part, name)) for part in model.modules() for name, child in part.named_children())
    watched = None if example is None else watch(model, example)
    for name, p in model.named_parameters():
        if p.requires_grad:
            static = _statically(uses[id(p)], p, hints)
            usage = None if watched is None else watched.get(name)
            modules = [module for module, _ in uses[id(p)]]
            role, view, note = _agreed(p, static, usage, reached=watched is None or usage is not None)
            entrywise = usage is not None and usage.role in ("position", "vector") and "looked up" not in usage.tells
            unknown, fused = (usage is None and flag for flag in (static.guess, static.fused))
            yield _Parameter(name, p, modules, role, view, note, entrywise, unknown, fused)


def _agreed(p: Tensor, static: _Static, usage: Usage | None, *, reached: bool) -> tuple[str, dict[str, Any], str]:
    """Role, view and remark: the use that was watched, except for what a model declares about heads and tables."""
    if usage is None:
        note = "its use is not known; give an example" if static.guess else ""
        note = "several maps in one, as it seems; give an example" if static.fused else note
        return static.role, static.view, note if reached else "not reached by the example"
    role, view = usage.role, usage.view
    if view is None:  # multiplied in a way that no layout spells
        role, view = (static.role, static.view) if static.role in _MATRICES else ("position", {})
    # A pass may not show that a table is of a vocabulary, or where the logits go; a bias of many experts is a table.
    declared = (("embedding", "position"), ("position", "vector"), ("head", "hidden"))
    declared += tuple(("tied", other) for other in ("hidden", "head", "embedding", "position"))
    if (static.declared and (static.role, role) in declared) or (static.role, role) == ("vector", "position"):
        role = static.role
    if not _has_spectrum(p, role, view):
        role, view = "vector", {}
    same = role == static.role or (static.guess and role not in _MATRICES)
    if same and (role not in _MATRICES or matrix_view(p.shape, view) == matrix_view(p.shape, static.view)):
        return role, view, ""
    other = " ".join([static.role, *(f"{key}={value}" for key, value in static.view.items())])
    return role, view, f"{usage.tells}; by its module alone: {other}"


class _Hints(NamedTuple):
    """What models of transformers and timm declare: heads, and of lookup tables those that are not of a vocabulary.

    And of each layer the module that holds it, and its name there.
    """

    heads: set[nn.Module]
    positions: set[nn.Module]
    declared: set[nn.Module]
    owners: dict[nn.Module, tuple[nn.Module, str]]


def _hints_of(module: nn.Module) -> _Hints:
    """The hints of the module, or where it has none those of the outermost modules below it that have some."""
    hints = _Hints(set(), set(), set(), {})
    if not any(hasattr(module, name) for name in ("get_output_embeddings", "get_input_embeddings", "get_classifier")):
        for child in module.children():
            below = _hints_of(child)
            hints.heads.update(below.heads)
            hints.positions.update(below.positions)
            hints.declared.update(below.declared)
        return hints
    tables: set[nn.Module] = set()
    vocabularies: set[int] = set()
    for part in module.modules():
        for declared in ("get_output_embeddings", "get_classifier"):  # transformers, timm
            hints.heads.update(_weighing(_call(part, declared)))
        tables.update(_weighing(_call(part, "get_input_embeddings")))
        config, base = getattr(part, "config", None), getattr(part, "base_model", part)
        if config is None or not hasattr(part, "base_model_prefix"):
            continue
        sizes = _vocabularies(config)
        vocabularies |= sizes
        if isinstance(base, nn.Module) and base is not part:
            # What stands outside of the base model and ends in its labels or in a vocabulary.
            sizes = sizes | {getattr(config, "num_labels", None)}
            inside = set(base.modules())
            outside = (m for m in _weighing(part) if m not in inside and isinstance(m, nn.Linear))
            hints.heads.update(m for m in outside if m.out_features in sizes)
    # A table that is named as the head and shares its numbers with no linear map, beside a map of its shape.
    maps = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for table in [m for m in hints.heads if isinstance(m, _TABLES)]:
        alike = [m for m in maps if m.weight.shape == table.weight.shape]
        if alike and all(m.weight is not table.weight for m in alike):
            hints.heads.remove(table)
            hints.heads.update(alike)
    hints.declared.update(m for m in module.modules() if isinstance(m, _TABLES))
    hints.positions.update(m for m in hints.declared - tables if m.num_embeddings not in vocabularies)
    return hints


def _weighing(module: Any) -> Iterator[nn.Module]:
    """The linear maps and tables of a module, but for the factors that an adapter adds to one."""
    if not isinstance(module, nn.Module):
        return
    if isinstance(module, (nn.Linear, *_TABLES)) or _is_transposed_linear(module):
        yield module
    base = getattr(module, "base_layer", None)
    for child in [base] if isinstance(base, nn.Module) else module.children():
        yield from _weighing(child)


def _vocabularies(config: Any) -> set[int]:
    """The sizes of vocabularies in a configuration of transformers and those inside it."""
    sizes: set[int] = set()
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            sizes |= _vocabularies(value)
        elif ("vocab" in key or "hash_buckets" in key) and "type" not in key and isinstance(value, int):
            sizes.add(value)
    return sizes


def _call(model: nn.Module, method: str) -> Any:
    """The result of a method of a model; None where the model does not have it."""
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def roles(model: nn.Module, example: Any = None) -> dict[str, str]:
    """The role of every trainable parameter, by its qualified name; a shared parameter appears once.

    - "hidden": a matrix that activations are multiplied with.
    - "head": a matrix whose product is the model's output. "tied": one that is also the table of the model's input.
    - "expert": a stack of such matrices in one parameter. "conv": the kernel of a convolution.
    - "embedding": a table that the model's input is looked up in. "position": any other table: positions, segments,
      relative biases, latents and queries.
    - "vector": biases, norms, scalars, decay rates: what acts entry by entry. So do matrices of one row or column, such
      as the filters of a depthwise convolution, which have a length and no spectrum.

    With an example, one forward pass is watched and roles are what the model does with its parameters. Without one,
    they follow from the modules that own them and from what transformers models declare (`get_input_embeddings`,
    `get_output_embeddings`, `num_labels`). Then a head that is not declared counts as hidden, or as tied if it is a
    table's weight, any other `nn.Embedding` of an undeclared model as embedding, and a bare matrix of a module that is
    not torch's, unless it is called `weight`, as position: AdamW suits what only an example can tell.

    Args:
        model: any module.
        example: what one call of the model takes, see `parameter_groups`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
        >>> roles(model)
        {'0.weight': 'embedding', '1.weight': 'hidden', '1.bias': 'vector'}
        >>> roles(model, torch.tensor([[1, 2]]))
        {'0.weight': 'embedding', '1.weight': 'head', '1.bias': 'vector'}
    """
    return {found.name: found.role for found in _find(model, example)}


def _matches(predicate: Predicate, found: _Parameter) -> bool:
    if isinstance(predicate, str):
        return fnmatchcase(found.name, predicate)
    if isinstance(predicate, type | tuple):
        return any(isinstance(module, predicate) for module in found.modules)
    if not callable(predicate):
        raise TypeError(
            "a rule starts with a pattern for names, a module type or a function of (name, module, parameter), "
            f"got {predicate!r}"
        )
    return any(predicate(found.name, module, found.parameter) for module in found.modules)


def _assign(found: Sequence[_Parameter], rules: Sequence[Rule], partial: bool) -> list[int | None]:
    """The first rule that matches each parameter; unless `partial`, every rule must be the first for one of them."""
    chosen: list[int | None] = []
    matched = [0] * len(rules)
    for one in found:
        hits = [i for i, (predicate, _) in enumerate(rules) if _matches(predicate, one)]
        for i in hits:
            matched[i] += 1
        chosen.append(hits[0] if hits else None)
    if partial:
        return chosen
    for i, (predicate, _) in enumerate(rules):
        if not matched[i]:
            names = ", ".join(one.name for one in found[:8])
            raise ValueError(f"rule {i}, {predicate!r}, matches no trainable parameter; the names begin {names}")
        if i not in chosen:
            raise ValueError(
                f"rule {i}, {predicate!r}, is never the first to match: earlier rules take all of its {matched[i]} "
                "parameters; put it before them"
            )
    return chosen


def _checked_roles(names: set[str], present: set[str], what: str) -> None:
    if unknown := names - set(ROLES):
        raise ValueError(f"unknown role {', '.join(sorted(unknown))}{what}; roles are {', '.join(ROLES)}")
    if absent := names - present:
        raise ValueError(
            f"options for {', '.join(sorted(absent))}{what}, but the model has only {', '.join(sorted(present))}"
        )


def parameter_groups(
    model: nn.Module,
    *,
    example: Any = None,
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    partial: bool = False,
    **options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Groups for `PolarGrad`: one per role that the model has, in the order of `ROLES`, and one per rule within it.

    Args:
        model: any module; parameters that need no gradient are left out. A shared parameter is in one group.
        example: what one call of the model takes: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. One forward pass is watched, in the model's present mode and leaving it as it was, and roles,
            layouts and the parts of fused matrices (queries, keys and values, gates) are read from what it does with
            each parameter. What the pass does not reach keeps the role that `roles` gives without an example.
        rules: pairs (predicate, action), of which the first that matches a parameter counts. A predicate is a pattern
            for the qualified name ("*.wte.weight"), a module type or a tuple of types that own the parameter, or a
            function (name, module, parameter) -> bool. An action is a role, or a mapping of group options laid over
            those of the role, which may name a "role" as well.
        defaults: options per role instead of the built-in ones; a role of the model that they lack is an error.
        partial: the module is a part of the model, such as a pipeline stage: rules and options that concern the other
            parts are no error.
        **options: a mapping of group options per role, laid over the role's defaults: what it does not name stays, so
            that `hidden={"scale": "nuclear"}` keeps Nesterov momentum and the 5 quintic steps; default options that
            its rule, geometry, method or scale does not use are left out, as for `head={"rule": "adamw", "lr": 0.01}`.
            A `layout` replaces all that was found of the matrices, a `stack` keeps the layout, a `split` both.
            `describe_groups` shows the result; `defaults` replaces the built-in options instead.

    Returns:
        Groups with named parameters and a "role"; `describe_groups` prints them, and where an example and the static
        rules disagree.

    Raises:
        ValueError: a role that does not exist or that the model does not have; a rule that matches nothing or comes
            too late; a parameter left over; an example on which the model does not run; a lazy module that never ran.
        TypeError: a rule or an example of another form.

    Warns:
        UserWarning: nothing but an example could tell what a parameter is, or how it is cut, and none is given; a rule
            takes polar steps with a parameter that the example shows to be used entry by entry; the example does not
            reach a parameter of which nothing else is known; the model returns no tensor.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 5))
        >>> groups = parameter_groups(model, rules=[("2.weight", "head")], hidden={"lr": 0.02})
        >>> [(g["role"], g["rule"], len(g["params"])) for g in groups]
        [('hidden', 'polar', 1), ('embedding', 'polar', 1), ('head', 'polar', 1), ('vector', 'adamw', 2)]
    """
    found = list(_find(model, example))
    rules = [(predicate, {"role": then} if isinstance(then, str) else dict(then)) for predicate, then in rules]
    chosen = _assign(found, rules, partial)
    _checked_roles({then["role"] for _, then in rules if "role" in then}, set(ROLES), " in a rule")
    own = [{} if i is None else dict(rules[i][1]) for i in chosen]
    final = [one.get("role", f.role) for one, f in zip(own, found, strict=True)]
    _checked_roles(set(options), set(ROLES) if partial else set(final), "")
    table = _DEFAULTS if defaults is None else defaults
    if set(table) - set(ROLES):
        _checked_roles(set(table), set(ROLES), " in defaults")
    if left_over := [f.name for f, role in zip(found, final, strict=True) if role not in table and role not in options]:
        missing = sorted(set(final) - set(table) - set(options))
        raise ValueError(
            f"no options for {', '.join(left_over[:8])}{' and others' if len(left_over) > 8 else ''}; give those of "
            f"{', '.join(missing)} in defaults or by keyword"
        )
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    laid: dict[tuple[str, int | None], dict[str, Any]] = {}
    for f, rule, extra, role in zip(found, chosen, own, final, strict=True):
        if (role, rule) not in laid:
            layers = dict(options.get(role, {})), dict(extra)
            merged = without_accuracy(table.get(role, {}), *layers)
            for own_options in filter(None, layers):
                plain_options(own_options)
                given = merged.get("rule", "polar")
                if "lr" not in own_options and own_options.get("rule", given) != given:
                    raise ValueError(
                        f"the options of {role} choose rule={own_options['rule']!r} without a learning rate, and "
                        f"{merged.get('lr')} is that of rule={given!r}, which means something else; give lr as well"
                    )
                merged = {**inherited_options(own_options, merged), **own_options}
            laid[role, rule] = merged
        view = _kept_view(f, laid[role, rule])
        key = (ROLES.index(role), len(rules) if rule is None else rule, repr(sorted(view.items())))
        if key not in groups:
            groups[key] = {"params": [], **view, **laid[role, rule], "role": role}
        groups[key]["params"].append((f.name, f.parameter))
        if f.entrywise and groups[key].get("rule", "polar") == "polar":
            _warn(f"a rule takes polar steps with {f.name}, which the example shows to be used entry by entry")
    unruled = [f for f, rule in zip(found, chosen, strict=True) if rule is None]
    if example is not None and (unknown := [f.name for f in unruled if f.unknown]):
        _warn(f"the example does not reach {_few(unknown)}, whose use nothing else tells; AdamW steps them")
    # Bare parameters of two dimensions in models of transformers are tables and biases.
    known = [f.parameter.ndim == 2 and any(map(_class, f.modules)) for f in unruled]
    bare = [f.name for f, table in zip(unruled, known, strict=True) if f.unknown and f.role == "position" and not table]
    fused = [f.name for f in unruled if f.fused]
    if example is None and (bare or fused):
        said = [f"the use of {_few(bare)} (stepped by AdamW)"] * bool(bare)
        said += [f"how the rows of {_few(fused)} are cut (stepped as one matrix)"] * bool(fused)
        _warn(f"without an example nothing tells {' nor '.join(said)}; give example=batch, or rules")
    notes = {f.name: f.note for f in found if f.note}
    return ParameterGroups([groups[key] for key in sorted(groups)], notes)


def _kept_view(found: _Parameter, options: Mapping[str, Any]) -> dict[str, Any]:
    """The view that was found, but for what the options of its group say otherwise.

    A layout says what a stack cuts, and both what a split cuts: an option that is given leaves of those that were found
    the ones before it, if they fit it, and none that would cut what it makes.
    """
    if options.get("rule", "polar") != "polar":
        return {}
    given = {key: options[key] for key in VIEW_OPTIONS if key in options}
    if not given:
        return dict(found.view)
    before = ("layout", "stack", "split", "interleave", "heads")
    kept = {key: found.view[key] for key in before[: min(map(before.index, given))] if key in found.view}
    try:
        matrix_view(found.parameter.shape, {**kept, **given})
    except ValueError:
        return {}
    return kept


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


class ParameterGroups(list[dict[str, Any]]):
    """Parameter groups, with a remark on each parameter whose role an example has changed or could not tell."""

    def __init__(self, groups: Iterable[dict[str, Any]], notes: Mapping[str, str]) -> None:
        super().__init__(groups)
        self.notes = dict(notes)


def describe_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """A table of groups to print: a line for each, with its options, and its parameters by shape below it.

    Args:
        groups: from `parameter_groups`, or the `param_groups` of an optimizer.

    Example:
        >>> from torch import nn
        >>> table = {"hidden": {"scale": "nuclear", "lr": 0.1}, "vector": {"rule": "adamw", "lr": 0.01}}
        >>> groups = parameter_groups(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), defaults=table)
        >>> print(describe_groups(groups))
        hidden  2 tensors  21 numbers  polar scale=nuclear lr=0.1
            3 x 4  0.weight
            3 x 3  1.weight
        vector  2 tensors  6 numbers  adamw lr=0.01
            3  0.bias and 1 more
        total   4 tensors  27 numbers
    """
    lines, tensors, numbers = [], 0, 0
    width = max((len(str(group.get("role", ""))) for group in groups), default=0)
    width = max(width, len("total"))
    for group in groups:
        named = _named(group)
        count = sum(p.numel() for _, p in named)
        tensors, numbers = tensors + len(named), numbers + count
        options = [f"{k}={v}" for k, v in group.items() if k not in ("params", "param_names", "role", "rule")]
        line = " ".join([str(group.get("rule", "polar")), *options])
        lines.append(f"{group.get('role', '')!s:{width}}  {len(named)} tensors  {count:,} numbers  {line}")
        shapes: dict[str, list[str]] = {}
        for name, p in named:
            shapes.setdefault(" x ".join(map(str, p.shape)) or "scalar", []).append(name)
        for shape, names in shapes.items():
            lines.append(f"    {shape}  {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    lines.append(f"{'total':{width}}  {tensors} tensors  {numbers:,} numbers")
    said: dict[str, list[str]] = {}
    for name, note in getattr(groups, "notes", {}).items():
        said.setdefault(note, []).append(name)
    for note, names in said.items():
        lines.append(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}")
    return "\n".join(lines)


def _named(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    parameters = list(group["params"])
    if parameters and isinstance(parameters[0], tuple):
        return parameters
    names = group.get("param_names") or [f"parameter {i}" for i in range(len(parameters))]
    return list(zip(names, parameters, strict=True))
