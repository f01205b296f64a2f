"""Parameter groups from a model: each parameter's role follows from its module and its use, never from its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from polargrad.optim.options import inherited_options, plain_options

__all__ = ["ROLES", "Rule", "describe_groups", "parameter_groups", "roles"]

ROLES = ("hidden", "embedding", "head", "conv", "expert", "position", "vector")

_MUON: dict[str, Any] = {
    "rule": "polar",
    "lr": 0.028,
    "momentum": 0.9,
    "nesterov": True,
    "scale": "spectral",
    "method": "newton-schulz",
    "max_steps": 5,
}
_NORMALIZED_ROWS: dict[str, Any] = {
    "rule": "polar",
    "lr": 0.056,
    "momentum": 0.7,
    "nesterov": True,
    "scale": "spectral",
    "normalize_rows": 0.99,
    "method": "auto",
}
_ADAMW: dict[str, Any] = {"rule": "adamw", "lr": 3e-2, "betas": (0.9, 0.95), "eps": 1e-8}
# The recipe that won the comparison of 2026-11-22 in docs/log.md. Convolutions and experts take the hidden rate and
# positions a third of that of the vectors; both are unmeasured.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hidden": _MUON,
    "conv": _MUON,
    "expert": _MUON,
    "embedding": {**_ADAMW, "lr": 5e-2, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "head": _NORMALIZED_ROWS,
    "position": {**_ADAMW, "lr": 1e-2},
    "vector": _ADAMW,
}

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED_CONVOLUTIONS)

Predicate = str | type | tuple[type, ...] | Callable[[str, nn.Module, Tensor], bool]
Rule = tuple[Predicate, "str | Mapping[str, Any]"]


class _Parameter(NamedTuple):
    """A trainable parameter: its first name, the modules that use it, its role and how it stores its matrices."""

    name: str
    parameter: Tensor
    modules: list[nn.Module]
    role: str
    layout: str


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear map with its weight stored as (in, out); imports nothing."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)


def _owned_role(module: nn.Module, p: Tensor) -> str:
    """The role of a parameter of an unknown module, from its shape and the module's other parameters."""
    if p.ndim < 2 or p.numel() == max(p.shape):
        return "vector"
    # Anything with a leading dimension of one is there to be broadcast over a batch.
    if p.shape[0] == 1:
        return "position"
    if p.ndim == 2 and any(q.ndim == 3 and q.shape[0] == p.shape[0] for q in module.parameters(recurse=False)):
        return "vector"  # one bias per expert
    return "expert" if p.ndim == 3 else "hidden"


