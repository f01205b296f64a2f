"""What the README shows runs, and what it links to exists."""

import re
from pathlib import Path

import pytest

import polargrad

ROOT = Path(polargrad.__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        # Figures are drawn when the docs are built; test_docs.py holds their links to what is drawn.
        if "://" not in target and not (page.parent.name == "docs" and target.startswith("figures/")):
            written = page.parent / target
            assert written.exists() or written.with_suffix(".ipynb").exists(), target  # a notebook becomes a page


def test_the_block_reader_finds_blocks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n```python\nx = 1\n```\n```sh\nls\n```\n```python\nraise SystemExit\n```\n")
    assert _blocks(page, "python") == ["x = 1\n", "raise SystemExit\n"]
