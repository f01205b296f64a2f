import pytest
import torch

from polargrad.linalg import QDWH, SVD, Auto, GramNewtonSchulz, GramPolynomials, PolarExpress, auto, polar, polar_factor
from polargrad.linalg.arithmetic import Arithmetic
from polargrad.linalg.auto import Choice
from polargrad.linalg.double_gram import DoubleGram
from tests.assertions import assert_polar_factor
from tests.matrices import make, with_singular_values

NAMES = ["gaussian", "log-1e6", "log-1e12", "rank-deficient", "hilbert", "graded", "scaled-1e30", "scaled-1e-30"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(10, 10), (60, 60), (200, 40), (40, 200)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_full_accuracy_everywhere(name, shape, dtype):
    A = make(name, shape[0], shape[1], dtype, (2,))
    assert_polar_factor(A, polar_factor(A))


def test_double_precision_at_condition_1e14():
    A = with_singular_values(90, 60, torch.logspace(0, -14, 60, dtype=torch.float64), torch.float64, seed=1)
    assert_polar_factor(A, polar_factor(A))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_works_in_single(dtype):
    A = make("gaussian", 60, 40, dtype)
    U = polar_factor(A)
    assert U.dtype == dtype
    assert torch.equal(U, polar_factor(A.float()).to(dtype))


@pytest.mark.parametrize("accuracy", [0.3, 1e-1, 1e-2, 1e-3, 1e-4])
def test_an_asked_accuracy_is_kept_above_the_floor(accuracy):
    A = with_singular_values(120, 60, torch.logspace(0, -2, 60, dtype=torch.float64), torch.float64, seed=1).float()
    sigma = torch.linalg.svdvals(polar_factor(A, accuracy=accuracy))
    assert (sigma - 1).abs().max() <= accuracy


def test_muon_like_accuracy_is_half_precision_products(monkeypatch):
    monkeypatch.setattr(auto, "arithmetic", lambda device: Arithmetic("a processor", "bfloat16", True, "for a test"))
    for shape, dtype in (((768, 768), torch.float32), ((768, 3072), torch.bfloat16), ((90, 30), torch.float64)):
        method = Auto(accuracy=0.3).explain(shape, dtype).method
        assert isinstance(method, PolarExpress)
        assert method.dtype == "bfloat16"


def test_a_device_that_lives_on_products_gets_them_at_every_accuracy_they_reach():
    coarse, fine, finest = (Auto(accuracy=a).explain((500, 500), device="cuda").method for a in (1e-1, 1e-3, 1e-6))
    assert isinstance(coarse, PolarExpress)
    assert isinstance(fine, PolarExpress)
    assert coarse.max_steps < fine.max_steps
    assert Auto(accuracy=1e-3).explain((2000, 500), device="cuda").method == GramPolynomials()
    assert finest == GramPolynomials()


def test_more_than_was_asked_is_said():
    assert "full accuracy" in str(Auto(accuracy=1e-3).explain((500, 500)))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((1000, 1000), torch.float32, DoubleGram),
        ((8, 768, 3072), torch.bfloat16, DoubleGram),
        ((1000, 1000), torch.complex64, DoubleGram),
        ((1000, 1000), torch.float64, SVD),
        ((1000, 3), torch.float32, SVD),
        ((150, 120), torch.float32, SVD),
        ((2048, 192), torch.float32, DoubleGram),
        ((192, 2048), torch.bfloat16, DoubleGram),
        ((2048, 96), torch.float32, SVD),
        ((1536, 192), torch.float32, SVD),
        ((8, 150, 120), torch.float32, DoubleGram),
    ],
    ids=str,
)
def test_what_it_says_is_what_runs(shape, dtype, kind):
    choice = Auto().explain(shape, dtype)
    assert isinstance(choice.method, kind)
    assert choice.reason in str(choice)
    small = (*shape[:-2], *(min(side, 30) for side in shape[-2:]))
    assert polar(torch.ones(small, dtype=dtype)).stats["method"] == Auto().explain(small, dtype).method.name


def test_explain_takes_a_tensor_and_overrides():
    A = torch.randn(400, 300, dtype=torch.float64)
    assert Auto().explain(A) == Auto().explain((400, 300), torch.float64)
    assert Auto().explain(A, torch.float32).method == DoubleGram()
    assert "fixed sequence" in Auto().explain(A, torch.float32, "cuda").reason
    assert isinstance(Auto().explain(A), Choice)
    with pytest.raises(ValueError, match="matrix"):
        Auto().explain((5,))


def test_an_accuracy_beyond_the_polynomials_is_full_accuracy_and_never_less():
    assert Auto(accuracy=1e-6).explain((500, 500)).method == DoubleGram()


@pytest.mark.parametrize("accuracy", [0.0, 1.0, -1, "best", True])
def test_options_are_checked(accuracy):
    with pytest.raises(ValueError, match="accuracy"):
        Auto(accuracy=accuracy)


@pytest.mark.parametrize("shape", [(1000, 1000), (1000, 3), (64, 3, 3), (50304, 768)], ids=str)
def test_a_data_centre_gpu_gets_products_in_double_precision(shape):
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        assert Auto().explain(shape, dtype, "cuda").method == GramPolynomials()
    for dtype in (torch.float64, torch.complex128):
        assert Auto().explain(shape, dtype, "cuda").method == QDWH()


