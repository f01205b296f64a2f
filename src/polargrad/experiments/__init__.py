"""Experiments: a run is a frozen spec; its folder holds what is needed to read it again; reports read folders alone."""

from polargrad.experiments.axes import Axis, parse_axis
from polargrad.experiments.recipes import RECIPES, spec_of
from polargrad.experiments.spec import LanguageModel, RunSpec
from polargrad.experiments.store import Run, find_runs, read_run
from polargrad.experiments.sweep import expand

__all__ = [
    "RECIPES",
    "Axis",
    "LanguageModel",
    "Run",
    "RunSpec",
    "expand",
    "find_runs",
    "parse_axis",
    "read_run",
    "spec_of",
]
