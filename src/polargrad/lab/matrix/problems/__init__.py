"""Matrix problems: data from a seed, an initial point, a loss, and what is known of optimum and curvature."""

from polargrad.lab.matrix.problems.base import Problem
from polargrad.lab.matrix.problems.comparators import (
    AlternatingGradientDescent,
    AlternatingNewton,
    MultiplicativeUpdates,
)
from polargrad.lab.matrix.problems.completion import MatrixCompletion
from polargrad.lab.matrix.problems.logistic import MatrixLogistic
from polargrad.lab.matrix.problems.multinomial import MultinomialRegression
from polargrad.lab.matrix.problems.nonnegative import NonnegativeFactorization
from polargrad.lab.matrix.problems.objective import ProblemObjective
from polargrad.lab.matrix.problems.observations import Observations, picture, ratings
from polargrad.lab.matrix.problems.procrustes import OrthogonalProcrustes
from polargrad.lab.matrix.problems.quadratic import MatrixQuadratic
from polargrad.lab.matrix.problems.regression import MultiResponseRegression

__all__ = [
    "AlternatingGradientDescent",
    "AlternatingNewton",
    "MatrixCompletion",
    "MatrixLogistic",
    "MatrixQuadratic",
    "MultiResponseRegression",
    "MultinomialRegression",
    "MultiplicativeUpdates",
    "NonnegativeFactorization",
    "Observations",
    "OrthogonalProcrustes",
    "Problem",
    "ProblemObjective",
    "picture",
    "ratings",
]
