"""Small models of many architectures, the roles of their parameters, and whether they learn at the defaults.

python benchmarks/architectures.py                  # every architecture: 25 steps, then the table of docs/roles.md
python benchmarks/architectures.py gpt2 mamba       # these alone, with all of their parameters
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import polargrad
from polargrad.optim.matrix_view import VIEW_OPTIONS

# Sizes of configurations; each takes those that it knows.
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner", "hidden_dim", "encoder_ffn_dim"), 48
    ),
    **dict.fromkeys(("decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "layerdrop": 0.0,
    "use_cache": False,
    "problem_type": None,
}


def _ids(config: Any) -> Tensor:
    return torch.randint(3, 96, (4, 12))


def causal(config: Any) -> dict[str, Any]:
    """Tokens, each of which the next is predicted from."""
    ids = _ids(config)
    return {"input_ids": ids, "labels": ids}


def encoder_decoder(config: Any) -> dict[str, Any]:
    """Tokens for the encoder, others to write."""
    return {"input_ids": _ids(config), "labels": _ids(config)}


def text_classes(config: Any) -> dict[str, Any]:
    """Tokens and a class."""
    return {"input_ids": _ids(config), "labels": torch.arange(4) % 5}


def image_classes(config: Any) -> dict[str, Any]:
    """Images and a class."""
    channels = getattr(config, "num_channels", 3)
    return {"pixel_values": torch.randn(4, channels, 32, 32), "labels": torch.arange(4) % 5}


def image_loss(config: Any) -> dict[str, Any]:
    """Images alone."""
    return {"pixel_values": torch.randn(4, 3, 32, 32)}


def sound_classes(config: Any) -> dict[str, Any]:
    """Sound and a class."""
    return {"input_values": torch.randn(4, 1600), "labels": torch.arange(4) % 5}


def image_and_text(config: Any) -> dict[str, Any]:
    """Images and their captions, to be matched."""
    return {"pixel_values": torch.randn(4, 3, 32, 32), "input_ids": _ids(config), "return_loss": True}


def captions(config: Any) -> dict[str, Any]:
    """Images and the captions to be written below them."""
    ids = _ids(config)
    return {"pixel_values": torch.randn(4, 3, 32, 32), "input_ids": ids, "labels": ids}


def trajectory(config: Any) -> dict[str, Any]:
    """States, actions and rewards of a few moments."""
    sizes = {"states": config.state_dim, "actions": config.act_dim, "rewards": 1, "returns_to_go": 1}
    return {
        **{name: torch.randn(2, 5, size) for name, size in sizes.items()},
        "timesteps": torch.arange(5).expand(2, 5),
        "attention_mask": torch.ones(2, 5),
    }


def image_only(config: Any) -> dict[str, Any]:
    """Images, whose masks the model is to draw."""
    return {"pixel_values": torch.randn(1, 3, 32, 32), "input_points": torch.tensor([[[[5.0, 9.0]]]])}


def speech(config: Any) -> dict[str, Any]:
    """A spectrogram and its transcript."""
    return {"input_features": torch.randn(4, config.num_mel_bins, 32), "labels": _ids(config)}


def spectrogram_classes(config: Any) -> dict[str, Any]:
    """A spectrogram and its class."""
    return {"input_values": torch.randn(4, config.max_length, config.num_mel_bins), "labels": torch.arange(4) % 5}


def waveform(config: Any) -> dict[str, Any]:
    """Sound, to be coded and restored."""
    return {"input_values": torch.randn(2, 1, 1600)}


def codes(config: Any) -> dict[str, Any]:
    """Codes of sound in several books, each of which the next is predicted from."""
    ids = torch.randint(3, 96, (4, 12, config.num_codebooks))
    return {"input_ids": ids.transpose(1, 2).flatten(0, 1), "labels": ids}


Batch = Callable[[Any], dict[str, Any]]
# Model class, configuration class, inputs, what its configuration needs besides, or (...) without.
ARCHITECTURES: dict[str, tuple[str, Batch, dict[str, Any]]] = {
    # decoders
    "gpt2": ("GPT2LMHeadModel", causal, {}),
    "gpt-neo": ("GPTNeoForCausalLM", causal, {"attention_types": [[["global", "local"], 1]]}),
    "gpt-j": ("GPTJForCausalLM", causal, {"rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", causal, {}),
    "opt": ("OPTForCausalLM", causal, {"word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", causal, {}),
    "falcon": ("FalconForCausalLM", causal, {"head_dim": ...}),
    "llama": ("LlamaForCausalLM", causal, {}),
    "qwen2": ("Qwen2ForCausalLM", causal, {}),
    "qwen3": ("Qwen3ForCausalLM", causal, {}),
    "gemma2": ("Gemma2ForCausalLM", causal, {}),
    "gemma3n": ("Gemma3nForCausalLM", causal, {"vocab_size_per_layer_input": 90, "hidden_size_per_layer_input": 8,
                "num_kv_shared_layers": 0, "laurel_rank": 4, "layer_types": ["sliding_attention", "full_attention"],
                "activation_sparsity_pattern": [0.0, 0.0]}),
    "phi3": ("Phi3ForCausalLM", causal, {}),
    "olmo2": ("Olmo2ForCausalLM", causal, {}),
    "cohere": ("CohereForCausalLM", causal, {}),
    "mpt": ("MptForCausalLM", causal, {}),
    "codegen": ("CodeGenForCausalLM", causal, {"rotary_dim": 4}),
    "persimmon": ("PersimmonForCausalLM", causal, {}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", causal, {}),
    "xlnet": ("XLNetLMHeadModel", causal, {"max_position_embeddings": ...}),
    "xlm": ("XLMWithLMHeadModel", causal, {"n_words": 96}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", causal, {}),
    "decision-transformer": ("DecisionTransformerModel", trajectory, {"state_dim": 7, "act_dim": 3, "max_ep_len": 32}),
    "ctrl": ("CTRLLMHeadModel", causal, {"dff": 48}),
    # mixtures of experts
    "mixtral": ("MixtralForCausalLM", causal, {}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", causal, {}),
    "gpt-oss": ("GptOssForCausalLM", causal, {}),
    "llama4": ("Llama4ForCausalLM", causal, {"moe_layers": [0, 1], "intermediate_size_mlp": 48}),
    "dbrx": ("DbrxForCausalLM", causal, {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
                 "ffn_config":
             {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2}}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", causal, {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
                    "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 4, "n_group": 1,
                 "topk_group": 1, "first_k_dense_replace": 1}),
    "granite-moe": ("GraniteMoeForCausalLM", causal, {}),
    "jetmoe": ("JetMoeForCausalLM", causal, {"kv_channels": 8}),
    "minimax": ("MiniMaxForCausalLM", causal, {"layer_types": ["linear_attention", "full_attention"], "block_size": 4}),
    "switch": ("SwitchTransformersForConditionalGeneration", encoder_decoder, {"decoder_start_token_id": 1}),
    # state space and recurrent
    "mamba": ("MambaForCausalLM", causal, {"state_size": 4, "time_step_rank": 2}),
    "mamba2": ("Mamba2ForCausalLM", causal, {"state_size": 4, "num_heads": 8, "n_groups": 1, "chunk_size": 4}),
    "falcon-mamba": ("FalconMambaForCausalLM", causal, {"state_size": 4, "time_step_rank": 2}),
    "jamba": ("JambaForCausalLM", causal, {"mamba_d_state": 4, "mamba_dt_rank": 2, "use_mamba_kernels": False,
              "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2}),
    "rwkv": ("RwkvForCausalLM", causal, {"attention_hidden_size": 32, "context_length": 32}),
    "recurrent-gemma": ("RecurrentGemmaForCausalLM", causal, {"lru_width": 32, "block_types": ["recurrent",
                 "attention"]}),
    "qwen3-next": ("Qwen3NextForCausalLM", causal, {"linear_key_head_dim": 8, "linear_value_head_dim": 8,
                   "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                   "layer_types": ["linear_attention", "full_attention"]}),
    "zamba2": ("Zamba2ForCausalLM", causal, {"mamba_d_state": 4, "mamba_ngroups": 1, "n_mamba_heads": 8,
               "chunk_size": 4, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "mamba_headdim": 8,
               "adapter_rank": 4, "use_mamba_kernels": False, "use_mem_rope": False}),
    "lfm2": ("Lfm2ForCausalLM", causal, {"layer_types": ["conv", "full_attention"]}),
    "xlstm": ("xLSTMForCausalLM", causal, {"embedding_dim": 32, "num_blocks": 2, "num_heads": 2, "chunk_size": 4}),
    # encoders
    "bert": ("BertForMaskedLM", causal, {}),
    "bert-classifier": ("BertForSequenceClassification", text_classes, {}),
    "roberta": ("RobertaForMaskedLM", causal, {}),
    "albert": ("AlbertForMaskedLM", causal, {"embedding_size": 16}),
    "distilbert": ("DistilBertForMaskedLM", causal, {}),
    "deberta-v2": ("DebertaV2ForMaskedLM", causal, {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta": ("DebertaForMaskedLM", causal, {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "squeezebert": ("SqueezeBertForMaskedLM", causal, {"embedding_size": 32, **dict.fromkeys(("q_groups", "k_groups",
                    "v_groups", "intermediate_groups", "output_groups"), 2)}),
    "mobilebert": ("MobileBertForMaskedLM", causal, {"embedding_size": 16, "intra_bottleneck_size": 16,
                   "true_hidden_size": 16, "num_feedforward_networks": 2}),
    "funnel": ("FunnelForMaskedLM", causal, {"num_hidden_layers": ..., "block_sizes": [1, 1]}),
    "convbert": ("ConvBertForMaskedLM", causal, {"embedding_size": 32}),
    "modernbert": ("ModernBertForMaskedLM", causal, {"reference_compile": False}),
    "fnet": ("FNetForMaskedLM", causal, {}),
    "canine": ("CanineForSequenceClassification", text_classes, {"num_hash_buckets": 48, "downsampling_rate": 4,
               "local_transformer_stride": 8}),
    # encoder-decoder
    "t5": ("T5ForConditionalGeneration", encoder_decoder, {"decoder_start_token_id": 1}),
    "bart": ("BartForConditionalGeneration", encoder_decoder, {}),
    "marian": ("MarianMTModel", encoder_decoder, {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 96,
               "tie_word_embeddings": False}),
    "m2m-100": ("M2M100ForConditionalGeneration", encoder_decoder, {}),
    "fsmt": ("FSMTForConditionalGeneration", encoder_decoder, {"langs": ["a", "b"]}),
    "led": ("LEDForConditionalGeneration", encoder_decoder, {"attention_window": 4,
            "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}),
    "prophetnet": ("ProphetNetForConditionalGeneration", encoder_decoder, {"num_hidden_layers": ...,
                   "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                   "num_decoder_attention_heads": 4}),
    # vision
    "vit": ("ViTForImageClassification", image_classes, {}),
    "deit": ("DeiTForImageClassification", image_classes, {}),
    "beit": ("BeitForImageClassification", image_classes, {"use_relative_position_bias": True}),
    "dinov2": ("Dinov2ForImageClassification", image_classes, {}),
    "swin": ("SwinForImageClassification", image_classes, {"embed_dim": 16, "depths": [1, 1],
                 "num_attention_heads": ..., "num_heads": [2, 4],
             "window_size": 2, "patch_size": 4}),
    "swinv2": ("Swinv2ForImageClassification", image_classes, {"embed_dim": 16, "depths": [1, 1],
                 "num_attention_heads": ..., "num_heads": [2, 4],
               "window_size": 2, "patch_size": 4}),
    "convnext": ("ConvNextForImageClassification", image_classes, {"num_stages": 4, "num_hidden_layers": ...,
                 "hidden_sizes": [8, 16, 24, 32], "patch_size": 4,
                 "depths": [1, 1, 1, 1]}),
    "convnextv2": ("ConvNextV2ForImageClassification", image_classes, {"num_stages": 4, "num_hidden_layers": ...,
                   "hidden_sizes": [8, 16, 24, 32], "patch_size": 4, "depths": [1, 1, 1, 1]}),
    "hiera": ("HieraForImageClassification", image_classes, {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
              "image_size": [32, 32], "patch_size": [7, 7], "num_query_pool": 1, "query_stride": [2, 2],
              "masked_unit_size": [4, 4], "num_hidden_layers": ...}),
    "resnet": ("ResNetForImageClassification", image_classes, {"embedding_size": 8, "hidden_sizes": [8, 16],
               "depths": [1, 1]}),
    "regnet": ("RegNetForImageClassification", image_classes, {"embedding_size": 8, "hidden_sizes": [8, 16],
               "depths": [1, 1], "groups_width": 4}),
    "mobilenet-v2": ("MobileNetV2ForImageClassification", image_classes, {"depth_multiplier": 0.35}),
    "segformer": ("SegformerForImageClassification", image_classes, {"hidden_sizes": [8, 16, 24, 32],
                  "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "patch_size": 4}),
    "pvt": ("PvtForImageClassification", image_classes, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4], "patch_sizes": [4, 2, 2, 2]}),
    "poolformer": ("PoolFormerForImageClassification", image_classes, {"hidden_sizes": [8, 16, 24, 32],
                   "depths": [1, 1, 1, 1]}),
    "focalnet": ("FocalNetForImageClassification", image_classes, {"embed_dim": 16, "depths": [1, 1], "patch_size": 4,
                 "hidden_sizes": [16, 32], "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    "mobilevit": ("MobileViTForImageClassification", image_classes, {"hidden_sizes": [16, 20, 24],
                  "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32]}),
    "vit-mae": ("ViTMAEForPreTraining", image_loss, {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}),
    "perceiver": ("PerceiverForImageClassificationLearned", image_classes, {"num_latents": 6, "d_latents": 32,
                  "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}),
    # audio
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", sound_classes, {"conv_dim": [8, 8], "conv_stride": [5, 4],
                 "conv_kernel": [10, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "mask_time_prob": 0.0}),
    "wavlm": ("WavLMForSequenceClassification", sound_classes, {"conv_dim": [8, 8], "conv_stride": [5, 4],
              "conv_kernel": [10, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
              "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "mask_time_prob": 0.0}),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForSequenceClassification", sound_classes, {"conv_dim": [8, 8],
                           "conv_stride": [5, 4], "conv_kernel": [10, 4], "num_feat_extract_layers": 2,
                           "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
                           "classifier_proj_size": 16, "position_embeddings_type": "relative"}),
    "hubert": ("HubertForSequenceClassification", sound_classes, {"conv_dim": [8, 8], "conv_stride": [5, 4],
               "conv_kernel": [10, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
               "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "mask_time_prob": 0.0}),
    "whisper": ("WhisperForConditionalGeneration", speech, {"num_mel_bins": 8, "max_source_positions": 16}),
    "audio-spectrogram": ("ASTForAudioClassification", spectrogram_classes, {"max_length": 32, "num_mel_bins": 16,
                          "frequency_stride": 8, "time_stride": 8}),
    "encodec": ("EncodecModel", waveform, {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2],
                "codebook_size": 16, "codebook_dim": 16, "num_lstm_layers": 1, "num_hidden_layers": ...}),
    "musicgen": ("MusicgenForCausalLM", codes, {"num_codebooks": 3}),
    # several kinds of input
    "clip": ("CLIPModel", image_and_text, {"text_config": {**TINY, "projection_dim": 16}, "vision_config": {**TINY,
             "projection_dim": 16}, "projection_dim": 16}),
    "siglip": ("SiglipModel", image_and_text, {"text_config": {**TINY, "projection_size": 32}, "vision_config": TINY}),
    "blip": ("BlipForConditionalGeneration", captions, {"text_config": {**TINY, "encoder_hidden_size": 32},
             "vision_config": TINY}),
    "sam": ("SamModel", image_only, {"vision_config": {**TINY, "output_channels": 16, "num_pos_feats": 8,
                 "window_size": 2,
            "global_attn_indexes": [1], "mlp_dim": 48}, "prompt_encoder_config": {"hidden_size": 16, "image_size": 32,
            "patch_size": 8, "mask_input_channels": 4}, "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16}}),
}  # fmt: skip


def build(name: str, seed: int = 0, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A small model of an architecture, with more of its configuration, and a batch on which it computes its loss."""
    class_name, batch, needs = ARCHITECTURES[name]
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class
    known = config_class()
    sizes = {key: value for key, value in TINY.items() if hasattr(known, key)} | needs | more
    torch.manual_seed(seed)
    config = config_class(**{key: value for key, value in sizes.items() if value is not ...})
    return model_class(config), batch(config)


