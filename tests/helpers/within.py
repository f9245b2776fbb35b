"""A run of tests that has a time to end by: those that have not begun by then are left out, and counted."""

import time
from typing import Any

import pytest


class Within:
    """A plugin that lets no test begin after so many minutes."""

    def __init__(self, minutes: float):
        self._until = time.monotonic() + 60 * minutes
        self._reason = f"the {minutes:g} minutes of --within are over"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.monotonic() > self._until:
            pytest.skip(self._reason)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        skipped = terminalreporter.stats.get("skipped", ())
        left = sum(self._reason in str(report.longrepr) for report in skipped)
        terminalreporter.section(f"{left} tests left out: {self._reason}" if left else "no test left out")
