"""Tensor parallelism of decoders: which linear map is cut by its outputs, which by its inputs."""

from __future__ import annotations

from typing import Any

from torch import nn

# Maps cut by their outputs, and those behind them, cut by their inputs: between the two nothing is communicated.
_OUTPUTS = {"attention": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}
_INPUTS = {"attention": ("o_proj",), "mlp": ("down_proj",)}


def tensor_cuts(model: Any, ranks: int) -> dict[str, int]:
    """The dimension along which each cut parameter of a decoder is cut over `ranks`; the others are copied.

    Maps into heads and into the MLP's inside are cut by outputs (0), maps out of them by inputs (1), embedding and head
    by vocabulary (0). Attention stays whole where the ranks do not divide its heads.

    Args:
        model: a dense decoder of the family "qwen2", with a head of its own.
        ranks: number of ranks that share each matrix.

    Raises:
        ValueError: another model, or ranks that divide neither the heads nor the MLP.
    """
    config = model.config
    if config.model_type != "qwen2":
        raise ValueError(
            f"tensor parallelism is known for qwen2, and this is {config.model_type}; use fsdp or hsdp for it"
        )
    if config.tie_word_embeddings:
        raise ValueError("tensor parallelism cuts embedding and head apart, and these are tied; use an untied model")
    parts = []
    if config.num_attention_heads % ranks == 0 and config.num_key_value_heads % ranks == 0:
        parts.append("attention")
    if config.intermediate_size % ranks == 0:
        parts.append("mlp")
    if not parts:
        raise ValueError(
            f"{ranks} tensor-parallel ranks divide neither the {config.num_attention_heads} heads (and "
            f"{config.num_key_value_heads} of keys and values) nor the {config.intermediate_size} entries of the MLP; "
            "choose a divisor"
        )
    outputs = {name for part in parts for name in _OUTPUTS[part]}
    inputs = {name for part in parts for name in _INPUTS[part]}
    cuts = {}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and name in outputs:
            cuts |= {f"{path}.{own}": 0 for own, _ in module.named_parameters(recurse=False)}
        elif isinstance(module, nn.Linear) and name in inputs:
            cuts[f"{path}.weight"] = 1
        elif module in (model.get_input_embeddings(), model.get_output_embeddings()):
            cuts[f"{path}.weight"] = 0
    return cuts


def tensor_plan(model: Any, ranks: int) -> dict[str, Any]:
    """The cuts of `tensor_cuts` as a plan for `torch.distributed.tensor.parallel.parallelize_module`.

    Raises:
        ValueError: as `tensor_cuts`.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    plan: dict[str, Any] = {}
    for name, dim in tensor_cuts(model, ranks).items():
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if module is model.get_input_embeddings():
            plan[path] = RowwiseParallel(input_layouts=Replicate())
        elif module is model.get_output_embeddings():
            plan[path] = ColwiseParallel(output_layouts=Replicate())
        else:
            plan[path] = ColwiseParallel() if dim == 0 else RowwiseParallel()
    return plan
