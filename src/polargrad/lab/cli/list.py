"""`polargrad list`: what can be run."""

from __future__ import annotations

from dataclasses import dataclass

from polargrad.lab.cli import terminal
from polargrad.lab.matrix import PROBLEMS
from polargrad.lab.recipes import COMPARISONS, RECIPES, spec_of
from polargrad.lab.studies import STUDIES


@dataclass(frozen=True)
class List:
    """List recipes, matrix problems, studies and named comparisons.

    Example: polargrad list
    """

    def __call__(self) -> None:
        """Print a table of each kind, and the commands that run it."""
        specs = [spec_of(name) for name in RECIPES]
        roles = ", ".join(specs[0].learning_rates)
        _section(
            f"Recipes, the three best of our comparisons first, with the learning rates of {roles}:",
            [(s.name, s.description, " ".join(f"{rate:g}" for rate in s.learning_rates.values())) for s in specs],
            "`polargrad run NAME`, `compare NAME NAME` or `pretrain --recipe NAME`",
        )
        problems = {name: problem.experiment for name, problem in PROBLEMS.items() if problem.experiment is not None}
        _section(
            "Matrix problems:",
            [
                (name, f"{experiment.title}, {len(experiment.chosen())} configurations.", f"{experiment.steps} steps")
                for name, experiment in problems.items()
            ],
            "`polargrad run NAME`",
        )
        _section("Studies:", [(name, study.description) for name, study in STUDIES.items()], "`polargrad run NAME`")
        _section(
            "Comparisons of several recipes:",
            [(name, whole.description, f"{whole.steps} steps") for name, whole in COMPARISONS.items()],
            " or ".join(f"`polargrad compare {name}`" for name in COMPARISONS),
        )


def _section(title: str, rows: list[tuple[str, ...]], commands: str) -> None:
    terminal.console().print(title)
    terminal.print_table([""] * len(rows[0]), rows)
    terminal.console().print(f"Run with {commands}.\n")
