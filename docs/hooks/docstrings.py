"""Docstrings as Markdown: "Example:" sections become code."""

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Edits docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            # The reader of Google style knows the plural alone.
            lines = ["Examples:" if line == "Example:" else line for line in obj.docstring.value.split("\n")]
            obj.docstring.value = "\n".join(lines)
