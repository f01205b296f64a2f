"""The options of a parameter group: plain data in, checked, resolved into the rule that steps the group.

A group is stepped by the rule "polar" or "adamw", and holds the options of its own rule alone. Geometries, polar
methods, scales and step rules are frozen dataclasses in tables by name, whose fields are their options; plain data say
which: a name, or a mapping of the name and some of the fields. What is given and not used is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from polargrad.geometry import GEOMETRIES, Geometry
from polargrad.linalg import METHODS, PolarMethod
from polargrad.linalg.registry import Registry
from polargrad.optim.adamw import AdamWRule
from polargrad.optim.execution import default_workspace
from polargrad.optim.matrix_view import VIEW_OPTIONS
from polargrad.optim.update import (
    MOMENTUM_ORDERS,
    SCALES,
    STEP_RULES,
    FixedRate,
    Nuclear,
    PolarRule,
    Polyak,
    Scale,
    StepRule,
)
from polargrad.optim.whitening import WHITENINGS, Whitening
from polargrad.outside import is_reference

__all__ = [
    "Rule",
    "check_parameters",
    "check_rate",
    "check_values",
    "fill_options",
    "inherited_options",
    "parameter_name",
    "plain_options",
    "resolve",
    "without_accuracy",
]

Rule = PolarRule | AdamWRule
T = TypeVar("T")

# Options that the constructor does not take, since they say what a group is.
_GROUP_DEFAULTS: dict[str, Any] = {
    "rule": "polar",
    "layout": "auto",
    "split": None,
    "heads": 1,
    "stack": 1,
    "interleave": 1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "norm_floor": 1e-7,  # torch.optim.Muon's `eps`
}
# What a group may hold besides options: torch's own, and what `parameter_groups` and schedulers write there.
_BOOKKEEPING = ("params", "param_names", "role", "initial_lr")

# Options that some geometries read, by the value that asks for nothing.
_OF_GEOMETRY: dict[str, Any] = {"method": "auto", "max_steps": None, "accuracy": None}

_PARAMETER_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _choice(*allowed: Any) -> Callable[[str, Any], None]:
    def check(option: str, value: Any) -> None:
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

    return check


def _number(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{option} must be a number, got {value!r}")
    return float(value)


def _nonnegative(option: str, value: Any) -> None:
    if not 0.0 <= _number(option, value) < math.inf:
        raise ValueError(f"{option} must be finite and at least 0, got {value}")


def _decay(option: str, value: Any) -> None:
    if not 0.0 <= _number(option, value) < 1.0:
        raise ValueError(f"{option} must lie in [0, 1), got {value}")


def _learning_rate(option: str, value: Any, *, read: bool = True) -> None:
    """Check a learning rate; the value of a tensor only with `read`, and never on a device, which would wait."""
    if isinstance(value, Tensor):
        dense = value.layout is torch.strided and value.dtype in _PARAMETER_DTYPES
        if value.numel() != 1 or not dense or value.requires_grad:
            raise _not_a_rate(option, value)
        if not read or value.device.type != "cpu":
            return
        value = value.item()
    _nonnegative(option, value)


def _check_rate_device(option: str, lr: Any, parameters: Iterable[Tensor]) -> None:
    devices = {p.device.type for p in parameters}
    if isinstance(lr, Tensor) and devices and lr.device.type not in {"cpu", *devices}:
        raise _not_a_rate(option, lr)


def _not_a_rate(option: str, lr: Tensor) -> ValueError:
    """Of integers, schedulers would lose the fraction; into what requires a gradient, they cannot write."""
    gradient = ", with requires_grad=True" if lr.requires_grad else ""
    return ValueError(
        f"Tensor {option} must be 1-element of {', '.join(map(str, _PARAMETER_DTYPES))}, dense, without requires_grad, "
        f"on the host or on a device of the group's parameters, got shape {tuple(lr.shape)}, {lr.dtype}, {lr.layout}, "
        f"on {lr.device}{gradient}; give a number, or torch.tensor(number)"
    )


def _betas(option: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{option} must be two numbers, got {value!r}")
    for beta in value:
        _decay(option, beta)


def _bytes(option: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{option} must be a positive number of bytes or None, got {value!r}")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "rule": _choice("polar", "adamw"),
    "lr": _learning_rate,
    "weight_decay": _nonnegative,
    "weight_decay_mode": _choice("plain", "cautious"),
    "maximize": _choice(False, True),
    "on_nonfinite": _choice("skip", "raise"),
    "capturable": _choice(False, True),
    "momentum": _decay,
    "momentum_order": _choice(*MOMENTUM_ORDERS),
    "nesterov": _choice(False, True),
    "momentum_dtype": _choice(None, "float16", "bfloat16", "float32", "float64"),
    "scope": _choice("matrix", "group"),
    "scale": lambda option, value: _build(option, SCALES, value),
    "step_rule": lambda option, value: _build(option, STEP_RULES, value),
    "normalize_rows": lambda option, value: _row_beta(value),
    "whitening": lambda option, value: _whitening(value),
    "norm_floor": _nonnegative,
    "geometry": lambda option, value: _name_of(option, GEOMETRIES, value),
    "method": lambda option, value: _method(value),
    "workspace": _bytes,
    "betas": _betas,
    "eps": _nonnegative,
}

OPTIONS: dict[str, frozenset[str]] = {
    "polar": frozenset({*_CHECKS, *_OF_GEOMETRY, *VIEW_OPTIONS} - {"betas", "eps"}),
    "adamw": frozenset(
        {"rule", "lr", "weight_decay", "weight_decay_mode", "maximize", "on_nonfinite", "capturable", "betas", "eps"}
    ),
}


def check_values(options: Mapping[str, Any]) -> None:
    """Check each option by itself.

    Raises:
        ValueError: a value out of its range, or an option that the choice it belongs to does not use.
        TypeError: a value of another kind.
    """
    for option, value in options.items():
        if option in _CHECKS:
            _CHECKS[option](option, value)


def check_rate(what: str, lr: Any, parameters: Iterable[Tensor], capturable: bool) -> None:
    """Check the rate that was set in a group of parameters; one on a device is not read, nor any with `capturable`.

    Raises:
        ValueError: it is not a number, or below 0, or not finite, or a tensor that does not hold one number, or that is
            on another device than the parameters.
    """
    _check_rate_device(what, lr, parameters)
    _learning_rate(what, lr, read=not (capturable or torch.compiler.is_compiling()))


def plain_options(options: MutableMapping[str, Any], *, load: bool = True) -> None:
    """Replace objects by plain data, which parameter groups and checkpoints hold: a name, or a mapping with "name".

    Args:
        options: changed in place.
        load: whether a name may be a reference to code from outside, which is loaded. A checkpoint's may not: reading
            one runs no code.

    Raises:
        ValueError: code that cannot be loaded, or an object whose fields are not plain data.

    Example:
        >>> from polargrad.linalg import QDWH
        >>> options = {"method": QDWH(max_steps=2)}
        >>> plain_options(options)
        >>> options["method"]["name"], options["method"]["max_steps"]
        ('qdwh', 2)
    """
    for option in ("geometry", "method", "scale", "step_rule", "normalize_rows", "whitening"):
        if option in options:
            options[option] = _plain(option, options[option], load)


def _plain(option: str, value: Any, load: bool) -> Any:
    if isinstance(value, PolarMethod | Geometry):
        table: Registry[Any] = METHODS if isinstance(value, PolarMethod) else GEOMETRIES
        table.add(value.name, type(value))
    if isinstance(value, PolarMethod | Geometry | Scale | StepRule | Whitening):
        assert dataclasses.is_dataclass(value)
        fields = {f.name: _plain(f.name, getattr(value, f.name), load) for f in dataclasses.fields(value) if f.init}
        for field, entry in fields.items():
            _check_plain(f"{field} of {option}={value.name!r}", entry)
        return {"name": value.name, **fields} if fields else value.name
    if isinstance(value, Mapping):
        plain = {key: _plain(key, entry, load) for key, entry in value.items() if key != "name"}
        return {"name": _known(option, value["name"], load), **plain} if "name" in value else plain
    return _known(option, value, load)


def _known(option: str, name: Any, load: bool) -> Any:
    """The key of a geometry or polar method, loaded if it is a reference to code from outside."""
    table = {"geometry": GEOMETRIES, "method": METHODS}.get(option)
    if table is None or not isinstance(name, str) or (name in table and not (load and is_reference(name))):
        return name
    if load:
        return table.key(name)
    if is_reference(name) or table.is_announced(name):
        raise ValueError(
            f"{option} is {name!r}, code from outside that is not loaded here, and a state runs no code; make the "
            f"optimizer with this {option} first, then load the state"
        )
    return name


def _check_plain(where: str, value: Any) -> None:
    if isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            _check_plain(where, entry)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"{where} is a {type(value).__name__}; its fields are plain data (numbers, strings, None and tuples of "
            "them), since parameter groups and checkpoints hold them"
        )


def _name_of(option: str, table: Mapping[str, type], value: Any) -> str:
    """The name in a choice given as plain data; it is only looked up."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        raise TypeError(f"{option} must be a name, or a mapping with 'name', got {value!r}")
    name = _known(option, name, load=False)
    if name not in table:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, table))}, got {name!r}")
    return name


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _build(option: str, table: Mapping[str, type[T]], value: Any, more: Mapping[str, Any] | None = None) -> T:
    """The object that plain data ask for.

    Args:
        option: what the choice is called.
        table: the classes by name.
        value: a name, or a mapping of the name and fields.
        more: further fields.
    """
    name = _name_of(option, table, value)
    given = {key: entry for key, entry in value.items() if key != "name"} if isinstance(value, Mapping) else {}
    fields = _fields(table[name])
    for key in given:
        if key not in fields:
            users = [other for other, cls in table.items() if key in _fields(cls)]
            used = f"; it is used by {_list(option, users)}" if users else ""
            known = f"its options are {', '.join(fields)}" if fields else "it has no options"
            raise ValueError(f"{option}={name!r} does not use {key!r}{used}; leave it out ({known})")
    given = {**(more or {}), **{key: _hashable(entry) for key, entry in given.items()}}
    required = (dataclasses.MISSING, dataclasses.MISSING)
    for key, one in fields.items():
        if key not in given and (one.default, one.default_factory) == required:
            raise ValueError(f"{option}={name!r} needs {key}: give {{'name': {name!r}, {key!r}: ...}}")
    try:
        return table[name](**given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{option}={name!r}: {error}") from None


def _list(option: str, names: Iterable[str]) -> str:
    return " or ".join(f"{option}={name!r}" for name in names)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _method(value: Any) -> PolarMethod:
    """The polar method that plain data ask for. Names are only looked up: `plain_options` loads code from outside."""
    if isinstance(value, Mapping):
        return _build("method", METHODS, value)
    if not isinstance(value, str):
        raise TypeError(f"method must be a name, a PolarMethod or a mapping with 'name', got {type(value).__name__}")
    return METHODS[_known("method", value, load=False)]()


def _row_beta(value: Any) -> float | None:
    """The decay that `normalize_rows` asks for."""
    if isinstance(value, Mapping):
        if set(value) != {"beta"}:
            raise ValueError(f"normalize_rows as a mapping has the key 'beta' alone, got {dict(value)!r}")
        value = value["beta"]
    elif value is None:
        return None
    _decay("normalize_rows", value)
    return value


def _whitening(value: Any) -> Whitening | None:
    """The whitening that plain data ask for; None for none."""
    return None if value is None else _build("whitening", WHITENINGS, value)


def inherited_options(own: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a group with `own` options inherits, such as from the constructor or from its role.

    Left out are options that it has itself, and those that its own rule, geometry, method or scale does not use.

    Example:
        >>> inherited_options({"geometry": "rows"}, {"lr": 0.1, "geometry": "spectral", "method": "qdwh"})
        {'lr': 0.1}
    """
    rule = own.get("rule", inherited.get("rule", "polar"))
    check_values({"rule": rule})
    unused = set(own) | (OPTIONS["polar"] | OPTIONS["adamw"]) - OPTIONS[rule]
    if rule == "polar":
        if "geometry" in own:
            unused |= set(_OF_GEOMETRY) - set(_fields(GEOMETRIES[_name_of("geometry", GEOMETRIES, own["geometry"])]))
        if "method" in own and not hasattr(_method(own["method"]), "max_steps"):
            unused.add("max_steps")
        if "max_steps" in own or "accuracy" in own:  # one is instead of the other
            unused |= {"max_steps", "accuracy"}
        if "scale" in own and not SCALES[_name_of("scale", SCALES, own["scale"])].uses_dual_norm:
            unused.add("scope")
    return {option: value for option, value in inherited.items() if option not in unused}


def without_accuracy(table: Mapping[str, Any], *own: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a table, such as a role's defaults; without an accuracy where options over them name what it was for.

    Example:
        >>> without_accuracy({"lr": 0.1, "method": "auto", "accuracy": 0.15}, {"method": "svd"})
        {'lr': 0.1, 'method': 'auto'}
    """
    named = any(option in options for option in ("method", "geometry") for options in own)
    return {option: value for option, value in table.items() if not (named and option == "accuracy")}


# Options of other optimizers, which would do nothing here.
_OF_OTHERS = frozenset({
    *("adjust_lr_fn", "algorithm", "amsgrad", "backend", "backend_steps", "beta", "beta1", "beta2", "cautious"),
    *("dampening", "decoupled_weight_decay", "differentiable", "epsilon", "foreach", "fused", "learning_rate", "mu"),
    *("ns_coefficients", "ns_steps", "rho", "use_muon"),
})  # fmt: skip


# What schedulers and frameworks keep in groups, for themselves.
_OF_FRAMEWORKS = frozenset({
    *("name", "group_name", "layer_id", "lr_scale", "lr_mult", "wd_mult", "fix_lr", "min_lr", "max_lr", "base_lr"),
    *("base_momentum", "max_momentum", "swa_lr"),
})  # fmt: skip


def fill_options(group: dict[str, Any], constructor: Mapping[str, Any], *, strict: bool) -> None:
    """Give a group all options of its rule, in place: its own, else those of the constructor, else the defaults.

    Args:
        group: the parameter group, or its options.
        constructor: the options of the constructor.
        strict: whether to refuse what is not an option of the group's rule, rather than leave it alone; of a key that
            is neither like one nor of a framework, a warning says that it does nothing.

    Raises:
        ValueError: an unknown option, or one of the other rule; the message names it.
    """
    rule = group.get("rule", "polar")
    check_values({"rule": rule})
    unknown = sorted(set(group) - OPTIONS[rule] - set(_BOOKKEEPING)) if strict else []
    for option in unknown:
        for other in OPTIONS:
            if option in OPTIONS[other]:
                raise ValueError(
                    f"{option} is used by rule={other!r}, not by rule={rule!r} of this group; leave it out"
                )
    for option in unknown:
        # Whatever else a group holds belongs to schedulers and frameworks: a name, a factor of the rate.
        if option in _OF_OTHERS or difflib.get_close_matches(option, OPTIONS[rule], n=1, cutoff=0.8):
            raise ValueError(
                f"unknown option {option!r} in a parameter group with rule={rule!r}; "
                f"known: {', '.join(sorted(OPTIONS[rule]))}, role"
            )
    if ignored := [key for key in unknown if key not in _OF_FRAMEWORKS]:
        warnings.warn(
            f"{', '.join(map(repr, ignored))} in a parameter group with rule={rule!r} does nothing: no such option is "
            f"known; known: {', '.join(sorted(OPTIONS[rule]))}, role",
            stacklevel=3,
        )
    plain_options(group, load=strict)
    filled = {**_GROUP_DEFAULTS, **_OF_GEOMETRY, "scope": "matrix", **inherited_options(group, constructor)}
    for option, value in filled.items():
        if option in OPTIONS[rule]:
            group.setdefault(option, value)


def resolve(group: Mapping[str, Any]) -> Rule:
    """The rule that steps a group with all its options.

    Raises:
        ValueError: an option out of its range, options that contradict each other, or one that is not used.
        TypeError: an option of another kind.
    """
    check_values({"rule": group["rule"]})
    options = {option: group[option] for option in group if option in OPTIONS[group["rule"]]}
    check_values(options)
    if group["capturable"] and group["on_nonfinite"] == "raise":
        raise ValueError("capturable=True cannot go with on_nonfinite='raise', which reads from the device; use 'skip'")
    del options["lr"]  # schedulers change it in every step
    options = copy.deepcopy(options)
    shared = {
        "weight_decay": group["weight_decay"],
        "cautious": group["weight_decay_mode"] == "cautious",
        "capturable": group["capturable"],
        "options": options,
    }
    if group["rule"] == "adamw":
        return AdamWRule(betas=tuple(group["betas"]), eps=group["eps"], maximize=group["maximize"], **shared)
    dtype = group["momentum_dtype"]
    rule = PolarRule(
        geometry=_geometry(group),
        momentum=group["momentum"],
        momentum_order=group["momentum_order"],
        nesterov=group["nesterov"],
        scale=_build("scale", SCALES, group["scale"]),
        share_norms=group["scope"] == "group",
        step_rule=_build("step_rule", STEP_RULES, group["step_rule"]),
        row_beta=_row_beta(group["normalize_rows"]),
        whitening=_whitening(group["whitening"]),
        norm_floor=float(group["norm_floor"]),
        sign=-1.0 if group["maximize"] else 1.0,
        momentum_dtype=None if dtype is None else getattr(torch, dtype),
        workspace=group["workspace"] or default_workspace(group["params"]),
        **shared,
    )
    _check_combination(rule)
    return rule


def _geometry(group: Mapping[str, Any]) -> Geometry:
    """The geometry that a group asks for, with its polar method where it has one."""
    chosen = group["geometry"]
    name = _name_of("geometry", GEOMETRIES, chosen)
    fields = _fields(GEOMETRIES[name])
    more = {}
    for option, nothing in _OF_GEOMETRY.items():
        if option in fields:
            if isinstance(chosen, Mapping) and option in chosen:
                if group[option] != nothing:
                    raise ValueError(
                        f"{option} is given twice, in geometry={chosen!r} and as {option}={group[option]!r}"
                    )
                continue
            more[option] = _method(group[option]) if option == "method" else group[option]
        elif group[option] != nothing:
            users = [other for other, cls in GEOMETRIES.items() if option in _fields(cls)]
            raise ValueError(
                f"{option}={group[option]!r} is used by {_list('geometry', users)}, not by geometry={name!r}; leave it "
                "out, or choose that geometry"
            )
    if isinstance(chosen, Mapping) and "method" in chosen and "method" in fields:
        chosen = {**chosen, "method": _method(chosen["method"])}
    return _build("geometry", GEOMETRIES, chosen, more)


def _check_combination(rule: PolarRule) -> None:
    """Refuse options that contradict each other."""
    if rule.nesterov and not rule.momentum:
        raise ValueError("nesterov=True needs momentum > 0")
    if rule.share_norms and not rule.scale.uses_dual_norm:
        users = [name for name, cls in SCALES.items() if cls.uses_dual_norm]
        raise ValueError(
            f"scope='group' shares the sum of the dual norms, which {_list('scale', users)} uses, not "
            f"scale={rule.scale.name!r}; leave it out, or choose one of those"
        )
    if rule.whitening is not None and rule.capturable and rule.whitening.every > 1:
        raise ValueError(
            f"the host counts the {rule.whitening.every} steps between the roots of whitening, and capturable=True "
            "lets it decide nothing; give 'every': 1 in whitening"
        )
    if rule.norm_floor != _GROUP_DEFAULTS["norm_floor"] and not rule.uses_floor:
        raise ValueError(
            f"norm_floor={rule.norm_floor} is for steps that do not vanish with the gradient, as those of "
            f"scale={rule.options['scale']!r} do by themselves; leave it out"
        )
    if isinstance(rule.step_rule, FixedRate):
        return
    what = f"step_rule={rule.step_rule.name!r}"
    if rule.scale != Nuclear():
        raise ValueError(f"{what} is a rule for scale='nuclear' with alpha=1, got scale={rule.options['scale']!r}")
    if rule.row_beta is not None:
        raise ValueError(
            f"{what} is a rule for the direction of the geometry, which normalize_rows={rule.row_beta} changes; leave "
            "normalize_rows out"
        )
    if rule.whitening is not None:
        raise ValueError(f"{what} is a rule for the direction of the gradient itself; leave whitening out")
    if rule.weight_decay:
        raise ValueError(f"{what} knows no weight decay; put the decay into the loss")
    if isinstance(rule.step_rule, Polyak) and rule.sign < 0:
        raise ValueError(f"{what} goes down to a minimum, got maximize=True; minimize the negative of the objective")
    if rule.momentum:
        raise ValueError(
            f"{what} is a rule for the direction of the gradient itself, got momentum={rule.momentum}; give momentum=0"
        )


def parameter_name(group: Mapping[str, Any], position: int) -> str:
    """The name of a parameter in messages: its own, or its position and shape."""
    names = group.get("param_names")
    if names:
        return repr(names[position])
    return f"parameter {position} of shape {tuple(group['params'][position].shape)}"


def check_parameters(group: Mapping[str, Any], rule: Rule) -> None:
    """Refuse parameters that the rule of their group cannot step.

    Raises:
        TypeError: a dtype that cannot be optimized.
        ValueError: a shape or dtype that the group's options do not take, or another device than that of the rate.
    """
    _check_rate_device("lr", group["lr"], group["params"])
    for position, p in enumerate(group["params"]):
        if getattr(p, "_fsdp_flattened", False):
            raise ValueError(
                f"{parameter_name(group, position)} is a flat parameter of FullyShardedDataParallel (FSDP1), in which "
                "matrices are laid out as one vector; shard the model with fully_shard (FSDP2), which keeps them"
            )
        if p.dtype not in _PARAMETER_DTYPES:
            raise TypeError(
                f"{parameter_name(group, position)} has dtype {p.dtype}; only real floating-point parameters "
                "(float16, bfloat16, float32, float64) are supported"
            )
        if isinstance(rule, PolarRule):
            if rule.whitening is not None and rule.capturable and p.device.type not in ("cpu", "meta"):
                raise ValueError(
                    f"{parameter_name(group, position)} is on {p.device}, where the host waits for the "
                    "eigendecompositions of whitening, and capturable=True lets it wait for nothing; leave out "
                    "whitening or capturable"
                )
            dtype = rule.momentum_dtype or p.dtype
            if 1.0 - rule.momentum < torch.finfo(dtype).eps / 2:
                raise ValueError(
                    f"{parameter_name(group, position)}: momentum={rule.momentum} of {dtype} rounds back to itself "
                    "instead of decaying; give momentum_dtype='float32', or a smaller momentum"
                )
            try:
                rule.shape_of(p.shape)
                rule.geometry.check_dtype(dtype)
            except ValueError as error:
                raise ValueError(f"{parameter_name(group, position)}: {error}") from None
