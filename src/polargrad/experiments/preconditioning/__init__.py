"""The unifying view, measured: what each optimizer does to the curvature, to the gradient and to the objective."""

from polargrad.experiments.preconditioning.best_step import Ball, best_descent
from polargrad.experiments.preconditioning.measure import Course, Measurement, Regression, measure
from polargrad.experiments.preconditioning.views import VIEWS, Direction, View

__all__ = ["VIEWS", "Ball", "Course", "Direction", "Measurement", "Regression", "View", "best_descent", "measure"]
