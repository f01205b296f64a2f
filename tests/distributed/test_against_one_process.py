"""Every layout and every variant follows the single process."""

import pytest
import torch

from tests.distributed.layouts import layouts_of
from tests.distributed.variants import FEW, VARIANTS, distances, momentum_moves, on_layout, whitening_changes
from tests.distributed.worlds import spawn

STEPS = 20
# What 20 steps may differ by, relative to the largest weight; in bfloat16, one rounding per step.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: STEPS * 2.0**-9}


def _check(world, folder, names, layouts, dtype, timeout=600.0):
    results = spawn(world, folder, distances, names, layouts, STEPS, dtype, timeout=timeout)
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
        for (layout, name), worst in result[1].items():
            if name == "warnings":
                assert not worst
            else:
                assert worst <= TOLERANCE[dtype], (layout, name, worst)
        expected = {(layout, name) for layout in layouts for name in (*on_layout(layout, names), "warnings")}
        assert set(result[1]) == expected


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_few_variants_on_every_layout(world, tmp_path):
    layouts = {
        1: ["rows"],
        2: ["ddp", "ddp, momentum in parts", "rows", "columns"],
        4: ["hsdp"],  # the others, with every variant, in the slow lane
    }
    _check(world, tmp_path, list(FEW[world // 4 :: 1 + world // 4]), layouts[world], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
def test_a_large_uneven_matrix(dtype, tmp_path):
    _check(2, tmp_path, ["uneven"], ["rows"], dtype)


@pytest.mark.slow
def test_a_vanishing_gradient_on_every_layout(tmp_path):
    names = [name for name in VARIANTS if name.startswith("floor")]
    _check(2, tmp_path, names, ["ddp", "ddp, momentum in parts", "rows", "columns"], torch.float64)


def test_single_precision(tmp_path):
    _check(2, tmp_path, list(FEW), ["rows"], torch.float32)


@pytest.mark.slow
def test_half_precision(tmp_path):
    """Odd numbers of entries of two bytes travel beside numbers of eight."""
    names = ["momentum-first nuclear", "rows momentum-first", "normalized rows"]
    _check(2, tmp_path, names, ["ddp", "rows"], torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_variant_on_every_layout(world, dtype, tmp_path):
    _check(world, tmp_path, list(VARIANTS), layouts_of(world), dtype, timeout=3600.0)  # four ranks on a busy machine


def test_whitening_that_is_turned_on_or_off_later(tmp_path):
    for result in spawn(2, tmp_path, whitening_changes):
        assert result is not None
        assert result[0] == "returned", result[1]
        said, owners = result[1]
        assert "whitening was turned on for a parameter of shape (3, 4, 4) after the ranks had divided the work" in said
        assert owners[0] == owners[1]


def test_momentum_in_parts_can_be_loaded_as_a_whole(tmp_path):
    for rank, result in enumerate(spawn(3, tmp_path, momentum_moves)):
        assert result is not None
        assert result[0] == "returned", result[1]
        held, error = result[1]
        rows = [4, 4, 2][rank]
        assert held == [4 * rows] * 3 + [40] * 3 + [4 * rows] * 3
        assert error <= 1e-12
