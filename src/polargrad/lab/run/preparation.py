"""What a person sees while text becomes tokens: one line, rewritten, on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

__all__ = ["preparation"]


@contextlib.contextmanager
def preparation(name: str, stream: TextIO | None = None, every: float = 10.0) -> Iterator[Callable[[int, int], None]]:
    """Tell how far the encoding of a text has come; silent where it takes no time.

    Args:
        name: of the text.
        stream: where to write; None: stderr.
        every: seconds between two lines where nobody watches.

    Returns:
        What is called with the documents and the tokens so far.
    """
    output: TextIO = sys.stderr if stream is None else stream
    watched, began, told = output.isatty(), time.monotonic(), 0.0
    last: tuple[int, int] | None = None

    def line(documents: int, tokens: int) -> str:
        speed = tokens / max(time.monotonic() - began, 1e-9)
        return f"encoding {name}: {documents:,} documents, {tokens:,} tokens, {speed:,.0f} tokens/s"

    def progress(documents: int, tokens: int) -> None:
        nonlocal told, last
        last, now = (documents, tokens), time.monotonic()
        if now - told >= (0.1 if watched else every):
            told = now
            output.write(f"\r{line(documents, tokens)}" if watched else line(documents, tokens) + "\n")
            output.flush()

    yield progress
    if last is not None:
        output.write(("\r" if watched else "") + line(*last) + "\n")
        output.flush()
