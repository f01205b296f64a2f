"""Matrix problems: data from a seed, an initial point, a loss, and what is known of optimum and curvature.

A problem is one class in one file, which registers it; the line below is all that names it. Files are imported when a
name of theirs is first used, so that a run imports its own problem alone.
"""

from __future__ import annotations

from polargrad.lab.matrix.problem import PROBLEMS, Problem, ProblemSpec, register
from polargrad.later import import_later

# Kind -> file and class, in the order in which problems are listed: the paper's first.
_PROBLEMS = {
    "quadratic": ("quadratic", "MatrixQuadratic"),
    "logistic": ("logistic", "MatrixLogistic"),
    "completion": ("completion", "MatrixCompletion"),
    "regression": ("regression", "MultiResponseRegression"),
    "multinomial": ("multinomial", "MultinomialRegression"),
    "nonnegative": ("nonnegative", "NonnegativeFactorization"),
    "nonnegative-softplus": ("nonnegative", "SoftplusFactorization"),
    "procrustes": ("procrustes", "OrthogonalProcrustes"),
    "picture": ("picture_completion", "PictureCompletion"),
    "ratings": ("ratings_completion", "RatingsCompletion"),
}
PROBLEMS.announce({kind: f"{__name__}.{file}" for kind, (file, _) in _PROBLEMS.items()})

# Public name -> file.
_PUBLIC = {
    **{name: file for file, name in _PROBLEMS.values()},
    "Observations": "completion",
    "photograph": "picture_completion",
    "ratings": "ratings_completion",
    **dict.fromkeys(("Configuration", "Experiment"), "configurations"),
    **dict.fromkeys(("AlternatingGradientDescent", "AlternatingNewton", "MultiplicativeUpdates"), "training"),
    "ProblemObjective": "training",
}

__all__ = ["PROBLEMS", "Problem", "ProblemSpec", "register", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = import_later(__name__, _PUBLIC)
