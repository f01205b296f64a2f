"""Completion of a matrix of ratings, users by items, read from a file."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from polargrad.lab.matrix.completion import MatrixCompletion, Observations
from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.problem import generator, register

# The names of columns in files in circulation.
_COLUMNS = {
    "user": ("user", "userid", "user_id"),
    "item": ("item", "itemid", "item_id", "movieid", "movie_id"),
    "rating": ("rating", "score", "value"),
}


@register
class RatingsCompletion(MatrixCompletion):
    """f(X, Y) = mean of (X Y^T - M)^2 over the observed ratings of a file, less their mean."""

    kind: ClassVar[str] = "ratings"
    metric_label: ClassVar[str] = "mean squared error of observed ratings"
    small: ClassVar = {}
    experiment: ClassVar = tuned(
        "Completion of ratings",
        "f(X, Y) = mean of (X Yᵀ − M)² over observed ratings, less their mean",
        500,
        {
            "polargrad": 0.5,
            "polargradm": 2.0,
            "muon-ns": 0.2,
            "muon-ns-decay": (0.4, 0.9),
            "adam": 0.02,
            "adam-decay": (0.1, 0.9),
            "alternating-gd": 2.5 / 3.0,
            "als": 1.0,
        },
    )

    @classmethod
    def draw(  # pyright: ignore[reportIncompatibleMethodOverride] - settings are each problem's own
        cls, seed: int, *, rank: int = 3, file: str = "", held_out: float = 0.1
    ) -> Self:
        """The seed draws which ratings are held out, and the initial point of two factors with `rank` columns.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no file, or as `ratings` and `fit`.
        """
        if not file:
            raise ValueError(
                "ratings has no file yet; give --ratings FILE, a CSV with the columns user, item and rating"
            )
        data = ratings(file, held_out=held_out, seed=seed)
        return cls.fit(data.M, data.mask, rank=rank, seed=seed, held_out=data.held_out)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L and r of the problem drawn from seed 0."""
        return cls.draw(0, **vars(sizes)).balanced_smoothness, sizes.rank


def ratings(path: str | Path, *, held_out: float = 0.1, seed: int = 42, delimiter: str = ",") -> Observations:
    """Ratings from a text file with a header and one rating per line, less the mean of the observed ones.

    Users are rows and items columns, in the order in which the file first names them. Column names are taken in any
    case: `user`, `userId` or `user_id`; `item`, `itemId`, `item_id`, `movieId` or `movie_id`; `rating`, `score` or
    `value`. Other columns are ignored.

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
            raise ValueError(f"{path}, line {reader.line_num}: {error}; correct or delete the line") from None
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
