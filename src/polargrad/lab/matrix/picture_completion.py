"""Completion of a photograph of which some pixels are observed."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

from polargrad.lab.matrix.completion import SHARE, MatrixCompletion, Observations
from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.problem import check_sizes, generator, register
from polargrad.lab.options import check_value

PICTURES = ("china", "flower")


@register
class PictureCompletion(MatrixCompletion):
    """f(X, Y) = mean of (X Y^T - M)^2 over the observed pixels of a photograph that scikit-learn ships."""

    kind: ClassVar[str] = "picture"
    metric_label: ClassVar[str] = "mean squared error of observed pixels"
    small: ClassVar = {"shrink": 10, "rank": 3}
    experiment: ClassVar = tuned(
        "Completion of a photograph",
        "f(X, Y) = mean of (X Yᵀ − M)² over observed pixels",
        500,
        {
            "polargrad": 1.0,
            "polargradm": 2.0,
            "muon-ns": 0.1,
            "muon-ns-decay": (0.2, 0.9),
            "adam": 0.08,
            "adam-decay": (0.2, 0.9),
            "alternating-gd": 0.5,
            "als": 1.0,
        },
    )

    @classmethod
    def draw(  # pyright: ignore[reportIncompatibleMethodOverride] - settings are each problem's own
        cls, seed: int, *, rank: int = 10, picture: str = "china", shrink: int = 2, observed: float = 0.3
    ) -> Self:
        """The seed draws which pixels are observed, and the initial point of two factors with `rank` columns.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            ValueError: as `photograph` and `fit`.
        """
        data = photograph(picture, observed=observed, seed=seed, shrink=shrink)
        return cls.fit(data.M, data.mask, rank=rank, seed=seed, held_out=data.held_out)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L and r of the problem drawn from seed 0."""
        return cls.draw(0, **vars(sizes)).balanced_smoothness, sizes.rank


def photograph(name: str = "china", *, observed: float = 0.3, seed: int = 42, shrink: int = 1) -> Observations:
    """A photograph that scikit-learn ships, in grey levels of [0, 1] less their mean, some pixels observed.

    Args:
        name: "china" or "flower", 427 x 640 pixels.
        observed: probability of each pixel; the others are held out.
        seed: of the mask.
        shrink: keep every `shrink`-th pixel in both directions.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: another name, a probability outside (0, 1], a mask without a pixel.
    """
    if name not in PICTURES:
        raise ValueError(f"picture must be one of {', '.join(PICTURES)}, got {name!r}")
    check_value("observed", observed, float, SHARE)
    check_sizes(shrink=shrink)
    try:
        from sklearn.datasets import load_sample_image  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModuleNotFoundError(
            'the picture comes with scikit-learn, which is not installed; pip install "polargrad[lab]"', name="sklearn"
        ) from error
    pixels = torch.tensor(load_sample_image(f"{name}.jpg"))
    grey = (pixels.float().mean(-1) / 255.0)[::shrink, ::shrink].contiguous()
    mask = torch.rand(grey.shape, generator=generator(seed)) < observed
    if not bool(mask.any()):
        raise ValueError(f"with observed={observed} no pixel of {tuple(grey.shape)} is observed; give a larger one")
    offset = float(grey[mask].mean())
    return Observations(grey - offset, mask, None if bool(mask.all()) else ~mask, offset)
