import pytest

from polargrad.lab.run.tracking import tensorboard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

RECORDS = [
    {"kind": "eval", "step": 0, "seconds": 0.0, "val_loss": 8.0},
    {"kind": "step", "step": 1, "loss": 7.5, "seconds": 0.5, "lr": {"hidden": 0.01}, "units": 64},
    {"kind": "matrix", "step": 1, "role": "head", "parameter": "lm_head.weight", "shape": [4, 2], "nuclear_norm": 3.0},
    {"kind": "step", "step": 2, "loss": None, "seconds": 1.0, "lr": {"hidden": 0.02}, "units": 128},
    {"kind": "event", "step": 2, "event": "nonfinite", "message": "the loss is nan"},
]


def test_records_become_scalars(tmp_path):
    with tensorboard(tmp_path / "board") as board:
        assert not (tmp_path / "board").exists()
        for record in RECORDS:
            board(record)
    read = accumulator.EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    figures = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert figures["eval/val_loss"] == [(0, 8.0)]
    assert figures["train/loss"] == [(1, 7.5)]  # what was not finite is left out here, and null in the records
    assert figures["lr/hidden"] == [(1, pytest.approx(0.01)), (2, pytest.approx(0.02))]
    assert figures["lm_head.weight/nuclear_norm"] == [(1, 3.0)]
    assert not [tag for tag in figures if "shape" in tag or tag.endswith("/step")]
    assert any("events" in tag for tag in read.Tags()["tensors"])
