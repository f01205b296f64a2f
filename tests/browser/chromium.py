"""Headless Chromium: pages are opened one after the other in a frame of a given width, and a script looks at each."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")

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

# A frame, since a window is never narrower than some 500 pixels. What stands below `shared` is run in it once a page.
VISIT = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0" width="WIDTH" height="900"></iframe>
<pre id="seen"></pre><script>
const pages = PAGES, shared = SHARED, look = LOOK, seen = {};
const frame = document.getElementById("page");
const loaded = (page) => new Promise((done) => { frame.onload = done; frame.src = page; });
(async () => {
  for (const page of pages) {
    await loaded(page);
    try {
      const view = frame.contentWindow;
      view.eval(shared);
      seen[page] = await look(view);
    } catch (error) { seen[page] = { error: String(error) }; }
  }
  document.getElementById("seen").textContent = JSON.stringify(seen);
  document.title = "done";
})();
</script>"""


def run(folder: Path, *arguments: str, timeout: int = 120) -> str:
    """Start Chromium with a profile in the folder; returns what it prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def visit(pages: Sequence[Path], width: int, look: str, folder: Path, *, shared: str = "") -> dict[Path, Any]:
    """What the JavaScript function `look(window)` returns of each page; `shared` is run in the page before."""
    frame = folder / f"visit-{width}.html"
    text = VISIT.replace("WIDTH", str(width)).replace("LOOK", look)
    text = text.replace("PAGES", _literal([page.as_uri() for page in pages])).replace("SHARED", _literal(shared))
    frame.write_text(text, encoding="utf-8")
    flags = ["--allow-file-access-from-files", "--virtual-time-budget=3600000", f"--window-size={max(width, 500)},1000"]
    dom = run(folder, *flags, "--dump-dom", frame.as_uri(), timeout=900)
    found = re.search(r'<pre id="seen">(.+?)</pre>', dom, flags=re.DOTALL)
    assert found, dom[-2000:]
    seen = json.loads(unescape(found.group(1)))
    return {page: seen[page.as_uri()] for page in pages}


def _literal(value: Any) -> str:
    return json.dumps(value).replace("</", "<\\/")
