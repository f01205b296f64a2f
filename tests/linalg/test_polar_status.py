"""The shared path: status, accuracy, bad input and cost."""

import math

import pytest
import torch
import torch._dynamo  # which remembers torch.compiler.is_compiling as it finds it: before it is patched
from torch.utils._python_dispatch import TorchDispatchMode

from polargrad.linalg import (
    QDWH,
    SVD,
    Auto,
    Newton,
    NewtonSchulz,
    PolarExpress,
    PreconditionedNewtonSchulz,
    Status,
    ZoloPD,
    decomposition,
    polar,
    polar_factor,
    resolve_method,
)
from tests.assertions import assert_close, eps_of
from tests.matrices import with_singular_values
from tests.polar_cases import DTYPES, FULL, METHODS, REAL, well_conditioned

# Status


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_matrix_does_not_touch_its_neighbours(method, bad):
    A = well_conditioned(3, 5, 5)
    spoiled = A.clone()
    spoiled[1, 2, 3] = bad
    result = polar(spoiled, method)
    assert result.status[1] == Status.NON_FINITE
    assert result.unitary[1].isnan().all()
    assert result.hermitian[1].isnan().all()
    assert result.stats["orthogonality"].isnan().tolist() == [False, True, False]
    assert_close(result.unitary[[0, 2]], polar_factor(A, method)[[0, 2]])


def test_an_imaginary_infinity_is_seen():
    A = torch.eye(3, dtype=torch.complex64)
    A[0, 0] = complex(1.0, math.inf)
    assert polar(A).status == Status.NON_FINITE


def test_a_step_limit_is_reported_with_what_was_reached():
    A = with_singular_values(8, 8, torch.logspace(0, -5, 8, dtype=torch.float64))
    result = polar(A, "qdwh", max_steps=2)
    assert result.status == Status.STEP_LIMIT
    assert result.stats["steps"] == 2
    G = result.unitary.mT @ result.unitary
    measured = torch.linalg.matrix_norm(G - torch.eye(8)) / math.sqrt(8)
    assert_close(result.stats["orthogonality"], measured)
    assert polar(A, "qdwh").status == Status.CONVERGED


def test_the_known_bound_holds():
    """For singular values from the method's floor on; rounding comes on top of the bounds."""
    methods = (
        QDWH(max_steps=1, lower_bound=1e-3),
        QDWH(max_steps=2),
        QDWH(),
        ZoloPD(degree=1, max_steps=1),
        Newton(max_steps=2),
        PolarExpress(),
        PolarExpress(4),
        NewtonSchulz(),
        PreconditionedNewtonSchulz(max_steps=9),
    )
    for method in methods:
        work = method.working_dtype(torch.float32)
        A = with_singular_values(
            8, 8, torch.logspace(0, -6, 8, dtype=torch.float64).clamp_min(3 * method.sigma_floor(work))
        )
        result = polar(A.float(), method)
        low, high = result.stats["bounds"]
        assert (low, high) != (0.0, math.inf)
        slack = method.rounding(work, 8)
        sigma = torch.linalg.svdvals(result.unitary.double())
        assert low - slack <= float(sigma.min()), method
        assert float(sigma.max()) <= high + slack, method
        if high - low > 0.1:  # the bound is no idle one: something comes near it
            assert float(sigma.min()) < low + 0.5 * (1.0 - low) or float(sigma.max()) > high - 0.5 * (high - 1.0), (
                method
            )


def test_converged_is_never_said_of_a_wrong_isometry():
    """The measured certificate sees what G = I alone would not."""

    class Wrong(SVD):
        def iterate(self, X):
            return super().iterate(X)._replace(unitary=torch.linalg.qr(X).Q)

    A = well_conditioned(3, 6, 4)
    assert (polar(A, Wrong()).status == Status.STEP_LIMIT).all()
    assert (polar(A, SVD()).status == Status.CONVERGED).all()


def test_converged_is_never_said_of_a_lost_direction():
    class Truncated(SVD):
        def iterate(self, X):
            return SVD(cutoff=1e-2).iterate(X)

    A = with_singular_values(6, 4, torch.tensor([1.0, 0.5, 0.1, 1e-3], dtype=torch.float64))
    assert polar(A, Truncated()).status == Status.STEP_LIMIT
    assert polar(A, SVD()).status == Status.CONVERGED


def test_a_method_that_fails_is_a_breakdown():
    class Failing(SVD):
        def iterate(self, X):
            return super().iterate(X)._replace(unitary=torch.full_like(X, math.nan))

    assert polar(well_conditioned(3, 3), Failing()).status == Status.BREAKDOWN


