"""Matrix problems: data from a seed, an initial point, a loss, and what is known of optimum and curvature."""

from polargrad.problems.base import Problem
from polargrad.problems.comparators import AlternatingGradientDescent, AlternatingNewton, MultiplicativeUpdates
from polargrad.problems.completion import MatrixCompletion
from polargrad.problems.logistic import MatrixLogistic
from polargrad.problems.multinomial import MultinomialRegression
from polargrad.problems.nonnegative import NonnegativeFactorization
from polargrad.problems.objective import ProblemObjective
from polargrad.problems.observations import Observations, picture, ratings
from polargrad.problems.procrustes import OrthogonalProcrustes
from polargrad.problems.quadratic import MatrixQuadratic
from polargrad.problems.regression import MultiResponseRegression

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
