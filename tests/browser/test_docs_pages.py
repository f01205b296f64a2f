"""The docs in a real browser, opened from a folder: width, accessibility, search, links; `make test-browser`.

SITE=folder takes pages that `mkdocs build` has built there.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser.chromium import needs_chromium, visit

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.browser, needs_chromium]

AUDIT = """async (view) => {
  const page = view.document.documentElement;
  const found = await view.axe.run(view.document, { resultTypes: ["violations"] });
  return {
    screen: view.innerWidth, wide: page.scrollWidth,
    missing: [...view.document.images].filter((image) => !image.complete || !image.naturalWidth).map((i) => i.src),
    serious: found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
      .map((v) => `${v.id}: ${v.nodes[0].html}`),
  };
}"""

SEARCH = """async (view) => {
  const query = view.document.querySelector(".md-search__input");
  query.focus();
  query.value = "QDWH";
  query.dispatchEvent(new view.KeyboardEvent("keyup", { bubbles: true }));
  query.dispatchEvent(new view.InputEvent("input", { bubbles: true }));
  for (let i = 0; i < 100; i++) {
    const links = [...view.document.querySelectorAll(".md-search-result__link")];
    if (links.length) return links.map((link) => link.href);
    await new Promise((later) => view.setTimeout(later, 100));
  }
  return [];
}"""

# Everything that a page may consist of. What a docstring holds in angle brackets would come as another tag.
# fmt: off
TAGS = {
    "a", "article", "aside", "b", "body", "br", "button", "code", "colgroup", "col", "dd", "details", "div", "dl",
    "dt", "em", "footer", "form", "g", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html",
    "iframe", "img", "input", "label", "li", "link", "main", "meta", "nav", "ol", "p", "path", "pre", "script",
    "small", "span", "strong", "style", "summary", "svg", "table", "tbody", "td", "th", "thead", "title", "tr", "ul",
    "abbr", "noscript", "math", "mrow", "mi", "mo", "mn", "msub", "msup", "msubsup", "mfrac", "msqrt", "mtext",
    "mspace", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded",
}
# fmt: on


class Seen(HTMLParser):
    """Tags, identifiers and targets of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.ids, self.targets = set[str](), set[str](), list[str]()
        self.unnamed = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.targets += [given[key] for key in ("href", "src") if given.get(key)]
        self.unnamed += tag == "img" and not given.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Seen(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


@pytest.fixture(scope="module")
def axe():
    return resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen_and_can_be_used_by_all(pages, axe, width, tmp_path):
    """Every guide, every listing, and a page of a function, a class and a module's members."""
    api = ["polargrad.polar.html", "polargrad.PolarGrad.html", "polargrad.lab.compare.html"]
    looked_at = [page for page in pages if page.parent.name != "api" or page.name in api or "." not in page.stem]
    assert len(looked_at) > 35
    for page, seen in visit(looked_at, width, AUDIT, tmp_path, shared=axe).items():
        assert seen == {"screen": width, "wide": width, "missing": [], "serious": []}, page.name


def test_a_page_that_is_wide_or_without_names_is_seen(site, axe, tmp_path):
    page = site / "planted.html"
    text = (site / "index.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</h1>", '</h1><img src="none.png" style="width: 3000px">'), encoding="utf-8")
    try:
        (seen,) = visit([page], 390, AUDIT, tmp_path, shared=axe).values()
    finally:
        page.unlink()
    assert seen["missing"]
    assert any(finding.startswith("image-alt") for finding in seen["serious"])


def test_search_works_from_a_folder(site, tmp_path):
    (links,) = visit([site / "api" / "linalg.html"], 1280, SEARCH, tmp_path).values()
    assert any("QDWH" in link for link in links)
    assert all(link.startswith(site.as_uri()) for link in links)


def test_nothing_comes_from_a_network(pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(
            r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*href="https?:', text
        )


def test_angle_brackets_of_docstrings_are_text(pages):
    for path, page in pages.items():
        assert page.tags <= TAGS, f"{path}: {page.tags - TAGS}"
        assert page.unnamed == 0, path


def test_links_lead_somewhere(pages):
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert to.exists(), f"{path.name}: {target}"
            if parts.fragment and to in pages:
                assert unquote(parts.fragment) in pages[to].ids, f"{path.name}: {target}"


def test_a_tag_that_nobody_meant_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>nu = <G, U></p>")
    assert not Seen(page).tags <= TAGS
