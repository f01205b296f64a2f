"""A grid of runs, read from its records: what each recipe made of each learning rate and each warm-up.

A run that diverged stays in every figure and table, as one that diverged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polargrad.lab.compare.analysis import Spread, best_of_recipe, final_metric, recipe_of
from polargrad.lab.compare.comparison import Comparison
from polargrad.lab.compare.sweep import Axis, setting_text
from polargrad.lab.report.page import UNKNOWN, Table
from polargrad.lab.run.folder import Run
from polargrad.lab.run.spec import Plain, RunSpec

__all__ = ["Grid", "GridCell", "GridRow", "condition_number", "edge_notes", "largest_rise", "spikes"]


@dataclass(frozen=True)
class GridCell:
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
class GridRow:
    """The cells of one recipe that differ along one axis alone.

    Args:
        recipe: its name.
        settings: the other axes' values.
        cells: in the order of the axis; what has not run yet is missing.
    """

    recipe: str
    settings: tuple[tuple[Axis, Plain], ...]
    cells: tuple[GridCell, ...]

    @property
    def name(self) -> str:
        """Recipe and settings."""
        return f"{self.recipe}, {self.setting}" if self.settings else self.recipe

    @property
    def setting(self) -> str:
        """The other axes' values, as in "warmup=10"; the recipe where there are none."""
        return setting_text(self.settings) or self.recipe


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
    cells: tuple[GridCell, ...]

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
            GridCell(
                point.spec.recipe, point.settings, tuple(sorted(held[point.spec.name], key=lambda run: run.spec.seed))
            )
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

    def rows(self, recipe: str | None = None) -> list[GridRow]:
        """One for each recipe and each setting of the other axes."""
        found: dict[tuple[str, str], list[GridCell]] = {}
        for cell in self.cells:
            if recipe is None or cell.recipe == recipe:
                found.setdefault((cell.recipe, setting_text(self._others(cell))), []).append(cell)
        order = list(self.along.ordered)
        for cells in found.values():
            cells.sort(key=lambda cell: order.index(cell.value(self.along)))
        return [GridRow(name, self._others(cells[0]), tuple(cells)) for (name, _), cells in found.items()]

    def best_along(self, axis: Axis) -> list[GridRow]:
        """For each recipe and each value of an axis the cell that ended lowest, whatever the other axes."""
        rows = []
        for recipe in self.recipes:
            mine = [cell for cell in self.cells if cell.recipe == recipe and axis in dict(cell.settings)]
            held = [[cell for cell in mine if cell.value(axis) == value] for value in axis.ordered]
            if best := tuple(min(cells, key=_rank) for cells in held if cells):
                rows.append(GridRow(recipe, (), best))
        return rows

    def sensitivity(self, row: GridRow) -> float | None:
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
        heads = [setting_text([(self.along, value)]) for value in self.along.ordered]
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
            parts = [f"{recipe}: lowest {best.final.text(3)} at {setting_text(best.settings)}"]
            for axis in self.axes:
                if axis == self.along or axis not in dict(best.settings):
                    continue
                (row,) = [row for row in self.best_along(axis) if row.recipe == recipe]
                others = [cell for cell in row.cells if cell is not best]
                parts += [f"with {setting_text([(axis, cell.value(axis))])} at best {_final(cell)}" for cell in others]
            lines.append(f"{'; '.join(parts)}. {wrong}")
        return lines

    def _others(self, cell: GridCell) -> tuple[tuple[Axis, Plain], ...]:
        return tuple((axis, value) for axis, value in cell.settings if axis != self.along)

    def _told(self, row: GridRow, said: Any) -> list[str]:
        held = {cell.value(self.along): cell for cell in row.cells}
        return [said(held[value]) if value in held else UNKNOWN for value in self.along.ordered]


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


def edge_notes(runs: Sequence[Run], chosen: Sequence[Run] | None = None) -> list[str]:
    """For each recipe's best run, the learning rates and warm-ups on the edge of what was tried, each in a sentence.

    Roles whose rates always moved together, in whatever ratio, are one axis. What was tried at one value alone was not
    swept, and no warm-up is shorter than none.

    Args:
        runs: all that was tried.
        chosen: the best of each recipe; None: by the lowest final metric.
    """
    notes = []
    for best in best_of_recipe(runs) if chosen is None else chosen:
        tried = [run for run in runs if recipe_of(run) == recipe_of(best)]
        if final_metric(best) is None:
            if len(tried) > 1:
                notes.append(f"{best.spec.recipe}: no run has a final loss; try lower rates.")
            continue
        notes += [f"{best.spec.recipe}: {note}" for note in (*_rate_edges(best, tried), *_warmup_edges(best, tried))]
    return notes


def _rate_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    own = best.spec.learning_rates
    together: dict[tuple[str, ...], list[str]] = {}
    for role, rate in own.items():
        ratios = tuple(
            f"{run.spec.learning_rates[role] / rate:.9g}" for run in tried if role in run.spec.learning_rates
        )
        together.setdefault(ratios, []).append(role)
    notes = []
    for ratios, roles in together.items():
        values = [float(ratio) for ratio in ratios]
        if min(values) == max(values) or 1.0 not in (min(values), max(values)):
            continue
        end, further = ("lowest", "lower") if min(values) == 1.0 else ("highest", "higher")
        sharing: dict[float, list[str]] = {}
        for role in roles:
            sharing.setdefault(own[role], []).append(role)
        each = [f"{'+'.join(names)} rate, {rate:g}" for rate, names in sharing.items()]
        said = f"the best {each[0]}, is" if len(each) == 1 else f"the best rates ({'; '.join(each)}) are"
        notes.append(
            f"{said} the {end} tried; try {further} ones before trusting {'it' if len(each) == 1 else 'them'}."
        )
    return notes


def _warmup_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    own, values = warmup_of(best.spec), {warmup_of(run.spec) for run in tried} - {None}
    if own is None or len(values) < 2 or own not in (least := min(values), max(values)) or own == 0:  # pyright: ignore[reportArgumentType]
        return []
    end, further = ("shortest", "a shorter") if own == least else ("longest", "a longer")
    return [f"the best warm-up, {own} steps, is the {end} tried; try {further} one before trusting it."]


def warmup_of(spec: RunSpec) -> int | None:
    """The steps of a spec's warm-up; None if its schedule knows none."""
    return getattr(spec.schedule, "warmup", None)


def _rank(cell: GridCell) -> tuple[int, float]:
    """Fewest seeds that diverged, then the lowest loss."""
    return cell.diverged, math.inf if cell.final.mean is None else cell.final.mean


def _final(cell: GridCell) -> str:
    return "diverged" if cell.final.mean is None else cell.final.text(3)


def _roughness(cell: GridCell) -> str:
    rise, count = max(cell.rise.values), cell.spikes.mean or 0.0
    said = f"{count:g}; {rise:.2f}" if math.isfinite(rise) else f"{count:g}; not finite"
    if not cell.diverged:
        return said
    return f"{said}; diverged" if len(cell.runs) == 1 else f"{said}; {cell.diverged} of {len(cell.runs)} diverged"


def _or_dash(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
