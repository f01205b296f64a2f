"""Ranks that disagree all say the same and stop; broken gradients are skipped by all; a death is not waited out."""

import re

import pytest

from tests.distributed.faults import broken_gradients, judged, killed
from tests.distributed.layouts import layouts_of
from tests.distributed.worlds import spawn

# Seconds in which everybody must know.
BOUND = 20.0

SAID = {
    "gradients": r"disagree on the gradient of 'p1' of group 0: one on rank 0, none on rank 1; use it in the forward",
    "options later": r"disagree on the options of group 0, lr: 0\.1 on rank 0, 0\.2 on rank 1",
    "options": r"options of group 0, weight_decay: 0\.0 on rank 0, 0\.1 on rank 1",
    "names": r"disagree on parameter 0 of group 0: 'p0' of shape .* on rank 0, 'p1' of shape .* on rank 1",
    "shapes": r"parameter 1 of group 0: .*\(6, 4\).* on rank 0, .*\(40, 3\).* on rank 1",
    "count": r"the number of parameters of group 0: 4 on rank 0, 3 on rank 1",
    "values": r"parameter 0 of group 0: .*values that sum to .* give every rank the same",
    "order of nameless": r"parameter 0 of group 0: .*values that sum to .* give every rank the same",
}


REFUSED = {
    "partial": r"'odd' with placements .*Partial.* is not supported; a parameter must be Replicate or Shard",
    "plain": r"'odd' is a plain tensor among DTensors; .* process_group=",
    "other mesh": r"'odd' with placements .* lives on ranks \[\d\], the optimizer on \[0, 1\]",
    "lies": r"'odd' with placements .* holds \(.*\) here, where its placements say",
    "group": r"process_group has ranks \[\d\], the mesh of the DTensors \[0, 1\]",
    "recorder": r"a recorder needs whole matrices, and 'cut' is cut over ranks",
    "added": r"'odd' is a plain tensor among DTensors",
    "groups": "2",
}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    return _returned(spawn(2, tmp_path_factory.mktemp("ranks"), judged))


def _returned(results):
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
    return [result[1] for result in results]


@pytest.mark.parametrize("layout", ["ddp", "rows"])
@pytest.mark.parametrize("fault", SAID)
def test_every_rank_says_the_same(fault, layout, on_two_ranks):
    disagreed = [said for said, _ in on_two_ranks]
    if (layout, fault) not in disagreed[0]:
        pytest.skip("values of parts are not compared")
    messages = {ranks[layout, fault][0] for ranks in disagreed}
    assert len(messages) == 1
    assert re.search(SAID[fault], messages.pop())
    for ranks in disagreed:
        _, untouched, seconds = ranks[layout, fault]
        assert untouched
        assert seconds < BOUND


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case, on_two_ranks):
    for _, said in on_two_ranks:
        assert re.search(REFUSED[case], said[case])


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_broken_gradients_are_skipped_by_all(world, tmp_path):
    for found in _returned(spawn(world, tmp_path, broken_gradients)):
        for layout in layouts_of(world):
            for capturable in (False, True):
                for rule in ("polar", "adamw"):
                    error, skips, heard = found[layout, capturable, rule]
                    assert error <= 1e-12
                    # Two matrices in two steps; one fused AdamW call steps all four of a group or none of them.
                    assert skips == ((8, 8) if rule == "adamw" and capturable else (4, 4))
                    assert heard
            message, untouched, _ = found[layout, "raise"]
            assert re.search("gradient of 'p1', 'p3' holds NaN or infinity; nothing was stepped", message)
            assert untouched


@pytest.mark.parametrize("layout", ["ddp", pytest.param("rows", marks=pytest.mark.slow)])
def test_a_death_ends_the_others(layout, tmp_path):
    *living, dead = spawn(3, tmp_path, killed, layout)
    assert dead is None
    for result in living:
        assert result is not None
        message, _, seconds = result[1]
        assert "lost the other ranks in step 2" in message
        assert seconds < BOUND
