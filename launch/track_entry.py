"""An entry of modded-nanogpt's optimization track: the track's own script, with PolarGrad as its optimizer.

The track (`records/track_3_optimization` there) asks for one script that logs itself, with its data, batch,
architecture and one forward and backward pass a step, and for the steps to a validation loss of 3.28. This writes it:

    python launch/track_entry.py TRACK/train_gpt_simple.py --steps 3250 > train_gpt_polargrad.py
    torchrun --standalone --nproc-per-node 8 train_gpt_polargrad.py 8   # as many trials, each with a line in logs/

It replaces the track's `optimizer1`, `optimizer2` and `optimizers` and the number of steps, and imports polargrad,
which has to be installed. An entry counts if (3.28 - mean of the trials' losses) * sqrt(trials) is at least .004.

Hidden matrices have the rate and decay of the track's Muon. The rates of tables and vectors are those of
`muon+normalized-tables` on our small models, where the embedding begins at a standard deviation of .02 and not of 1,
times the ratio of the two's rates of AdamW: guesses to search from. No entry has been run.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

OPTIMIZER = """\
    table = {"nesterov": True, "normalize_rows": 0.95, "method": "auto", "accuracy": 0.15}
    optimizers = [polargrad.PolarGrad([
        {"params": [p for p in model.blocks.parameters() if p.ndim >= 2], "lr": 0.025, "momentum": 0.95,
         "nesterov": True, "scale": "spectral", "weight_decay": 0.025, "method": "newton-schulz"},
        {"params": [model.embed.weight], "lr": 0.7, "momentum": 0.5, "scale": "rms", **table},
        {"params": [model.proj.weight], "lr": 0.035, "momentum": 0.7, "scale": "spectral", **table},
        {"params": [p for p in model.parameters() if p.ndim < 2], "rule": "adamw", "lr": 0.02, "betas": (0.9, 0.95),
         "weight_decay": 0.0},
    ], process_group=dist.group.WORLD)]
"""

PARTS = (
    ("import torch", re.compile(r"^import torch$", re.MULTILINE), "import polargrad\nimport torch"),
    ("train_steps = N", re.compile(r"^    train_steps = \d+$", re.MULTILINE), "    train_steps = {steps}"),
    (
        "optimizer1 = ... to optimizers = [...]",
        re.compile(r"^    optimizer1 = .*?^    optimizers = \[[^\n]*\]\n", re.MULTILINE | re.DOTALL),
        OPTIMIZER,
    ),
)


def entry(script: str, steps: int) -> str:
    """The track's script with PolarGrad and so many steps.

    Raises:
        ValueError: a script that lacks one of the parts to replace, or has it twice.
    """
    for what, pattern, new in PARTS:
        found = len(pattern.findall(script))
        if found != 1:
            raise ValueError(
                f"the script has {what!r} {found} times instead of once: not the track's train_gpt_simple.py"
            )
        written = new.replace("{steps}", str(steps))
        script = pattern.sub(lambda _, written=written: written, script)
    return script


def main() -> None:
    """Write the entry to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="the track's train_gpt_simple.py")
    parser.add_argument("--steps", type=int, default=3250, help="steps of a trial (default 3250, tuned Muon's)")
    arguments = parser.parse_args()
    try:
        sys.stdout.write(entry(arguments.script.read_text(encoding="utf-8"), arguments.steps))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
