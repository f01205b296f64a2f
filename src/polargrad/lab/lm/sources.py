"""Sources of documents: files, data sets of the Hugging Face hub, the standard library.

A source can be read from any document onwards, in a fixed order, so that work on it can be resumed. Only data is read:
no code that comes with a data set is run.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from polargrad.lab.files import read_json
from polargrad.lab.lm.cache import cache_folder, publish, sha256_of
from polargrad.linalg.registry import Registry
from polargrad.outside import is_reference

STANDARD_LIBRARY = "standard-library"
HELD_OUT = 0.05
SUFFIXES = (".txt", ".py", ".md", ".jsonl")

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Kinds of file that `datasets` reads without a script.
_HUB_SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".txt")
# Folders beside the standard library, and its own tests, which would dominate the text.
_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class Document(NamedTuple):
    """A text and its name."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order, numbered from 0.

    Args:
        name: the source's name in records.
        identity: changes whenever the documents may; vocabularies and tokens are cached under it.
        read: the documents from a number onwards.
        length: number of documents of a source that holds out its last ones; None: any number, and those held out are
            spread evenly.
    """

    name: str
    identity: str
    read: Callable[[int], Iterator[Document]]
    length: int | None = None

    def limited(self, documents: int) -> Source:
        """The first `documents` documents as a source; 0: all of them."""
        if not documents:
            return self
        read = self.read
        return Source(
            f"{self.name} (first {documents})",
            _identity(self.identity, str(documents)),
            lambda skip: itertools.islice(read(skip), max(0, documents - skip)),
            None if self.length is None else min(documents, self.length),
        )

    def held_out(self, share: float) -> range:
        """The numbers of the documents that are held out for evaluation.

        Every k-th document beginning with the second, k = round(1 / share); of a source with a `length` its last
        documents, at least one.

        Args:
            share: the share of documents to hold out, in (0, 0.5].

        Raises:
            ValueError: the share is out of range.

        Example:
            >>> 21 in Source("letters", "", lambda skip: iter(())).held_out(0.05)
            True
        """
        if not 0 < share <= 0.5:
            raise ValueError(f"held_out is the share of documents to hold out, above 0 and at most 0.5; got {share}")
        if self.length is None:
            return range(1, sys.maxsize, max(2, round(1 / share)))
        return range(self.length - max(1, round(share * self.length)), self.length)


# Sources with a name, each a function that opens it; its keyword arguments are those options of `open_source` it has.
SOURCES: Registry[Callable[..., Source]] = Registry(
    "source of text", wanted="a function that returns a Source", fits=callable, group="polargrad.data"
)
Opener = TypeVar("Opener", bound=Callable[..., Source])


def register(name: str) -> Callable[[Opener], Opener]:
    """Decorator of a function that opens a source: make the source known by a name, from anywhere.

    Example:
        >>> @register("two-words")
        ... def two_words():
        ...     words = [Document("1", "one"), Document("2", "two")]
        ...     return Source("two-words", "1", lambda skip: iter(words[skip:]))
        >>> [document.text for document in open_source("two-words").read(0)]
        ['one', 'two']
        >>> del SOURCES["two-words"]

    Raises:
        ValueError: the name is taken.
    """
    return lambda function: SOURCES.add(name, function)


def open_source(where: str, *, subset: str = "", split: str = "train", field: str = "text") -> Source:
    """The source of a name, the documents at a path, of a folder in the hub's format, or of a data set of the hub.

    Args:
        where: one of `SOURCES`, such as "standard-library"; a file, folder or glob of .txt, .py, .md or .jsonl files;
            a folder of .parquet, .arrow, .json or .csv files; OWNER/NAME of a data set of the hub, or of a branch, a
            tag or a commit of it as OWNER/NAME@COMMIT; or a function that returns a source, as FILE.py:FUNCTION or
            package.module:FUNCTION. A path that is called like a source is written ./PATH.
        subset: subset of a data set that has several.
        split: split of a data set.
        field: the entry of a JSON object or row that holds the text.

    Returns:
        The source. Of a hub data set nothing but its newest commit is asked for yet.

    Raises:
        FileNotFoundError: neither a path nor a data set.
        ValueError: as `text_files`; or a subset, split or field of what has none.
        ImportError: a data set is asked for and `datasets` is not installed.

    Example:
        >>> open_source("HuggingFaceFW/fineweb-edu@" + 40 * "0").name
        'HuggingFaceFW/fineweb-edu@000000000000, sample-10BT, train'
    """
    options = {"subset": subset, "split": split, "field": field}
    opener, having = _opener(where)
    if ("subset" not in having and subset) or ("split" not in having and split != "train"):
        raise ValueError(
            f"subset {subset!r} and split {split!r} choose a part of a data set, and {where!r} is not one: leave them "
            "out"
        )
    if "field" not in having and field != "text":
        raise _no_field(field, where)
    return opener(**{name: value for name, value in options.items() if name in having})


def _opener(where: str) -> tuple[Callable[..., Source], set[str]]:
    """The function that opens what `open_source` is given, and those of its options that it has."""
    path, options = Path(where).expanduser(), {"subset", "split", "field"}
    if where in SOURCES and not is_reference(where):
        opener = SOURCES[where]
        return opener, set(inspect.signature(opener).parameters)
    if not path.exists() and (":" in where or SOURCES.is_announced(where)):
        opener = SOURCES[SOURCES.key(where)]
        return partial(_own_source, where, opener), set(inspect.signature(opener).parameters)
    if path.is_dir() and _is_dataset(path):
        return partial(_local_dataset, path, where), options
    if not path.exists() and not glob.glob(str(path), recursive=True):
        return partial(hub_dataset, where), options
    return partial(text_files, where), {"field"}


def at_commit(where: str) -> str:
    """A data set of the hub as OWNER/NAME@COMMIT, by its newest commit where none is named; other sources as they are.

    Raises:
        OSError, ValueError: see `hub_dataset`.

    Example:
        >>> at_commit("standard-library")
        'standard-library'
    """
    opener, _ = _opener(where)
    if not isinstance(opener, partial) or opener.func is not hub_dataset:
        return where
    return "@".join(_name_and_commit(opener.args[0]))


def at_newest(where: str, text: str) -> bool:
    """Whether `where` names a data set of the hub by no commit, a tag or a branch, and `text` a commit of the same.

    Example:
        >>> at_newest("owner/essays", "owner/essays@" + 40 * "0"), at_newest("owner/poems", "owner/essays@v2")
        (True, False)
    """
    name, _, commit = text.partition("@")
    asked, _, revision = where.partition("@")
    moving = re.fullmatch("[0-9a-f]{40}", revision) is None
    return bool(commit) and moving and name == KNOWN_DATASETS.get(asked, (asked,))[0]


def text_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, field: str = "text") -> Source:
    """The documents in files, folders (searched through) or glob patterns.

    A `.txt`, `.py` or `.md` file is one document, each line of a `.jsonl` file is one: the entry `field` of its object.
    A single document is cut in two at a line, the second part holding the last twentieth of its lines.

    Args:
        paths: one path or pattern, or several.
        field: the entry of a JSONL object that holds the text.

    Returns:
        The documents in the order of the paths, each file once.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is of another kind, or a field is named and no file has JSON lines; while reading: a file is
            not UTF-8, or a line is without the field.
    """
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    files = list({file.resolve(): file for path in given for file in _files_at(path)}.values())
    if field != "text" and not any(file.suffix == ".jsonl" for file in files):
        raise _no_field(field, " ".join(given))
    contents = []
    for file in files:
        with _named_errors(file):
            contents += [file.name, sha256_of(file)]

    def read(skip: int) -> Iterator[Document]:
        return itertools.islice(itertools.chain.from_iterable(_documents_in(file, field) for file in files), skip, None)

    name = " ".join(given)
    first = list(itertools.islice(read(0), 2))
    if len(first) == 1:
        parts = _cut_at_line(first[0])
        return Source(name, _identity("file", field, *contents), lambda skip: iter(parts[skip:]))
    return Source(name, _identity("files", field, *contents), read)


def _no_field(field: str, where: str) -> ValueError:
    return ValueError(f"field {field!r} is an entry of JSON lines, and {where!r} has none: leave it out")


@register(STANDARD_LIBRARY)
def standard_library() -> Source:
    """The running interpreter's standard library: its `*.py` sources without tests, in the order of their paths.

    Needs no network and is on every machine. It differs between Python versions, so its identity, the SHA-256 of the
    documents, is recorded. Its last documents are held out.

    Raises:
        FileNotFoundError: the sources are not installed as files.

    Example:
        >>> "json/decoder.py" in {document.name for document in standard_library().read(0)}
        True
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        # _sysconfigdata_* records how this interpreter was built, which would tie the identity to one machine.
        if _NOT_LIBRARY.isdisjoint(inside.parts) and not inside.name.startswith("_sysconfigdata"):
            documents.append(Document(inside.as_posix(), _source_text(path)))
    documents = sorted(document for document in documents if document.text.strip())
    if not documents:
        raise FileNotFoundError(
            f"the standard library's sources are not under {root} (a zipped or stripped installation?); give text of "
            "your own, as with text_files(...)"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    cut = len(documents) - max(1, round(HELD_OUT * len(documents)))
    identity = _sha256_of_documents(documents[:cut], documents[cut:])
    return Source(f"{STANDARD_LIBRARY}-{version}", identity, lambda skip: iter(documents[skip:]), len(documents))


def _own_source(where: str, opener: Callable[..., Source], **options: str) -> Source:
    """The source that code from outside returns."""
    try:
        source = opener(**options)
    except Exception as error:
        raise ValueError(f"{where} gave no source: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(source, Source):
        raise ValueError(f"{where} returned a {type(source).__name__}; return a polargrad.lab.lm.Source")
    return source


def _is_dataset(folder: Path) -> bool:
    """Whether a folder is in the hub's format, in which a card in Markdown stands beside the data."""
    kinds = {file.suffix for file in folder.rglob("*")}
    return bool(kinds & {".parquet", ".arrow"}) or kinds.isdisjoint(SUFFIXES)


def _identity(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256_of_documents(*parts: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        for field in itertools.chain.from_iterable(part):
            encoded = field.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _files_at(path: str) -> Iterator[Path]:
    found = Path(path).expanduser()
    if found.is_dir():
        inside = sorted(file for file in found.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not inside:
            raise FileNotFoundError(f"the folder {path!r} holds no file ending in {', '.join(SUFFIXES)}")
        yield from inside
        return
    matches = [found] if found.is_file() else [Path(match) for match in sorted(glob.glob(str(found), recursive=True))]
    matches = [match for match in matches if match.is_file()]
    if not matches:
        raise FileNotFoundError(f"there is no file, folder or match of a pattern at {path!r}; check the path")
    for match in matches:
        if match.suffix not in SUFFIXES:
            raise ValueError(f"{str(match)!r} is not a text file we read: allowed are {', '.join(SUFFIXES)}")
        yield match


@contextlib.contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """Errors of reading a text file that say which one."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file.as_posix()!r} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
        ) from error
    except OSError as error:
        message = f"cannot read {file.as_posix()!r}: {error.strerror}; check its permissions"
        raise OSError(error.errno, message) from error


def _documents_in(file: Path, field: str) -> Iterator[Document]:
    name = file.as_posix()
    with _named_errors(file), file.open(encoding="utf-8-sig", newline="\n") as lines:
        if file.suffix != ".jsonl":
            yield Document(name, lines.read().replace("\r\n", "\n").replace("\r", "\n"))
            return
        # Split at newlines alone: a JSON string may hold the other line separators of Unicode unescaped.
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{name}:{number}"
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{place} is not JSON ({error}); give one JSON object a line") from error
                yield Document(place, _text_of(entry, field, place))


def _text_of(entry: Any, field: str, place: str) -> str:
    """The text of a JSON object or a row."""
    text = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        keys = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(
            f"{place} has no text under {field!r} (it has {keys}); name the entry that holds it with field=..."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} holds half of a surrogate pair, which is not text; correct it") from error
    return text


def _cut_at_line(document: Document) -> list[Document]:
    """A document as its beginning and its last lines, those of the two that have text."""
    lines = document.text.splitlines(keepends=True)
    cut = len(lines) - max(1, round(HELD_OUT * len(lines)))
    parts = (("#head", lines[:cut]), ("#tail", lines[cut:]))
    documents = [Document(document.name + suffix, "".join(part)) for suffix, part in parts]
    return [document for document in documents if document.text.strip()]


def _source_text(path: Path) -> str:
    # tokenize.open honours a source file's own coding line, which a few modules carry.
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the Python source {path}: {error}") from error


def _named(name: str, subset: str, split: str) -> str:
    return ", ".join(part for part in (name, subset, split) if part)


def _local_dataset(folder: Path, where: str, *, subset: str, split: str, field: str) -> Source:
    files = sorted(file for file in folder.rglob("*") if file.suffix in _HUB_SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(
            f"the folder {where!r} holds no text ({', '.join(SUFFIXES)}) and no data set ({', '.join(_HUB_SUFFIXES)})"
        )
    contents = [part for file in files for part in (file.relative_to(folder).as_posix(), sha256_of(file))]
    identity = _identity("dataset", subset, split, field, *contents)
    return Source(_named(where, subset, split), identity, _rows(str(folder), subset, split, field))


# Data sets of the hub that are often used for pre-training: short name -> name, and the usual subset.
KNOWN_DATASETS = {
    "openwebtext-100k": ("Elriggs/openwebtext-100k", ""),  # the paper's
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}


def hub_dataset(name: str, *, subset: str = "", split: str = "train", field: str = "text") -> Source:
    """A data set of the Hugging Face hub, OWNER/NAME or OWNER/NAME@COMMIT, by rows.

    Without a subset its usual one of `KNOWN_DATASETS`; without a commit the newest, as the hub names it now or, without
    a network, named it last. Rows and identity are of that commit, whatever becomes of the data set.

    Raises:
        FileNotFoundError: the name is not one of a data set.
        ValueError: it has no such branch, tag or commit.
        ConnectionError: the hub cannot be reached, and never named a commit here.
        ImportError: `datasets` is not installed.
    """
    name, commit = _name_and_commit(name)
    subset = subset or dict(KNOWN_DATASETS.values()).get(name, "")
    identity = _identity("hub", name, commit, subset, split, field)
    return Source(_named(f"{name}@{commit[:12]}", subset, split), identity, _rows(name, subset, split, field, commit))


def _name_and_commit(text: str) -> tuple[str, str]:
    """OWNER/NAME, and the commit that the text or else the hub names."""
    parts = _HUB_NAME.fullmatch(text)
    if parts is None:
        raise FileNotFoundError(
            f"there is no file or folder {text!r}, and it is not a data set's name; give a path, OWNER/NAME of a data "
            f"set on the hub, or one of {', '.join(SOURCES)}"
        )
    name, revision = parts.groups(default="")
    if _COMMIT.fullmatch(revision):
        return name, revision
    if importlib.util.find_spec("datasets") is None:
        raise _no_datasets(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    last = cache_folder() / "hub" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    try:
        commit = str(HfApi().dataset_info(name, revision=revision or None, timeout=10).sha)
    except RevisionNotFoundError as error:
        raise ValueError(
            f"the data set {name!r} has no {revision!r}; give a branch, a tag or a commit of it"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _not_on_hub(name, error) from error
    except Exception as error:  # failures of the network have no class in common
        try:
            commit = _COMMIT.fullmatch(read_json(last)["commit"])[0]  # pyright: ignore[reportOptionalSubscript]
        except (OSError, ValueError, LookupError, TypeError):
            raise _unreachable(name, error) from error
        warnings.warn(f"the hub cannot be reached; {text} is read as of {commit}", RuntimeWarning, stacklevel=2)
    else:
        with contextlib.suppress(OSError):  # an aid for days without a network, and no more
            publish(last, lambda part: part.write_text(json.dumps({"commit": commit})))
    return name, commit


for _short, (_name, _) in KNOWN_DATASETS.items():
    SOURCES.add(_short, partial(hub_dataset, _name))


def _rows(
    name: str, subset: str, split: str, field: str, commit: str | None = None
) -> Callable[[int], Iterator[Document]]:
    """Reads a data set row by row and keeps nothing of it."""

    def read(skip: int) -> Iterator[Document]:
        rows = _stream(name, subset, split, commit)
        rows = rows.skip(skip) if skip else rows
        try:
            for number, row in enumerate(rows, start=skip):
                yield Document(f"{name}:{number}", _text_of(row, field, f"row {number} of {name}"))
        except OSError as error:
            raise _unreachable(name, error) from error

    return read


def _stream(name: str, subset: str, split: str, commit: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise _no_datasets(name) from error
    from datasets.exceptions import DatasetNotFoundError

    try:
        # `datasets` itself refuses data sets that come with a script of their own: none of their code runs.
        return datasets.load_dataset(name, subset or None, split=split, streaming=True, revision=commit)
    except DatasetNotFoundError as error:
        raise _not_on_hub(name, error) from error
    except OSError as error:  # every failure of the network is one
        raise _unreachable(name, error) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the data set {name!r} cannot be opened with subset {subset or None!r} and split {split!r}: "
            f"{first_line(error)}"
        ) from error


def _no_datasets(name: str) -> ImportError:
    return ImportError(f"reading {name} needs datasets; pip install 'polargrad[data]'")


def _not_on_hub(name: str, error: BaseException) -> FileNotFoundError:
    return FileNotFoundError(
        f"the data set {name!r} is not on the hub, or it needs a login (huggingface-cli login): {first_line(error)}"
    )


def _unreachable(name: str, error: BaseException) -> OSError:
    return ConnectionError(
        f"the data set {name!r} cannot be reached ({first_line(error)}). On a machine with a network: "
        f"`huggingface-cli download --repo-type dataset {name} --local-dir FOLDER`; then give FOLDER as the data here, "
        "or give text of your own"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
