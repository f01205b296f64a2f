"""PolarGrad in Hugging Face Trainer by one argument: train, save, resume.

    pip install "polargrad[integrations]"
    python examples/huggingface_trainer.py

Prints the losses of a run of 8 steps, and of one that takes up the checkpoint which the first wrote after 4.
"""

import tempfile
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

import polargrad

STEPS = 8
VOCABULARY = 64


def tokens() -> list[dict[str, torch.Tensor]]:
    """Sequences in which each token tells the next one."""
    first = torch.arange(VOCABULARY).unsqueeze(1)
    return [{"input_ids": row, "labels": row} for row in (first * 5 ** torch.arange(6) + 3) % VOCABULARY]


def trainer(folder: Path) -> Trainer:
    """A Trainer over a tiny decoder; the last argument is all that PolarGrad needs."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        per_device_train_batch_size=8,
        lr_scheduler_type="linear",
        warmup_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=tokens(),
        optimizer_cls_and_kwargs=polargrad.integrations.transformers.optimizer(hidden={"lr": 0.01}),
    )


def losses(trained: Trainer) -> dict[int, float]:
    """What the Trainer logged, by step."""
    return {entry["step"]: entry["loss"] for entry in trained.state.log_history if "loss" in entry}


def main(folder: Path) -> tuple[Trainer, Trainer]:
    """An uninterrupted run, and one resumed from the checkpoint half-way."""
    whole, resumed = trainer(folder / "whole"), trainer(folder / "resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{STEPS // 2}"))
    return whole, resumed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = main(Path(folder))
    for step, loss in losses(whole).items():
        print(f"step {step}  loss {loss}  resumed after {STEPS // 2}: {losses(resumed)[step]}")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    print(f"largest difference of a weight: {max((p - q).abs().max().item() for p, q in pairs):g}")
