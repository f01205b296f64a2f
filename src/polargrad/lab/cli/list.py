"""`polargrad list`: what can be run."""

from __future__ import annotations

from dataclasses import dataclass

from polargrad.lab.cli import terminal
from polargrad.lab.matrix import PROBLEMS
from polargrad.lab.recipes import COMPARISONS, RECIPES, spec_of
from polargrad.lab.studies import STUDIES

__all__ = ["List"]


@dataclass(frozen=True)
class List:
    """List recipes, matrix problems, studies and named comparisons.

    Example: polargrad list
    """

    def __call__(self) -> None:
        """Print each with what it is, its learning rates and its steps."""
        rows: list[tuple[object, ...]] = []
        for name in RECIPES:
            spec = spec_of(name)
            rows.append((name, spec.description, terminal.rates(spec), spec.loop.steps))
        for name, experiment in ((name, problem.experiment) for name, problem in PROBLEMS.items()):
            if experiment is not None:
                about = f"{experiment.title}, {len(experiment.chosen())} configurations."
                rows.append((name, about, "", experiment.steps))
        rows += [(name, study.description, "", "") for name, study in STUDIES.items()]
        rows += [(name, comparison.description, "", comparison.steps) for name, comparison in COMPARISONS.items()]
        terminal.print_table(("recipe", "what it is", "learning rates", "steps"), rows)
        print("`polargrad run NAME` runs one of them; `polargrad compare NAME NAME` those with learning rates.")
        print(f"`polargrad compare {' | '.join(COMPARISONS)}` makes a whole comparison.")
