"""A search over all of a recipe's numbers by Optuna's tree-structured Parzen estimator, in a fixed number of runs."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from polargrad.lab.comparison.coordinate_search import Coordinate, CoordinateSearch, Point
from polargrad.lab.run.spec import RunSpec

__all__ = ["OptunaSearch"]


@dataclass(frozen=True)
class OptunaSearch(CoordinateSearch):
    """The search for one recipe's numbers by Optuna, over the coordinates of `CoordinateSearch` and in as many runs.

    The first run has the recipe's own values; then Optuna proposes how far each coordinate moves, within `SPAN` moves
    either way, for a third of the runs at random. The seed of the search and the number of the run decide its draws, so
    that a search that was stopped goes on with the same proposals; under another version of Optuna, which the names of
    the runs tell, it begins again.

    Raises:
        ImportError: optuna is not installed.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _optuna()

    @property
    def prefix(self) -> str:
        return f"{self.base.name} optuna {_optuna().__version__} try "

    def walk(self, home: RunSpec, coordinates: tuple[Coordinate, ...]) -> Generator[tuple[Point, int], float, None]:
        spans = {one.label: one.span(home) for one in coordinates}
        losses: tuple[float, ...] = ()
        while True:
            loss = yield _proposal(self.base.seed, max(1, self.runs // 3), tuple(spans.items()), losses), 0
            losses = (*losses, loss)


@lru_cache(maxsize=4096)
def _proposal(
    seed: int, at_random: int, spans: tuple[tuple[str, tuple[float, float]], ...], losses: tuple[float, ...]
) -> Point:
    """The point of the next run after those with these losses; a state of the search asks for every one before it."""
    if not losses:
        return (0.0,) * len(spans)
    optuna = _optuna()
    loudness = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce each study
    sampler = optuna.samplers.TPESampler(seed=seed + len(losses), n_startup_trials=at_random)
    study = optuna.create_study(sampler=sampler)
    optuna.logging.set_verbosity(loudness)
    within = {label: optuna.distributions.FloatDistribution(*span) for label, span in spans}
    for number, loss in enumerate(losses):
        point = dict(zip(within, _proposal(seed, at_random, spans, losses[:number]), strict=True))
        study.add_trial(optuna.trial.create_trial(params=point, distributions=within, value=loss))
    found = study.ask(within).params
    return tuple(found[label] for label in within)


def _optuna() -> ModuleType:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ImportError('--tuner optuna needs optuna: pip install "polargrad[tuning]"') from error
    return optuna
