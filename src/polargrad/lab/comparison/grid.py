"""A grid of runs, read from its records: final losses and spikes over learning rates, warm-ups and other options.

Runs that diverged stay in every figure and table, marked as such.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polargrad.lab.comparison.analysis import (
    Replicates,
    best_of_recipe,
    condition_number,
    final_metric,
    recipe_of,
    spikes,
)
from polargrad.lab.comparison.comparison import Comparison
from polargrad.lab.comparison.sweep import Axis, setting_text
from polargrad.lab.report.page import UNKNOWN, Table
from polargrad.lab.run.folder import Run
from polargrad.lab.run.spec import Plain, RunSpec

SENSITIVITY = (
    "Sensitivity: the mean over the rates of min(loss, loss before the first step) - lowest loss of the row; what a "
    "rate chosen blindly from these costs. A run that diverged counts as one that did not move."
)
TOLERANCE = 0.02
VALLEY = (
    f"Valley: the factor between the highest and the lowest rate whose loss is within {TOLERANCE} of the row's lowest, "
    "by straight lines over the logarithm of the rate; “at least” where it reaches the edge of the grid."
)
NOT_YET = f"“{UNKNOWN}” has not run yet."
ROUGHNESS = (
    "Of the training loss: how often it stood out from the 32 steps before it or was not finite, and the most by which "
    "it stood above the lowest before; over several seeds the mean number and the largest rise."
)


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
    cells: tuple[Replicates, ...]

    @property
    def name(self) -> str:
        """Recipe and settings."""
        return f"{self.recipe}, {self.setting}" if self.settings else self.recipe

    @property
    def setting(self) -> str:
        """The other axes' values, as in "warmup=10"; the recipe where there are none."""
        return setting_text(self.settings) or self.recipe


@dataclass(frozen=True)
class Valley:
    """The learning rates around the best one that do nearly as well.

    Args:
        factor: between the highest and the lowest of them.
        is_open: whether it reaches the edge of the grid, so that the factor is at least this.
    """

    factor: float
    is_open: bool

    def __str__(self) -> str:
        return f"{'at least ' if self.is_open else ''}{self.factor:.3g}x"


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison's grid.

    Args:
        along: the axis that tables and figures run along: the first of learning rates, else the last.
        axes: every axis.
        cells: of all recipes, in the order of the comparison.
    """

    along: Axis
    axes: tuple[Axis, ...]
    cells: tuple[Replicates, ...]

    @classmethod
    def of(cls, comparison: Comparison, runs: Iterable[Run]) -> Grid | None:
        """The grid of a comparison, as far as its runs have been made; None without one."""
        if not comparison.axes:
            return None
        along = next((axis for axis in comparison.axes if axis.is_rate), comparison.axes[-1])
        places, found = comparison.places, dict[str, list[Run]]()
        for run in runs:
            if run.spec.name in places and along in dict(places[run.spec.name].settings):
                found.setdefault(places[run.spec.name].spec.name, []).append(run)
        cells = [
            Replicates(
                point.spec.recipe, tuple(sorted(found[point.spec.name], key=lambda run: run.spec.seed)), point.settings
            )
            for point in comparison.points
            if point.spec.name in found
        ]
        return cls(along, tuple(comparison.axes), tuple(cells)) if cells else None

    @property
    def recipes(self) -> list[str]:
        """Names in the order of the comparison."""
        return list(dict.fromkeys(cell.name for cell in self.cells))

    @property
    def runs(self) -> list[Run]:
        """The runs of all cells."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def start(self) -> float | None:
        """The metric before the first step, the highest of all runs; None if none was finite."""
        begins = [record.get(run.spec.objective.metric) for run in self.runs for record in run.of_kind("eval")[:1]]
        return max((value for value in begins if value is not None), default=None)

    @property
    def probed(self) -> list[str]:
        """The roles whose gradients were measured."""
        roles = dict.fromkeys(record["role"] for run in self.runs for record in run.of_kind("matrix"))
        return [role for role in roles if any(condition_number(run, role) is not None for run in self.runs)]

    def rows(self, recipe: str | None = None) -> list[GridRow]:
        """A row for each recipe and each setting of the other axes."""
        found: dict[tuple[str, str], list[Replicates]] = {}
        for cell in self.cells:
            if recipe in (None, cell.name):
                found.setdefault((cell.name, setting_text(self._others(cell))), []).append(cell)
        order = list(self.along.ordered)
        for cells in found.values():
            cells.sort(key=lambda cell: order.index(cell.value(self.along)))
        return [GridRow(name, self._others(cells[0]), tuple(cells)) for (name, _), cells in found.items()]

    def best_along(self, axis: Axis) -> list[GridRow]:
        """For each recipe and each value of an axis the best cell over the other axes."""
        rows = []
        for recipe in self.recipes:
            mine = [cell for cell in self.cells if cell.name == recipe and axis in dict(cell.settings)]
            at = [[cell for cell in mine if cell.value(axis) == value] for value in axis.ordered]
            if best := tuple(min(cells, key=_rank) for cells in at if cells):
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

    def valley(self, row: GridRow) -> Valley | None:
        """The rates of a row whose loss is within `TOLERANCE` of its lowest; None without learning rates or losses."""
        found = [(self._rate(cell), math.inf if cell.diverged else cell.final.mean or 0.0) for cell in row.cells]
        if not self.along.is_rate or len(found) < 2 or all(math.isinf(loss) for _, loss in found):
            return None
        best = min(range(len(found)), key=lambda i: found[i][1])
        level, ends, is_open = found[best][1] + TOLERANCE, [], False
        for side in (found[best::-1], found[best:]):
            (rate, loss), beyond = side[0], None
            for further in side[1:]:
                if further[1] > level:
                    beyond = further
                    break
                rate, loss = further
            is_open = is_open or beyond is None
            share = 0.0 if beyond is None else (level - loss) / (beyond[1] - loss)  # 0 too towards a run that diverged
            ends.append(math.log(rate) + share * math.log((rate if beyond is None else beyond[0]) / rate))
        return Valley(math.exp(ends[1] - ends[0]), is_open)

    def _rate(self, cell: Replicates) -> float:
        value = cell.value(self.along)
        return float(value) if isinstance(value, int | float) else math.nan

    def tables(self) -> list[Table]:
        """Final losses, and how rough the way there was: a row for each recipe and setting, a column for each value."""
        rows, values = self.rows(), self.along.ordered
        heads = [setting_text([(self.along, value)]) for value in values]
        metric = self.cells[0].runs[0].spec.objective.metric_label
        sensitive = self.along.is_rate and len(values) > 1

        def cells(row: GridRow, text: Callable[[Replicates], str]) -> list[str]:
            there = {cell.value(self.along): cell for cell in row.cells}
            return [text(there[value]) if value in there else UNKNOWN for value in values]

        ends = []
        for row in rows:
            cost, valley = self.sensitivity(row), self.valley(row)
            last = [UNKNOWN if cost is None else f"{cost:.3f}", str(valley or UNKNOWN)] if sensitive else []
            ends.append((row.name, *cells(row, _final), *last))
        notes = [SENSITIVITY, VALLEY] * sensitive + [NOT_YET] * any(len(row.cells) < len(heads) for row in rows)
        rough = [(row.name, *cells(row, _roughness)) for row in rows]
        return [
            Table((f"final {metric}", *heads, *["sensitivity", "valley"] * sensitive), ends, " ".join(notes)),
            Table(("spikes; largest rise", *heads), rough, ROUGHNESS),
        ]

    def sentences(self) -> list[str]:
        """For each recipe its best cell, the best for other values of the other axes, and how often runs diverged."""
        lines = []
        for recipe in self.recipes:
            mine = [cell for cell in self.cells if cell.name == recipe]
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

    def _others(self, cell: Replicates) -> tuple[tuple[Axis, Plain], ...]:
        return tuple((axis, value) for axis, value in cell.settings if axis != self.along)


