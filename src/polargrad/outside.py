"""Code from outside of the package: classes and functions by file, dotted path or entry point.

    FILE.py:NAME    package.module:NAME    package.module.NAME    a name that an installed package announces

Loading runs the file, as `python FILE.py` would: what it imports from beside it is found before what is installed. One
process has one module of a name, so that files in two folders cannot each have a `helper.py` of their own. Only a
reference that a person gives, on the command line, in a spec or to a constructor, is loaded; one that stands in the
state of an optimizer is not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["announced", "described", "is_reference", "load", "origin"]

T = TypeVar("T")
_LOADED: dict[Path, tuple[str, ModuleType]] = {}
# Modules that lie beside files from outside and are theirs: the checksums of their files, of which the first is run.
_BESIDE: dict[str, dict[str, str]] = {}


def is_reference(name: object) -> bool:
    """Whether a name says where code is, rather than being the name of something known.

    Example:
        >>> [name for name in ("mine.py:Mine", "torch.optim.RAdam", "torch.optim:RAdam", "adamw") if is_reference(name)]
        ['mine.py:Mine', 'torch.optim.RAdam', 'torch.optim:RAdam']
    """
    return isinstance(name, str) and (":" in name or name.endswith(".py") or _is_dotted(name))


def load(reference: str) -> tuple[str, Any]:
    """The thing that a reference names, and the reference as another process finds it: a file by its absolute path.

    A file is loaded once, and again when its content has changed, or that of modules beside it which it imports.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or module cannot be imported, has nothing of that name, or imports a module from beside it
            whose name another module has taken.

    Example:
        >>> load("torch.optim.RAdam")
        ('torch.optim:RAdam', <class 'torch.optim.radam.RAdam'>)
    """
    where, colon, name = reference.rpartition(":")
    if not colon and not reference.endswith(".py"):
        where, _, name = reference.rpartition(".")
    if not colon and reference.endswith(".py"):
        where, name = reference, ""
    if not where.strip("."):
        raise ValueError(f"{reference!r} names no file or module; write FILE.py:NAME or package.module:NAME")
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


def origin(found: Any) -> dict[str, Any]:
    """The file that defines a class or function, and the SHA-256 of its content; plain data.

    Of a file that `load` was given, also those of the modules beside it that it imports, under "beside".

    Code without a file, such as a cell's, has the checksum of its source, and what has none either an empty one.

    Example:
        >>> import json
        >>> sorted(origin(json.JSONDecoder))
        ['file', 'sha256']
    """
    try:
        file = inspect.getsourcefile(found)
        if file is not None and Path(file).is_file():
            path = Path(file).resolve()
            beside = _beside(path) if path.parent in {loaded.parent for loaded in _LOADED} else {}
            files = {name: checksum for files in beside.values() for name, checksum in files.items()}
            own = {"file": str(path), "sha256": _checksum(path.read_bytes())}
            return {**own, "beside": files} if files else own
        return {"file": "", "sha256": _checksum(inspect.getsource(found).encode())}
    except (TypeError, OSError):  # of a compiled module, or typed into an interpreter
        return {"file": "", "sha256": ""}


def _module_of(path: Path, given: str) -> ModuleType:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {given}; give the path of a Python file") from None
    beside = _beside(path)
    checksum = _checksum(content + repr(beside).encode())
    if path in _LOADED and _LOADED[path][0] == checksum:
        return _LOADED[path][1]
    name = f"_outside_{path.stem}_{_checksum(str(path).encode())[:8]}"
    changed = {name, *_changed(given, beside)}
    previous = {key: sys.modules.pop(key) for key in list(sys.modules) if key in changed}
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module, run = importlib.util.module_from_spec(spec), spec.loader.exec_module
    sys.modules[name] = module  # dataclasses and pickle look there
    folder, writes = str(path.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # compiled files are told apart by the second, so that a change could go unseen
    importlib.invalidate_caches()
    try:
        _imported(given, lambda: run(module))
    except ValueError:
        del sys.modules[name]
        sys.modules.update(previous)
        raise
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(folder)
        if folder not in sys.path:  # for what it imports later
            sys.path.append(folder)
    _LOADED[path] = checksum, module
    _BESIDE.update(beside)
    return module


def _beside(path: Path) -> dict[str, dict[str, str]]:
    """The modules beside a file that it imports, also through each other: the checksums of their files by name.

    Of a package the files are all that are in it. Imports are looked for in the source, those inside functions too.
    """
    found: dict[str, dict[str, str]] = {}
    left = [path]
    while left:
        try:
            tree = ast.parse(left.pop().read_bytes())
        except (SyntaxError, ValueError):
            continue  # importing it says so
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - {*found, *sys.builtin_module_names, "polargrad"}:
                package, single = path.parent / top / "__init__.py", path.parent / f"{top}.py"
                if package.is_file():
                    files = [package, *sorted(f for f in package.parent.rglob("*.py") if f != package and f.is_file())]
                else:
                    files = [single] if single.is_file() and single != path else []
                if files:
                    found[top] = {str(file): _checksum(file.read_bytes()) for file in files}
                    left += files
    return dict(sorted(found.items()))


def _changed(given: str, beside: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The imported modules beside a file, where the content of one is another by now: they import each other.

    Raises:
        ValueError: a module of the same name from elsewhere is imported, or is another file's.
    """
    for top, files in beside.items():
        own = next(iter(files))
        there, owned = sys.modules.get(top), _BESIDE.get(top)
        taken = getattr(there, "__file__", None) if there is not None else next(iter(owned or files))
        if taken is None or Path(taken).resolve() != Path(own).resolve():
            raise ValueError(
                f"{given} imports {top}, which lies beside it, and {taken or 'another module'} has that name in this "
                f"process; rename {own}"
            )
    owned = {top for top in beside if top in _BESIDE}
    if all(_BESIDE[top] == beside[top] for top in owned):
        return []
    return [name for name in sys.modules if name.partition(".")[0] in owned]


def _imported(where: str, run: Callable[[], T]) -> T:
    try:
        return run()
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        hint = "; name a module of a package as package.module:NAME" if "relative import" in reason else ""
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {reason}{hint}") from error


def _nothing_of(reference: str, where: str, name: str, module: ModuleType) -> str:
    own = [key for key, entry in vars(module).items() if getattr(entry, "__module__", None) == module.__name__]
    has = f"it has {', '.join(key for key in own if not key.startswith('_'))}" if own else "it defines nothing"
    if not name:
        whole = reference.rstrip(".:")
        kind = "file" if where.endswith(".py") else "module"
        return f"{whole} is a whole {kind}; write {whole}:NAME for one thing in it; {has}"
    return f"{where} has no {name!r}; {has}" if len(own) <= 20 else f"{where} has no {name!r}"


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1] not in ("json", "toml")


def announced(group: str) -> dict[str, str]:
    """The entry points of a group, name -> reference. Nothing is imported."""
    return {point.name: point.value for point in entry_points(group=group)}


def described(found: Any) -> str:
    """A description of something, for messages.

    Example:
        >>> described(load)
        'a function'
    """
    if isinstance(found, type):
        return f"a class ({', '.join(base.__name__ for base in found.__mro__[:-1])})"
    kind = type(found).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
