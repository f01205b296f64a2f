"""A grid of runs, read from its records: what each recipe made of each learning rate and each warm-up.

A run that diverged stays in every figure and table, as one that diverged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polargrad.lab.compare.analysis import final_metric
from polargrad.lab.compare.axes import Axis, text_of
from polargrad.lab.compare.comparison import Comparison
from polargrad.lab.compare.spread import Spread
from polargrad.lab.report.study import Table
from polargrad.lab.run.folder import Run
from polargrad.lab.run.spec import Plain

__all__ = ["Cell", "Grid", "Row", "condition_number", "largest_rise", "spikes"]


@dataclass(frozen=True)
class Cell:
    """One recipe at one point of the grid.

    Args:
        recipe: its name.
        settings: a value for each axis.
        runs: one for each seed, at least one.
    """

    recipe: str
    settings: tuple[tuple[Axis, Plain], ...]
    runs: tuple[Run, ...]

    def value(self, axis: Axis) -> Plain:
        """What the axis was set to."""
        return dict(self.settings)[axis]

    @property
    def final(self) -> Spread:
        """The metric at the end; a seed that diverged has none."""
        ends = [final_metric(run) for run in self.runs]
        return Spread(tuple(end for end in ends if end is not None), len(ends))

    @property
    def diverged(self) -> int:
        """How many seeds have no final metric."""
        return self.final.of - len(self.final.values)

    @property
    def spikes(self) -> Spread:
        """Loss spikes of a run."""
        return Spread(tuple(float(spikes(run)) for run in self.runs), len(self.runs))

    @property
    def rise(self) -> Spread:
        """The largest rise of the training loss; infinite where a loss was not finite."""
        return Spread(tuple(largest_rise(run) for run in self.runs), len(self.runs))


@dataclass(frozen=True)
class Row:
    """The cells of one recipe that differ along one axis alone.

    Args:
        recipe: its name.
        settings: the other axes' values.
        cells: in the order of the axis; what has not run yet is missing.
    """

    recipe: str
    settings: tuple[tuple[Axis, Plain], ...]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Recipe and settings."""
        return f"{self.recipe}, {self.setting}" if self.settings else self.recipe

    @property
    def setting(self) -> str:
        """The other axes' values, as in "warmup=10"; the recipe where there are none."""
        return text_of(self.settings) or self.recipe


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison's grid.

    Args:
        along: the axis that tables and figures run along: the first of learning rates, else the last.
        axes: all of them that concern every recipe shown.
        cells: of all recipes, in the order in which they were asked for.
    """

    along: Axis
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, asked: Comparison, runs: Sequence[Run]) -> Grid | None:
        """The grid that a comparison asked for, as far as its runs have been made; None without one."""
        if not asked.axes:
            return None
        along = next((axis for axis in asked.axes if axis.is_rate), asked.axes[-1])
        held: dict[str, list[Run]] = {}
        places = asked.places
        for run in runs:
            if run.spec.name in places and along in dict(places[run.spec.name].settings):
                held.setdefault(places[run.spec.name].spec.name, []).append(run)
        cells = [
            Cell(point.spec.recipe, point.settings, tuple(sorted(held[point.spec.name], key=lambda run: run.spec.seed)))
            for point in asked.points
            if point.spec.name in held
        ]
        return cls(along, tuple(asked.axes), tuple(cells)) if cells else None

    @property
    def recipes(self) -> list[str]:
        """In the order in which they were asked for."""
        return list(dict.fromkeys(cell.recipe for cell in self.cells))

    @property
    def start(self) -> float | None:
        """The metric before the first step, the highest of all runs; None if none was finite."""
        metric = self.cells[0].runs[0].spec.objective.metric
        begins = [record.get(metric) for cell in self.cells for run in cell.runs for record in run.of_kind("eval")[:1]]
        return max((value for value in begins if value is not None), default=None)

    @property
    def probed(self) -> list[str]:
        """The roles whose gradients were looked at."""
        runs = [run for cell in self.cells for run in cell.runs]
        roles = dict.fromkeys(record["role"] for run in runs for record in run.of_kind("matrix"))
        return [role for role in roles if any(condition_number(run, role) is not None for run in runs)]

    def rows(self, recipe: str | None = None) -> list[Row]:
        """One for each recipe and each setting of the other axes."""
        found: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            if recipe is None or cell.recipe == recipe:
                found.setdefault((cell.recipe, text_of(self._others(cell))), []).append(cell)
        order = list(self.along.ordered)
        for cells in found.values():
            cells.sort(key=lambda cell: order.index(cell.value(self.along)))
        return [Row(name, self._others(cells[0]), tuple(cells)) for (name, _), cells in found.items()]

    def best_along(self, axis: Axis) -> list[Row]:
        """For each recipe and each value of an axis the cell that ended lowest, whatever the other axes."""
        rows = []
        for recipe in self.recipes:
            mine = [cell for cell in self.cells if cell.recipe == recipe and axis in dict(cell.settings)]
            held = [[cell for cell in mine if cell.value(axis) == value] for value in axis.ordered]
            if best := tuple(min(cells, key=_rank) for cells in held if cells):
                rows.append(Row(recipe, (), best))
        return rows

    def sensitivity(self, row: Row) -> float | None:
        """How much a wrong learning rate costs: the mean over the rates of `min(loss, start) - lowest loss of the row`.

        A run that diverged counts as one that did not move. None without learning rates, or if nothing ended.

        Source: Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities" (2023),
        section 2.3, arXiv 2309.14322.
        """
        lowest = min((cell.final.mean for cell in row.cells if cell.final.mean is not None), default=None)
        if lowest is None or not self.along.is_rate or self.start is None or len(row.cells) < 2:
            return None
        ends = [end for cell in row.cells for end in (*cell.final.values, *[self.start] * cell.diverged)]
        return statistics.fmean(min(end, self.start) for end in ends) - lowest

    def tables(self) -> list[Table]:
        """Final losses, and how rough the way there was: a row for each recipe and setting, a column for each value."""
        rows, sensitive = self.rows(), self.along.is_rate and len(self.along.values) > 1
        heads = [text_of([(self.along, value)]) for value in self.along.ordered]
        metric = self.cells[0].runs[0].spec.objective.metric_label
        ends = Table(
            (f"final {metric}", *heads, *(["sensitivity"] if sensitive else [])),
            [
                (row.name, *self._told(row, _final), *([_or_dash(self.sensitivity(row))] if sensitive else []))
                for row in rows
            ],
            note=" ".join([SENSITIVITY] * sensitive + [NOT_YET] * any(len(row.cells) < len(heads) for row in rows)),
        )
        rough = Table(
            ("spikes; largest rise", *heads), [(row.name, *self._told(row, _roughness)) for row in rows], note=ROUGHNESS
        )
        return [ends, rough]

    def sentences(self) -> list[str]:
        """For each recipe where it ended lowest, what the other axes cost it, and how often it went wrong."""
        lines = []
        for recipe in self.recipes:
            mine = [cell for cell in self.cells if cell.recipe == recipe]
            best = min(mine, key=_rank)
            runs = [run for cell in mine for run in cell.runs]
            diverged, spiked = sum(cell.diverged for cell in mine), sum(map(spikes, runs))
            wrong = f"Diverged: {diverged} of {len(runs)} runs; loss spikes: {spiked}."
            if best.final.mean is None:
                lines.append(f"{recipe}: no run has a final loss. {wrong}")
                continue
            parts = [f"{recipe}: lowest {best.final.text(3)} at {text_of(best.settings)}"]
            for axis in self.axes:
                if axis == self.along or axis not in dict(best.settings):
                    continue
                (row,) = [row for row in self.best_along(axis) if row.recipe == recipe]
                others = [cell for cell in row.cells if cell is not best]
                parts += [f"with {text_of([(axis, cell.value(axis))])} at best {_final(cell)}" for cell in others]
            lines.append(f"{'; '.join(parts)}. {wrong}")
        return lines

    def _others(self, cell: Cell) -> tuple[tuple[Axis, Plain], ...]:
        return tuple((axis, value) for axis, value in cell.settings if axis != self.along)

    def _told(self, row: Row, said: Any) -> list[str]:
        held = {cell.value(self.along): cell for cell in row.cells}
        return [said(held[value]) if value in held else "–" for value in self.along.ordered]


SENSITIVITY = (
    "Sensitivity: the mean over the rates of min(loss, loss before the first step) - lowest loss of the row; what a "
    "rate chosen blindly from these costs. A run that diverged counts as one that did not move."
)
NOT_YET = "“–” has not run yet."
ROUGHNESS = (
    "Of the training loss: how often it stood out from the 32 steps before it or was not finite, and the most by which "
    "it stood above the lowest before; over several seeds the mean number and the largest rise."
)


def spikes(run: Run) -> int:
    """How often the training loss stood out from the steps before it, or stopped being finite."""
    told = sum(record["event"] == "spike" for record in run.of_kind("event"))
    lost = [record["loss"] is None for record in run.of_kind("step")]
    return told + sum(now and not before for before, now in zip([False, *lost], lost, strict=False))


def largest_rise(run: Run) -> float:
    """The most by which the training loss stood above its lowest before; infinite if one was not finite.

    `max_k (loss_k - min_{j <= k} loss_j)`
    """
    lowest, rise = math.inf, 0.0
    for record in run.of_kind("step"):
        loss = math.inf if record["loss"] is None else record["loss"]
        lowest = min(lowest, loss)
        rise = max(rise, loss - lowest if math.isfinite(loss) else math.inf)
    return rise


def condition_number(run: Run, role: str) -> float | None:
    """Of the gradients of the probed matrices of a role: the median over matrices and looks; None if none has any."""
    looks = [record.get("condition_number") for record in run.of_kind("matrix") if record["role"] == role]
    finite = [look for look in looks if look is not None and look > 0]
    return statistics.median(finite) if finite else None


def _rank(cell: Cell) -> tuple[int, float]:
    """Fewest seeds that diverged, then the lowest loss."""
    return cell.diverged, math.inf if cell.final.mean is None else cell.final.mean


def _final(cell: Cell) -> str:
    return "diverged" if cell.final.mean is None else cell.final.text(3)


def _roughness(cell: Cell) -> str:
    rise, count = max(cell.rise.values), cell.spikes.mean or 0.0
    said = f"{count:g}; {rise:.2f}" if math.isfinite(rise) else f"{count:g}; not finite"
    if not cell.diverged:
        return said
    return f"{said}; diverged" if len(cell.runs) == 1 else f"{said}; {cell.diverged} of {len(cell.runs)} diverged"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
