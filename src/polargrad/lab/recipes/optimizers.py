"""Optimizers for whole models: functions that return options for every role a model may have.

Learning rates are for the demo's model (1.9 million parameters) and 200 steps: those of `adamw`, `muon+adamw` and
`even-rows` come from the comparison of 2026-11-22 in docs/log.md, the others from earlier sweeps or from those. Larger
models and other numbers of steps want their own. Convolutions and experts follow the hidden matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from polargrad.lab.run.spec import Plain

Options = dict[str, Plain]
Optimizer = dict[str, Options]

HIDDEN = ("hidden", "conv", "expert")
# Of AdamW on matrices: runs of a few hundred steps want a shorter memory than 0.9.
SHORT = (0.8, 0.95)


def by_role(
    hidden: Options,
    embedding: Options,
    head: Options | None = None,
    *,
    positions: Options | None = None,
    vectors: Options | None = None,
) -> Optimizer:
    """Options for every role, from those of the hidden matrices and of the tables of tokens.

    Args:
        hidden: of hidden matrices, convolutions and experts.
        embedding: of the table at the input.
        head: of the table at the output; None: those of the embedding.
        positions: of tables of positions; None: AdamW.
        vectors: of norms, biases and scalars; None: AdamW without weight decay.
    """
    return {
        **{role: dict(hidden) for role in HIDDEN},
        "embedding": dict(embedding),
        "head": dict(head or embedding),
        "position": dict(positions or adamw_options(1e-2, weight_decay=0.0)),
        "vector": dict(vectors or adamw_options(3e-2, weight_decay=0.0)),
    }


def everywhere(options: Options, *, hidden: float) -> Optimizer:
    """One rule for every role, which the comparators of other libraries want."""
    at = {lr: {**options, "lr": lr} for lr in (hidden, 3e-2, 1e-2)}
    return by_role(at[hidden], at[3e-2], positions=at[1e-2], vectors=at[3e-2])


def adamw_options(lr: float, *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1) -> Options:
    """AdamW with the betas of language models."""
    return {"rule": "adamw", "lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}


def adamw_tables(embedding: float = 5e-2, head: float = 5e-3) -> tuple[Options, Options]:
    """AdamW on embedding and head, at a rate each."""
    return adamw_options(embedding, betas=SHORT), adamw_options(head, betas=SHORT)


def muon_options(lr: float, **changed: Plain) -> Options:
    """Five quintic Newton-Schulz steps on Nesterov momentum, scaled to AdamW's update size."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.9,
        "nesterov": True,
        "scale": "rms",
        "method": "newton-schulz",
        "max_steps": 5,
        "weight_decay": 0.0,
        **changed,
    }


def polargrad_options(lr: float, **changed: Plain) -> Options:
    """The nuclear norm times the polar factor; QDWH, since these tall gradients have small singular values."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.5,
        "scale": "nuclear",
        "method": "qdwh",
        "max_steps": 5,
        "weight_decay": 0.0,
        **changed,
    }


def even_options(lr: float, **changed: Plain) -> Options:
    """The polar factor with even rows; inputs of entries +-1 have their outputs moved by `lr`, root mean square."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.7,
        "nesterov": True,
        "scale": "spectral",
        "row_beta": 0.99,
        "method": "auto",
        "weight_decay": 0.0,
        **changed,
    }


def adamw() -> Optimizer:
    """AdamW on every parameter."""
    return by_role(adamw_options(1e-3, betas=SHORT), *adamw_tables(6e-2, 1.5e-2))


def muon_adamw() -> Optimizer:
    """Muon on hidden matrices, AdamW on embedding, head and vectors."""
    return by_role(muon_options(5e-3), *adamw_tables())


def muon_polargrad() -> Optimizer:
    """Muon on hidden matrices, PolarGrad on embedding and head, AdamW on vectors (arXiv 2505.21799, section 6.4)."""
    return by_role(muon_options(4e-3), polargrad_options(0.2))


def even_rows() -> Optimizer:
    """Muon on hidden matrices, polar factors with even rows on the head, AdamW on the rest; rates for any width."""
    return by_role(muon_options(0.028, scale="spectral"), adamw_tables()[0], even_options(0.056))


def polargrad() -> Optimizer:
    """PolarGrad on every matrix, momentum first, AdamW on vectors."""
    return by_role(polargrad_options(0.03, momentum=0.95), polargrad_options(0.2))


def polar_first() -> Optimizer:
    """PolarGrad on every matrix, the momentum taken of the polar factors, AdamW on vectors."""
    first: Options = {"momentum_order": "polar-first"}
    return by_role(polargrad_options(0.03, momentum=0.95, **first), polargrad_options(0.2, **first))


def adaptive() -> Optimizer:
    """Muon on hidden matrices with each one's nuclear norm over its own recent size, AdamW on the rest."""
    return by_role(muon_options(5e-3, scale="adaptive-nuclear"), *adamw_tables())


def group() -> Optimizer:
    """Muon on hidden matrices with their summed nuclear norm over its recent size, AdamW on the rest."""
    shared: Options = {"scale": "adaptive-nuclear", "scope": "group", "scale_beta": 0.99}
    return by_role(muon_options(5e-3, **shared), *adamw_tables())


def one_sided() -> Optimizer:
    """Muon on hidden matrices, one-sided PolarGrad on embedding and head, AdamW on vectors."""
    tables = polargrad_options(0.2, geometry="right-polar")
    del tables["method"], tables["max_steps"]
    return by_role(muon_options(3e-3), tables)


def rownorm() -> Optimizer:
    """Muon on hidden matrices, normalized rows on embedding and head, AdamW on vectors."""
    tables: Options = {"rule": "polar", "lr": 3e-2, "momentum": 0.5, "geometry": "rows", "scale": "rms"}
    return by_role(muon_options(3e-3), {**tables, "weight_decay": 0.0})


def soap() -> Optimizer:
    """SOAP of pytorch-optimizer on every parameter (arXiv 2409.11321)."""
    options: Options = {"rule": "soap", "betas": (0.95, 0.95), "precondition_frequency": 10, "weight_decay": 0.0}
    return everywhere(options, hidden=3e-3)


def shampoo() -> Optimizer:
    """Shampoo of pytorch-optimizer on every parameter, grafted onto RMSProp's steps (arXiv 2002.09018)."""
    options: Options = {
        "rule": "shampoo",
        "betas": (0.9, 0.95),
        "preconditioning_compute_steps": 10,
        "weight_decay": 0.0,
    }
    return everywhere(options, hidden=1e-3)


OPTIMIZERS: Mapping[str, Callable[[], Optimizer]] = MappingProxyType(
    {
        "adamw": adamw,
        "muon+adamw": muon_adamw,
        "muon+polargrad": muon_polargrad,
        "even-rows": even_rows,
        "polargrad": polargrad,
        "polar-first": polar_first,
        "adaptive": adaptive,
        "group": group,
        "one-sided": one_sided,
        "rownorm": rownorm,
        "soap": soap,
        "shampoo": shampoo,
    }
)


def description(name: str) -> str:
    """What an optimizer is, in its first line."""
    return (OPTIMIZERS[name].__doc__ or "").strip()
