"""`polargrad sample`: text that a trained language model writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polargrad.lab.cli.arguments import Positional
from polargrad.lab.options import Options, option


@dataclass(frozen=True)
class Sample(Options):
    """Let the trained model of a run continue a text.

    Example: polargrad sample runs/monday "def main(" --tokens 60

    Args:
        folder: run folder of a language model with a checkpoint
        prompt: text to continue; without one it begins a text
        tokens: tokens to write at most; the end of a text ends it
        temperature: divisor of the logits; 0 takes the most likely token
        top_k: number of most likely tokens to draw from
        seed: seed of the draws
    """

    folder: Positional[Path]
    prompt: Positional[str] = ""
    tokens: int = 100
    temperature: float = option(0.8, least=0.0)
    top_k: int = 50
    seed: int = option(0, least=0)

    def __call__(self) -> None:
        """Load the last checkpoint and print prompt and text."""
        from polargrad.lab.lm.generation import sample
        from polargrad.lab.run.trained import trained

        found = trained(self.folder)
        how = {"tokens": self.tokens, "temperature": self.temperature, "top_k": self.top_k, "seed": self.seed}
        print(self.prompt + sample(found.module, found.tokenizer, self.prompt, **how))
