"""A model under torch's wrappers is trained to the weights of a single process."""

import pytest

from tests.distributed.worlds import spawn
from tests.distributed.wrapped import OPTIONS, trained


@pytest.mark.parametrize(
    ("world", "kinds"),
    [
        (2, ["ddp", "fsdp", "tp"]),
        (2, ["ddp, accumulated", "fsdp, accumulated"]),
        pytest.param(4, ["hsdp", "fsdp and tp"], marks=pytest.mark.slow),
    ],
    ids=["two ranks", "two ranks, accumulated gradients", "four ranks"],
)
def test_weights_are_those_of_one_process(world, kinds, tmp_path):
    for result in spawn(world, tmp_path, trained, kinds, 6):
        assert result is not None
        assert result[0] == "returned", result[1]
        assert set(result[1]) == {(kind, which) for kind in kinds for which in OPTIONS}
        for key, error in result[1].items():
            assert error <= 1e-10, (key, error)
