"""The report in a real browser: its width, its tables, its colours; `make test-browser`."""

import json
import os
import re
from html import unescape
from importlib import resources
from pathlib import Path

import pytest

from polargrad.lab.comparison.page import Findings
from polargrad.lab.matrix import ProblemSpec
from polargrad.lab.studies.matrix.experiments import ExperimentOptions, run_experiment
from tests.browser import chromium
from tests.browser.chromium import needs_chromium, visit
from tests.runs import written_run

pytestmark = [pytest.mark.browser, needs_chromium]

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


def _look(page, width, tmp_path):
    html = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    literal = json.dumps(html).replace("</", "<\\/")
    frame = tmp_path / f"look-{width}.html"
    frame.write_text(LOOK.replace("WIDTH", str(width)).replace("PAGE", literal), encoding="utf-8")
    dom = chromium.run(tmp_path, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
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
    picture.parent.mkdir(exist_ok=True)
    scheme = f"--blink-settings=preferredColorScheme={0 if mode == 'dark' else 1}"
    chromium.run(tmp_path, scheme, f"--window-size={width},3000", f"--screenshot={picture}", page.as_uri())
    corner = Image.open(picture).convert("L").getpixel((2, 2))
    assert corner > 200 if mode == "light" else corner < 60


@pytest.mark.parametrize("width", [1280, 390])
def test_reports_can_be_used_by_all(page, width, tmp_path):
    """The page of a comparison, of a run and of a matrix experiment have no serious finding of axe."""
    folder = tmp_path / "runs"
    Findings([written_run(folder / "adamw", [(0, 8.0), (5, 6.0), (10, 5.0)])]).write_page(folder / "run.html")
    _, experiment = run_experiment(
        ProblemSpec("quadratic").problem,
        folder / "quadratic",
        ExperimentOptions(only=("polargrad", "adam"), size="small", steps=20),
    )
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    look = (
        "async (view) => (await view.axe.run(view.document)).violations.map((v) => [v.impact, v.id, v.nodes[0].html])"
    )
    for path, found in visit([page, folder / "run.html", experiment], width, look, tmp_path, shared=axe).items():
        assert [finding for finding in found if finding[0] != "minor"] == [], path.name
