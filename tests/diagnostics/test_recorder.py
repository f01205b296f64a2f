"""The recorder writes what the step computed, and changes nothing."""

import copy
import json
import pickle

import pytest
import torch

import polargrad
from polargrad.diagnostics import Recorder, matrix_metrics


def _parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return parameters


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("order", ["momentum-first", "polar-first", "heavy-ball"])
@pytest.mark.parametrize("scale", ["nuclear", "spectral", "adaptive-nuclear"])
def test_metrics_are_those_of_the_matrices(order, scale, capturable):
    W, E = _parameters((6, 4), (3, 4, 6))
    optimizer = polargrad.PolarGrad(
        [W, E], lr=0.1, momentum_order=order, scale=scale, method="svd", nesterov=True, capturable=capturable
    )
    recorder = Recorder(optimizer, every=1)
    before = [p.detach().clone() for p in (W, E)]
    optimizer.step()
    gain = {"momentum-first": 0.05 + 0.95 * 0.05, "polar-first": 1.0, "heavy-ball": 1.95}[order]
    matrices = [(W.grad, before[0] - W), *zip(E.grad, before[1] - E, strict=True)]
    by_number = {(r["parameter"], r["matrix"]): r for r in recorder.records}
    assert len(by_number) == len(recorder.records) == 4
    for record, (G, moved) in zip(recorder.records, matrices, strict=True):
        expected = matrix_metrics(G)
        assert record["shape"] == list(G.shape)
        assert record["nuclear_norm"] == pytest.approx(gain * expected["nuclear_norm"], rel=1e-12)
        assert record["frobenius_norm"] == pytest.approx(gain * G.norm().item(), rel=1e-12)
        for key in ("condition_number", "stable_rank", "alignment"):
            assert record[key] == pytest.approx(expected[key], rel=1e-10)
        assert record["update_rms"] == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-10)


def test_watching_changes_no_number():
    watched, alone = _parameters((6, 4), (4, 6)), _parameters((6, 4), (4, 6))
    a, b = polargrad.PolarGrad(watched, lr=0.1), polargrad.PolarGrad(alone, lr=0.1)
    Recorder(a, every=2)
    for _ in range(4):
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(watched, alone, strict=True))


def test_records_are_plain_and_named_and_come_at_the_interval(tmp_path):
    (W,) = _parameters((6, 4))
    optimizer = polargrad.PolarGrad([{"params": [("w", W)], "role": "hidden", "split": [4, 2]}], lr=0.1)
    lines = []
    Recorder(optimizer, every=3, spectrum=False, write=lambda record: lines.append(json.dumps(record)))
    for _ in range(7):
        optimizer.step()
    records = [json.loads(line) for line in lines]
    assert [(r["step"], r["matrix"], r["shape"]) for r in records] == [
        (step, matrix, shape) for step in (1, 4, 7) for matrix, shape in enumerate([[4, 4], [2, 4]])
    ]
    assert {(r["parameter"], r["role"], r["group"]) for r in records} == {("w", "hidden", 0)}
    assert "condition_number" not in records[0]


def test_a_skipped_matrix_moves_by_zero():
    (W,) = _parameters((2, 4, 4))
    W.grad[1, 0, 0] = torch.inf
    optimizer = polargrad.PolarGrad([W], lr=0.1, method="svd")
    recorder = Recorder(optimizer)
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    assert recorder.records[0]["update_rms"] > 0
    assert recorder.records[1]["update_rms"] == 0.0


def test_vectors_are_not_recorded_and_closing_ends_it():
    W, v = _parameters((6, 4), (4,))
    optimizer = polargrad.PolarGrad([{"params": [W]}, {"params": [v], "rule": "adamw"}], lr=0.1)
    recorder = Recorder(optimizer, every=1)
    optimizer.step()
    recorder.close()
    optimizer.step()
    assert len(recorder.records) == 1


def test_a_watched_optimizer_can_be_copied_and_pickled_without_its_watcher():
    (W,) = _parameters((6, 4))
    optimizer = polargrad.PolarGrad([W], lr=0.1)
    recorder = Recorder(optimizer, every=1)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.param_groups[0]["params"][0].grad = W.grad.clone()
        other.step()
    assert recorder.records == []


def test_errors():
    optimizer = polargrad.PolarGrad(_parameters((6, 4)), lr=0.1)
    with pytest.raises(ValueError, match="every must be"):
        Recorder(optimizer, every=0)
    Recorder(optimizer)
    with pytest.raises(ValueError, match="watched already"):
        Recorder(optimizer)


def test_the_alignment_of_a_whitened_step_is_with_what_was_whitened():
    """While the dual norm is that of the result."""
    W = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    whitening = {"name": "two-sided", "power": 0.5, "every": 1, "beta": 0.5, "damping": 1e-9}
    optimizer = polargrad.PolarGrad([W], momentum=0.0, scale="none", method="svd", whitening=whitening)
    recorder = Recorder(optimizer, every=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        W.grad = torch.randn(2, 2, dtype=torch.float64, generator=generator)
        before = W.detach().clone()
        optimizer.step()
        U = (before - W.detach()) / optimizer.param_groups[0]["lr"]
        expected = (W.grad * U).sum() / (W.grad.norm() * U.norm())
        assert recorder.records[-1]["alignment"] == pytest.approx(float(expected), rel=1e-9)
        assert recorder.records[-1]["nuclear_norm"] > 0
    alignments = [record["alignment"] for record in recorder.records]
    assert min(alignments) < 0.9 < max(alignments)
