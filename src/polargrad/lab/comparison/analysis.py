"""Metrics of runs over one seed or several, read from records: final loss, time to another's final loss, spikes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polargrad.lab.comparison.sweep import Axis
from polargrad.lab.run.folder import COMPARISON, Run
from polargrad.lab.run.spec import Plain

BASELINE_RECIPE = "adamw"


class Reach(NamedTuple):
    """The point where a curve first reaches a target: steps, not always an integer, and seconds of the run's time."""

    step: float
    seconds: float


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds; the seeds without it do not count.

    Args:
        values: one for each seed that has it.
        of: how many seeds there are.
    """

    values: tuple[float, ...]
    of: int

    @property
    def mean(self) -> float | None:
        """The mean, or None if no seed has the metric."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds (n - 1), from two seeds on."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 4, percent: bool = False) -> str:
        """Mean and standard deviation as text, with "2 of 3 seeds" where some have no value.

        Example:
            >>> Spread((4.1, 4.2, 4.3), 3).text(2)
            '4.20 ± 0.10'
            >>> Spread((), 3).text()
            'no'
        """
        if self.mean is None:
            return "no"
        scale, unit = (100.0, "%") if percent else (1.0, "")
        said = f"{self.mean * scale:.{digits}f}{unit}"
        if self.deviation is not None:
            said += f" ± {self.deviation * scale:.{digits}f}"
        return said if len(self.values) == self.of else f"{said} ({len(self.values)} of {self.of} seeds)"


@dataclass(frozen=True)
class Reached:
    """Steps and seconds until one configuration reached another's final metric, and their ratio to the other's own."""

    steps: Spread
    seconds: Spread
    step_ratio: Spread
    time_ratio: Spread


@dataclass(frozen=True)
class Replicates:
    """One configuration, with a run for each seed; a single run is the simplest case.

    Args:
        name: of the recipe, or of a single run.
        runs: at least one, by seed; all else is equal in their specs.
        settings: in a grid, a value for each axis.
    """

    name: str
    runs: tuple[Run, ...]
    settings: tuple[tuple[Axis, Plain], ...] = ()

    def value(self, axis: Axis) -> Plain:
        """The value of an axis of the grid."""
        return dict(self.settings)[axis]

    @property
    def final(self) -> Spread:
        """The metric at the end; a seed that diverged has none."""
        return self._spread(final_metric)

    @property
    def diverged(self) -> int:
        """Number of seeds without a final metric."""
        return self.final.of - len(self.final.values)

    @property
    def steps(self) -> int:
        """Steps taken by the first seed."""
        return int(_last_step(self.runs[0], "step") or 0)

    @property
    def seconds(self) -> Spread:
        """Time taken by forward, backward and optimizer."""
        return self._spread(lambda run: _last_step(run, "seconds"))

    @property
    def optimizer_share(self) -> Spread:
        """The optimizer's part of the seconds."""
        return self._spread(lambda run: _ratio(_last_step(run, "optimizer_seconds"), _last_step(run, "seconds")))

    @property
    def spikes(self) -> Spread:
        """Loss spikes of a run."""
        return self._spread(spikes)

    @property
    def rise(self) -> Spread:
        """The largest rise of the training loss; infinite where a loss was not finite."""
        return self._spread(largest_rise)

    def reach(self, other: Replicates) -> Reached:
        """When this configuration reached another's final metric, seed by seed, since equal seeds see the same batches.

        Two single runs are compared even if their seeds differ, and none whose objective, text or length differ.
        """
        if not_comparable(self.runs[0], other.runs[0]):
            return Reached(*(Spread((), 0) for _ in range(4)))
        theirs = {run.spec.seed: run for run in other.runs}
        pairs = [(run, theirs[run.spec.seed]) for run in self.runs if run.spec.seed in theirs]
        if not pairs and len(self.runs) == len(other.runs) == 1:
            pairs = [(self.runs[0], other.runs[0])]
        reaches = [(_crossing(run, end), _crossing(end, end)) for run, end in pairs]
        reached = [(mine, own) for mine, own in reaches if mine is not None and own is not None]
        of = len(pairs)
        return Reached(
            steps=Spread(tuple(mine.step for mine, _ in reached), of),
            seconds=Spread(tuple(mine.seconds for mine, _ in reached), of),
            step_ratio=Spread(tuple(mine.step / own.step for mine, own in reached if own.step), of),
            time_ratio=Spread(tuple(mine.seconds / own.seconds for mine, own in reached if own.seconds), of),
        )

    def _spread(self, metric: Callable[[Run], float | None]) -> Spread:
        found = [metric(run) for run in self.runs]
        return Spread(tuple(value for value in found if value is not None), len(self.runs))


