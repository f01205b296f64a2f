"""The paper's data, number for number: the global generator, seeded twice, in the order of the authors."""

from __future__ import annotations

import pytest
import torch

from polargrad.lab.matrix import MatrixCompletion, MatrixLogistic, MatrixQuadratic


@pytest.fixture
def global_stream():
    """The global generator, left as it was found."""
    with torch.random.fork_rng(devices=[]):
        yield torch.manual_seed


def test_quadratic(global_stream):
    problem = MatrixQuadratic.draw(42, rows=30, m=20, n=7, columns=11)
    global_stream(42)
    A, B, C = torch.randn(30, 20), torch.randn(7, 11), torch.randn(30, 11)
    global_stream(42)
    X = torch.empty(20, 7).uniform_(-1, 1)
    for drawn, expected in ((problem.A, A), (problem.B, B), (problem.C, C), (problem.start["X"], X)):
        assert torch.equal(drawn, expected)


def test_logistic_labels_and_batches(global_stream):
    problem = MatrixLogistic.draw(42, rows=40, m=6, n=5, columns=8, batch=10)
    global_stream(42)
    A, B = torch.randn(40, 6), torch.randn(5, 8)
    C = (torch.randn(40, 8) > 0.5).float() * 2 - 1
    global_stream(42)
    X = torch.empty(6, 5).uniform_(-1, 1)
    assert torch.equal(problem.C, C)
    assert torch.equal(problem.start["X"], X)
    point = {"X": X}
    rows = [torch.randint(0, 40, (10,)) for _ in range(3)]
    for step in (2, 0, 1, 2):  # in any order, and again
        picked = rows[step]
        expected = torch.nn.functional.softplus(-C[picked] * (A[picked] @ X @ B)).sum()
        assert torch.equal(problem.step_value(point, step), expected)


def test_completion(global_stream):
    problem = MatrixCompletion.draw(42, rows=20, columns=12, rank=3)
    global_stream(42)
    U, V = torch.randn(20, 3), torch.randn(12, 3)
    mask = torch.rand(20, 12) < 0.3
    global_stream(42)
    X, Y = torch.empty(20, 3).uniform_(-1, 1), torch.empty(12, 3).uniform_(-1, 1)
    assert torch.equal(problem.mask, mask.float())
    assert torch.equal(problem.M, U @ V.T)
    assert torch.equal(problem.held_out, ~mask)
    assert torch.equal(problem.start["X"], X)
    assert torch.equal(problem.start["Y"], Y)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    MatrixQuadratic.draw(1, rows=4, m=3, n=2, columns=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_papers_sizes_are_the_defaults_and_their_start_is_the_papers():
    problem = MatrixQuadratic.draw(42)
    assert (problem.A.shape, problem.B.shape, problem.C.shape) == ((1000, 500), (100, 250), (1000, 250))
    assert problem.gap(problem.start) == pytest.approx(2.142041274e9, rel=1e-8)
    completion = MatrixCompletion.draw(42)
    assert completion.gap(completion.start) == pytest.approx(5.3146, rel=1e-4)
