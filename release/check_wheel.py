"""Does what a wheel installed by itself must do; run by an environment that holds the wheel and nothing of the sources.

python -m venv empty && empty/bin/pip install dist/polargrad-*.whl && empty/bin/python -I release/check_wheel.py
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Check metadata, files, a step of the optimizer, the lazy parts and the command line."""
    import torch

    import polargrad

    folder = Path(polargrad.__file__).parent
    installed = distribution("polargrad")
    assert "site-packages" in folder.parts, f"polargrad comes from {folder}, not from a wheel"
    assert polargrad.__version__ == installed.version
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    files = {str(path) for path in installed.files or ()}
    for wanted in ("polargrad/py.typed", "polargrad/lab/report/page.html.j2", "polargrad/linalg/decomposition.py"):
        assert wanted in files, f"the wheel lacks {wanted}"
    for notice in ("LICENSE", "NOTICE"):
        assert any(name.endswith(f".dist-info/licenses/{notice}") for name in files), f"the wheel lacks {notice}"
    assert not any(name.startswith(("tests/", "benchmarks/", "examples/", "docs/")) for name in files)

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
    optimizer = polargrad.PolarGrad(polargrad.parameter_groups(model))
    tokens = torch.arange(20)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert polargrad.integrations.transformers.optimizer()
    assert polargrad.lab.matrix.MatrixQuadratic.draw(0, rows=9, m=4, n=3, columns=8).condition_number

    command = [str(Path(sys.executable).with_name("polargrad"))]
    explained = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "polargrad compare" in explained.stdout
    for name, wanted in (("list", "muon+adamw"), ("info", installed.version), ("--version", installed.version)):
        shown = subprocess.run([*command, name], capture_output=True, text=True, check=True)
        assert wanted in shown.stdout, shown.stdout
    if find_spec("tyro") is None:
        refused = subprocess.run([*command, "run", "adamw"], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert 'pip install "polargrad[lab]"' in refused.stderr, refused.stderr
    print(f"polargrad {installed.version} from {folder}: {len(files)} files; metadata, step and command line are fine")


if __name__ == "__main__":
    main()
