"""The table of faults that `make faults` prints: each kind, how many were tried, and how they ended."""

from __future__ import annotations

from collections import Counter

import pytest

_OUTCOMES: Counter[tuple[str, str]] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the outcome of a fault by the test that tried it."""
    if report.when == "call" and "tests/faults/" in report.nodeid:
        name = report.nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
        number = next((int(value) for key, value in report.user_properties if key == "faults"), 1)
        _OUTCOMES[name, report.outcome] += number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _OUTCOMES:
        return
    terminalreporter.section("faults")
    for (name, outcome), number in sorted(_OUTCOMES.items()):
        terminalreporter.write_line(f"{number:6}  {outcome:8}  {name}")
    kept = sum(number for (_, outcome), number in _OUTCOMES.items() if outcome == "passed")
    total = sum(number for (_, outcome), number in _OUTCOMES.items() if outcome != "skipped")
    terminalreporter.write_line(f"{kept} of {total} faults ended as promised; {total - kept} were lost or silent")
