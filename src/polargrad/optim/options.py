"""The options of a parameter group: plain data in, checked once, objects out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Columns, Entrywise, Frobenius, Geometry, LeftPolar, RightPolar, Rows, Spectral
from polargrad.linalg import PolarMethod, resolve_method
from polargrad.linalg.method import Accuracy
from polargrad.optim.matrix_view import matrix_view
from polargrad.optim.momentum import MOMENTUM_ORDERS, Momentum
from polargrad.optim.scaling import SCALES, SHAPE_SCALES
from polargrad.optim.stepsize import STEP_RULES

__all__ = [
    "check_options",
    "check_parameters",
    "geometry_of",
    "gradient_limit",
    "momentum_dtype",
    "momentum_of",
    "parameter_name",
    "plain_method",
]

GEOMETRIES: dict[str, type[Geometry]] = {
    cls.name: cls for cls in (Spectral, LeftPolar, RightPolar, Rows, Columns, Entrywise, Frobenius)
}
_PARAMETER_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "rule": ("polar", "adamw"),
    "momentum_order": tuple(MOMENTUM_ORDERS),
    "momentum_dtype": (None, "float16", "bfloat16", "float32", "float64"),
    "scale": SCALES,
    "scale_base": tuple(SHAPE_SCALES),
    "scope": ("matrix", "group"),
    "weight_decay_mode": ("plain", "cautious"),
    "step_rule": STEP_RULES,
    "on_nonfinite": ("skip", "raise"),
    "maximize": (False, True),
    "nesterov": (False, True),
    "capturable": (False, True),
}


def plain_method(method: str | PolarMethod | Mapping[str, Any]) -> str | dict[str, Any]:
    """A polar method as plain data, which parameter groups and checkpoints hold: its name, or name and options.

    Example:
        >>> from polargrad.linalg import QDWH
        >>> plain_method(QDWH(max_steps=2))["max_steps"]
        2
    """
    if isinstance(method, PolarMethod):
        options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        return {"name": method.name, **options} if options else method.name
    if isinstance(method, str):
        return method
    if isinstance(method, Mapping) and "name" in method:
        return dict(method)
    raise TypeError(f"method must be a name, a PolarMethod or a mapping with 'name', got {type(method).__name__}")


# Made when a group is checked; a step only looks them up, which a compiled step can do too.
_MADE: dict[tuple[Any, ...], Geometry] = {}


def _make_geometry(
    name: str,
    method: str | tuple[tuple[str, Any], ...],
    max_steps: int | None,
    accuracy: Accuracy | None,
    dtype: torch.dtype,
) -> Geometry:
    if isinstance(method, str):
        algorithm: str | PolarMethod = method
    else:
        options = dict(method)
        algorithm = dataclasses.replace(resolve_method(options.pop("name")), **options)
    resolve_method(algorithm, max_steps, accuracy, dtype)
    cls = GEOMETRIES[name]
    given = {"method": algorithm, "max_steps": max_steps, "accuracy": accuracy}
    return cls(**{field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given})


def geometry_of(group: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> Geometry:
    """The geometry that a group asks for, with its polar method.

    Raises:
        ValueError: the method does not exist, or cannot reach the asked accuracy in `dtype`.
    """
    method = group["method"]
    plain = method if isinstance(method, str) else tuple(sorted(method.items()))
    key = (group["geometry"], plain, group["max_steps"], group["accuracy"], dtype)
    if key not in _MADE:
        _MADE[key] = _make_geometry(*key)
    return _MADE[key]


def momentum_of(group: Mapping[str, Any]) -> Momentum:
    """The momentum order that a group asks for."""
    return MOMENTUM_ORDERS[group["momentum_order"]](group["momentum"], group["nesterov"])


def momentum_dtype(group: Mapping[str, Any], parameter: Tensor) -> torch.dtype:
    """The dtype of a parameter's momentum buffer: `momentum_dtype`, or the parameter's own."""
    name = group["momentum_dtype"]
    return parameter.dtype if name is None else getattr(torch, name)


def gradient_limit(group: Mapping[str, Any], parameter: Tensor) -> float:
    """The largest entry of a gradient that can be used: no sum or difference of two entries of a state overflows."""
    if group["rule"] == "adamw":
        return torch.finfo(parameter.dtype).max
    return torch.finfo(momentum_dtype(group, parameter)).max / (2 * momentum_of(group).gain)


def parameter_name(group: Mapping[str, Any], position: int) -> str:
    """What to call a parameter in a message: its name, or its position and shape."""
    names = group.get("param_names")
    if names:
        return repr(names[position])
    return f"parameter {position} of shape {tuple(group['params'][position].shape)}"


def check_options(group: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError if an option is out of its range, or if two contradict each other."""
    for option, allowed in _CHOICES.items():
        if group[option] not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {group[option]!r}")
    if group["geometry"] not in GEOMETRIES:
        raise ValueError(f"geometry must be one of {', '.join(map(repr, GEOMETRIES))}, got {group['geometry']!r}")
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(group['lr'].shape)}")
    for option in ("lr", "weight_decay", "eps"):
        if not 0.0 <= float(group[option]) < math.inf:
            raise ValueError(f"{option} must be finite and at least 0, got {group[option]}")
    decays = [("momentum", group["momentum"]), ("scale_beta", group["scale_beta"])]
    if group["row_beta"] is not None:
        decays.append(("row_beta", group["row_beta"]))
    for option, value in (*decays, *(("betas", beta) for beta in group["betas"])):
        if not 0.0 <= float(value) < 1.0:
            raise ValueError(f"{option} must lie in [0, 1), got {value}")
    if isinstance(group["workspace"], bool) or not isinstance(group["workspace"], int) or group["workspace"] < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {group['workspace']!r}")
    if group["capturable"] and group["on_nonfinite"] == "raise":
        raise ValueError("capturable=True cannot go with on_nonfinite='raise', which reads from the device; use 'skip'")
    if group["rule"] == "polar":
        _check_polar(group)


