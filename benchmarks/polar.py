"""Time, residuals and memory of every polar method: the numbers of docs/benchmarks.md.

The same as `polargrad bench polar`; see `python benchmarks/polar.py --help`.
"""

import sys

from polargrad.lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "polar", *sys.argv[1:]]))
