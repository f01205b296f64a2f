"""Views take tensors apart and back, and the optimizer steps what they show as it would step the matrices alone."""

import itertools

import pytest
import torch

import polargrad
from polargrad.optim.matrix_view import matrix_view

CASES = [
    ((6, 4), {}, [(1, 6, 4)]),
    ((3, 6, 4), {}, [(3, 6, 4)]),
    ((6, 4, 3, 2), {}, [(1, 6, 24)]),
    ((6, 4, 3), {"layout": "convolution"}, [(1, 6, 12)]),
    ((4, 6), {"layout": "transposed"}, [(1, 6, 4)]),
    ((3, 4, 6), {"layout": "transposed"}, [(3, 6, 4)]),
    ((1, 4, 6), {"layout": "transposed"}, [(1, 6, 4)]),
    ((4, 6, 3, 3), {"layout": "transposed-convolution"}, [(1, 6, 36)]),
    ((12, 4), {"split": [6, 4, 2]}, [(1, 6, 4), (1, 4, 4), (1, 2, 4)]),
    ((12, 4), {"split": [6, 4, 2], "heads": 2}, [(2, 3, 4), (2, 2, 4), (2, 1, 4)]),
    ((4, 12), {"layout": "transposed", "split": [6, 4, 2], "heads": [3, 2, 1]}, [(3, 2, 4), (2, 2, 4), (1, 2, 4)]),
    ((3, 12, 4), {"split": [8, 4], "heads": [4, 1]}, [(12, 2, 4), (3, 4, 4)]),
    ((3, 4, 12), {"layout": "transposed", "split": [8, 4]}, [(3, 8, 4), (3, 4, 4)]),
    ((6, 4, 3), {"layout": "convolution", "heads": 2}, [(2, 3, 12)]),
    ((6, 4, 3), {"layout": "convolution", "stack": 2}, [(2, 3, 12)]),
    ((4, 6, 3), {"layout": "transposed-convolution", "stack": 2}, [(2, 6, 6)]),
    ((5, 2, 3), {"layout": "ioo"}, [(1, 6, 5)]),
    ((5, 2, 3), {"layout": "oii"}, [(1, 5, 6)]),
    ((2, 3, 5), {"layout": "iio"}, [(1, 5, 6)]),
    ((2, 3, 5), {"layout": "oio"}, [(1, 10, 3)]),
    ((3, 4, 2, 5), {"layout": "kioo", "split": [6, 4]}, [(3, 6, 4), (3, 4, 4)]),
    ((12, 4), {"layout": "transposed", "stack": 3}, [(3, 4, 4)]),
    ((12, 4), {"stack": 2, "split": [4, 2]}, [(2, 4, 4), (2, 2, 4)]),
    ((12, 4), {"split": [6, 4, 2], "interleave": 2}, [(1, 6, 4), (1, 4, 4), (1, 2, 4)]),
    ((3, 4, 12), {"layout": "transposed", "split": [6, 6], "interleave": 6, "heads": [2, 1]}, [(6, 3, 4), (3, 6, 4)]),
]


@pytest.mark.parametrize(("shape", "options", "batches"), CASES)
def test_split_merge_spread(shape, options, batches):
    view = matrix_view(shape, options)
    assert list(view.batches) == batches
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    parts = view.split(tensor)
    assert [tuple(part.shape) for part in parts] == batches
    assert torch.equal(view.merge(parts), tensor)
    values = [torch.arange(1.0, part.shape[0] + 1) + 10 * i for i, part in enumerate(parts)]
    spread = view.spread(values)
    by_hand = view.merge([v[:, None, None] * torch.ones_like(part) for v, part in zip(values, parts, strict=True)])
    assert torch.equal(spread.expand(shape), by_hand)
    # Smaller than the parameter, except where one dimension counts matrices and inputs as well.
    assert spread.numel() < tensor.numel() or tensor.numel() == len(torch.cat(values)) or view.rows_share_dimensions