def test_a_consumer_gpu_gets_products_in_single_precision(monkeypatch):
    monkeypatch.setattr(auto, "arithmetic", lambda device: Arithmetic("a card", "bfloat16", False, "for a test"))
    choice = Auto().explain((1000, 1000), torch.float32, "cuda")
    assert isinstance(choice.method, PolarExpress)
    assert choice.method.working_dtype(torch.float32) == torch.float32
    assert choice.method.tolerance(torch.float32, 1) <= 16 * torch.finfo(torch.float32).eps
    A = make("log-1e3", 80, 60)
    assert_polar_factor(A, polar_factor(A, choice.method))


@pytest.fixture
def without_half(monkeypatch):
    """A CPU that multiplies half precision slowly."""
    monkeypatch.setattr(auto, "arithmetic", lambda device: Arithmetic("old", None, True, "for a test"))


@pytest.mark.parametrize(
    ("accuracy", "shape", "dtype", "kind"),
    [
        (0.3, (768, 768), torch.float32, PolarExpress),
        (0.15, (2048, 192), torch.float32, GramNewtonSchulz),
        (0.15, (192, 2048), torch.bfloat16, GramNewtonSchulz),
        (0.15, (2, 2048, 192), torch.complex64, DoubleGram),
        (0.01, (2048, 192), torch.float32, GramNewtonSchulz),
        (1e-3, (3072, 768), torch.float32, DoubleGram),  # more than the Gram form promises
        (1e-3, (768, 768), torch.float32, DoubleGram),  # costs no more
        (0.15, (2048, 32), torch.float32, SVD),
        (0.15, (90, 2048, 32), torch.float32, DoubleGram),
        (0.15, (768, 768), torch.float64, PolarExpress),
    ],
    ids=str,
)
def test_without_fast_half_precision_products_in_single_are_chosen_where_they_cost_less(
    without_half, accuracy, shape, dtype, kind
):
    method = Auto(accuracy=accuracy).explain(shape, dtype).method
    assert isinstance(method, kind)
    assert torch.finfo(method.working_dtype(dtype)).bits >= 32


def test_half_precision_that_cannot_be_promised_gives_way_to_products_in_single(monkeypatch):
    monkeypatch.setattr(auto, "arithmetic", lambda device: Arithmetic("new", "bfloat16", True, "for a test"))
    coarse, fine = (Auto(accuracy=a).explain((2048, 192)).method for a in (0.15, 0.1))
    assert coarse.working_dtype(torch.float32) == torch.bfloat16
    assert fine.working_dtype(torch.float32) == torch.float32


@pytest.mark.parametrize("accuracy", [0.3, 0.15, 0.05, 0.01])
@pytest.mark.parametrize("shape", [(80, 80), (120, 80), (1000, 100), (100, 1000)], ids=str)
@pytest.mark.parametrize("sigma", ["log", "cluster", "floor"])
def test_products_in_single_keep_the_accuracy_above_the_floor(without_half, sigma, shape, accuracy):
    n = min(shape)
    values = {
        "log": torch.logspace(0, -6, n, dtype=torch.float64),
        "cluster": torch.cat([torch.ones(n - n // 4), torch.logspace(-1, -3.5, n // 4)]).double(),
        "floor": torch.cat([torch.ones(1), torch.full((n - 1,), 1.1e-3)]).double(),
    }[sigma]
    A = with_singular_values(*shape, values, torch.float64, seed=3).float()
    choice = Auto(accuracy=accuracy).explain(A)
    assert not isinstance(choice.method, DoubleGram | SVD)
    above = int((values / values.norm() >= 1.001 * Auto(accuracy=accuracy).sigma_floor(torch.float32)).sum())
    found = torch.linalg.svdvals(polar_factor(A, choice.method).double())
    assert above > 0
    assert found[0] <= 1 + accuracy
    assert found[above - 1] >= 1 - accuracy


def test_the_gram_form_moves_a_usual_factor_by_a_tenth_of_what_is_left_for_it():
    A = with_singular_values(1500, 150, torch.logspace(0, -3, 150, dtype=torch.float64), torch.float64, seed=3).float()
    for steps in (5, 6):
        plain = polar_factor(A, PolarExpress(steps, safety=1.001))
        moved = torch.linalg.matrix_norm(
            polar_factor(A, GramNewtonSchulz.polar_express(1e-3, steps, safety=1.001)) - plain, 2
        )
        assert moved <= 4e-4


def test_a_long_schedule_is_shown_by_its_length():
    assert str(GramNewtonSchulz()) == repr(GramNewtonSchulz())
    assert "<6 rows>" in str(GramNewtonSchulz.polar_express(max_steps=6))


def test_what_runs_on_very_long_columns_is_what_explain_says(without_half):
    A = torch.randn(512 * 66, 66, generator=torch.Generator().manual_seed(0))
    choice = Auto(accuracy=0.15).explain(A)
    assert polar(A, Auto(accuracy=0.15)).stats["method"] == choice.method.name


def test_half_precision_promises_nothing_that_its_rounding_can_take_away():
    A = torch.tensor([[1.0, 1.0035], [1.0, 0.9985]])
    assert torch.linalg.svdvals(A.bfloat16().float())[1] < 1e-6  # .00125 of the largest in A itself
    assert torch.linalg.svdvals(A)[1] / A.norm() < Auto(accuracy=0.15).sigma_floor(torch.float32)
    assert Auto(accuracy=0.1).sigma_floor(torch.float32) == 1e-3
