"""What a pre-training run will need, from its spec alone: memory on each device, and time.

With P parameters of w bytes (4, or 2 in pure bfloat16), t tokens of a part of the batch on one device, L layers of
width h and MLP width f, vocabulary V, activations of a bytes (2 in bfloat16, also mixed; else 4), T tokens in all::

    weights, gradients   2 w P
    optimizer            w P for a momentum, 2 w P for AdamW; for SOAP also 8 (m^2 + n^2) of every matrix
    activations          a t L (8 h + k f), k = 4 for a gated MLP and 2 for a plain one; with activation checkpointing
                         a t (L h + 8 h + k f)
    logits               t V (2 a + 12): as computed, in float32, their log-softmax, and the gradients of both

    forward, backward    (6 N + 12 L h S) T flops, N the parameters that multiply (no lookup table), S the context; a
                         third more with activation checkpointing
    optimizer            each step 5 (4 m n^2 + 2 n^3) flops a matrix (m >= n) for five Newton-Schulz steps and
                         8 m n^2 + 50 n^3 for five of QDWH, which reduces it first; on every device the whole of it

The model and its text apart, a process also holds its libraries and torch's allocator, some 1 to 2 GB on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from polargrad.lab.run.spec import LanguageModel, Plain, RunSpec
from polargrad.optim.roles import roles

__all__ = ["Footprint", "footprint"]

_SOAP_SIDE = 10_000


@dataclass(frozen=True)
class Footprint:
    """What a run needs; bytes are those of one device.

    Args:
        parameters: of the model.
        weights: bytes of weights and gradients.
        optimizer: bytes of its state.
        activations: bytes kept for the backward pass.
        logits: bytes around the loss.
        model_flops: of forward and backward passes, all steps and devices together.
        product_flops: of one device's Newton-Schulz products in bfloat16, all steps together.
        optimizer_flops: of one device's other polar factors, in float32.
        tokens: trained on.
    """

    parameters: int
    weights: int
    optimizer: int
    activations: int
    logits: int
    model_flops: float
    product_flops: float
    optimizer_flops: float
    tokens: int

    @property
    def memory(self) -> int:
        """Bytes on one device."""
        return self.weights + self.optimizer + self.activations + self.logits

    def seconds(self, devices: int, rate: float, optimizer_rate: float) -> float:
        """How long it takes at so many flops a second and device, in bfloat16 products and in float32 factors."""
        return (self.model_flops / devices + self.product_flops) / rate + self.optimizer_flops / optimizer_rate


def footprint(spec: RunSpec, devices: int = 1) -> Footprint:
    """What a language-model run needs on so many devices that each hold the whole model (DDP).

    Args:
        spec: the run.
        devices: how many divide each batch.

    Raises:
        ValueError: the devices do not divide the batch's parts equally.

    Example:
        >>> from polargrad.lab.recipes import spec_of
        >>> footprint(spec_of("adamw", steps=10)).parameters
        1895424
    """
    model = spec.objective
    assert isinstance(model, LanguageModel)
    if model.batch % (model.accumulation * devices):
        raise ValueError(
            f"{devices} devices times {model.accumulation} parts do not divide the batch of {model.batch} sequences"
        )
    assert model.mlp is not None
    module = model.build(device="meta")
    named, found = dict(module.named_parameters()), roles(module)
    count = sum(p.numel() for p in named.values())
    width, activation = (2 if model.precision == "bfloat16" else 4), (4 if model.precision == "float32" else 2)
    part = model.batch // (model.accumulation * devices) * model.sequence
    block = 8 * model.hidden_size + (2 if model.family == "gpt2" else 4) * model.mlp * model.experts_per_token
    blocks = model.layers * (model.hidden_size if model.activation_checkpointing else block)
    kept = blocks + (block if model.activation_checkpointing else 0)
    tokens = spec.loop.steps * model.batch * model.sequence
    lookups = sum(p.numel() for name, p in named.items() if found[name] in ("position", "embedding"))
    idle = sum(p.numel() for name, p in named.items() if found[name] == "expert")
    idle -= idle * model.experts_per_token // model.experts
    attention = 12 * model.layers * model.hidden_size * model.sequence
    again = 4 / 3 if model.activation_checkpointing else 1.0

    def flops(*, products: bool) -> float:
        one = sum(_step_flops(spec.optimizer[found[name]], p.shape, products=products) for name, p in named.items())
        return spec.loop.steps * one

    return Footprint(
        parameters=count,
        weights=2 * width * count,
        optimizer=sum(_state_bytes(spec.optimizer[found[name]], p.shape, width) for name, p in named.items()),
        activations=activation * part * kept,
        logits=part * model.vocabulary * (2 * activation + 12),
        model_flops=again * (6.0 * (count - lookups - idle) + attention) * tokens,
        product_flops=flops(products=True),
        optimizer_flops=flops(products=False),
        tokens=tokens,
    )


def _size(shape: torch.Size) -> tuple[int, int, int]:
    """How many matrices, and their longer and shorter side; a vector is one column."""
    if len(shape) < 2:
        return 1, shape[0] if shape else 1, 1
    batch = 1
    for length in shape[:-2]:
        batch *= length
    return batch, max(shape[-2:]), min(shape[-2:])


def _state_bytes(options: Mapping[str, Plain], shape: torch.Size, width: int) -> int:
    rule = options.get("rule", "polar")
    k, m, n = _size(shape)
    numbers = k * m * n
    if rule == "adamw":
        return 2 * width * numbers
    if rule in ("soap", "shampoo"):
        sides = sum(side * side for side in (m, n) if 1 < side <= _SOAP_SIDE)
        return 2 * width * numbers + 8 * k * sides
    return width * numbers if options.get("momentum", 0.95) else 0


def _step_flops(options: Mapping[str, Plain], shape: torch.Size, *, products: bool) -> float:
    """Of one matrix and step: those of Newton-Schulz, or those of other methods."""
    if products != (options.get("method") == "newton-schulz"):
        return 0.0
    if options.get("rule") != "polar" or options.get("geometry", "spectral") in ("rows", "columns", "entrywise"):
        return 0.0
    k, m, n = _size(shape)
    if products:
        return 5.0 * k * (4 * m * n * n + 2 * n**3)
    return float(k) * (8 * m * n * n + 50 * n**3)