def first_reach(evaluations: Sequence[Mapping[str, Any]], metric: str, target: float) -> Reach | None:
    """The first point at which the metric, joined by straight lines, is at or below the target.

    Args:
        evaluations: records of kind "eval" in order; no line leads to or from one whose metric is null.
        metric: the key of a metric that falls.
        target: the value to reach; None is returned if the curve never comes down to it.

    Example:
        >>> curve = [{"step": 0, "seconds": 0.0, "gap": 8.0}, {"step": 10, "seconds": 5.0, "gap": 4.0}]
        >>> first_reach(curve, "gap", 5.0)
        Reach(step=7.5, seconds=3.75)
        >>> first_reach(curve, "gap", 3.0) is None
        True
    """
    before: Mapping[str, Any] | None = None
    for now in evaluations:
        value = now.get(metric)
        if value is not None and value <= target:
            part = 0.0 if before is None else (value - target) / (value - before[metric])
            step, seconds = (now[key] - part * (now[key] - (before or now)[key]) for key in ("step", "seconds"))
            return Reach(float(step), float(seconds))
        before = None if value is None else now
    return None


def alone(runs: Iterable[Run]) -> list[Replicates]:
    """A `Replicates` of each single run, under the run's name.

    Raises:
        ValueError: if there are no runs, or if they do not share one metric.
    """
    runs = list(runs)
    if not runs:
        raise ValueError("there are no runs to compare; give at least one")
    first = runs[0]
    if odd := [run for run in runs if run.spec.objective.metric != first.spec.objective.metric]:
        raise ValueError(
            f"{odd[0].path} is judged by {odd[0].spec.objective.metric} and {first.path} by "
            f"{first.spec.objective.metric}; report them apart"
        )
    return [Replicates(run.spec.name, (run,)) for run in runs]


def replicates(runs: Iterable[Run]) -> list[Replicates]:
    """One configuration of each recipe, in the order of the runs.

    Of the configurations that a recipe ran with, the one with the most steps counts, then the one with the most seeds,
    then the one with the fewest seeds that diverged, then the one with the lowest mean of the metric.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        plain = {**dataclasses.replace(run.spec, name="any", seed=0).to_dict(), "description": ""}
        found.setdefault(run.spec.recipe, {}).setdefault(json.dumps(plain, sort_keys=True), []).append(run)

    def rank(one: Replicates) -> tuple[float, ...]:
        return -one.runs[0].spec.loop.steps, -len(one.runs), one.diverged, _or_infinity(one.final.mean)

    return [
        min((Replicates(name, tuple(sorted(c, key=lambda run: run.spec.seed))) for c in candidates.values()), key=rank)
        for name, candidates in found.items()
    ]


def baseline_of(measured: Sequence[Replicates]) -> Replicates:
    """The baseline: AdamW with the lowest final metric, else the first."""
    candidates = [one for one in measured if one.runs[0].spec.recipe == BASELINE_RECIPE] or [measured[0]]
    return min(candidates, key=lambda one: _or_infinity(one.final.mean))


def final_metric(run: Run) -> float | None:
    """The metric at the last evaluation of a run that did not diverge."""
    evaluations = run.of_kind("eval")
    if not evaluations or run.status == "diverged":
        return None
    return evaluations[-1].get(run.spec.objective.metric)


def best_evaluation(run: Run) -> tuple[float, int] | None:
    """The lowest metric of all evaluations and its step; None if none was finite."""
    metric = run.spec.objective.metric
    found = [(record[metric], record["step"]) for record in run.of_kind("eval") if record.get(metric) is not None]
    return min(found, default=None)


def diverged_at(run: Run) -> int | None:
    """The step at which a run diverged; None if it did not."""
    return next((record["step"] for record in run.of_kind("event") if record["event"] == "diverged"), None)


def spikes(run: Run) -> int:
    """Number of spikes of the training loss, and of times at which it stopped being finite."""
    events = sum(record["event"] == "spike" for record in run.of_kind("event"))
    lost = [record["loss"] is None for record in run.of_kind("step")]
    return events + sum(now and not before for before, now in zip([False, *lost], lost, strict=False))


def largest_rise(run: Run) -> float:
    """The largest rise of the training loss above its lowest value before; infinite if a loss was not finite.

    `max_k (loss_k - min_{j <= k} loss_j)`
    """
    lowest, rise = math.inf, 0.0
    for record in run.of_kind("step"):
        loss = _or_infinity(record["loss"])
        lowest = min(lowest, loss)
        rise = max(rise, loss - lowest if math.isfinite(loss) else math.inf)
    return rise


def condition_number(run: Run, role: str) -> float | None:
    """Median condition number of the gradients of a role, over matrices and steps; None if none was measured."""
    looks = [record.get("condition_number") for record in run.of_kind("matrix") if record["role"] == role]
    finite = [look for look in looks if look is not None and look > 0]
    return statistics.median(finite) if finite else None


def recipe_of(run: Run) -> tuple[Path, str]:
    """The comparison's folder and the recipe that a run is a variant of."""
    return run.path.resolve().parent, run.spec.recipe


