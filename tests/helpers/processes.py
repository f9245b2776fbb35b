"""Processes as /proc shows them."""

import contextlib
import pathlib
import time
from collections.abc import Iterable


def children(pid: int) -> list[int]:
    """The processes that one has, and theirs; none of one that ends meanwhile."""
    own: list[int] = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            own += map(int, task.read_text().split())
    return own + [deeper for child in own for deeper in children(child)]


def runs(pid: int) -> bool:
    """Whether a process is there, and not just its number, which waits for somebody to ask how it ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: Iterable[int], seconds: float = 10.0) -> bool:
    """Whether all of them end within the time."""
    pids = [*pids]
    until = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(map(runs, pids))
