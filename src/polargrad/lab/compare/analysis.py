"""What records say: how far runs came, when each was where another ended, and the same over several seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polargrad.lab.run.folder import Run

BASELINE_RECIPE = "adamw"


@dataclass(frozen=True)
class Reach:
    """Where a curve first came down to a target, between two evaluations on the straight line that joins them.

    Args:
        step: steps taken, not a whole number in general.
        seconds: time taken by forward, backward and optimizer.
    """

    step: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """One run, measured against a baseline.

    Args:
        run: the run.
        final: the metric at the last evaluation; None if it was not finite or never taken.
        best: the lowest metric of all evaluations.
        best_step: the step of that evaluation.
        steps: steps taken.
        seconds: time taken by forward, backward and optimizer.
        optimizer_share: the optimizer's part of that time.
        reach: when the baseline's final metric was reached; None if it never was.
        step_ratio: `reach.step` over the baseline's own.
        time_ratio: `reach.seconds` over the baseline's own.
        diverged_at: step of the divergence, if there was one.
    """

    run: Run
    final: float | None
    best: float | None
    best_step: int | None
    steps: int
    seconds: float
    optimizer_share: float | None
    reach: Reach | None
    step_ratio: float | None
    time_ratio: float | None
    diverged_at: int | None


def first_reach(evaluations: Sequence[Mapping[str, Any]], metric: str, target: float) -> Reach | None:
    """The first point at which the metric, joined by straight lines, is at or below the target.

    Args:
        evaluations: records of kind "eval" in order; one whose metric is null joins to nothing.
        metric: the key of the figure that should fall.
        target: the value to reach.

    Returns:
        The crossing, or None if the curve never comes down to the target.

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
        if value is None:
            before = None
        elif value <= target:
            if before is None:
                return Reach(float(now["step"]), float(now["seconds"]))
            part = (before[metric] - target) / (before[metric] - value)
            return Reach(
                before["step"] + part * (now["step"] - before["step"]),
                before["seconds"] + part * (now["seconds"] - before["seconds"]),
            )
        else:
            before = now
    return None


def baseline_of(runs: Sequence[Run]) -> Run:
    """The run that the others are measured against: AdamW's with the lowest final metric, else the first run.

    Raises:
        ValueError: if there are no runs.
    """
    if not runs:
        raise ValueError("there are no runs to compare; give at least one")
    candidates = [run for run in runs if run.spec.recipe == BASELINE_RECIPE] or [runs[0]]
    return min(candidates, key=lambda run: _or_infinity(final_metric(run)))


def outcomes(runs: Sequence[Run]) -> list[Outcome]:
    """Every run measured against the baseline among them, in the order given.

    Raises:
        ValueError: if the runs do not share one metric.
    """
    baseline = baseline_of(runs)
    if odd := [run for run in runs if run.spec.objective.metric != baseline.spec.objective.metric]:
        raise ValueError(
            f"{odd[0].path} is judged by {odd[0].spec.objective.metric} and {baseline.path} by "
            f"{baseline.spec.objective.metric}; report them apart"
        )
    metric = baseline.spec.objective.metric
    target = final_metric(baseline)
    own = None if target is None else first_reach(baseline.of_kind("eval"), metric, target)
    return [_outcome(run, metric, target, own) for run in runs]


def final_metric(run: Run) -> float | None:
    """The metric at the last evaluation of a run that did not diverge."""
    evaluations = run.of_kind("eval")
    if not evaluations or run.status == "diverged":
        return None
    return evaluations[-1].get(run.spec.objective.metric)


def recipe_of(run: Run) -> tuple[Path, str]:
    """What a run is a variant of: the recipe, within the comparison that it belongs to."""
    return run.path.resolve().parent, run.spec.recipe


