"""Where documents come from: files on this machine, and data sets of the Hugging Face hub or in its format.

A source is read from any document on, in an order that does not change, so that work on it can be taken up again. What
it reads is data: no code that comes with a data set is run.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polargrad.lab.lm.cache import sha256_of
from polargrad.lab.lm.corpora import HELD_OUT, SUFFIXES, Document, documents_in, files_at, halves

# Kinds of file that `datasets` reads without a script.
_HUB_SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".txt")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class KnownDataset(NamedTuple):
    """A data set of the hub that pre-training is often done on."""

    name: str
    subset: str
    about: str


KNOWN_DATASETS = {
    "openwebtext-100k": KnownDataset("Elriggs/openwebtext-100k", "", "the paper's: 100,000 documents of OpenWebText"),
    "fineweb": KnownDataset("HuggingFaceFW/fineweb", "sample-10BT", "10 billion tokens of FineWeb"),
    "fineweb-edu": KnownDataset("HuggingFaceFW/fineweb-edu", "sample-10BT", "10 billion tokens of FineWeb-Edu"),
}


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Args:
        name: what the source is called in records.
        identity: changes whenever the documents may; what was made of them is kept under it.
        read: the documents from the given number on.
    """

    name: str
    identity: str
    read: Callable[[int], Iterator[Document]]

    def limited(self, documents: int) -> Source:
        """The same source, ended after so many documents; 0 does not end it."""
        if not documents:
            return self
        read = self.read
        return Source(
            f"{self.name} (first {documents})",
            _identity(self.identity, str(documents)),
            lambda skip: itertools.islice(read(skip), max(0, documents - skip)),
        )


def open_source(where: str, *, subset: str = "", split: str = "train", field: str = "text") -> Source:
    """The documents at a path, of a folder in the hub's format, or of a data set of the hub.

    Args:
        where: a file, folder or glob of .txt, .py, .md or .jsonl files; a folder of .parquet, .arrow, .json or .csv
            files; or a name on the hub: one of `KNOWN_DATASETS`, or OWNER/NAME.
        subset: of a data set that has several.
        split: of a data set.
        field: the entry of a JSON object or row that holds the text.

    Returns:
        The source. Nothing of a hub data set is read yet.

    Raises:
        FileNotFoundError: neither a path nor a name.
        ValueError: as `text_files`.
        ImportError: a data set is asked for and `datasets` is not installed.

    Example:
        >>> open_source("fineweb-edu").name
        'HuggingFaceFW/fineweb-edu, sample-10BT, train'
    """
    path = Path(where).expanduser()
    if path.is_dir() and _is_dataset(path):
        return _local_dataset(path, where, subset, split, field)
    if path.exists() or glob.glob(str(path), recursive=True):
        return _files(where, field)
    if where in KNOWN_DATASETS:
        known = KNOWN_DATASETS[where]
        return _hub(known.name, subset or known.subset, split, field)
    if _HUB_NAME.fullmatch(where):
        return _hub(where, subset or _usual_subset(where), split, field)
    raise FileNotFoundError(
        f"there is no file or folder {where!r}, and no data set of the hub is called so; give a path, OWNER/NAME of a "
        f"data set, or one of {', '.join(KNOWN_DATASETS)}"
    )


def _is_dataset(folder: Path) -> bool:
    """Whether a folder is in the hub's format, where a card in Markdown stands beside the data."""
    kinds = {file.suffix for file in folder.rglob("*")}
    return bool(kinds & {".parquet", ".arrow"}) or kinds.isdisjoint(SUFFIXES)


def _usual_subset(name: str) -> str:
    return next((known.subset for known in KNOWN_DATASETS.values() if known.name == name), "")


def _files(where: str, field: str) -> Source:
    files = list(files_at(where))
    contents = [part for file in files for part in (file.name, sha256_of(file))]

    def read(skip: int) -> Iterator[Document]:
        documents = itertools.chain.from_iterable(documents_in(file, file.as_posix(), field) for file in files)
        return itertools.islice(documents, skip, None)

    first = list(itertools.islice(read(0), 2))
    if len(first) == 1:  # its end is held out as a document of its own
        parts = halves(first[0], HELD_OUT)
        return Source(where, _identity("file", field, *contents), lambda skip: iter(parts[skip:]))
    return Source(where, _identity("files", field, *contents), read)


def _local_dataset(folder: Path, where: str, subset: str, split: str, field: str) -> Source:
    files = sorted(file for file in folder.rglob("*") if file.suffix in _HUB_SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(
            f"the folder {where!r} holds no text ({', '.join(SUFFIXES)}) and no data set ({', '.join(_HUB_SUFFIXES)})"
        )
    contents = [part for file in files for part in (file.relative_to(folder).as_posix(), sha256_of(file))]
    identity = _identity("dataset", subset, split, field, *contents)
    return Source(_called(where, subset, split), identity, _rows(str(folder), subset, split, field))


def _hub(name: str, subset: str, split: str, field: str) -> Source:
    return Source(
        _called(name, subset, split), _identity("hub", name, subset, split, field), _rows(name, subset, split, field)
    )


def _called(name: str, subset: str, split: str) -> str:
    return ", ".join(part for part in (name, subset, split) if part)


def _identity(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _rows(name: str, subset: str, split: str, field: str) -> Callable[[int], Iterator[Document]]:
    """Reads a data set row by row, nothing of it kept."""

    def read(skip: int) -> Iterator[Document]:
        rows = _stream(name, subset, split)
        rows = rows.skip(skip) if skip else rows
        try:
            for number, row in enumerate(rows, start=skip):
                yield Document(f"{name}:{number}", _text_of(row, field, f"row {number} of {name}"))
        except OSError as error:
            raise _unreachable(name, error) from error

    return read


def _stream(name: str, subset: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name} is read by datasets; pip install 'polargrad[data]'") from error
    from datasets.exceptions import DatasetNotFoundError

    try:
        # Data sets that come with a script of their own are refused by `datasets` itself: no code of theirs runs.
        return datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"the data set {name!r} is not on the hub, or it wants a login (huggingface-cli login): "
            f"{_first_line(error)}"
        ) from error
    except OSError as error:  # every failure of the network is one
        raise _unreachable(name, error) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the data set {name!r} cannot be opened with subset {subset or None!r} and split {split!r}: "
            f"{_first_line(error)}"
        ) from error


def _unreachable(name: str, error: BaseException) -> OSError:
    return ConnectionError(
        f"the data set {name!r} cannot be reached ({_first_line(error)}). Where there is a network: "
        f"`huggingface-cli download --repo-type dataset {name} --local-dir FOLDER`; then give FOLDER as the data here, "
        "or give text of your own"
    )


def _text_of(row: Any, field: str, place: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{place} has no text under {field!r} (it has {sorted(row)}); name the entry with --field")
    return text


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