def best_of_recipe(runs: Iterable[Run]) -> list[Run]:
    """The run with the lowest final metric of each recipe of each comparison, in the order of their first runs."""
    best: dict[tuple[Path, str], Run] = {}
    for run in runs:
        lowest = best.setdefault(recipe_of(run), run)
        if _or_infinity(final_metric(run)) < _or_infinity(final_metric(lowest)):
            best[recipe_of(run)] = run
    return list(best.values())


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """The runs, with the folder or a number added to names that several share."""
    count = Counter(run.spec.name for run in runs)
    named: dict[str, Run] = {}
    for run in runs:
        name, folder = run.spec.name, run.path.resolve()
        if count[name] > 1:
            where = folder.name if folder.name != name else folder.parent.name
            name = f"{name} ({where})"[:120]
        distinct = itertools.chain([name], (f"{name[:110]} #{number}" for number in itertools.count(2)))
        name = next(candidate for candidate in distinct if candidate not in named)
        renamed = name != run.spec.name
        named[name] = dataclasses.replace(run, spec=dataclasses.replace(run.spec, name=name)) if renamed else run
    return list(named.values())


# What has to be equal for one run to be measured against the loss of another.
_COMPARED: Mapping[str, Callable[[Run], Any]] = {
    "objective": lambda run: run.spec.objective,
    "number of steps": lambda run: run.spec.loop.steps,
    "corpus": lambda run: run.environment.get("corpus_checksum"),
}


def not_comparable(one: Run, other: Run) -> str:
    """The differences for which the losses of two runs cannot be compared, in words; empty if there are none.

    Runs of one comparison by `--minutes` may differ in length: each recipe has as many steps as it has time for.
    """
    folder = one.path.parent
    by_time = folder == other.path.parent and _is_by_time(folder / COMPARISON)
    compared = {what: of for what, of in _COMPARED.items() if not (by_time and what == "number of steps")}
    return " and ".join(what for what, of in compared.items() if of(one) != of(other))


def _is_by_time(comparison: Path) -> bool:
    try:
        return json.loads(comparison.read_bytes()).get("minutes") is not None
    except (OSError, ValueError, AttributeError):
        return False


def cautions(runs: Sequence[Run]) -> list[str]:
    """Why the runs may not be a fair comparison, each in a sentence."""
    first = runs[0]
    found = []
    for what, of in {**_COMPARED, "seed": lambda run: run.spec.seed}.items():
        if odd := [run.spec.name for run in runs if of(run) != of(first)]:
            found.append(f"The {what} of {', '.join(odd)} is not that of {first.spec.name}.")
    machine = ("cpu", "device", "threads", "torch")
    elsewhere = [run for run in runs if any(run.environment.get(k) != first.environment.get(k) for k in machine)]
    if odd := [run.spec.name for run in elsewhere]:
        found.append(
            f"{', '.join(odd)} ran on another machine or version than {first.spec.name}: compare steps, not seconds."
        )
    if skipping := [run.spec.name for run in runs if any(e["event"] == "skipped" for e in run.of_kind("event"))]:
        found.append(f"Updates with gradients that were not finite were skipped in {', '.join(skipping)}.")
    if unfinished := [f"{run.spec.name} ({run.status})" for run in runs if run.status not in ("finished", "diverged")]:
        found.append(f"Not run to the end: {', '.join(unfinished)}.")
    return found


def sentence(one: Replicates, baseline: Replicates) -> str:
    """One run in a sentence, as in "muon reaches adamw's final loss in 61% of its steps and 66% of its time"."""
    final, reached = one.final.mean, one.reach(baseline)
    ends = "without a final loss" if final is None else f"at {final:.3f}"
    if (step := diverged_at(one.runs[0])) is not None:
        return f"{one.name} diverged at step {step}."
    if one is baseline:
        if final is None:
            return f"{one.name} has no final loss to measure the others against."
        return f"{one.name} ends {ends} after {one.steps} steps and {duration(one.seconds.mean or 0.0)}."
    if what := not_comparable(one.runs[0], baseline.runs[0]):
        return f"{one.name} ends {ends}; it is not held against {baseline.name}, whose {what} is another."
    if baseline.final.mean is None:
        return f"{one.name} ends {ends}; {baseline.name} has no final loss to measure it against."
    if reached.step_ratio.mean is None or reached.time_ratio.mean is None:
        return f"{one.name} does not reach {baseline.name}'s final loss."
    return (
        f"{one.name} reaches {baseline.name}'s final loss in {reached.step_ratio.mean:.0%} of its steps and "
        f"{reached.time_ratio.mean:.0%} of its time."
    )


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(4.25), duration(75.2), duration(7384)
        ('4.2 s', '75 s', '2 h 3 min')
    """
    if seconds < 600:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _crossing(run: Run, end: Run) -> Reach | None:
    target = final_metric(end)
    return None if target is None else first_reach(run.of_kind("eval"), run.spec.objective.metric, target)


def _last_step(run: Run, key: str) -> float | None:
    steps = run.of_kind("step")
    return steps[-1][key] if steps else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
