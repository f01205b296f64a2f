"""Roles of the parameters that PEFT adds, by its own formulas."""

import re

import pytest

import polargrad
from polargrad.optim.matrix_view import VIEW_OPTIONS

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

LORA = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("llama", lambda: peft.LoraConfig(**LORA), {"q_proj.lora_A.*": "hidden", "q_proj.lora_B.*": "hidden"}),
        ("llama", lambda: peft.LoraConfig(**LORA, use_dora=True),
         {"q_proj.lora_A.*": "hidden", "q_proj.lora_magnitude_vector.*": "vector"}),
        ("llama", lambda: peft.LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "lm_head"]}),
         {"embed_tokens.lora_embedding_A.*": "embedding", "embed_tokens.lora_embedding_B.*": "hidden",
          "lm_head.lora_B.*": "hidden"}),
        ("bert-classifier", lambda: peft.LoraConfig(**{**LORA, "target_modules": ["query"]}, task_type="SEQ_CLS",
                                                    modules_to_save=["word_embeddings"]),
         {"classifier.modules_to_save.*.weight": "head", "word_embeddings.modules_to_save.*": "embedding"}),
        ("llama", lambda: peft.LoraConfig(**LORA, trainable_token_indices={"embed_tokens": [3, 4]}),
         {"token_adapter.trainable_tokens_delta.*": "embedding"}),
        ("gpt2", lambda: peft.TrainableTokensConfig(token_indices=[3, 4], target_modules=["wte"]),
         {"trainable_tokens_delta.*": "embedding"}),
        ("mixtral", lambda: peft.LoraConfig(**LORA, **EXPERTS),
         {"experts.lora_A.*": ("expert", {"stack": 4}), "experts.lora_B.*": ("hidden", {"split": [48, 48]})}),
        ("llama", lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {"ia3_l.*": "vector"}),
        ("llama", lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]), {"oft_R.*": "vector"}),
        ("llama", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
         {"prompt_encoder.*": "position"}),
    ],
)  # fmt: skip
def test_what_adapters_add(name, config, expected):
    from benchmarks.architectures import build

    model, batch = build(name)
    model = peft.get_peft_model(model, config())
    found = {}
    for group in polargrad.parameter_groups(model, example=batch):
        view = {key: group[key] for key in VIEW_OPTIONS if key in group}
        found.update({p: (group["role"], view) for p, _ in group["params"]})
    for pattern, wanted in expected.items():
        roles = [one for p, one in found.items() if re.search(pattern.replace("*", ".*"), p)]
        assert roles
        assert all(one == wanted if isinstance(wanted, tuple) else one[0] == wanted for one in roles), (pattern, roles)
