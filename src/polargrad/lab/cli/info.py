"""`polargrad info`: versions and machine."""

from __future__ import annotations

from dataclasses import dataclass

from polargrad.lab.cli import terminal
from polargrad.lab.run.environment import LAB_PACKAGES, environment, version

__all__ = ["Info"]


@dataclass(frozen=True)
class Info:
    """Show versions, machine, and which packages of the laboratory are installed.

    Example: polargrad info
    """

    def __call__(self) -> None:
        """Print what a bug report needs."""
        shown = {**environment(), **{package: version(package) for package in LAB_PACKAGES}}
        missing = {"commit": "not known"}
        terminal.print_table(
            ("", ""), [(key, value or missing.get(key, "not installed")) for key, value in shown.items()]
        )
