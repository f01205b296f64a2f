"""Code from outside of the package: classes and functions by file, dotted path or entry point.

    FILE.py:NAME    package.module:NAME    package.module.NAME    a name that an installed package announces

Loading runs the file, as `python FILE.py` would. So only a reference that a person gives, on the command line, in a
spec or to a constructor, is loaded; one that stands in the state of an optimizer is not.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["announced", "described", "is_reference", "load", "origin"]

T = TypeVar("T")
_LOADED: dict[Path, tuple[str, ModuleType]] = {}


def is_reference(name: object) -> bool:
    """Whether a name says where code is, rather than being the name of something known.

    Example:
        >>> [name for name in ("mine.py:Mine", "torch.optim.RAdam", "torch.optim:RAdam", "adamw") if is_reference(name)]
        ['mine.py:Mine', 'torch.optim.RAdam', 'torch.optim:RAdam']
    """
    return isinstance(name, str) and (":" in name or name.endswith(".py") or _is_dotted(name))


def load(reference: str) -> tuple[str, Any]:
    """What a reference names, and the reference as another process finds it: a file with its absolute path.

    A file is loaded once, and again when its content has changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or module cannot be imported, or has nothing of that name.

    Example:
        >>> load("torch.optim.RAdam")
        ('torch.optim:RAdam', <class 'torch.optim.radam.RAdam'>)
    """
    where, colon, name = reference.rpartition(":")
    if not colon and not reference.endswith(".py"):
        where, _, name = reference.rpartition(".")
    if not colon and reference.endswith(".py"):
        where, name = reference, ""
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        module, where = _module_of(path, where), str(path)
    else:
        module = _imported(where, lambda: importlib.import_module(where))
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None) if part else None
        if found is None:
            raise ValueError(_nothing_of(reference, where, name, module))
    return f"{where}:{name}", found


def origin(found: Any) -> dict[str, str]:
    """The file that defines a class or function, and the SHA-256 of its content; plain data.

    Code without a file, such as a cell's, has the checksum of its source, and what has none either an empty one.

    Example:
        >>> import json
        >>> sorted(origin(json.JSONDecoder))
        ['file', 'sha256']
    """
    try:
        file = inspect.getsourcefile(found)
        if file is not None and Path(file).is_file():
            return {"file": str(Path(file).resolve()), "sha256": _checksum(Path(file).read_bytes())}
        return {"file": "", "sha256": _checksum(inspect.getsource(found).encode())}
    except (TypeError, OSError):  # of a compiled module, or typed into an interpreter
        return {"file": "", "sha256": ""}


def _module_of(path: Path, given: str) -> ModuleType:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {given}; give the path of a Python file") from None
    checksum = _checksum(content)
    if path in _LOADED and _LOADED[path][0] == checksum:
        return _LOADED[path][1]
    name = f"_outside_{path.stem}_{_checksum(str(path).encode())[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module, run = importlib.util.module_from_spec(spec), spec.loader.exec_module
    if str(path.parent) not in sys.path:  # it may import what lies beside it
        sys.path.append(str(path.parent))
    previous = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        _imported(given, lambda: run(module))
    except ValueError:
        del sys.modules[name]
        if previous is not None:
            sys.modules[name] = previous
        raise
    _LOADED[path] = checksum, module
    return module


def _imported(where: str, run: Callable[[], T]) -> T:
    try:
        return run()
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {reason}") from error


def _nothing_of(reference: str, where: str, name: str, module: ModuleType) -> str:
    own = [key for key, entry in vars(module).items() if getattr(entry, "__module__", None) == module.__name__]
    has = f"it has {', '.join(key for key in own if not key.startswith('_'))}" if own else "it defines nothing"
    if not name:
        return f"{reference} is a whole file; write {reference}:NAME for one thing in it; {has}"
    return f"{where} has no {name!r}; {has}" if len(own) <= 20 else f"{where} has no {name!r}"


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1] not in ("json", "toml")


def announced(group: str) -> dict[str, str]:
    """The entry points of a group, name -> reference. Nothing is imported."""
    return {point.name: point.value for point in entry_points(group=group)}


def described(found: Any) -> str:
    """What something is, in messages.

    Example:
        >>> described(load)
        'a function'
    """
    if isinstance(found, type):
        return f"a class ({', '.join(base.__name__ for base in found.__mro__[:-1])})"
    return f"a {type(found).__name__}"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
