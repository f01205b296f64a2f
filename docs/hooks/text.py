"""Text of all pages and docstrings: formulas between dollars, no unmeant HTML or italics, names for controls.

Docstrings hold inner products as <G, U> and names as v_i and x_max, which Markdown would take for tags and emphasis.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor, SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url


class Formula(InlineProcessor):
    """$...$ within a line and $$...$$ on lines of their own, as MathML, which browsers set without a script."""

    def __init__(self, md: Markdown) -> None:
        # As on GitHub: no blank inside the dollars, no letter or digit outside.
        super().__init__(r"(?<![\\$\w])(\$\$?)(?![\s$])((?:[^$\\]|\\.)+?)(?<!\s)\1(?![\w$])", md)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str | Element, int, int]:  # type: ignore[override]
        display = "block" if m[1] == "$$" else "inline"
        return self.md.htmlStash.store(convert(m[2].strip(), display=display)), m.start(0), m.end(0)


class Emphasis(InlineProcessor):
    """*word* and **word**, but not f* between letters of formulas, and not _word_."""

    def __init__(self, md: Markdown) -> None:
        super().__init__(r"(?<![\w*])(\*\*?)(?![\s*])(.+?)(?<![\s*])\1(?![\w*])", md)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # type: ignore[override]
        element = Element("strong" if m[1] == "**" else "em")
        element.text = m[2]
        return element, m.start(0), m.end(0)


class Text(Extension):
    """Formulas; underscores, angle brackets and lone asterisks are what they are."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Formula(md), "formula", 185)  # after code spans, before escapes
        md.inlinePatterns.register(Emphasis(md), "emphasis", 70)
        md.inlinePatterns.register(
            SimpleTextInlineProcessor(r"([_*]+)", md), "literal", 65
        )  # before the usual emphasis
        md.inlinePatterns.deregister("html")
        md.preprocessors.deregister("html_block")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension to those of mkdocs.yml."""
    config.markdown_extensions.append(Text())  # type: ignore[arg-type]
    return config


def on_page_content(html: str, **_: Any) -> str:
    """An empty corner of a table is no heading."""
    return html.replace("<th></th>", "<td></td>")


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Names for what the theme leaves without one, and our own script in place of one from a network."""
    return _mended(output, page.url)


def on_post_template(output: str, *, template_name: str, **_: Any) -> str:
    """The same for the page that says that a page is missing."""
    return _mended(output, template_name)


def _mended(output: str, url: str) -> str:
    for control, name in (('id="__search"', "Search"), ('id="__drawer"', "Navigation"), ('role="dialog"', "Search")):
        output = output.replace(control, f'{control} aria-label="{name}"', 1)
    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url("javascripts/worker.js", url))
