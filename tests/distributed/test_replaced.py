"""Parameters that a framework replaces after the optimizer was made are followed, and their state with them."""

import re

import pytest

from tests.distributed.replaced import CASES, all_of_it
from tests.distributed.worlds import spawn


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    pytest.importorskip("accelerate")
    results = spawn(2, tmp_path_factory.mktemp("ranks"), all_of_it)
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
    return [result[1] for result in results]


@pytest.mark.parametrize("case", CASES)
def test_what_accelerate_shards_steps_as_one_process(case, on_two_ranks):
    for found in on_two_ranks:
        error, distributed, stepped, states = found["first"][case]
        assert error <= 1e-10
        assert distributed > 10
        assert stepped
        assert states == distributed  # none is left of the parameters that were replaced


@pytest.mark.parametrize("case", ["adaptive-nuclear", "all polar"])
def test_momentum_goes_along_with_parameters_that_are_sharded_later(case, on_two_ranks):
    for found in on_two_ranks:
        error, distributed, _, states = found["later"][case]
        assert error <= 1e-10
        assert states == distributed


@pytest.mark.parametrize("when", [(False, "later"), (True, "later"), (True, "before")])
def test_flat_parameters_are_refused(when, on_two_ranks):
    for found in on_two_ranks:
        assert re.search(r"flat parameter of FullyShardedDataParallel .*fully_shard", found["flat"][when])


def test_copies_and_pickles_share_the_process_group(on_two_ranks):
    for found in on_two_ranks:
        same, said = found["copies"]
        assert same == [True] * 3
        assert "cannot be pickled" in said