def _check_polar(group: Mapping[str, Any]) -> None:
    scale, alpha = group["scale"], group["alpha"]
    if group["nesterov"] and not group["momentum"]:
        raise ValueError("nesterov=True needs momentum > 0")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if alpha != 1.0 and scale not in ("nuclear", "adaptive-nuclear"):
        raise ValueError(
            f"alpha={alpha} is an exponent on the dual norm, which scale={scale!r} does not raise; "
            "use scale='nuclear' or 'adaptive-nuclear'"
        )
    if group["scope"] == "group" and scale in SHAPE_SCALES:
        raise ValueError(
            f"scope='group' shares the sum of the nuclear norms, of which scale={scale!r} makes no use; use "
            "scale='nuclear', 'mean-singular' or 'adaptive-nuclear', or scope='matrix'"
        )
    rule = group["step_rule"]
    if rule != "fixed":
        wanted = {"smoothness": "smoothness", "polyak": "minimum"}[rule]
        if group[wanted] is None:
            raise ValueError(f"step_rule={rule!r} needs {wanted}")
        if scale != "nuclear" or alpha != 1.0:
            raise ValueError(f"step_rule={rule!r} is a rule for scale='nuclear' with alpha=1, got scale={scale!r}")
        if group["weight_decay"]:
            raise ValueError(f"step_rule={rule!r} knows no weight decay; put the decay into the loss")
    for option, rule_of in (("smoothness", "smoothness"), ("minimum", "polyak")):
        if group[option] is not None and rule != rule_of:
            raise ValueError(f"{option} is used by step_rule={rule_of!r} alone, got step_rule={rule!r}")
    if group["smoothness"] is not None and not 0.0 < group["smoothness"] < math.inf:
        raise ValueError(f"smoothness must be positive and finite, got {group['smoothness']}")
    if group["minimum"] is not None and not math.isfinite(group["minimum"]):
        raise ValueError(f"minimum must be finite, got {group['minimum']}")
    geometry_of(group)


def check_parameters(group: Mapping[str, Any]) -> None:
    """Raise TypeError for a dtype that cannot be optimized, ValueError for a parameter that the group cannot take."""
    for position, p in enumerate(group["params"]):
        if p.dtype not in _PARAMETER_DTYPES:
            raise TypeError(
                f"{parameter_name(group, position)} has dtype {p.dtype}; only real floating-point parameters "
                "(float16, bfloat16, float32, float64) are supported"
            )
        if group["rule"] == "polar":
            geometry = geometry_of(group, momentum_dtype(group, p))
            try:
                for _, m, n in matrix_view(p.shape, group).batches:
                    geometry.check_shape(m, n)
            except ValueError as error:
                raise ValueError(f"{parameter_name(group, position)}: {error}") from None
