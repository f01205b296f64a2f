"""The unifying view, measured: what each optimizer does to the curvature, to the gradient and to the objective."""

from polargrad.lab.studies.preconditioning.best_step import Ball, best_descent
from polargrad.lab.studies.preconditioning.measure import Course, Measurement, measure, regression
from polargrad.lab.studies.preconditioning.views import VIEWS, Direction, View

__all__ = ["VIEWS", "Ball", "Course", "Direction", "Measurement", "View", "best_descent", "measure", "regression"]
