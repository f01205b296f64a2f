"""Matrices to complete that are not drawn: a picture, and ratings from a file."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.lab.matrix.problems.base import check_sizes, generator
from polargrad.lab.matrix.problems.completion import check_fraction

PICTURES = ("china", "flower")
# How files in circulation call their columns.
_COLUMNS = {
    "user": ("user", "userid", "user_id"),
    "item": ("item", "itemid", "item_id", "movieid", "movie_id"),
    "rating": ("rating", "score", "value"),
}


class Observations(NamedTuple):
    """A matrix of which some entries are observed and others known but held out.

    Attributes:
        M: (p, q), 0 where nothing is known.
        mask: (p, q), bool, the observed entries.
        held_out: (p, q), bool, known and not observed; None if there are none.
        offset: what was subtracted from every known entry.
    """

    M: Tensor
    mask: Tensor
    held_out: Tensor | None
    offset: float


def picture(name: str = "china", *, observed: float = 0.3, seed: int = 42, shrink: int = 1) -> Observations:
    """A photograph that scikit-learn ships, in grey levels of [0, 1] less their mean, some pixels observed.

    Args:
        name: "china" or "flower", 427 x 640 pixels.
        observed: probability of each pixel; the others are held out.
        seed: of the mask.
        shrink: keep every so many-th pixel in both directions.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: another name, a probability outside (0, 1], a mask that came out empty.
    """
    if name not in PICTURES:
        raise ValueError(f"picture must be one of {', '.join(PICTURES)}, got {name!r}")
    check_fraction("observed", observed)
    check_sizes(shrink=shrink)
    try:
        from sklearn.datasets import load_sample_image  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModuleNotFoundError(
            'the picture comes with scikit-learn, which is not installed; pip install "polargrad[lab]"',
            name="sklearn",
        ) from error
    pixels = torch.tensor(load_sample_image(f"{name}.jpg"))
    grey = (pixels.float().mean(-1) / 255.0)[::shrink, ::shrink].contiguous()
    mask = torch.rand(grey.shape, generator=generator(seed)) < observed
    if not bool(mask.any()):
        raise ValueError(f"with observed={observed} no pixel of {tuple(grey.shape)} was; give a larger probability")
    offset = float(grey[mask].mean())
    return Observations(grey - offset, mask, None if bool(mask.all()) else ~mask, offset)


def ratings(path: str | Path, *, held_out: float = 0.1, seed: int = 42, delimiter: str = ",") -> Observations:
    """Ratings from a text file with a header and one rating a line, less the mean of the observed ones.

    Users are rows and items columns, in the order in which the file first names them. Column names are taken in any
    case: `user`, `userId` or `user_id`; `item`, `itemId`, `item_id`, `movieId` or `movie_id`; `rating`, `score` or
    `value`. Other columns are passed over.

    Args:
        path: the file, UTF-8.
        held_out: the share of ratings that is not observed; 0 observes all.
        seed: of the choice.
        delimiter: what separates columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column, a rating that is not a finite number, an entry rated twice, no ratings, a share
            outside [0, 1) or one that leaves nothing to observe.
    """
    path = Path(path)
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"held_out must lie in [0, 1), got {held_out!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a CSV file with the columns user, item and rating")
    known = _read_ratings(path, delimiter)
    users = {user: i for i, user in enumerate(dict.fromkeys(user for user, _ in known))}
    items = {item: j for j, item in enumerate(dict.fromkeys(item for _, item in known))}
    places = torch.tensor([(users[user], items[item]) for user, item in known])
    values = torch.tensor(list(known.values()))
    order = torch.randperm(len(known), generator=generator(seed))
    left_out = round(held_out * len(known))
    if left_out >= len(known):
        raise ValueError(f"{path} has {len(known)} ratings, and holding out {held_out:.0%} leaves none; hold out fewer")
    offset = float(values[order[left_out:]].double().mean())
    M = torch.zeros(len(users), len(items))
    M[places[:, 0], places[:, 1]] = values - offset
    masks = torch.zeros(2, *M.shape, dtype=torch.bool)
    for mask, chosen in zip(masks, (order[left_out:], order[:left_out]), strict=True):
        mask[places[chosen, 0], places[chosen, 1]] = True
    return Observations(M, masks[0], masks[1] if left_out else None, offset)


def _read_ratings(path: Path, delimiter: str) -> dict[tuple[str, str], float]:
    """(user, item) -> rating, in the order of the file."""
    known: dict[tuple[str, str], float] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = [column.strip() for column in next(reader, [])]
            user, item, rating = (_column(path, header, wanted) for wanted in _COLUMNS)
            for row in reader:
                if not row:
                    continue
                if len(row) <= max(user, item, rating):
                    raise ValueError(f"has {len(row)} columns where the header has {len(header)}")
                place = (row[user].strip(), row[item].strip())
                if place in known:
                    raise ValueError(f"rates item {place[1]!r} by user {place[0]!r} a second time")
                known[place] = _number(row[rating])
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text; convert it first") from None
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}, line {reader.line_num}: {error}; mend or delete the line") from None
    if not known:
        raise ValueError(f"{path} has a header and no ratings; give at least one")
    return known


def _column(path: Path, header: list[str], wanted: str) -> int:
    names = [column.lower() for column in header]
    for name in _COLUMNS[wanted]:
        if name in names:
            return names.index(name)
    there = ", ".join(header) or "no columns at all"
    raise ValueError(
        f"{path} lacks a column {wanted!r} (or {', '.join(_COLUMNS[wanted][1:])}); its header has {there}. "
        "Rename a column, or give another delimiter"
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"has the rating {text!r}, which is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"has the rating {text!r}, which is not finite")
    return value
