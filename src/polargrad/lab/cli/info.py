"""`polargrad info`: versions and machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from polargrad.lab.cli import terminal
from polargrad.lab.run.environment import LAB_PACKAGES, environment, version
from polargrad.linalg.arithmetic import arithmetic


@dataclass(frozen=True)
class Info:
    """Show versions, machine, what it multiplies fast, and which packages of the laboratory are installed.

    Example: polargrad info
    """

    def __call__(self) -> None:
        """Print what a bug report needs."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shown = {**environment(), "arithmetic": str(arithmetic(device))}
        shown |= {package: version(package) for package in LAB_PACKAGES}
        missing = {"commit": "not known"}
        terminal.print_table(
            ("", ""), [(key, value or missing.get(key, "not installed")) for key, value in shown.items()]
        )