def best_of_recipe(runs: Sequence[Run]) -> list[Run]:
    """Of each recipe of a comparison the run with the lowest final metric, recipes in the order in which they come."""
    best: dict[tuple[Path, str], Run] = {}
    for run in runs:
        held = best.setdefault(recipe_of(run), run)
        if _or_infinity(final_metric(run)) < _or_infinity(final_metric(held)):
            best[recipe_of(run)] = run
    return list(best.values())


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that share a name told apart by their folders, or else by a number."""
    count = Counter(run.spec.name for run in runs)
    named: dict[str, Run] = {}
    for run in runs:
        name, folder = run.spec.name, run.path.resolve()
        if count[name] > 1:
            where = folder.name if folder.name != name else folder.parent.name
            name = f"{name} ({where})"[:120]
        distinct = itertools.chain([name], (f"{name[:110]} #{number}" for number in itertools.count(2)))
        name = next(candidate for candidate in distinct if candidate not in named)
        spec = run.spec if name == run.spec.name else dataclasses.replace(run.spec, name=name)
        named[name] = dataclasses.replace(run, spec=spec)
    return list(named.values())


def cautions(runs: Sequence[Run]) -> list[str]:
    """Why the runs may not be a fair comparison, each in a sentence."""
    first = runs[0]
    found = []
    for what, of in (
        ("objective", lambda run: run.spec.objective),
        ("number of steps", lambda run: run.spec.loop.steps),
        ("seed", lambda run: run.spec.seed),
        ("corpus", lambda run: run.environment.get("corpus_checksum")),
    ):
        if odd := [run.spec.name for run in runs if of(run) != of(first)]:
            found.append(f"The {what} of {', '.join(odd)} is not that of {first.spec.name}.")
    machine = ("cpu", "device", "threads", "torch")
    if odd := [
        run.spec.name for run in runs if any(run.environment.get(k) != first.environment.get(k) for k in machine)
    ]:
        found.append(
            f"{', '.join(odd)} ran on another machine or version than {first.spec.name}: compare steps, not seconds."
        )
    if skipping := [run.spec.name for run in runs if any(e["event"] == "skipped" for e in run.of_kind("event"))]:
        found.append(f"Updates were left out for gradients that were not finite in {', '.join(skipping)}.")
    if unfinished := [f"{run.spec.name} ({run.status})" for run in runs if run.status not in ("finished", "diverged")]:
        found.append(f"Not run to the end: {', '.join(unfinished)}.")
    return found


def sentence(outcome: Outcome, baseline: Run) -> str:
    """One outcome in words, as in "muon reaches adamw's final loss in 61% of its steps and 66% of its time"."""
    name, theirs = outcome.run.spec.name, f"{baseline.spec.name}'s final loss"
    if outcome.diverged_at is not None:
        return f"{name} diverged at step {outcome.diverged_at}."
    if outcome.run is baseline:
        if outcome.final is None:
            return f"{name} has no final loss to measure the others against."
        return f"{name} ends at {outcome.final:.3f} after {outcome.steps} steps and {duration(outcome.seconds)}."
    if final_metric(baseline) is None:
        ends = "without a final loss" if outcome.final is None else f"at {outcome.final:.3f}"
        return f"{name} ends {ends}; {baseline.spec.name} has no final loss to measure it against."
    if outcome.reach is None or outcome.step_ratio is None or outcome.time_ratio is None:
        return f"{name} does not reach {theirs}."
    return f"{name} reaches {theirs} in {outcome.step_ratio:.0%} of its steps and {outcome.time_ratio:.0%} of its time."


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(4.25), duration(75.2), duration(7384)
        ('4.2 s', '75 s', '2 h 3 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds; the seeds without one do not count.

    Args:
        values: one for each seed that has it.
        of: how many seeds there are.
    """

    values: tuple[float, ...]
    of: int

    @property
    def mean(self) -> float | None:
        """The mean, or None if no seed has the figure."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a seed (n - 1), from two seeds on."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 4, percent: bool = False) -> str:
        """Mean, standard deviation and range as a person reads them, "2 of 3 seeds" where some have none.

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
class Replicates:
    """One configuration of a recipe, with a run for each seed.

    Args:
        recipe: its name.
        runs: ordered by seed; all else is equal in their specs.
    """

    recipe: str
    runs: tuple[Run, ...]

    @property
    def final(self) -> Spread:
        """The metric at the end."""
        return self._spread(final_metric)

    @property
    def seconds(self) -> Spread:
        """Of forward, backward and optimizer."""
        return self._spread(lambda run: _last_step(run, "seconds"))

    @property
    def optimizer_share(self) -> Spread:
        """The optimizer's part of the seconds."""
        return self._spread(lambda run: _ratio(_last_step(run, "optimizer_seconds"), _last_step(run, "seconds")))

    def reach(self, other: Replicates) -> Reached:
        """When this recipe is where another one ended, seed by seed: both have seen the same batches."""
        theirs = {run.spec.seed: run for run in other.runs}
        pairs = [(run, theirs[run.spec.seed]) for run in self.runs if run.spec.seed in theirs]
        reaches = [(_crossing(run, end), _crossing(end, end)) for run, end in pairs]
        reached = [(mine, own) for mine, own in reaches if mine is not None and own is not None]
        of = len(pairs)
        return Reached(
            steps=Spread(tuple(mine.step for mine, _ in reached), of),
            seconds=Spread(tuple(mine.seconds for mine, _ in reached), of),
            step_ratio=Spread(tuple(mine.step / own.step for mine, own in reached if own.step), of),
            time_ratio=Spread(tuple(mine.seconds / own.seconds for mine, own in reached if own.seconds), of),
        )

    def _spread(self, figure: Callable[[Run], float | None]) -> Spread:
        found = [figure(run) for run in self.runs]
        return Spread(tuple(value for value in found if value is not None), len(self.runs))


