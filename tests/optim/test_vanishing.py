"""A matrix whose gradient vanishes comes to rest: a direction knows no size, so the floor of the norm has to end it."""

import itertools

import pytest
import torch

import polargrad
from polargrad.linalg import NewtonSchulz, available_methods

SHAPES = [(6, 4), (3, 4, 5)]
ORDERS = ["momentum-first", "polar-first", "heavy-ball"]
SCALES = [
    "nuclear", "mean-singular", "none", "spectral", "rms", "adaptive-nuclear",
    {"name": "nuclear", "alpha": 0.5}, {"name": "nuclear", "alpha": 0.0}, {"name": "adaptive-nuclear", "beta": 0.0},
]  # fmt: skip
STEPS = 80  # at beta = 0.25 a norm of 1 falls below 1e-7 in 12, and below the denormals of float32 in 75


def optimizer_of(dtype=torch.float32, shapes=SHAPES, **options):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    group = {"params": parameters, "norm_floor": options.pop("norm_floor", 1e-7)}
    optimizer = polargrad.PolarGrad([group], **{"lr": 0.1, "momentum": 0.25, **options})
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape).to(dtype)
        optimizer.step()
    return optimizer, parameters


def last_step(optimizer, parameters, gradient, steps=STEPS):
    """The largest entry of the last of so many steps along gradient(p), and of the first."""
    sizes = []
    for _ in range(steps):
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = gradient(p)
        optimizer.step()
        moves = [(p.detach() - b).abs().max().item() for p, b in zip(parameters, before, strict=True)]
        sizes.append(max(moves))
    return sizes[-1], sizes[0]


def noise(size):
    """A gradient that is nothing but rounding, of another direction in every step."""
    return lambda p: torch.randn_like(p) * size


@pytest.mark.parametrize("gradient", [torch.zeros_like, noise(1e-30)], ids=["zero", "rounding"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_every_scale_in_every_order(order, scale, gradient):
    polynomials = {"method": "polar-express", "max_steps": 3}
    for more in ({}, {"nesterov": True, "capturable": True}, {"normalize_rows": 0.9}, {"normalize_rows": 0.0}):
        optimizer, parameters = optimizer_of(momentum_order=order, scale=scale, **polynomials, **more)
        last, first = last_step(optimizer, parameters, gradient)
        assert last <= 1e-9, (more, last)
        assert first >= 1e-9 or order == "polar-first"  # whose size reacts at once


@pytest.mark.filterwarnings("ignore:skipped updates")  # "newton" cannot invert what is left in denormals
@pytest.mark.parametrize("method", available_methods())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_method(dtype, method):
    last, first = last_step(*optimizer_of(dtype, method=method, scale="rms"), torch.zeros_like)
    assert last == 0.0
    assert first > 0.0


@pytest.mark.parametrize("order", ORDERS)
def test_float16_whose_denormals_are_above_the_floor(order):
    """They round back to themselves from 3e-7 down at beta = 0.9."""
    optimizer, parameters = optimizer_of(
        torch.float16, momentum=0.9, momentum_order=order, scale="rms", normalize_rows=0.0, method="svd"
    )
    assert last_step(optimizer, parameters, torch.zeros_like, steps=200)[0] == 0.0
    assert not optimizer.state[parameters[0]]["momentum_buffer"].any()


@pytest.mark.parametrize("geometry", ["rows", "columns", "entrywise", "frobenius"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_geometry(order, geometry):
    for scale, capturable in itertools.product(["rms", "adaptive-nuclear"], [False, True]):
        options = {"geometry": geometry, "scale": scale, "capturable": capturable, "momentum_order": order}
        assert last_step(*optimizer_of(**options), noise(1e-30))[0] <= 1e-9


@pytest.mark.parametrize(("geometry", "shape"), [("right-polar", (6, 4)), ("left-polar", (4, 6))])
def test_one_sided_geometries(geometry, shape):
    assert last_step(*optimizer_of(shapes=[shape], geometry=geometry, scale="rms"), noise(1e-30))[0] <= 1e-9


@pytest.mark.parametrize("scale", ["nuclear", "mean-singular", "adaptive-nuclear"])
def test_a_matrix_among_others_whose_norm_it_shares(scale):
    optimizer, parameters = optimizer_of(scale=scale, scope="group", shapes=[(6, 4), (6, 4), (4, 6)], method="svd")
    before = parameters[0].detach().clone()
    for step in range(STEPS):
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p) * (i > 0)
        if step == STEPS - 1:
            before = parameters[0].detach().clone()
        optimizer.step()
    assert (parameters[0].detach() - before).abs().max() <= 1e-9


def test_without_the_floor_it_never_ends():
    """The control: this is what the tests above would have to see."""
    optimizer, parameters = optimizer_of(scale="rms", method="svd", norm_floor=0.0)
    last, first = last_step(optimizer, parameters, noise(1e-30))
    assert last > 0.1 * first


@pytest.mark.parametrize("mode", ["plain", "cautious"])
def test_weight_decay_still_acts(mode):
    optimizer, parameters = optimizer_of(scale="rms", weight_decay=0.5, weight_decay_mode=mode)
    last_step(optimizer, parameters, torch.zeros_like)
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    for p, b in zip(parameters, before, strict=True):
        torch.testing.assert_close(p.detach(), b * (1 - 0.1 * 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shape", "nesterov"), [((12, 12), True), ((16, 8), False), ((8, 16), True)])
def test_it_comes_to_rest_as_torch_muon_does(nesterov, shape):
    """Through the region where torch's eps acts, 314 to 440 steps after the last gradient, and beyond it."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(20)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    common = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "nesterov": nesterov}
    a = polargrad.PolarGrad([ours], scale="spectral", method=NewtonSchulz.muon(), **common)
    b = torch.optim.Muon([theirs], **common)
    for step in range(700):
        gradient = gradients[step] if step < len(gradients) else torch.zeros(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        # Tall matrices are multiplied from the other side, which rounds the sums of a product otherwise.
        assert (ours - theirs).abs().max() <= 20 * 0.02 * 2**-8
    assert theirs.norm() > start.norm()


def test_from_the_floor_on_nothing_changes():
    """Bit for bit, up to the norm of the floor itself."""
    for method in available_methods():
        found = []
        for floor in (0.0, 1e-7):
            optimizer, parameters = optimizer_of(scale="rms", method=method, norm_floor=floor)
            last_step(optimizer, parameters, noise(1e-7), steps=10)  # of a few dozen entries
            found.append(torch.cat([p.detach().flatten() for p in parameters]))
        assert torch.equal(*found), method


def test_a_floor_that_would_not_be_used_is_refused():
    group = {"params": [torch.nn.Parameter(torch.ones(3, 3))], "norm_floor": 0.1}
    for scale in ("nuclear", "mean-singular"):
        with pytest.raises(ValueError, match=r"norm_floor=0\.1 is for steps that do not vanish"):
            polargrad.PolarGrad([{**group}], scale=scale)
        polargrad.PolarGrad([{**group}], scale=scale, scope="group")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_average_that_could_never_decay_is_refused(dtype):
    """beta M rounds back to M where 1 - beta is less than half of eps."""
    W = torch.nn.Parameter(torch.ones(3, 3, dtype=dtype))
    with pytest.raises(ValueError, match="momentum_dtype='float32'"):
        polargrad.PolarGrad([W], momentum=0.9999)
    polargrad.PolarGrad([W], momentum=0.9999, momentum_dtype="float32")
    assert torch.tensor(1.0078125, dtype=torch.bfloat16) * (1 - 0.999) < torch.finfo(torch.bfloat16).eps / 2
