"""The report in a real browser: its width, its tables, its colours; `make test-browser`."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from polargrad.lab.comparison.page import Findings
from tests.runs import written_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium"),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]

# Runs in a frame as wide as the screen, since a window is never narrower than some 500 pixels.
LOOK = """<!doctype html><body style="margin:0"><iframe id="page" style="border:0" width="WIDTH" height="900"></iframe>
<pre id="seen"></pre><script>
document.getElementById("page").srcdoc = PAGE;
document.getElementById("page").onload = (loaded) => {
  const view = loaded.target.contentWindow, page = view.document;
  const table = page.querySelector("table.stacked");
  const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const seen = { wide: page.documentElement.scrollWidth, screen: view.innerWidth, before: first() };
  table.tHead.rows[0].cells[1].querySelector("button").click();
  seen.ascending = first();
  table.tHead.rows[0].cells[1].querySelector("button").click();
  seen.descending = first();
  seen.clipped = [...page.querySelectorAll("svg text")].filter((text) => {
    const box = text.getBoundingClientRect(), drawing = text.closest("svg").getBoundingClientRect();
    return box.left < drawing.left - 1 || box.right > drawing.right + 1;
  }).map((text) => text.textContent);
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [
        written_run(folder / "adamw", [(0, 8.0), (5, 6.0), (10, 5.0)]),
        written_run(folder / "muon", [(0, 8.0), (5, 5.0), (10, 4.0)]),
        written_run(folder / "a-run-with-quite-a-long-name", [(0, 8.0), (5, 7.0), (10, 6.0)]),
    ]
    return Findings(runs).write_page(folder / "report.html")


def _chromium(tmp_path, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _look(page, width, tmp_path):
    html = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    literal = json.dumps(html).replace("</", "<\\/")
    frame = tmp_path / f"look-{width}.html"
    frame.write_text(LOOK.replace("WIDTH", str(width)).replace("PAGE", literal), encoding="utf-8")
    dom = _chromium(tmp_path, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    found = re.search(r'<pre id="seen">(.+?)</pre>', dom, flags=re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(unescape(found.group(1)))


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page, width, tmp_path):
    seen = _look(page, width, tmp_path)
    assert seen["screen"] == width
    assert seen["wide"] <= width
    assert seen["clipped"] == []


def test_a_page_that_is_too_wide_is_seen(page, tmp_path):
    html = page.read_text(encoding="utf-8").replace("</h1>", '</h1><div style="width: 3000px">wide</div>')
    assert _look(html, 1280, tmp_path)["wide"] > 1280


def test_a_head_sorts_its_table(page, tmp_path):
    seen = _look(page, 1280, tmp_path)
    assert seen["ascending"] == ["muon", "adamw", "a-run-with-quite-a-long-name"]
    assert seen["descending"] == seen["ascending"][::-1]
    assert sorted(seen["before"]) == sorted(seen["ascending"])


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_screenshots(page, mode, width, tmp_path):
    """Kept in the folder SCREENSHOTS, if that is set, to be looked at; the two modes must differ in brightness."""
    from PIL import Image

    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"report-{mode}-{width}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if mode == 'dark' else 1}"
    _chromium(tmp_path, scheme, f"--window-size={width},3000", f"--screenshot={picture}", page.as_uri())
    corner = Image.open(picture).convert("L").getpixel((2, 2))
    assert corner > 200 if mode == "light" else corner < 60
