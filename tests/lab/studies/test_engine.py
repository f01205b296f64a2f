"""The benchmark of the polar engine: what it measures is right; how long things take is not tested."""

import csv
import json

import pytest
import torch

from polargrad.lab.cli.main import main
from polargrad.lab.studies.engine import (
    SPECTRA,
    Contender,
    MatrixBatch,
    PolarMeasurement,
    benchmark,
    contenders,
    measure,
    textbook_qdwh,
)
from polargrad.lab.studies.engine_report import markdown, pareto_front
from polargrad.linalg import available_methods
from tests.assertions import assert_polar_factor


def _exact(A):
    P, _, Qh = torch.linalg.svd(A, full_matrices=False)
    return P @ Qh


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", ["12x5", "5x12", "2x6x6"])
def test_problems_have_their_spectrum(spectrum, shape):
    A = MatrixBatch.parse(shape, dtype="float64", spectrum=spectrum).matrices()
    assert A.shape == tuple(map(int, shape.split("x")))
    values = SPECTRA[spectrum]
    if values is not None:
        expected = values(min(A.shape[-2:])).sort(descending=True).values
        torch.testing.assert_close(torch.linalg.svdvals(A), expected.expand(*A.shape[:-2], -1), atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (2, 5, 5)])
def test_the_textbook_baseline_is_right(shape):
    A = torch.randn(shape, dtype=torch.float64)
    assert_polar_factor(A, textbook_qdwh(A))


def test_every_contender_is_measured():
    made = benchmark([MatrixBatch((10, 6)), MatrixBatch((6, 6)), MatrixBatch((2, 6, 6))], repeats=1)
    assert {m.contender for m in made} == {contender.name for contender in contenders()}
    assert set(available_methods()) <= {m.contender for m in made if m.ours}
    by_name = {(m.contender, m.shape): m for m in made}
    for name in ("svd", "auto", "qdwh", "textbook QDWH", "torch SVD, one by one"):
        for shape in ("10x6", "6x6", "2x6x6"):
            m = by_name[name, shape]
            assert m.multiples > 0
            assert m.error < 1e-5
            assert m.peak_memory > 0
    assert by_name["torch.optim Newton-Schulz", "6x6"].error > 1e-2


def test_one_product_measures_all():
    made = benchmark([MatrixBatch((6, 6))], ["svd", "qdwh"], repeats=2)
    assert len({m.gemm_seconds for m in made}) == 1
    for m in made:
        assert m.multiples == m.seconds / m.gemm_seconds


def test_a_wrong_factor_shows():
    batch = MatrixBatch((8, 5), dtype="float64")
    A = batch.matrices()
    good = measure(Contender("good", _exact), batch, A, repeats=1)
    assert good.error < 1e-14
    for wrong in (lambda A: 1.01 * _exact(A), lambda A: torch.linalg.qr(A).Q):
        assert measure(Contender("wrong", wrong), batch, A, repeats=1).error > 1e-3
    assert measure(Contender("negative", lambda A: -_exact(A)), batch, A, repeats=1).definiteness > 1e-3


def test_null_directions_do_not_count():
    batch = MatrixBatch((8, 6), dtype="float64", spectrum="rank-deficient")
    A = batch.matrices()
    P, _, Qh = torch.linalg.svd(A, full_matrices=False)
    half = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.3], dtype=torch.float64)
    assert measure(Contender("any", lambda _: (P * half) @ Qh), batch, A, repeats=1).error < 1e-14


def test_a_failing_contender_is_a_note():
    def fail(_):
        raise RuntimeError("no\nmore")

    m = measure(Contender("failing", fail), MatrixBatch((3, 3)), torch.eye(3), repeats=1)
    assert m.multiples is None
    assert m.note == "RuntimeError: no"


def test_peak_memory_counts_what_is_alive():
    A = torch.zeros(64, 64)

    def two_at_once(A):
        B = A + 1
        C = B + 1
        del B
        return (C + 1) * 0 + torch.eye(64)

    m = measure(Contender("sum", two_at_once), MatrixBatch((64, 64)), A + torch.eye(64), repeats=1)
    assert 2.0 <= m.peak_memory <= 4.0


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(3.0, 1.0), (1.0, 2.0), (2.0, 3.0), (4.0, 1.0)]) == [(1.0, 2.0), (3.0, 1.0)]
    assert pareto_front([]) == []


def test_the_table_names_everything():
    made = [
        PolarMeasurement("a", True, "3x2", "float32", "gaussian", 1.0, 0.5, 2.0, error=1e-7, peak_memory=3.0),
        PolarMeasurement("b", False, "3x2", "float32", "gaussian", note="ValueError: square only"),
    ]
    text = markdown(made, {"torch": "2", "jax": None})
    assert "| a | 2 (1e-07) | 3 |" in text
    assert "b: ValueError: square only" in text
    assert "Machine: torch 2." in text


def test_the_command_writes_and_overwrites_nothing(tmp_path, capsys):
    out = tmp_path / "bench"
    arguments = ["bench", "polar", "--shapes", "6x4", "--spectra", "gaussian", "--repeats", "1", "--out", str(out)]
    assert main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {
        "polar.csv",
        "polar.json",
        "polar.md",
        "polar-float32.svg",
        "polar-float32.png",
    }
    record = json.loads((out / "polar.json").read_text())
    assert record["machine"]["torch"] == torch.__version__
    rows = list(csv.DictReader((out / "polar.csv").read_text().splitlines()))
    assert len(rows) == len(record["measurements"]) == len(contenders())
    assert "torch" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--shapes", "6"], "m x n"),
        (["--shapes", "axb"], "4096x1024"),
        (["--spectra", "pink"], "allowed names are 'gaussian'"),
        (["--dtypes", "float31"], "float64"),
        (["--methods", "magic"], "allowed names are 'auto'"),
        (["--repeats", "0"], "at least 1"),
        (["--device", "cuda"], "not available"),
    ],
)
def test_bad_options_are_explained(options, match, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "polar", *options, "--out", str(tmp_path / "out")]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
