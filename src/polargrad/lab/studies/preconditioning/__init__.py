"""The unifying view, measured: what each optimizer does to the curvature, to the gradient and to the objective."""

from polargrad.lab.studies.preconditioning.best_step import Ball, best_descent
from polargrad.lab.studies.preconditioning.measure import Course, Measurement, Regression, measure
from polargrad.lab.studies.preconditioning.views import VIEWS, Direction, View

__all__ = ["VIEWS", "Ball", "Course", "Direction", "Measurement", "Regression", "View", "best_descent", "measure"]
