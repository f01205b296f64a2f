"""Boxes on meshes, without any process."""

import pytest
import torch

from polargrad.distributed.layout import Box, Layout, pieces_of
from polargrad.optim.matrix_view import matrix_view

LAYOUTS = [
    Layout((7, 3), (4,), (0,)),
    Layout((3, 7), (4,), (1,)),
    Layout((2, 3), (4,), (0,)),
    Layout((8, 6), (2, 4), (None, 0)),
    Layout((8, 6), (2, 2), (0, 1)),
    Layout((9, 6), (2, 2), (0, 0)),
    Layout((9, 6), (2, 2), (0, 0), order=(1, 0)),
    Layout((5, 4, 3), (4,), (0,)),
    Layout((5, 4), (3,), (None,)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tiles_cover_every_entry_as_often_as_it_is_copied(layout):
    seen = torch.zeros(layout.shape)
    whole = Box((0,) * len(layout.shape), layout.shape)
    for tile in layout.tiles:
        seen[tile.within(whole)] += 1
    assert (seen == layout.copies).all()


def test_cuts_are_those_of_chunk():
    for rows in range(1, 12):
        sizes = [tile.size[0] for tile in Layout((rows, 2), (4,), (0,)).tiles]
        chunks = [len(chunk) for chunk in torch.zeros(rows, 2).chunk(4)]
        assert [size for size in sizes if size] == chunks


def test_the_order_of_cuts_matters():
    first, second = (Layout((8, 8), (2, 2), (0, 0), order) for order in [None, (1, 0)])
    assert [tile.start[0] for tile in first.tiles] == [0, 2, 4, 6]
    assert [tile.start[0] for tile in second.tiles] == [0, 4, 2, 6]


def test_holders_and_overlap():
    layout = Layout((4, 2, 2), (2, 2), (None, 0))
    assert layout.holders(Box((3, 0, 0), (1, 2, 2))) == [1, 3]
    assert layout.holders(Box((1, 0, 0), (2, 2, 2))) == []
    assert Box((0, 1), (2, 3)).overlap(Box((1, 0), (5, 2))) == Box((1, 1), (1, 1))
    assert Box((0, 0), (2, 2)).overlap(Box((2, 0), (2, 2))).numel == 0
    assert layout.cut == {0}


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 4, 5), {}),
        ((3, 4, 5), {"layout": "transposed", "split": [3, 2]}),
        ((6, 4, 3, 2), {"stack": 3}),
        ((12, 4), {"layout": "transposed", "stack": 3}),
        ((12, 4), {"stack": 2, "split": [4, 2], "interleave": 2}),
    ],
)
def test_pieces_are_the_matrices_of_the_whole(shape, options):
    view = matrix_view(shape, options)
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    matrices = [matrix for batch in view.split(whole) for matrix in batch]
    seen = torch.zeros(shape)
    for piece in pieces_of(view):
        inside = piece.box.within(Box((0,) * len(shape), shape))
        seen[inside] += 1
        own = [matrix for batch in piece.view.split(whole[inside]) for matrix in batch]
        assert all(torch.equal(a, matrices[i]) for a, i in zip(own, piece.numbers, strict=True))
    assert (seen == 1).all()
    assert len(pieces_of(view)) > 1
