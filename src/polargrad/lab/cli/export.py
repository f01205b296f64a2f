"""`polargrad export`: a trained language model as `transformers` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polargrad.lab.cli.arguments import Positional
from polargrad.lab.options import Options


@dataclass(frozen=True)
class Export(Options):
    """Write the trained model of a run in the format of Hugging Face: safetensors, configuration, tokenizer, a card.

    Example: polargrad export runs/monday models/monday

    `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder.

    Args:
        folder: run folder of a language model with a checkpoint
        out: new folder of the model
    """

    folder: Positional[Path]
    out: Positional[Path]

    def __call__(self) -> None:
        """Load the last checkpoint, write the model, and say how to load it."""
        from polargrad.lab.lm.generation import export
        from polargrad.lab.run.trained import model_card, trained

        found = trained(self.folder)
        export(found.module, found.tokenizer, self.out, model_card(found, self.out.name))
        print(f"{found.run.spec.name} after {found.step} steps is in {self.out}; in Python:")
        print(f"  transformers.AutoModelForCausalLM.from_pretrained({str(self.out)!r})")
