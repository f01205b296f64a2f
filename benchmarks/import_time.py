"""How large the package is, and how long `import polargrad` and its `PolarGrad` take beyond torch's own import.

Each import happens in a process of its own; the fastest of several counts, and the two are measured in turn, so that a
busy machine troubles both alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

# What is imported, and what of it is timed.
_TIMED = """\
import time
began = time.perf_counter()
import torch
between = time.perf_counter()
import polargrad
polargrad.PolarGrad  # imported when it is first asked for
print(between - began, time.perf_counter() - between)
"""


def _python() -> list[str]:
    """This interpreter, isolated where this process is."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else [])]


def import_seconds(repeats: int) -> tuple[float, float]:
    """The fastest import of torch, and of polargrad after it, in seconds."""
    pairs = []
    for _ in range(repeats):
        done = subprocess.run([*_python(), "-c", _TIMED], capture_output=True, text=True, check=True)
        pairs.append(tuple(map(float, done.stdout.split())))
    of_torch, of_polargrad = zip(*pairs, strict=True)
    return min(of_torch), min(of_polargrad)


def slowest_modules(count: int) -> list[tuple[float, str]]:
    """The modules that take most of `import polargrad` themselves, in seconds, by `-X importtime`."""
    done = subprocess.run(
        [*_python(), "-X", "importtime", "-c", "import torch; import polargrad; polargrad.PolarGrad"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = [line[2].strip() for line in lines]
    own = lines[names.index("torch") + 1 :]
    return sorted(((int(line[0].split(":")[1]) / 1e6, line[2].strip()) for line in own), reverse=True)[:count]


def package_bytes() -> int:
    """The sizes of the package's own files, without compiled Python."""
    spec = importlib.util.find_spec("polargrad")
    assert spec is not None
    assert spec.origin is not None
    files = (path for path in Path(spec.origin).parent.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="imports of which the fastest counts")
    parser.add_argument("--limit", type=float, help="fail where polargrad takes longer than so many seconds")
    arguments = parser.parse_args()
    of_torch, of_polargrad = import_seconds(arguments.repeats)
    print(f"package: {package_bytes() / 1e3:.0f} kB of files")
    print(f"import torch: {of_torch:.3f} s")
    print(f"import polargrad after it: {of_polargrad:.3f} s")
    for seconds, name in slowest_modules(5):
        print(f"  {seconds:.4f} s  {name}")
    if arguments.limit is not None and of_polargrad > arguments.limit:
        sys.exit(f"import polargrad takes {of_polargrad:.3f} s beyond torch's import, above {arguments.limit} s")


if __name__ == "__main__":
    main()