def test_spelled_layouts_are_the_products_that_einsum_makes():
    """x -> y of the operator is y = W x with the view's matrix, whatever the order of the parameter's dimensions."""
    for letters, product, x, y in (
        ("ioo", "h,hnd->nd", "h", (2, 3)),
        ("oii", "nd,hnd->h", "nd", (5,)),
        ("oio", "n,hnd->hd", "n", (5, 3)),
    ):
        W = torch.randn(5, 2, 3, dtype=torch.float64)
        inputs = torch.randn([{"h": 5, "n": 2, "d": 3}[letter] for letter in x], dtype=torch.float64)
        (matrix,) = matrix_view((5, 2, 3), {"layout": letters}).split(W)
        by_view = matrix[0] @ inputs.flatten()
        torch.testing.assert_close(by_view.reshape(y), torch.einsum(product, inputs, W))


def test_stacks_and_interleaved_rows():
    W = torch.randn(12, 4)
    groups = matrix_view((12, 4), {"layout": "transposed", "stack": 3}).split(W)[0]
    assert torch.equal(groups[1], W[4:8].T)
    # As GPT-NeoX stores queries, keys and values: (heads, 3, size) rows.
    q, k, v = matrix_view((12, 4), {"split": [4, 4, 4], "interleave": 2}).split(W)
    by_head = W.reshape(2, 3, 2, 4)
    for i, part in enumerate((q, k, v)):
        assert torch.equal(part[0], by_head[:, i].reshape(4, 4))


def test_normalized_rows_refuse_a_dimension_of_matrices_and_inputs():
    W = torch.nn.Parameter(torch.ones(12, 4))
    with pytest.raises(ValueError, match="normalize_rows does not know the rows"):
        polargrad.PolarGrad([{"params": [W], "layout": "transposed", "stack": 3, "normalize_rows": 0.9}])


def test_rows_are_the_outputs():
    W = torch.randn(4, 12)
    q, k, v = matrix_view((4, 12), {"layout": "transposed", "split": [6, 4, 2]}).split(W)
    for part, columns in zip((q, k, v), (slice(0, 6), slice(6, 10), slice(10, 12)), strict=True):
        assert torch.equal(part[0], W[:, columns].T)
    heads = matrix_view((12, 4), {"heads": 3}).split(W.T)[0]
    assert torch.equal(heads[1], W.T[4:8])
    kernel = torch.randn(4, 6, 3)
    assert torch.equal(
        matrix_view((4, 6, 3), {"layout": "transposed-convolution"}).split(kernel)[0][0],
        kernel.transpose(0, 1).reshape(6, 12),
    )


@pytest.mark.parametrize(("shape", "options", "batches"), CASES)
@pytest.mark.parametrize("scale", ["nuclear", "adaptive-nuclear", "spectral"])
def test_a_step_is_that_of_the_matrices_alone(shape, options, batches, scale):
    """Nuclear norms are per matrix, never over the batch, and m / n are those of the operator."""
    view = matrix_view(shape, options)
    whole = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    singles = [torch.nn.Parameter(W.clone()) for part in view.split(whole.detach()) for W in part]
    common = {"lr": 0.1, "scale": scale, "method": "svd", "weight_decay": 0.1}
    a, b = polargrad.PolarGrad([{"params": [whole], **options}], **common), polargrad.PolarGrad(singles, **common)
    for _ in range(3):
        whole.grad = torch.randn(shape, dtype=torch.float64)
        for p, g in zip(singles, itertools.chain.from_iterable(view.split(whole.grad)), strict=True):
            p.grad = g.clone()
        a.step()
        b.step()
    stepped = [W for part in view.split(whole.detach()) for W in part]
    for W, p in zip(stepped, singles, strict=True):
        torch.testing.assert_close(W, p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["nuclear", "mean-singular", "rms", "adaptive-nuclear", "none", "spectral"])
