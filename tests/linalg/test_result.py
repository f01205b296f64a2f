"""PolarResult and Status."""

import torch

from polargrad.linalg import PolarResult, Status, polar


def test_the_arity_is_fixed():
    for hermitian in (True, False):
        U, H, status, stats = polar(torch.eye(3), hermitian=hermitian)
        assert (H is None) is not hermitian
        assert U.shape == (3, 3)
        assert status.dtype == torch.int8
        assert set(stats) == {"method", "steps", "orthogonality", "backward_error", "bounds"}
    assert PolarResult._fields == ("unitary", "hermitian", "status", "stats")


def test_the_empty_result_has_the_same_stats():
    assert set(polar(torch.zeros(0, 3)).stats) == set(polar(torch.eye(3)).stats)


def test_every_status_advises():
    advice = {status.advice for status in Status}
    assert len(advice) == len(Status)
    assert all(sentence.endswith(".") for sentence in advice)


def test_statuses_are_compared_as_numbers():
    assert polar(torch.eye(2)).status == Status.CONVERGED == 0
