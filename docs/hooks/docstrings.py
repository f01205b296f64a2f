"""Shows the docstrings' "Example:" sections as code, which the reader of Google style knows as "Examples:"."""

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Renames the section before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join("Examples:" if line == "Example:" else line for line in lines)
