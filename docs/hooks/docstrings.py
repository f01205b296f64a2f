"""Docstrings as Markdown: "Example:" sections become code, and inner products do not look like tags."""

import re
from typing import Any

import griffe


def inner_products(text: str) -> str:
    """Inner products with angle brackets, which no reader of HTML takes for a tag.

    >>> inner_products("nu = <G, U~> and <G, D> / <D, H D> but a < b, c > d")
    'nu = ⟨G, U~⟩ and ⟨G, D⟩ / ⟨D, H D⟩ but a < b, c > d'
    """
    return re.sub(r"<([^\s<>][^<>\n]*?, ?[^<>\n]*[^\s<>])>", r"⟨\1⟩", text)


class Docstrings(griffe.Extension):
    """Edits docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            # The reader of Google style knows the plural alone.
            lines = ["Examples:" if line == "Example:" else line for line in obj.docstring.value.split("\n")]
            obj.docstring.value = inner_products("\n".join(lines))
