# ruff: noqa: I001 - problems are listed in the order of these lines: the paper's first
"""Matrix problems: data from a seed, an initial point, a loss, and what is known of optimum and curvature.

A problem is one class in one file. Importing the file registers the problem; the line below is all that names it.
"""

from polargrad.lab.matrix.quadratic import MatrixQuadratic as MatrixQuadratic
from polargrad.lab.matrix.logistic import MatrixLogistic as MatrixLogistic
from polargrad.lab.matrix.completion import MatrixCompletion as MatrixCompletion, Observations as Observations
from polargrad.lab.matrix.regression import MultiResponseRegression as MultiResponseRegression
from polargrad.lab.matrix.multinomial import MultinomialRegression as MultinomialRegression
from polargrad.lab.matrix.nonnegative import (
    NonnegativeFactorization as NonnegativeFactorization,
    SoftplusFactorization as SoftplusFactorization,
)
from polargrad.lab.matrix.procrustes import OrthogonalProcrustes as OrthogonalProcrustes
from polargrad.lab.matrix.picture_completion import PictureCompletion as PictureCompletion, photograph as photograph
from polargrad.lab.matrix.ratings_completion import RatingsCompletion as RatingsCompletion, ratings as ratings

from polargrad.lab.matrix.configurations import Configuration as Configuration, Experiment as Experiment
from polargrad.lab.matrix.training import (
    AlternatingGradientDescent as AlternatingGradientDescent,
    AlternatingNewton as AlternatingNewton,
    MultiplicativeUpdates as MultiplicativeUpdates,
    ProblemObjective as ProblemObjective,
)
from polargrad.lab.matrix.problem import (
    PROBLEMS as PROBLEMS,
    Problem as Problem,
    ProblemSpec as ProblemSpec,
    register as register,
)
