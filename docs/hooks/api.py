"""A page for each public object: the pages of docs/api list names, and every name gets a page of its own.

A line `::: polargrad.polar` stands for one object, `::: polargrad.geometry.*` for the classes and functions in that
module's `__all__` that have no page yet. On the listing page they become a table with the first line of each docstring.
"""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

API = Path(__file__).parents[1] / "api"
DIRECTIVES = re.compile(r"(?:^::: \S+\n+)+", re.MULTILINE)


@cache
def listed() -> dict[str, list[list[str]]]:
    """Names on each page of docs/api, one list for each run of directives."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(API.glob("*.md"))}
    given = {
        id(found(name)) for text in pages.values() for name in re.findall(r"^::: (\S+[^*\s])$", text, re.MULTILINE)
    }
    return {
        page: [
            [name for given_name in run.split("::: ")[1:] for name in _expanded(given_name.strip(), given)]
            for run in DIRECTIVES.findall(text + "\n")
        ]
        for page, text in pages.items()
    }


def _expanded(name: str, given: set[int]) -> list[str]:
    if not name.endswith(".*"):
        return [name]
    module = found(name[:-2])
    members = {member: getattr(module, member) for member in module.__all__}
    return [
        f"{name[:-2]}.{member}"
        for member, value in members.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and id(value) not in given
    ]


def found(name: str) -> Any:
    """The object of a dotted name."""
    parent, _, attribute = name.rpartition(".")
    if not parent:
        return importlib.import_module(name)
    try:
        return getattr(found(parent), attribute)
    except AttributeError:
        return importlib.import_module(name)


def identifier(name: str) -> str:
    """Where the object is defined, by which other docstrings refer to it."""
    value = found(name)
    return f"{value.__module__}.{value.__qualname__}"


def summary(name: str) -> str:
    """The first sentence of its docstring."""
    first = (inspect.getdoc(found(name)) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return re.split(r"(?<=\w[.:]) (?=[A-Z])", first)[0].rstrip(":")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the objects below their listing page in the navigation."""
    for entry in config.nav or []:
        for section in entry.get("API", []):
            ((title, page),) = section.items()
            names = [name for run in listed()[Path(page).name] for name in run]
            section[title] = [page, *({name.rpartition(".")[2]: f"api/{name}.md"} for name in names)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of every object."""
    for runs in listed().values():
        for name in (name for run in runs for name in run):
            directive = f"::: {identifier(name)}\n    options:\n      heading: {name}\n      heading_level: 1\n"
            files.append(File.generated(config, f"api/{name}.md", content=directive))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the names of a listing page into a table."""
    path = Path(page.file.src_uri)
    if path.parent.name != "api" or path.name not in listed():
        return markdown
    runs = iter(listed()[path.name])
    return DIRECTIVES.sub(lambda _: _table(next(runs)), markdown + "\n")


def _table(names: list[str]) -> str:
    rows = [f"| [`{name}`]({name}.md) | {summary(name)} |" for name in names]
    return "\n".join(["| name | what it is |", "|---|---|", *rows]) + "\n\n"
