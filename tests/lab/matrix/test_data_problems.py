"""A picture and a file of ratings as matrices to complete, and what bad files hear."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from polargrad.lab.matrix import MatrixCompletion, photograph, ratings


@pytest.fixture
def sample_image(monkeypatch):
    """scikit-learn's loader, replaced by a picture of 6 x 8 pixels."""
    pixels = (torch.arange(6 * 8 * 3).reshape(6, 8, 3) % 255).to(torch.uint8).numpy()
    package, datasets = ModuleType("sklearn"), ModuleType("sklearn.datasets")
    datasets.load_sample_image = lambda name: {"china.jpg": pixels}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sklearn", package)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)


def test_a_picture_is_grey_centred_and_partly_observed(sample_image):
    data = photograph("china", observed=0.5, seed=1)
    assert data.M.shape == (6, 8)
    assert 0.0 <= float((data.M + data.offset).min()) <= float((data.M + data.offset).max()) <= 1.0
    assert float(data.M[data.mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(data.held_out, ~data.mask)
    assert photograph("china", seed=1, shrink=2).M.shape == (3, 4)
    assert photograph("china", seed=1, observed=1.0).held_out is None
    problem = MatrixCompletion.fit(data.M, data.mask, rank=2, seed=0, held_out=data.held_out)
    assert problem.metrics(problem.start)["held_out_rmse"] > 0


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"polargrad\[lab\]"):
        photograph("china")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lena"}, "china, flower"),
        ({"observed": 0.0}, "observed"),
        ({"shrink": 0}, "shrink"),
        ({"observed": 1e-12}, "no pixel"),
    ],
)
def test_a_picture_that_cannot_be_made_says_why(sample_image, options, message):
    with pytest.raises(ValueError, match=message):
        photograph(**options)


def _file(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "ratings.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_ratings_of_movielens_form(tmp_path):
    path = _file(tmp_path, "\ufeffuserId,movieId,rating,timestamp\n7,a,4.0,1\n7,b,2,1\n9,b,3,1\n\n8,a,5,1\n")
    data = ratings(path, held_out=0.25, seed=0)
    assert data.M.shape == (3, 2)
    assert int(data.mask.sum()) == 3
    assert int(data.held_out.sum()) == 1
    known = data.mask | data.held_out
    expected = torch.tensor([[4.0, 2.0], [0.0, 3.0], [5.0, 0.0]])
    assert torch.allclose((data.M + data.offset)[known], expected[known])
    assert float(data.M[data.mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert ratings(path, held_out=0.0).held_out is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\n1,2\n", r"lacks a column 'rating' .*its header has user, item"),
        ("user;item;rating\n1;2;3\n", "lacks a column 'user'"),
        ("", "no columns at all"),
        ("user,item,rating\n", "no ratings"),
        ("user,item,rating\n1,2,good\n", r"line 2: has the rating 'good', which is not a number"),
        ("user,item,rating\n1,2,nan\n", "line 2: .*not finite"),
        ("user,item,rating\n1,2,3\n1,2\n", "line 3: has 2 columns where the header has 3"),
        ("user,item,rating\n1,2,3\n1,3,3\n1,2,4\n", "line 4: rates item '2' by user '1' a second time"),
        ("user,item,rating\n1,2,3\n", "leaves none"),
    ],
)
def test_a_file_of_ratings_that_is_none_says_where(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        ratings(_file(tmp_path, text), held_out=0.9)


def test_ratings_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="user, item and rating"):
        ratings(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="UTF-8"):
        ratings(_file(tmp_path, "user,item,rating\nJosé,1,2\n", "latin-1"))
    with pytest.raises(ValueError, match="held_out"):
        ratings(_file(tmp_path, "user,item,rating\n1,2,3\n"), held_out=1.0)
    assert ratings(_file(tmp_path, "user;item;rating\n1;2;3\n2;2;4\n"), held_out=0.0, delimiter=";").M.shape == (2, 1)