def loss_of(output: Any) -> Tensor:
    """The model's own loss; of a model without one, the mean square distance of its first output from one."""
    loss = output.get("loss")
    return loss if loss is not None else (next(t for t in output.values() if t.requires_grad) - 1).square().mean()


def train(model: nn.Module, batch: dict[str, Any], steps: int = 25) -> tuple[float, float, int]:
    """Train a model on one batch with the optimizer's defaults for its watched roles.

    Returns:
        The loss before, the mean of the last five losses, and the number of skipped updates.
    """
    optimizer = polargrad.PolarGrad(polargrad.parameter_groups(model, example=batch))
    losses = []
    for _ in range(steps + 1):
        loss = loss_of(model(**batch))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], sum(losses[-5:]) / 5, optimizer.skipped


def kinds(model: nn.Module, batch: dict[str, Any]) -> dict[tuple[str, str, str], list[str]]:
    """The kinds of parameters, by name without numbers, by role without an example, role with one, and matrices."""
    static = found_roles(model, None)
    kinds: dict[tuple[str, str, str], dict[str, None]] = {}
    for name, (role, view) in found_roles(model, batch).items():
        before, matrices = static[name]
        if before == role and matrices != view:
            before += f" ({matrices or 'one matrix'})"
        if model.get_parameter(name).ndim > 1 or role != "vector" or before != "vector":
            kinds.setdefault((before, role, view), {})[re.sub(r"\.\d+(?=\.|$)", ".*", name)] = None
    return {key: list(names) for key, names in kinds.items()}


