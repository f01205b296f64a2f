"""A step is short enough to be read: few Python calls, through few files."""

import collections
import sys
from pathlib import Path

import pytest
import torch

import polargrad
from polargrad.linalg import NewtonSchulz

SOURCE = str(Path(polargrad.__file__).parent)
MOST_CALLS, MOST_FILES = 120, 6


def calls_of_a_step(parameters, **options):
    """Every Python function that one step calls, those of torch included: (file, name) -> number of calls."""
    optimizer = polargrad.PolarGrad(parameters, **options)
    for p in parameters:
        p.grad = torch.randn_like(p)
    for _ in range(3):
        optimizer.step()
    calls = collections.Counter()

    def profile(frame, event, _):
        if event == "call":
            calls[frame.f_code.co_filename, frame.f_code.co_name] += 1

    sys.setprofile(profile)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return calls


def listed(calls):
    return "\n".join(f"{count:4} {name} {file}" for (file, name), count in sorted(calls.items()))


MUON = {"momentum": 0.95, "nesterov": True, "scale": "spectral", "method": NewtonSchulz(max_steps=5)}


@pytest.mark.parametrize("dtype", ["bfloat16", None])  # what "fast" is on one processor and on another
def test_a_step_of_one_matrix_in_the_setting_of_muon(dtype):
    method = NewtonSchulz(max_steps=5, dtype=dtype)
    calls = calls_of_a_step([torch.nn.Parameter(torch.randn(64, 32))], **{**MUON, "method": method})
    files = {file for file, _ in calls if file.startswith(SOURCE)}
    assert calls.total() <= MOST_CALLS, f"{calls.total()} calls:\n{listed(calls)}"
    assert len(files) <= MOST_FILES, f"{len(files)} files:\n{listed(calls)}"


def test_calls_do_not_grow_with_matrices_of_one_shape():
    """They step as one batch: a further matrix costs a few calls, of the state's lookups."""
    few, many = (
        calls_of_a_step([torch.nn.Parameter(torch.randn(64, 32)) for _ in range(count)], **MUON) for count in (10, 20)
    )
    assert many.total() - few.total() <= 10 * 8, listed(many - few)


def test_options_are_resolved_when_they_change_alone():
    W = torch.nn.Parameter(torch.randn(64, 32))
    optimizer = polargrad.PolarGrad([W], **MUON)
    (rule,) = optimizer._current_rules()
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer._current_rules()[0] is rule
    optimizer.param_groups[0]["scale"] = "rms"
    (changed,) = optimizer._current_rules()
    assert changed is not rule
    assert changed.scale.name == "rms"