def test_the_heads_of_an_output_projection_are_blocks_of_its_columns(scale):
    W = torch.nn.Parameter(torch.randn(10, 12, dtype=torch.float64))
    blocks = [torch.nn.Parameter(block.clone()) for block in W.detach().split(4, dim=1)]
    common = {"lr": 0.1, "scale": scale, "method": "svd", "weight_decay": 0.1, "nesterov": True}
    whole = polargrad.PolarGrad([{"params": [W], "layout": "transposed", "heads": 3}], **common)
    # The scale by shape sees the blocks as (size, out), which is never tall here: 1 in place of sqrt(10 / 4).
    alone = polargrad.PolarGrad(blocks, **{**common, "scale": "none" if scale == "spectral" else scale})
    for _ in range(3):
        W.grad = torch.randn(10, 12, dtype=torch.float64)
        for block, gradient in zip(blocks, W.grad.split(4, dim=1), strict=True):
            block.grad = gradient.clone()
        whole.step()
        alone.step()
    torch.testing.assert_close(W.detach(), torch.cat([b.detach() for b in blocks], dim=1), rtol=1e-12, atol=1e-12)


def test_one_broken_head_is_skipped_alone():
    W = torch.nn.Parameter(torch.ones(4, 12))
    W.grad = torch.randn(4, 12)
    W.grad[0, 0] = torch.nan
    optimizer = polargrad.PolarGrad([{"params": [W], "layout": "transposed", "split": [6, 6], "heads": [3, 1]}], lr=0.1)
    with pytest.warns(UserWarning, match="skipped updates"):
        optimizer.step()
    assert torch.equal(W[:, :2], torch.ones(4, 2))
    assert (W[:, 2:] != 1).all()


def test_options_travel_through_a_checkpoint(tmp_path):
    def make():
        torch.manual_seed(0)
        W = torch.nn.Parameter(torch.randn(12, 4))
        return W, polargrad.PolarGrad([{"params": [W], "split": [6, 4, 2], "heads": [3, 1, 1]}], lr=0.1)

    (W, a), (V, b) = make(), make()
    W.grad = torch.randn(12, 4)
    a.step()
    torch.save({"optimizer": a.state_dict(), "W": W.detach()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    b.load_state_dict(saved["optimizer"])
    V.data.copy_(saved["W"])
    V.grad = W.grad = torch.randn(12, 4)
    a.step()
    b.step()
    assert torch.equal(W, V)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {}, "is not a matrix"),
        ((4, 4), {"layout": "upside-down"}, "layout must be one of"),
        ((12, 4), {"split": [6, 4]}, r"adds up to 10.*12 rows"),
        ((4, 12), {"split": [6, 6]}, r"has 4 rows"),
        ((12, 4), {"split": [6, 6], "heads": [2, 2, 2]}, "one for each of the 2 parts"),
        ((12, 4), {"heads": 5}, "12 rows cannot be cut into 5 heads"),
        ((12, 4), {"heads": 0}, "heads must be a positive integer"),
        ((12, 4), {"split": [12.0]}, "split must be"),
        ((12, 4), {"split": "qkv"}, "split must be"),
        ((2, 3, 4, 5), {"layout": "transposed"}, "transposed-convolution"),
        ((2, 3, 4), {"layout": "io"}, "spells 2 dimensions"),
        ((2, 3), {"layout": "oo"}, "letter per dimension"),
        ((2, 3, 4), {"layout": "oki"}, "letter per dimension"),
        ((6, 4), {"stack": 4}, "stack=4 does not divide"),
        ((6, 4), {"stack": 2.0}, "stack must be a positive integer"),
        ((6, 4, 2), {"stack": 2}, "which layout='auto' gives to the matrices"),
        ((12, 4), {"split": [9, 3], "interleave": 2}, "cannot be spread evenly"),
    ],
)
def test_errors(shape, options, message):
    with pytest.raises(ValueError, match=message):
        matrix_view(shape, options)
    if len(shape) > 1:
        with pytest.raises(ValueError, match=message):
            polargrad.PolarGrad([{"params": [torch.nn.Parameter(torch.ones(shape))], **options}])