def found_roles(model: nn.Module, example: Any) -> dict[str, tuple[str, str]]:
    """The role of each parameter, and how it is split into matrices."""
    return {
        name: (group["role"], ", ".join(f"{key}={group[key]}" for key in VIEW_OPTIONS if key in group))
        for group in polargrad.parameter_groups(model, example=example)
        for name, _ in group["params"]
    }


PAGE = """# Roles in many architectures

This page is the output of `python benchmarks/architectures.py`, which makes small models of {count} architectures from
their configurations, asks `parameter_groups` for the role of each parameter without an example and with one
([Roles](roles.md)), and takes 25 steps at the defaults on one batch. *Loss* is before the first step and the mean of
the last five; *skipped* counts updates left out. Numbers in names are shown as `*`, and 1-D parameters, all of which
are vectors, are left out.

torch {torch}, transformers {transformers}

| architecture | loss | skipped | static | watched | matrices | parameters |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Train every architecture and print docs/architectures.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="NAME", help=f"of {', '.join(ARCHITECTURES)}")
    chosen = parser.parse_args().architectures
    if unknown := set(chosen) - set(ARCHITECTURES):
        parser.error(f"unknown architecture {', '.join(sorted(unknown))}")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(PAGE.format(count=len(ARCHITECTURES), torch=torch.__version__, transformers=transformers.__version__))
    for name in chosen or ARCHITECTURES:
        model, batch = build(name)
        table = kinds(model, batch)
        first, last, skipped = train(model, batch)
        head = f"{name} | {first:.3g} → {last:.3g} | {skipped}"
        for (static, watched, view), names in table.items():
            shown = ", ".join(f"`{one}`" for one in names)
            print(f"| {head} | {static} | {watched} | {view} | {shown} |", flush=True)
            head = " | | "


if __name__ == "__main__":
    main()
