"""Corpora: documents in a fixed order, the last of them held out for evaluation."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HELD_OUT = 0.05

# Folders that are not the standard library, or its own tests, which would dominate the text.
_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_PLAIN_SUFFIXES = (".txt", ".py", ".md")
SUFFIXES = (*_PLAIN_SUFFIXES, ".jsonl")


class Document(NamedTuple):
    """One text with the name it goes by."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, both in a fixed order.

    Args:
        name: what the corpus is called in records.
        train: the documents to train on.
        held_out: the documents to evaluate on.
    """

    name: str
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def __post_init__(self) -> None:
        if not self.train or not self.held_out:
            raise ValueError(
                f"the corpus {self.name!r} has {len(self.train)} training and {len(self.held_out)} held-out documents "
                "with text in them; each needs at least one: give more text"
            )

    @property
    def checksum(self) -> str:
        """SHA-256 over names, texts and the split, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            digest.update(len(part).to_bytes(8, "little"))
            for field in (field for document in part for field in document):
                encoded = field.encode("utf-8")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, train={len(self.train)}, held_out={len(self.held_out)})"


def standard_library() -> Corpus:
    """The running interpreter's standard library: its `*.py` sources without tests, in the order of their paths.

    Needs no network and is on every machine; it differs between Python versions, so its checksum goes on record.

    Returns:
        The corpus, the last 5% of its documents held out.

    Raises:
        FileNotFoundError: the sources are not installed as files.

    Example:
        >>> corpus = standard_library()
        >>> "json/decoder.py" in {document.name for document in corpus.train}
        True
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        # _sysconfigdata_* records how this interpreter was built, so it would tie the checksum to one machine.
        if _LEFT_OUT.isdisjoint(inside.parts) and not inside.name.startswith("_sysconfigdata"):
            documents.append(Document(inside.as_posix(), _source_text(path)))
    if not documents:
        raise FileNotFoundError(
            f"the standard library's sources are not under {root} (a zipped or stripped installation?); give text of "
            "your own with polargrad.lab.lm.text_files(...)"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return split(f"standard-library-{version}", sorted(documents))


def text_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, field: str = "text") -> Corpus:
    """A corpus from files, folders (searched through) or glob patterns.

    A `.txt`, `.py` or `.md` file is one document, each line of a `.jsonl` file is one: the entry `field` of its object.

    Args:
        paths: one path or pattern, or several.
        field: the entry of a JSONL object that holds the text.

    Returns:
        The corpus in the order of the paths, the last 5% of its documents held out; a single document is split at a
        line instead.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is of another kind, is not UTF-8, has a line without the field, or there is no text.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files: dict[Path, str] = {}
    for path in given:
        for file in files_at(os.fspath(path)):
            files.setdefault(file.resolve(), file.as_posix())
    documents = [document for file, name in files.items() for document in documents_in(file, name, field)]
    return split(" ".join(os.fspath(path) for path in given), documents)


def split(name: str, documents: Sequence[Document], held_out: float = HELD_OUT) -> Corpus:
    """Hold out the last part of the documents, at least one of them.

    Args:
        name: what the corpus is called in records.
        documents: the documents in order; those without text are left out.
        held_out: the share of documents to hold out, in (0, 1).

    Returns:
        The corpus; where there is a single document its last lines are held out.

    Raises:
        ValueError: no document has text, or the share is not in (0, 1).

    Example:
        >>> split("letters", [Document(c, c) for c in "abc"])
        Corpus('letters', train=2, held_out=1)
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is the share of documents to hold out, between 0 and 1; got {held_out}")
    kept = [document for document in documents if document.text.strip()]
    if not kept:
        raise ValueError(f"the corpus {name!r} is empty: none of its {len(documents)} documents has text in it")
    if len(kept) == 1:
        kept = halves(kept[0], held_out)
    count = max(1, round(held_out * len(kept)))
    return Corpus(name, tuple(kept[:-count]), tuple(kept[-count:]))


def halves(document: Document, held_out: float) -> list[Document]:
    """A document cut at a line, the given share of its lines in the second part; parts without text are left out."""
    lines = document.text.splitlines(keepends=True)
    cut = len(lines) - max(1, round(held_out * len(lines)))
    parts = (
        Document(document.name + "#head", "".join(lines[:cut])),
        Document(document.name + "#tail", "".join(lines[cut:])),
    )
    return [part for part in parts if part.text.strip()]


def _source_text(path: Path) -> str:
    # tokenize.open honours a source file's own coding line, which a few modules carry.
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the Python source {path}: {error}") from error


def files_at(path: str) -> Iterator[Path]:
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


def documents_in(file: Path, name: str, field: str) -> Iterator[Document]:
    """The documents of a file, one after another; raises what `text_files` raises."""
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            if file.suffix != ".jsonl":
                yield Document(name, _with_plain_line_ends(lines.read()))
                return
            # Split at newlines alone: a JSON string may hold the other line separators of Unicode unescaped.
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Document(f"{name}:{number}", _field_of(line, field, f"{name}:{number}"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name!r} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"cannot read {name!r}: {error.strerror}; check its permissions") from error


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _field_of(line: str, field: str, place: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error}); a .jsonl file holds one JSON object a line") from error
    text = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        keys = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{place} has no text under {field!r} (it has {keys}); name the entry with field=...")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds half of a surrogate pair, which is not text: {error.reason}; mend the line"
        ) from error
    return text
