"""The entry of modded-nanogpt's track: a script in the track's form, from a stand-in with the same parts."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "track_entry.py"

STAND_IN = """\
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

dist.init_process_group(backend="gloo", store=dist.HashStore(), rank=0, world_size=1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 8).bfloat16()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.proj = nn.Linear(8, 40)

    def forward(self, x, y):
        h = self.embed(x).float()
        for block in self.blocks:
            h = h + block(h).relu()
        return nn.functional.cross_entropy(self.proj(h), y, reduction="sum")


torch.manual_seed(0)
model = Model()
x = torch.arange(40)
for trial in range(1):
    train_steps = 3375

    optimizer1 = AdamW([dict(params=[model.embed.weight], lr=0.3),
                        dict(params=[model.proj.weight], lr=1/320)], fused=True)
    optimizer2 = AdamW([p for p in model.blocks.parameters() if p.ndim >= 2],
                       lr=0.025)
    optimizers = [optimizer1, optimizer2]
    assert set(p for opt in optimizers for group in opt.param_groups
               for p in group["params"]) == set(model.parameters())
    for opt in optimizers:
        for group in opt.param_groups:
            group["initial_lr"] = group["lr"]
    for step in range(train_steps):
        loss = model(x, x)
        loss.backward()
        for opt in optimizers:
            for group in opt.param_groups:
                group["lr"] = group["initial_lr"] * (1 - step / train_steps)
            opt.step()
        model.zero_grad(set_to_none=True)
        print(f"step:{step}/{train_steps} loss:{loss.item():.4f}")
dist.destroy_process_group()
"""


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_the_entry_is_the_tracks_script_with_our_optimizer_and_trains(tmp_path):
    track, made = tmp_path / "train_gpt_simple.py", tmp_path / "train_gpt_polargrad.py"
    track.write_text(STAND_IN)
    done = run(SCRIPT, track, "--steps", 12)
    assert done.returncode == 0, done.stderr
    made.write_text(done.stdout)
    assert "optimizer1" not in done.stdout
    assert done.stdout.count("polargrad.PolarGrad(") == 1
    trained = run(made)
    assert trained.returncode == 0, trained.stderr
    losses = [float(line.rpartition(":")[2]) for line in trained.stdout.splitlines()]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize(
    "lost", ["import torch\n", "    train_steps = 3375\n", "    optimizers = [optimizer1, optimizer2]\n"]
)
def test_another_script_is_refused(lost):
    entry = runpy.run_path(str(SCRIPT))["entry"]
    with pytest.raises(ValueError, match=r"0 times instead of once: not the track's train_gpt_simple\.py"):
        entry(STAND_IN.replace(lost, "", 1), 12)
    with pytest.raises(ValueError, match="2 times instead of once"):
        entry(STAND_IN + STAND_IN, 12)
