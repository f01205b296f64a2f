"""Every example runs as it stands; what it trains, saves and resumes goes on exactly where it was."""

import importlib.util
import runpy
import warnings
from pathlib import Path

import pytest
import torch

import polargrad
from polargrad.optim.roles import _DEFAULTS

EXAMPLES = Path(polargrad.__file__).parents[2] / "examples"
LOOPS = ["plain_loop", "accelerate_loop", "lightning_module", "torchtitan_style"]
NEEDS = {"accelerate_loop": "accelerate", "lightning_module": "lightning", "huggingface_trainer": "accelerate"}


def load(name):
    """An example as a module."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _the_frameworks_own_warnings():
    with warnings.catch_warnings():
        for library in ("lightning", "accelerate", "transformers", "torch.distributed"):
            warnings.filterwarnings("ignore", module=rf"{library}(\..*)?")
        yield


@pytest.mark.parametrize("name", LOOPS)
def test_the_loss_goes_on_where_it_was(name, tmp_path):
    module = load(name)
    whole, resumed = module.main(tmp_path)
    assert len(whole) == module.STEPS
    assert whole[module.STEPS] < whole[1] - 0.2
    after = range(module.STEPS // 2 + 1, module.STEPS + 1)
    assert set(after) <= set(resumed)
    assert [resumed[step] for step in after] == [whole[step] for step in after]


def test_the_notebook_ends_where_it_says():
    cells = runpy.run_path(str(EXAMPLES / "matrix_notebook.py"))
    assert cells["resumed"] == cells["with_norm"]
    assert cells["with_norm"][-1] < 1e-3 * cells["with_norm"][0]
    assert cells["with_norm"][-1] < cells["without_norm"][-1]


def test_the_trainer_resumes_to_the_same_weights(tmp_path):
    module = load("huggingface_trainer")
    whole, resumed = module.main(tmp_path)
    before, after = module.losses(whole), module.losses(resumed)
    assert len(before) == module.STEPS
    assert before[module.STEPS] < before[1] - 0.2
    assert after == before
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    saved = torch.load(tmp_path / "whole" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert [group["role"] for group in saved["param_groups"]] == ["hidden", "embedding", "head", "vector"]
    # the schedule multiplies the rate of every role
    groups = whole.optimizer.param_groups
    defaults = [_DEFAULTS[role]["lr"] for role in ("embedding", "head", "vector")]
    assert [group["initial_lr"] for group in groups] == [0.01, *defaults]
    shares = {group["lr"] / group["initial_lr"] for group in groups}
    assert max(shares) - min(shares) < 1e-12
    assert max(shares) < 1