def _role_and_layout(modules: Sequence[nn.Module], p: Tensor, hints: _Hints) -> tuple[str, str]:
    """The role and layout of a parameter that `modules` use: a tied head is a head, then a lookup table is a table."""
    # The modules whose matrix it is, and not their bias.
    weighing = [m for m in modules if getattr(m, "weight", None) is p]
    if hints.heads.intersection(weighing):
        return "head", "auto"
    tables = [m for m in weighing if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    if tables:
        return ("position" if hints.positions.issuperset(tables) else "embedding"), "auto"
    for module in weighing:
        if isinstance(module, _CONVOLUTIONS):
            swapped = isinstance(module, _TRANSPOSED_CONVOLUTIONS)
            return "conv", "transposed-convolution" if swapped else "convolution"
        if _is_transposed_linear(module):
            return "hidden", "transposed"
        if isinstance(module, nn.Linear):
            return "hidden", "auto"
    role = _owned_role(modules[0], p)
    # transformers marks experts that are stored as (experts, in, out).
    return role, "transposed" if role == "expert" and getattr(modules[0], "is_transposed", False) else "auto"


def _find(model: nn.Module) -> Iterator[_Parameter]:
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    hints = _hints_of(model)
    for name, p in model.named_parameters():
        if p.requires_grad:
            yield _Parameter(name, p, users[id(p)], *_role_and_layout(users[id(p)], p, hints))


class _Hints(NamedTuple):
    """What transformers models declare: their heads, and their lookup tables that are not of the input."""

    heads: set[nn.Module]
    positions: set[nn.Module]


def _hints_of(module: nn.Module) -> _Hints:
    """The hints of the module, or where it has none those of the outermost modules below it that have some."""
    hints = _Hints(set(), set())
    if not any(hasattr(module, f"get_{side}_embeddings") for side in ("output", "input")):
        for child in module.children():
            inner = _hints_of(child)
            hints.heads.update(inner.heads)
            hints.positions.update(inner.positions)
        return hints
    output, lookups = (_call(module, f"get_{side}_embeddings") for side in ("output", "input"))
    if output is not None:
        hints.heads.add(output)
    if isinstance(lookups, nn.Embedding):
        tables = (m for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
        hints.positions.update(m for m in tables if m is not lookups)
    return hints


def _call(model: nn.Module, method: str) -> Any:
    """The result of a method of a transformers model; None where the model does not have it."""
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None


def roles(model: nn.Module) -> dict[str, str]:
    """The role of every trainable parameter, by its qualified name; a shared parameter appears once.

    - "embedding": the weight of an `nn.Embedding`. Where the model has several and says which is
      the one of its input (`get_input_embeddings`), the others are "position": positions, segments, relative biases;
      and so are bare parameters (1, ...) that are broadcast over the batch.
    - "head": the weight of what `model.get_output_embeddings()` returns, a tied embedding included: its
      gradients are a head's first of all, and so are the steps that it bears.
    - "conv": convolution kernels. "expert": bare 3-D weights, one matrix per expert.
    - "hidden": every other matrix. "vector": biases, norms, scalars, and bare parameters with one dimension above 1.

    A head that the model does not declare counts as hidden; a rule can say otherwise.

    Example:
        >>> from torch import nn
        >>> roles(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)))
        {'0.weight': 'embedding', '1.weight': 'hidden', '1.bias': 'vector'}
    """
    return {found.name: found.role for found in _find(model)}


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
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    partial: bool = False,
    **options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Groups for `PolarGrad`: one per role that the model has, in the order of `ROLES`, and one per rule within it.

    Args:
        model: any module; parameters that need no gradient are left out. A shared parameter is in one group.
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
            `describe_groups` shows the result; `defaults` replaces the built-in options instead.

    Returns:
        Groups with named parameters and a "role"; `describe_groups` prints them.

    Raises:
        ValueError: a role that does not exist or that the model does not have; a rule that matches nothing or comes
            too late; a parameter left over.
        TypeError: a rule of another form.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 5))
        >>> groups = parameter_groups(model, rules=[("2.weight", "head")], hidden={"lr": 0.02})
        >>> [(g["role"], g["rule"], len(g["params"])) for g in groups]
        [('hidden', 'polar', 1), ('embedding', 'adamw', 1), ('head', 'polar', 1), ('vector', 'adamw', 2)]
    """
    found = list(_find(model))
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
    groups: dict[tuple[int, int, str], dict[str, Any]] = {}
    for f, rule, extra, role in zip(found, chosen, own, final, strict=True):
        key = (ROLES.index(role), len(rules) if rule is None else rule, f.layout)
        if key not in groups:
            merged: dict[str, Any] = dict(table.get(role, {}))
            for own_options in (dict(options.get(role, {})), dict(extra)):
                plain_options(own_options)
                merged = {**inherited_options(own_options, merged), **own_options}
            layout = {"layout": f.layout} if merged.get("rule", "polar") == "polar" and f.layout != "auto" else {}
            groups[key] = {"params": [], **layout, **merged, "role": role}
        groups[key]["params"].append((f.name, f.parameter))
    return [groups[key] for key in sorted(groups)]


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
    return "\n".join(lines)


def _named(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    parameters = list(group["params"])
    if parameters and isinstance(parameters[0], tuple):
        return parameters
    names = group.get("param_names") or [f"parameter {i}" for i in range(len(parameters))]
    return list(zip(names, parameters, strict=True))
