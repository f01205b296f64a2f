"""Pre-training of a small decoder: the same model and batches under each optimizer.

The model is a Qwen2 of 1.9 million parameters on the sources of the Python standard library. After a short warm-up the
rates stay constant, then fall linearly to zero over the last 70% of the steps; their sizes come from docs/log.md.
"""

from __future__ import annotations

from polargrad.lab.recipes.optimizers import OPTIMIZERS, description
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig, WarmupLinearDecay

STEPS = 150
WARMUP = 10
DECAY = 0.7
ROLES = ("hidden", "embedding", "head", "vector")

# Embedding, head, and one early and one late hidden matrix.
PROBED = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)


def recipe(name: str, *, steps: int | None = None, seed: int = 42) -> RunSpec:
    """The demo's model under an optimizer by its name in `OPTIMIZERS`."""
    total = STEPS if steps is None else steps
    chosen = OPTIMIZERS[name]()
    return RunSpec(
        name=name,
        objective=LanguageModel(),
        optimizer={role: chosen[role] for role in ROLES},
        schedule=WarmupLinearDecay(total=total, warmup=min(WARMUP, total // 10), decay_fraction=DECAY),
        loop=LoopConfig(steps=total, eval_every=10, probe_every=10),
        seed=seed,
        probe=PROBED,
        description=description(name),
    )
