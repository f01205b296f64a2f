"""Pre-training of a small decoder: the same model and batches under three optimizers.

The model is a Qwen2 of 1.9 million parameters on the sources of the Python standard library. After a short warm-up the
rates stay constant, then fall linearly to zero over the last 40% of the steps; their sizes come from docs/log.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from polargrad.experiments.spec import LanguageModel, Plain, RunSpec
from polargrad.train import LoopConfig, WarmupLinearDecay

STEPS = 150
WARMUP = 10

# Embedding, head, and one early and one late hidden matrix.
PROBED = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)


def adamw(*, steps: int | None = None, seed: int = 42) -> RunSpec:
    """AdamW on every parameter."""
    return _run(
        "adamw",
        "AdamW on every parameter.",
        {
            "hidden": _adamw(1e-3),
            "embedding": _adamw(3e-2),
            "head": _adamw(3e-2),
            "vector": _adamw(3e-2, weight_decay=0.0),
        },
        steps,
        seed,
    )


def muon_adamw(*, steps: int | None = None, seed: int = 42) -> RunSpec:
    """Muon on hidden matrices, AdamW on the rest."""
    return _run(
        "muon+adamw",
        "Muon on hidden matrices, AdamW on embedding, head and vectors.",
        {
            "hidden": _muon(5e-3),
            "embedding": _adamw(5e-2),
            "head": _adamw(5e-2),
            "vector": _adamw(3e-2, weight_decay=0.0),
        },
        steps,
        seed,
    )


def muon_polargrad(*, steps: int | None = None, seed: int = 42) -> RunSpec:
    """Muon on hidden matrices, PolarGrad on embedding and head."""
    return _run(
        "muon+polargrad",
        "Muon on hidden matrices, PolarGrad on embedding and head, AdamW on vectors.",
        {
            "hidden": _muon(3e-3),
            "embedding": _polargrad(0.2),
            "head": _polargrad(0.2),
            "vector": _adamw(3e-2, weight_decay=0.0),
        },
        steps,
        seed,
    )


def _adamw(lr: float, *, weight_decay: float = 0.1) -> dict[str, Plain]:
    return {"rule": "adamw", "lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}


def _muon(lr: float) -> dict[str, Plain]:
    """Five quintic Newton-Schulz steps on Nesterov momentum, scaled to AdamW's update size."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.95,
        "nesterov": True,
        "scale": "rms",
        "method": "newton-schulz",
        "max_steps": 5,
        "weight_decay": 0.0,
    }


def _polargrad(lr: float) -> dict[str, Plain]:
    """The nuclear norm times the polar factor; QDWH, since these tall gradients have small singular values."""
    return {
        "rule": "polar",
        "lr": lr,
        "momentum": 0.5,
        "scale": "nuclear",
        "method": "qdwh",
        "max_steps": 5,
        "weight_decay": 0.0,
    }


def _run(
    name: str, description: str, optimizer: Mapping[str, Mapping[str, Plain]], steps: int | None, seed: int
) -> RunSpec:
    total = STEPS if steps is None else steps
    return RunSpec(
        name=name,
        objective=LanguageModel(),
        optimizer=optimizer,
        schedule=WarmupLinearDecay(total=total, warmup=min(WARMUP, total // 10), decay_fraction=0.4),
        loop=LoopConfig(steps=total, eval_every=10, probe_every=10),
        seed=seed,
        probe=PROBED,
        description=description,
    )
