"""Notebooks in docs/notebooks become pages, with the outputs that they hold.

    python docs/hooks/notebooks.py     # run every notebook and keep its outputs

The tests run them too. A cell shows what it prints and pyplot's open figures, as Jupyter's inline backend does; the alt
text of a figure stands in its cell's metadata.
"""

import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of every notebook, and its figures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, figures = page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, png in figures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=png))
    return files


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by file name."""
    parts, figures = [], dict[str, bytes]()
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                name = f"{path.stem}-{number}.png"
                figures[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![{cell['metadata']['alt']}]({name})")
    parts.append(f"[Download this notebook]({path.name})")
    return "\n\n".join(parts) + "\n", figures


def execute(path: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell, run in order in a folder."""
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    with contextlib.chdir(folder):
        return [_run("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]


def _run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    from matplotlib import pyplot

    if source.startswith("%%writefile "):
        first, _, text = source.partition("\n")
        Path(first.split()[1]).write_text(text, encoding="utf-8")
        return [_stream(f"Writing {first.split()[1]}\n")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "cell", "exec"), names)
    outputs = [_stream(printed.getvalue())] if printed.getvalue() else []
    for number in pyplot.get_fignums():
        png = io.BytesIO()
        pyplot.figure(number).savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    pyplot.close("all")
    return outputs


def _stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            outputs = execute(path, Path(folder))
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, (cell, made) in enumerate(zip(code, outputs, strict=True), 1):
            cell |= {"outputs": made, "execution_count": number}
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
