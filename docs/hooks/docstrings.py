"""Docstrings as Markdown: "Example:" sections and blocks after "::" become code."""

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Edits docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            # The reader of Google style knows the plural alone.
            lines = ["Examples:" if line == "Example:" else line for line in obj.docstring.value.split("\n")]
            # "::" before a block of code is reStructuredText's.
            obj.docstring.value = "\n".join(line[:-1] if line.endswith("::") else line for line in lines)