@dataclass(frozen=True)
class Reached:
    """When one recipe was where another ended: its steps and seconds, and these over the other's own."""

    steps: Spread
    seconds: Spread
    step_ratio: Spread
    time_ratio: Spread


def replicates(runs: Sequence[Run]) -> list[Replicates]:
    """One configuration of each recipe, in the order in which recipes come.

    Of the configurations that a recipe ran with, the one with the most steps counts, then the one with the most seeds,
    then the one with the fewest seeds that diverged, then the one with the lowest mean of the metric.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(run.spec.recipe, {}).setdefault(_configuration(run), []).append(run)
    return [_chosen(recipe, list(configurations.values())) for recipe, configurations in found.items()]


def _chosen(recipe: str, candidates: list[list[Run]]) -> Replicates:
    made = [Replicates(recipe, tuple(sorted(runs, key=lambda run: run.spec.seed))) for runs in candidates]

    def rank(group: Replicates) -> tuple[float, ...]:
        return (
            -group.runs[0].spec.loop.steps,
            -len(group.runs),
            -len(group.final.values),
            _or_infinity(group.final.mean),
        )

    return min(made, key=rank)


def _configuration(run: Run) -> str:
    """What runs, but for the seed."""
    plain = dataclasses.replace(run.spec, name="any", seed=0).to_dict()
    return json.dumps({**plain, "description": ""}, sort_keys=True)


def _outcome(run: Run, metric: str, target: float | None, own: Reach | None) -> Outcome:
    evaluations = run.of_kind("eval")
    finite = [record for record in evaluations if record.get(metric) is not None]
    best = min(finite, key=lambda record: record[metric], default=None)
    reach = None if target is None else first_reach(evaluations, metric, target)
    seconds = _last_step(run, "seconds") or 0.0
    diverged = [record["step"] for record in run.of_kind("event") if record["event"] == "diverged"]
    return Outcome(
        run=run,
        final=final_metric(run),
        best=None if best is None else best[metric],
        best_step=None if best is None else best["step"],
        steps=int(_last_step(run, "step") or 0),
        seconds=seconds,
        optimizer_share=_ratio(_last_step(run, "optimizer_seconds") or 0.0, seconds),
        reach=reach,
        step_ratio=_ratio(reach and reach.step, own and own.step),
        time_ratio=_ratio(reach and reach.seconds, own and own.seconds),
        diverged_at=diverged[0] if diverged else None,
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _crossing(run: Run, end: Run) -> Reach | None:
    target = final_metric(end)
    return None if target is None else first_reach(run.of_kind("eval"), run.spec.objective.metric, target)


def _last_step(run: Run, key: str) -> float | None:
    steps = run.of_kind("step")
    return steps[-1][key] if steps else None


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
