"""The protocol: recipes tuned alike, at every length and batch anew, then judged on seeds and text that chose nothing.

It is the optimization track of modded-nanogpt in miniature: model, text, batch and evaluation are fixed; a recipe is
judged by the steps in which it reaches the final loss of the tuned baseline. The baseline is searched first. Then every
recipe, the baseline again too, has as many runs, which begin at its own values or at those found, whichever is better:
so no recipe loses by the numbers of tables that it shares.

    DIR/protocol.json        recipes, settings, seeds and number of runs, so that it can be resumed
    DIR/NAME TAG try 01/     a run folder for each run of a search; TAG is steps x tokens
    DIR/NAME TAG first try 01/  of the baseline's first search
    DIR/NAME TAG seed 101/   for each run that counts
    DIR/tuned/NAME TAG.json  what a search found, as a spec
    DIR/report.html
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mpmath

from polargrad.lab.comparison.analysis import Replicates, final_metric
from polargrad.lab.comparison.comparison import final_losses, fixed_search
from polargrad.lab.comparison.coordinate_search import CoordinateSearch, check_roles, coordinates_of, with_numbers_of
from polargrad.lab.options import check_integer, check_value
from polargrad.lab.report.curves import loss_figures
from polargrad.lab.report.page import UNKNOWN, Cell, Section, Table, write_page
from polargrad.lab.run import workers
from polargrad.lab.run.build import build_objective, pinned
from polargrad.lab.run.folder import (
    PAGE,
    PROTOCOL,
    Run,
    create_folder,
    find_runs,
    make_folder,
    read_plan,
    read_run,
    refuse_existing,
    write_json,
)
from polargrad.lab.run.spec import LanguageModel, RunSpec, from_plain, without_format
from polargrad.lab.train import LoopConfig, WarmupLinearDecay

FORMAT = 3

# The track's threshold of .004 on the loss at a standard deviation of .0013 between its runs.
SIGMAS = 0.004 / 0.0013

WARMUP = 5

# The recipe to whose final loss steps are counted too, if it runs.
YARDSTICK = "adamw"


@dataclass(frozen=True)
class Setting:
    """A length and a batch, at which every recipe is tuned anew.

    Args:
        steps: of every run.
        tokens: in a step.
    """

    steps: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.tokens:,} tokens"

    def of(self, spec: RunSpec, tag: str) -> RunSpec:
        """A recipe's run at this length and batch; the name has a tag that tells settings apart."""
        objective = spec.objective
        assert isinstance(objective, LanguageModel)
        if self.tokens % objective.sequence:
            raise ValueError(
                f"{self.tokens} tokens in a step are not a multiple of the model's sequences of {objective.sequence}"
            )
        warmup = min(WARMUP, self.steps // 10)
        fraction = getattr(spec.schedule, "decay_fraction", 0.7)
        return dataclasses.replace(
            spec,
            name=f"{spec.name} {tag}",
            recipe=spec.recipe,
            objective=dataclasses.replace(objective, batch=self.tokens // objective.sequence),
            schedule=WarmupLinearDecay(total=self.steps, warmup=warmup, decay_fraction=fraction),
            loop=LoopConfig(steps=self.steps),
            probe=(),
        )

    @property
    def tag(self) -> str:
        """The setting in the names of runs, such as "64x2048"."""
        return f"{self.steps}x{self.tokens}"


@dataclass(frozen=True)
class Protocol:
    """Recipes, settings, seeds and texts; equal protocols consist of the same runs.

    Args:
        recipes: one spec each, on the text of the search, at their own values. Their names must differ.
        settings: lengths and batches.
        text: the text of the runs that count, as `Text.corpus`; not that of the search.
        documents: how many of its documents, 0 for all.
        seeds: of the runs that count, equal for all recipes.
        search_seed: of the search; none of `seeds`.
        runs: of the search of each recipe at each setting, and of the baseline's first; 0 judges recipes at the values
            that they come with.
        baseline: name of the recipe whose final loss is to be reached.
        evaluations: in each run that counts, from the steps of which crossings are read.
        tuner: the search, along one number after the other or by Optuna.

    Raises:
        ValueError: nothing to compare, equal names or seeds, a search on the text or a seed that counts, an unknown
            baseline, numbers out of range.
    """

    recipes: tuple[RunSpec, ...]
    settings: tuple[Setting, ...]
    text: str
    documents: int = 0
    seeds: tuple[int, ...] = tuple(range(101, 109))
    search_seed: int = 1
    runs: int = 16
    baseline: str = "muon+adamw"
    evaluations: int = 32
    tuner: Literal["coordinate", "optuna"] = "coordinate"

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.recipes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice; give each recipe once")
        if self.baseline not in names:
            raise ValueError(f"the baseline {self.baseline!r} is not among the recipes {', '.join(names)}; add it")
        if len(names) < 2:
            raise ValueError(f"{self.baseline} alone is not a comparison; give another recipe besides the baseline")
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ValueError("give different settings, at least one length and one batch")
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must be different numbers, at least two, to measure their spread; got {self.seeds}"
            )
        if self.search_seed in self.seeds:
            raise ValueError(f"seed {self.search_seed} chooses the numbers and cannot be one of those that count")
        for spec in self.recipes:
            if not isinstance(spec.objective, LanguageModel):
                raise ValueError(f"{spec.name} is a matrix problem; the protocol trains language models")
            if spec.objective.corpus == self.text:
                raise ValueError(f"the search and the runs that count are both on {self.text}; give two texts")
        check_integer("runs", self.runs, least=0)
        check_integer("evaluations", self.evaluations)
        check_value("tuner", self.tuner, Literal["coordinate", "optuna"])
        for setting in self.settings:
            for spec in self.recipes:
                search = self._search(spec, setting, setting.tag)
                dataclasses.replace(search.base, name=f"{search.prefix}01")  # the longest names can be given
            first = self.first_search(setting)
            dataclasses.replace(first.base, name=f"{first.prefix}01")

    def _search(self, recipe: RunSpec, setting: Setting, tag: str, start: RunSpec | None = None) -> CoordinateSearch:
        base = dataclasses.replace(setting.of(recipe, tag), seed=self.search_seed)
        if start is not None:
            start = with_numbers_of(base, start)
            start = None if start.optimizer == base.optimizer and start.schedule == base.schedule else start
        return fixed_search(self.tuner, base, self.runs, start)

    def first_search(self, setting: Setting) -> CoordinateSearch:
        """The first search of the baseline at a setting, from its own values."""
        (recipe,) = (spec for spec in self.recipes if spec.name == self.baseline)
        return self._search(recipe, setting, f"{setting.tag} first")

    def search(self, recipe: RunSpec, setting: Setting, losses: Mapping[str, float | None]) -> CoordinateSearch:
        """The search of a recipe at a setting, once the baseline's first one has ended; its best values come second."""
        return self._search(recipe, setting, setting.tag, self.first_search(setting).state(losses).best)

    def counted(self, recipe: RunSpec, setting: Setting, tuned: RunSpec) -> list[RunSpec]:
        """The runs of a tuned recipe that count."""
        objective = tuned.objective
        assert isinstance(objective, LanguageModel)
        objective = dataclasses.replace(objective, corpus=self.text, documents=self.documents)
        loop = dataclasses.replace(tuned.loop, eval_every=max(1, setting.steps // self.evaluations))
        return [
            dataclasses.replace(
                tuned, name=f"{recipe.name} {setting.tag} seed {seed}", objective=objective, loop=loop, seed=seed
            )
            for seed in self.seeds
        ]

    def pending(self, losses: Mapping[str, float | None]) -> list[RunSpec]:
        """The runs that can start now, given the final losses of those that have ended, by name; setting by setting."""
        waiting: list[RunSpec] = []
        for setting in self.settings:
            first = self.first_search(setting).state(losses)
            waiting += first.pending
            for recipe in () if first.pending else self.recipes:
                state = self.search(recipe, setting, losses).state(losses)
                waiting += state.pending
                if not state.pending and state.best is not None:
                    counted = self.counted(recipe, setting, state.best)
                    waiting += [spec for spec in counted if spec.name not in losses]
        return waiting

    @property
    def size(self) -> int:
        """The number of runs in all, at most."""
        return len(self.settings) * (self.runs + len(self.recipes) * (self.runs + len(self.seeds)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        recipes = [spec.to_dict() for spec in self.recipes]
        settings = [dataclasses.asdict(setting) for setting in self.settings]
        return {"format": FORMAT, **vars(self), "recipes": recipes, "settings": settings, "seeds": list(self.seeds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Protocol:
        """The protocol from the output of `to_dict`.

        Raises:
            ValueError: a format of another version, or unknown keys.
        """
        plain = without_format(data, "the protocol", FORMAT)
        lists = {name: tuple(plain.get(name, ())) for name in ("recipes", "settings", "seeds")}
        lists["recipes"] = tuple(map(RunSpec.from_dict, lists["recipes"]))
        lists["settings"] = tuple(from_plain(Setting, setting, "a setting") for setting in lists["settings"])
        return from_plain(cls, {**plain, **lists}, "a protocol")


def run_protocol(protocol: Protocol, path: str | Path, **options: Any) -> Path:
    """Run a protocol into a new folder; see `resume_protocol`.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if a text does not suffice for the model or the batch; nothing is written.
    """
    path = Path(path)
    refuse_existing(path)
    from polargrad.lab.lm.sources import at_commit

    recipes, text = pinned(protocol.recipes), at_commit(protocol.text)
    protocol = dataclasses.replace(protocol, recipes=recipes, text=text)
    for recipe in protocol.recipes:
        check_roles(recipe, tuple(recipe.optimizer))
    for setting in protocol.settings:
        search = protocol.first_search(setting).base
        for spec in (search, protocol.counted(protocol.recipes[0], setting, search)[0]):
            build_objective(spec)
    create_folder(path)
    write_json(path / PROTOCOL, protocol.to_dict())
    return resume_protocol(path, **options)


def resume_protocol(path: str | Path, **options: Any) -> Path:
    """Make the missing runs of a protocol and write its page.

    Args:
        path: the folder.
        **options: `jobs`, `threads` and `progress` as in `workers.run_all`; `report`, called with a line for each run.

    Returns:
        The page.

    Raises:
        FileNotFoundError: if the folder holds no protocol.
        Interrupted: on Ctrl-C or SIGTERM, when the runs under way are saved.
    """
    path = Path(path)
    protocol, losses = read_protocol(path), final_losses(path)
    report = options.pop("report", lambda _line: None)

    def ended(name: str) -> None:
        losses[name] = final_metric(read_run(path / name))
        said = "diverged" if losses[name] is None else f"{losses[name]:.4f}"
        report(f"{len(losses)} of at most {protocol.size} ended: {name} {said}")

    workers.run_all(lambda: protocol.pending(losses), ended, path, **options)
    return ProtocolFindings.read(path).write_page(path / PAGE)


def read_protocol(path: Path) -> Protocol:
    """The protocol of a folder.

    Raises:
        FileNotFoundError: if it holds none.
        ValueError: if its file cannot be read.
    """
    return read_plan(path, PROTOCOL, Protocol.from_dict)


def threshold(freedom: int) -> float:
    """The t from which on two recipes are told apart: as improbable as `SIGMAS` where sigma is known.

    Args:
        freedom: degrees of freedom of the measured sigma.

    Example:
        >>> [round(threshold(freedom), 2) for freedom in (1, 7, 28, 10000)]
        [304.38, 4.75, 3.39, 3.08]
    """
    tail = mpmath.erfc(SIGMAS / math.sqrt(2)) / 2
    low, high = SIGMAS, 1e4
    for _ in range(100):
        t = (low + high) / 2
        beyond = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) / 2
        low, high = (t, high) if beyond > tail else (low, t)
    return high


@dataclass(frozen=True)
class Verdict:
    """One recipe against the baseline at one setting.

    Args:
        gain: how far the mean final loss lies below the baseline's, with the same seeds.
        error: sigma / sqrt(n), sigma the standard deviation of the n differences seed by seed.
        least: the gain over the error from which on the two are told apart.
    """

    gain: float
    error: float
    least: float

    @property
    def ratio(self) -> float:
        """The gain over the error."""
        return self.gain / self.error if self.error > 0 else math.copysign(math.inf, self.gain)

    @property
    def word(self) -> str:
        """One of "better", "worse" and "not told apart"."""
        if self.gain == 0 or abs(self.ratio) < self.least:
            return "not told apart"
        return "better" if self.gain > 0 else "worse"


def verdicts_of(baseline: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, Verdict]:
    """A verdict on each recipe from final losses seed by seed, at least two.

    Of independent runs with a known standard deviation s the track asks for a gain of 3.08 s sqrt(1/n + 1/n). Here runs
    with one seed share weights and batches, so that s sqrt(2) becomes the standard deviation of their differences, and
    3.08 the quantile of Student's distribution for a deviation that is measured. Each recipe has its own deviation:
    some are many times as noisy as others, and a verdict should not depend on who else ran.

    Example:
        >>> (verdict,) = verdicts_of([1.0, 1.2, 1.1], {"new": [0.8, 1.0, 0.93]}).values()
        >>> round(verdict.gain, 4), round(verdict.error, 4), verdict.word
        (0.19, 0.01, 'not told apart')
    """
    n = len(baseline)
    differences = {name: [a - b for a, b in zip(baseline, losses, strict=True)] for name, losses in others.items()}
    return {
        name: Verdict(statistics.fmean(found), statistics.stdev(found) / math.sqrt(n), threshold(n - 1))
        for name, found in differences.items()
    }


@dataclass(frozen=True)
class ProtocolFindings:
    """The results of a protocol, as far as it has run.

    Args:
        protocol: which.
        runs: those that have ended.
    """

    protocol: Protocol
    runs: Mapping[str, Run]

    @classmethod
    def read(cls, folder: Path) -> ProtocolFindings:
        """The findings of the runs that have ended in a folder."""
        protocol, losses = read_protocol(folder), final_losses(folder)
        runs = [read_run(path) for path in find_runs(folder) if path.name in losses]
        return cls(protocol, {run.spec.name: run for run in runs})

    @cached_property
    def losses(self) -> dict[str, float | None]:
        """The final losses by name."""
        return {name: final_metric(run) for name, run in self.runs.items()}

    def replicates(self, setting: Setting) -> dict[str, Replicates]:
        """The recipes of which all runs that count have ended, the baseline first."""
        found = {}
        order = sorted(self.protocol.recipes, key=lambda recipe: recipe.name != self.protocol.baseline)
        for recipe in order:
            names = [f"{recipe.name} {setting.tag} seed {seed}" for seed in self.protocol.seeds]
            if all(name in self.runs for name in names):
                found[recipe.name] = Replicates(recipe.name, tuple(self.runs[name] for name in names))
        return found

    def verdicts(self, setting: Setting) -> dict[str, Verdict]:
        """The verdict on each recipe but the baseline, where neither has a seed that diverged."""
        complete = {name: one for name, one in self.replicates(setting).items() if not one.diverged}
        baseline = complete.get(self.protocol.baseline)
        if baseline is None:
            return {}
        others = {name: one.final.values for name, one in complete.items() if one is not baseline}
        return verdicts_of(baseline.final.values, others)

    def results(self, setting: Setting) -> Table:
        """A table of the runs that count, with a row for each recipe."""
        found, verdicts, name = self.replicates(setting), self.verdicts(setting), self.protocol.baseline
        rows = []
        lowest = min((one.final.mean for one in found.values() if one.final.mean is not None), default=None)
        others = [found[YARDSTICK]] if YARDSTICK in found and name != YARDSTICK else []
        for index, (recipe, one) in enumerate(found.items()):
            reached = one.reach(found[name]) if name in found else None
            verdict = verdicts.get(recipe)
            rows.append((
                Cell(recipe, swatch=index),
                Cell(one.final.text(), best=lowest is not None and one.final.mean == lowest),
                UNKNOWN if reached is None else reached.step_ratio.text(0, percent=True),
                UNKNOWN if reached is None else reached.time_ratio.text(0, percent=True),
                *(one.reach(other).step_ratio.text(0, percent=True) for other in others),
                UNKNOWN if verdict is None else f"{verdict.gain:+.4f} ± {verdict.error:.4f} ({verdict.ratio:+.1f})",
                UNKNOWN if verdict is None else verdict.word,
            ))  # fmt: skip
        columns = (
            "Recipe",
            "Final loss",
            f"Steps of\n{name}",
            f"Seconds of\n{name}",
            *(f"Steps of\n{other.name}" for other in others),
            "Gain\n(in errors)",
            "Verdict",
        )
        least = next((f"{verdict.least:.1f}" for verdict in verdicts.values()), UNKNOWN)
        return Table(
            columns,
            rows,
            f"Mean ± standard deviation over {len(self.protocol.seeds)} seeds. Steps and seconds to the final loss of "
            "the recipe named above them, as a share of that recipe's own, seed by seed. Gain: how far the final loss "
            f"lies below {name}'s, with the standard error of the differences seed by seed, and how many of these "
            f"errors it is; told apart from {least} on.",
        )

    def searches(self, setting: Setting) -> list[CoordinateSearch]:
        """The searches that could begin, the baseline's first one before the others; none where nothing is tuned."""
        first = self.protocol.first_search(setting)
        if not self.protocol.runs or first.state(self.losses).pending:
            return [first] if self.protocol.runs else []
        return [first, *(self.protocol.search(one, setting, self.losses) for one in self.protocol.recipes)]

    def tuned(self, setting: Setting) -> Table:
        """A table of what each recipe's search found."""
        rows = []
        for number, search in enumerate(self.searches(setting)):
            base, state = search.base, search.state(self.losses)
            tries = [loss for run, loss in self.losses.items() if run.startswith(search.prefix)]
            own = self.losses.get(f"{search.prefix}01")
            best = state.best or base
            changed = [
                f"{one.label} {one.value(base):g} to {one.value(best):g}"
                for one in coordinates_of(base, best)
                if one.value(best) != one.value(base)
            ]
            lowest = min((loss for loss in tries if loss is not None), default=None)
            rows.append((
                base.name.removesuffix(f" {setting.tag}") if number else f"{self.protocol.baseline}, first",
                f"{len(tries)}{' so far' if state.pending else ''}",
                UNKNOWN if own is None else f"{own:.4f}",
                UNKNOWN if lowest is None else f"{lowest:.4f}",
                ", ".join(changed) or "the recipe's own values",
            ))  # fmt: skip
        search = self.protocol.recipes[0].objective
        assert isinstance(search, LanguageModel)
        note = f"On {search.corpus} with seed {self.protocol.search_seed}, neither of which counts."
        return Table(("Recipe", "Runs", "Its own values", "Best", "Numbers that changed"), rows, note)

    def sentences(self) -> list[str]:
        """The best recipe of each setting against the baseline."""
        lines = []
        for setting in self.protocol.settings:
            found, verdicts = self.replicates(setting), self.verdicts(setting)
            if not verdicts:
                lines.append(f"{setting}: not run to the end yet.")
                continue
            best = max(verdicts, key=lambda name: verdicts[name].gain)
            verdict, baseline = verdicts[best], self.protocol.baseline
            reached = found[best].reach(found[baseline])
            said = f"reaches {baseline}'s final loss in {reached.step_ratio.text(0, percent=True)} of its steps"
            if reached.step_ratio.mean is None:
                said = f"does not reach {baseline}'s final loss"
            lines.append(f"{setting}: {best} {said}; gain {verdict.gain:+.4f} ± {verdict.error:.4f}, {verdict.word}.")
        return lines

    def sections(self) -> list[Section]:
        """A section for each setting."""
        sections = []
        for setting in self.protocol.settings:
            found = self.replicates(setting)
            tables = [self.results(setting)] if found else []
            tables += [self.tuned(setting)] if self.protocol.runs else []
            level = found[self.protocol.baseline].final.mean if self.protocol.baseline in found else None
            figures = loss_figures({name: one.runs for name, one in found.items()}, level) if found else []
            figures = [dataclasses.replace(one, key=f"{one.key}-{setting.tag}") for one in figures]
            sections.append(Section(str(setting), (), tables, figures))
        return sections

    def write_page(self, page: Path) -> Path:
        """Write the page, and beside it what the searches that have ended found; return the page's path."""
        protocol, folder = self.protocol, page.parent / "tuned"
        for setting in protocol.settings:
            for search in self.searches(setting)[1:]:
                state = search.state(self.losses)
                if not state.pending and state.best is not None:
                    make_folder(folder)
                    write_json(folder / f"{search.base.name}.json", state.best.to_dict())
        tuned = "at the values that they came with"
        if protocol.runs:
            tuned = (
                f"each tuned in {protocol.runs} runs at every setting, after as many of {protocol.baseline} alone, "
                "whose best values were tried too"
            )
        precision = getattr(protocol.recipes[0].objective, "precision", "float32")
        text = (
            f"{len(protocol.recipes)} recipes, {tuned}, then run in {precision} with {len(protocol.seeds)} seeds on "
            f"{protocol.text}, which chose nothing."
        )
        environments = {name: run.environment for name, run in self.runs.items()}
        title = f"The protocol: {', '.join(spec.name for spec in protocol.recipes)}"
        return write_page(page, title, [text, *self.sentences()], self.sections(), environments)
