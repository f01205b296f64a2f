"""From a model to parameter groups: roles found by what a module is and how a weight is used, never by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["ROLES", "parameter_groups", "roles"]

ROLES = ("hidden", "embedding", "head", "conv", "expert", "vector")

_MUON: dict[str, Any] = {
    "rule": "polar",
    "lr": 0.01,
    "momentum": 0.95,
    "nesterov": True,
    "scale": "rms",
    "method": "newton-schulz",
    "max_steps": 5,
}
_ADAMW: dict[str, Any] = {"rule": "adamw", "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hidden": _MUON,
    "conv": _MUON,
    "expert": _MUON,
    "embedding": _ADAMW,
    "head": _ADAMW,
    "vector": _ADAMW,
}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def roles(model: nn.Module) -> dict[str, str]:
    """The role of every trainable parameter, by its qualified name; a shared parameter appears once.

    "embedding": the weight of an `nn.Embedding` (a tied head included); "head": the weight of what
    `model.get_output_embeddings()` returns, when untied; "conv": convolution kernels; "expert": 3-D weights, one
    matrix per expert; "hidden": every other matrix; "vector": the rest (biases, norms, scalars).

    Example:
        >>> from torch import nn
        >>> roles(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)))
        {'0.weight': 'embedding', '1.weight': 'hidden', '1.bias': 'vector'}
    """
    by_identity: dict[int, str] = {}
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(module, nn.Embedding):
            by_identity[id(weight)] = "embedding"
        elif module is output:
            by_identity.setdefault(id(weight), "head")
        elif isinstance(module, _CONVOLUTIONS):
            by_identity.setdefault(id(weight), "conv")
    return {
        name: by_identity.get(id(p)) or ("vector" if p.ndim < 2 else "expert" if p.ndim == 3 else "hidden")
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def parameter_groups(model: nn.Module, **options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups for `PolarGrad`, one per role that the model has, in the order of `ROLES`.

    Args:
        model: any module; parameters that need no gradient are left out.
        **options: a mapping of group options per role, laid over the role's default, for example
            `head={"rule": "polar", "lr": 0.3, "scale": "nuclear", "method": "qdwh"}`.

    Returns:
        Groups with named parameters and a "role".

    Raises:
        ValueError: a role that does not exist, or options for a role that the model does not have.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
        >>> [(g["role"], g["rule"], len(g["params"])) for g in parameter_groups(model, hidden={"lr": 0.02})]
        [('hidden', 'polar', 1), ('embedding', 'adamw', 1), ('vector', 'adamw', 1)]
    """
    unknown = set(options) - set(ROLES)
    if unknown:
        raise ValueError(f"unknown role {', '.join(sorted(unknown))}; roles are {', '.join(ROLES)}")
    found = roles(model)
    absent = set(options) - set(found.values())
    if absent:
        raise ValueError(
            f"options for {', '.join(sorted(absent))}, but the model has only {', '.join(sorted(set(found.values())))}"
        )
    groups = []
    for role in ROLES:
        named = [(name, p) for name, p in model.named_parameters() if found.get(name) == role]
        if named:
            groups.append({"params": named, "role": role, **_DEFAULTS[role], **options.get(role, {})})
    return groups
