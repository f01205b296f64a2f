"""skorch, and whatever hands parameters over without their module: matrices by PolarGrad, the others by AdamW.

NeuralNetClassifier(Module, optimizer=polargrad.integrations.skorch.optimizer, lr=0.02)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from polargrad.optim import PolarGrad
from polargrad.optim.roles import _DEFAULTS as DEFAULTS

__all__ = ["optimizer"]


def optimizer(
    params: Iterable[Any], lr: float = 0.02, *, vectors: Mapping[str, Any] | None = None, **options: Any
) -> PolarGrad:
    """PolarGrad over parameters or groups that come without a module: `optimizer(model.parameters())`.

    Parameters of two or more dimensions are matrices, with the role "hidden"; the others (biases, norms) are stepped by
    AdamW, with the role "vector". Only a module tells embeddings and heads apart: with one,
    `PolarGrad(polargrad.parameter_groups(model))` gives these their own options.

    Args:
        params: parameters, named parameters, or groups, whose options are kept.
        lr: step size of the matrices.
        vectors: options of the AdamW group, laid over the defaults of vectors; in skorch `optimizer__vectors`.
        **options: of `PolarGrad`, for the matrices; in skorch `optimizer__scale` and so on.

    Raises:
        ValueError: what `PolarGrad` refuses.

    Example:
        >>> from torch import nn
        >>> made = optimizer(nn.Linear(4, 3).parameters(), lr=0.1, vectors={"lr": 0.01}, scale="rms")
        >>> [(group["role"], group["rule"], group["lr"]) for group in made.param_groups]
        [('hidden', 'polar', 0.1), ('vector', 'adamw', 0.01)]
    """
    given = list(params)
    groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    made: list[dict[str, Any]] = []
    for group in groups:
        entries: list[Any] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        own = {key: value for key, value in group.items() if key != "params"}
        tensors: list[Tensor] = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
        matrices = [entry for entry, p in zip(entries, tensors, strict=True) if p.ndim >= 2]
        others = [entry for entry, p in zip(entries, tensors, strict=True) if p.ndim < 2]
        if matrices:
            made.append({"params": matrices, "role": "hidden", **own})
        if others:
            made.append({"params": others, "role": "vector", **DEFAULTS["vector"], **(vectors or {}), **own})
    return PolarGrad(made, lr, **options)