@pytest.mark.parametrize("method", ["svd", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_rank_deficiency_gives_the_partial_isometry(method, dtype):
    sigma = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0], dtype=torch.float64)
    for m, n in [(5, 5), (9, 5), (5, 9)]:
        A = with_singular_values(m, n, sigma, dtype).to(dtype)
        result = polar(A, method)
        values = torch.linalg.svdvals(result.unitary)
        assert_close(values, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).to(values.dtype), c=30)
        assert result.status == Status.CONVERGED
        assert float(result.stats["orthogonality"]) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gives_zero(method, dtype):
    A = torch.stack([torch.zeros(4, 4, dtype=dtype), torch.eye(4, dtype=dtype)])
    result = polar(A, method)
    assert not result.unitary[0].any()
    assert not result.hermitian[0].any()
    assert result.status[0] in (Status.CONVERGED, Status.BREAKDOWN)
    assert float(torch.linalg.matrix_norm(result.unitary[1].to(torch.complex128) - torch.eye(4))) < 1.0


# Accuracy and steps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accuracy", [1e-1, 1e-2, 1e-3, "full"])
@pytest.mark.parametrize("dtype", REAL)
def test_an_accuracy_is_reached_or_refused(method, accuracy, dtype):
    A = with_singular_values(12, 12, torch.linspace(1, 0.05, 12, dtype=torch.float64)).to(dtype)
    try:
        U = polar_factor(A, method, accuracy=accuracy)
    except ValueError as error:
        assert "accuracy" in str(error)  # noqa: PT017
        assert method not in FULL
        return
    deviation = float((torch.linalg.svdvals(U.double()) - 1).abs().max())
    assert deviation <= (100 * eps_of(dtype) if accuracy == "full" else accuracy)


def test_max_steps_is_handed_on():
    assert polar(well_conditioned(4, 4), "qdwh", max_steps=3).stats["steps"] == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"accuracy": 0.0}, "accuracy must be"),
        ({"accuracy": 1.0}, "accuracy must be"),
        ({"accuracy": "best"}, "accuracy must be"),
        ({"accuracy": True}, "accuracy must be"),
        ({"accuracy": 1e-9}, "below the unit roundoff"),
        ({"method": "newton-schulz", "accuracy": 1e-3}, "accuracy"),
        ({"method": "qdwh", "accuracy": 1e-3, "max_steps": 2}, "not both"),
        ({"method": "qdwh", "max_steps": 0}, "max_steps"),
        ({"method": "qdwh", "max_steps": True}, "max_steps"),
        ({"method": "qdwh", "max_steps": 2.0}, "max_steps"),
        ({"method": "svd", "max_steps": 2}, "max_steps"),
        ({"method": "QDWH"}, r"allowed names are .*'auto'"),
    ],
)
def test_a_bad_option_is_refused(options, match):
    for function in (polar, polar_factor):
        with pytest.raises(ValueError, match=match):
            function(torch.eye(3), **options)


@pytest.mark.parametrize(
    ("A", "error", "match"),
    [
        ([[1.0]], TypeError, "torch.as_tensor"),
        (torch.ones(3), ValueError, "unsqueeze"),
        (torch.ones(3, 3, dtype=torch.int64), TypeError, "A.float"),
        (torch.ones(3, 3, dtype=torch.bool), TypeError, "floating point"),
        (torch.eye(3).to_sparse(), TypeError, "to_dense"),
    ],
)
def test_a_bad_matrix_is_refused(A, error, match):
    for function in (polar, polar_factor):
        with pytest.raises(error, match=match):
            function(A)


def test_a_bad_method_is_refused():
    with pytest.raises(TypeError, match="PolarMethod"):
        polar(torch.eye(3), 3)


def test_methods_are_values():
    assert Auto() == Auto()
    assert hash(QDWH(max_steps=2)) == hash(QDWH(max_steps=2))
    assert resolve_method(QDWH(max_steps=2)) == resolve_method("qdwh", max_steps=2)


# Cost


class _Operations(TorchDispatchMode):
    """Counts the operations that read a value back to the host."""

    def __init__(self):
        super().__init__()
        self.syncs = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.nonzero):
            self.syncs.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back_off_the_cpu(monkeypatch):
    """The path of an accelerator, walked on the CPU: the flags stay tensors."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for method in (
        "newton-schulz",
        "gram-newton-schulz",
        "precond-newton-schulz",
        "polar-express",
        "qdwh",
        "zolo-pd",
        "newton",
    ):
        with _Operations() as operations:
            polar_factor(well_conditioned(2, 64, 40, dtype=torch.float32), method)
        assert operations.syncs == [], method
    with _Operations() as operations:
        float(torch.ones(1).sum())
    assert operations.syncs


def test_both_paths_agree_off_and_on_the_cpu(monkeypatch):
    A = well_conditioned(3, 6, 4, dtype=torch.float32) * torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    here = polar_factor(A, "qdwh")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(polar_factor(A, "qdwh"), here)


def test_the_factor_alone_costs_no_certificate(monkeypatch):
    def fail(*_):
        raise AssertionError("certificate computed")

    monkeypatch.setattr(decomposition, "_certify", fail)
    polar_factor(torch.eye(3))
    with pytest.raises(AssertionError, match="certificate"):
        polar(torch.eye(3))
