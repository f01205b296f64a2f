"""Names of things that can be added: polar methods, geometries, matrix problems, recipes, sources of text, models."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from polargrad.outside import announced, described, is_reference, load

__all__ = ["Registry", "unknown_name"]

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """Things of one kind by their names, in the order in which they were added, from anywhere.

    Args:
        kind: what the things are, in errors.
        wanted: the same with what a thing has to be, for errors about code from outside.
        fits: whether code from outside can be one; None: the registry takes none.
        group: entry points of this group are things too, imported when chosen.

    Example:
        >>> shapes = Registry("shape")
        >>> _ = shapes.add("circle", "round")
        >>> shapes["circel"]
        Traceback (most recent call last):
        ...
        ValueError: unknown shape 'circel'; did you mean 'circle'? The allowed names are 'circle'
    """

    def __init__(
        self, kind: str, *, wanted: str = "", fits: Callable[[Any], bool] | None = None, group: str = ""
    ) -> None:
        self.kind, self.wanted, self.fits, self.group = kind, wanted, fits, group
        self._things: dict[str, T | None] = {}  # None until the module is imported
        self._modules: dict[str, str] = {}

    def announce(self, modules: Mapping[str, str]) -> None:
        """Name things that register themselves when their module is imported, as it is when one is first looked up.

        Args:
            modules: name -> module.
        """
        self._modules.update(modules)
        self._things = {**dict.fromkeys(modules), **self._things}

    def add(self, name: str, thing: Any) -> Any:
        """Make a thing known by a name and return it; the same class or function may come again.

        Raises:
            ValueError: the name is taken by another one.
        """
        taken = self._things.get(name)
        if taken is None and getattr(thing, "__module__", "") != self._modules.get(name, ""):
            taken = self.get(name)
        if taken is not None and _origin(taken) != _origin(thing):
            by = getattr(taken, "__qualname__", "another one")
            raise ValueError(f"the {self.kind} {name!r} is taken by {by}; choose another name")
        self._things[name] = thing
        return thing

    def accepts(self, found: Any) -> bool:
        """Whether code from outside can be a thing of this kind."""
        return self.fits is not None and self.fits(found)

    def key(self, name: str) -> str:
        """The key of a thing; one from outside (a reference, see `polargrad.outside`, or an entry point) is loaded.

        A file is loaded again when it has changed. Where nothing is called so, the name itself.

        Raises:
            FileNotFoundError: a reference to a file that is not there.
            ValueError: the code cannot be imported, or is something else.
        """
        if self.fits is None or (name in self and not is_reference(name)):
            return name
        reference = name if is_reference(name) else announced(self.group).get(name)
        if reference is None:
            return name
        try:
            key, found = load(reference)
        except ValueError as error:
            if name == reference:
                raise
            raise ValueError(f"{name!r} of {self.group}: {error}") from error.__cause__
        if not self.fits(found):
            raise ValueError(f"{name} is {described(found)}, and not {self.wanted}")
        self[key] = found
        return key

    def key_of(self, thing: T) -> str | None:
        """The key of a thing that is here; a reference, by which another process finds it, before a name."""
        keys = [key for key, one in self._things.items() if one is thing]
        return next(filter(is_reference, keys), keys[0] if keys else None)

    def is_announced(self, name: str) -> bool:
        """Whether an installed package announces a thing of this name."""
        return bool(self.group) and name in announced(self.group)

    def names(self) -> list[str]:
        """The names of all things, of those too that installed packages announce."""
        return [*self, *announced(self.group)] if self.group else list(self)

    def __getitem__(self, name: str) -> T:
        thing = self._things.get(name)
        if thing is not None:
            return thing
        if name not in self._things:
            raise unknown_name(self.kind, name, self.names())
        importlib.import_module(self._modules[name])
        thing = self._things[name]
        assert thing is not None, f"{self._modules[name]} does not register {name!r}"
        return thing

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of this name, or the default if there is none."""
        try:
            return self[name]
        except ValueError:
            return default

    def __setitem__(self, name: str, thing: T) -> None:
        self._things[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


def _origin(thing: Any) -> Any:
    """Where a class or function is defined, which importing its file again does not change; else the thing itself."""
    return (thing.__module__, thing.__qualname__) if hasattr(thing, "__qualname__") else thing


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known, with the closest one and all that are; the caller raises it.

    Args:
        kind: what is named, such as "model".
        name: the unknown name.
        known: the names that are allowed.

    Example:
        >>> unknown_name("schedule", "cosin", ["constant", "cosine"])
        ValueError("unknown schedule 'cosin'; did you mean 'cosine'? The allowed names are 'constant', 'cosine'")
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? The" if close else "the"
    return ValueError(f"unknown {kind} {name!r}; {hint} allowed names are {', '.join(map(repr, names))}")