def edge_notes(runs: Sequence[Run], chosen: Sequence[Run] | None = None) -> list[str]:
    """For each recipe's best run, the learning rates and warm-ups on the edge of the values tried, each in a sentence.

    Roles whose rates were always changed by the same factor are one axis. An axis with a single value has no edge, and
    a warm-up of 0 steps is not one.

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


def warmup_of(spec: RunSpec) -> int | None:
    """The steps of a spec's warm-up; None if its schedule has none."""
    return getattr(spec.schedule, "warmup", None)


def _rate_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    rates = best.spec.learning_rates
    together: dict[tuple[str, ...], list[str]] = {}
    for role, rate in rates.items():
        ratios = (run.spec.learning_rates[role] / rate for run in tried if role in run.spec.learning_rates)
        together.setdefault(tuple(f"{ratio:.9g}" for ratio in ratios), []).append(role)
    notes = []
    for ratios, roles in together.items():
        values = [float(ratio) for ratio in ratios]
        if min(values) == max(values) or 1.0 not in (min(values), max(values)):
            continue
        end, further = ("lowest", "lower") if min(values) == 1.0 else ("highest", "higher")
        sharing: dict[float, list[str]] = {}
        for role in roles:
            sharing.setdefault(rates[role], []).append(role)
        each = [f"{'+'.join(names)} rate, {rate:g}" for rate, names in sharing.items()]
        one = len(each) == 1
        which = f"the best {each[0]}, is" if one else f"the best rates ({'; '.join(each)}) are"
        notes.append(f"{which} the {end} tried; try {further} ones before trusting {'it' if one else 'them'}.")
    return notes


def _warmup_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    steps, values = warmup_of(best.spec), {length for run in tried if (length := warmup_of(run.spec)) is not None}
    if not steps or len(values) < 2 or steps not in (min(values), max(values)):
        return []
    end, further = ("shortest", "a shorter") if steps == min(values) else ("longest", "a longer")
    return [f"the best warm-up, {steps} steps, is the {end} tried; try {further} one before trusting it."]


def _rank(cell: Replicates) -> tuple[int, float]:
    """Fewest seeds that diverged, then the lowest loss."""
    return cell.diverged, math.inf if cell.final.mean is None else cell.final.mean


def _final(cell: Replicates) -> str:
    return "diverged" if cell.final.mean is None else cell.final.text(3)


def _roughness(cell: Replicates) -> str:
    rise, count = max(cell.rise.values), cell.spikes.mean or 0.0
    text = f"{count:g}; {rise:.2f}" if math.isfinite(rise) else f"{count:g}; not finite"
    if not cell.diverged:
        return text
    return f"{text}; diverged" if len(cell.runs) == 1 else f"{text}; {cell.diverged} of {len(cell.runs)} diverged"
