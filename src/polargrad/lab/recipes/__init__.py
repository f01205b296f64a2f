"""Recipes: functions that return specs, by the names under which the command line knows them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Protocol

from polargrad.lab.recipes.language import recipe
from polargrad.lab.recipes.optimizers import OPTIMIZERS
from polargrad.lab.run.spec import RunSpec


class Recipe(Protocol):
    """Makes the spec of a run of so many steps from a seed; None leaves the number of steps to the recipe."""

    def __call__(self, *, steps: int | None = None, seed: int = 42) -> RunSpec: ...


RECIPES: Mapping[str, Recipe] = MappingProxyType({name: partial(recipe, name) for name in OPTIMIZERS})


def spec_of(name: str, *, steps: int | None = None, seed: int = 42) -> RunSpec:
    """The spec of a recipe by its name.

    Raises:
        ValueError: if no recipe is called so.

    Example:
        >>> spec_of("adamw", steps=20).loop.steps
        20
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no recipe {name!r}; {hint}the recipes are {', '.join(RECIPES)}")
    return RECIPES[name](steps=steps, seed=seed)
