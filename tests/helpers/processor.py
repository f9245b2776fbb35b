"""What a run of the tests costs in processor time: the dearest tests are shown, and too much of it is a failure.

Wall time says little where a machine does other work too. Processor time counts what tests start as well.
"""

import collections
import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

SHOWN = 15
# Times what a run may take whose programs are kept from an earlier one. Of a first run 3,075 s were measured where LOOP
# took 0.36 to 0.45, with the kernels built and a part of its programs kept; all of it, 2,400 to 2,800 s of this scale,
# where the budget of kept ones is 570.
COLD = 5.0
# Processor seconds of LOOP on the machine that budgets are for. Inferred: a machine that takes 0.53 runs the whole
# suite in 1.8 times its processor time.
REFERENCE = 0.3
LOOP = "import time; sum(i * i for i in range(5_000_000)); print(time.process_time())"


@functools.cache
def slowness() -> float:
    """How many times as long the processors of this machine take, all at once, as those that budgets are for; at least
    1, so that a faster machine has no less.
    """
    command = [sys.executable, "-c", LOOP]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count() or 1)]
    return max(1.0, max(float(run.communicate()[0]) for run in runs) / REFERENCE)


def seconds() -> float:
    """Processor time of this process and of those it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_of(pid: int) -> float:
    """Processor time of a process that runs."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()  # behind the program's name, which may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Processor:
    """A plugin that adds up processor time over all processes of a run, and holds it to the budget if there is one.

    The budget is of a run that finds what an earlier one compiled, on a machine like the one that it was measured on.
    Where `kept`, a file that runs leave at their end, is not there, it is COLD times as much, and on a slower machine
    more by its `slowness`.
    """

    def __init__(self, budget: float | None, kept: pathlib.Path):
        self._cold = not kept.exists()
        self._budget = None if budget is None else budget * (COLD if self._cold else 1) * slowness()
        self._kept = kept
        self._at = 0.0  # the time when the phase of a test began
        self._workers = 0.0
        self._total = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self._at = seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        before, self._at = self._at, seconds()
        report.user_properties = [(self._name(report.when), self._at - before)]
        return report

    @staticmethod
    def _name(phase: str) -> str:
        return f"processor seconds of {phase}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended."""
        self._workers += getattr(node, "workeroutput", {}).get("processor", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        given = getattr(session.config, "workeroutput", None)
        if given is not None:
            given["processor"] = seconds()
            return
        times = os.times()
        own = times.user + times.system
        self._total = own + self._workers if self._workers else seconds()
        if self._budget is None or session.exitstatus:
            return
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        self._kept.touch()
        if self._total > self._budget:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        spent: dict[str, float] = collections.defaultdict(float)
        for reports in terminalreporter.stats.values():
            for report in reports:
                for name, value in getattr(report, "user_properties", ()):
                    if name == self._name(getattr(report, "when", "")):
                        spent[report.nodeid] += value
        if not spent:
            return
        terminalreporter.section(f"processor seconds: {self._total:.0f}" + self._judgement())
        for nodeid in sorted(spent, key=lambda nodeid: -spent[nodeid])[:SHOWN]:
            terminalreporter.write_line(f"{spent[nodeid]:6.1f} {nodeid[:100]}")

    def _judgement(self) -> str:
        if self._budget is None:
            return ""
        first = " of a first run" if self._cold else ""
        return f" of {self._budget:.0f}{first}" + (": TOO MUCH, the run fails" if self._total > self._budget else "")
