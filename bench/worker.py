"""A process that answers lines of JSON with lines of JSON: how bench speaks to what must not share its memory."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Any, Self

from packlight.common.errors import PacklightError


class WorkerError(PacklightError):
    """A worker failed: told in one line with its own words."""


class Worker:
    """A running script. Use it as a context manager: leaving ends the process. Idle, it waits for the next line."""

    def __init__(self, name: str, command: Sequence[str]):
        self._name = name
        self._said = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115  closed with the worker
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, encoding="utf-8"
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer. Raises WorkerError for an answer "error", and for none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            problem = answer.get("error")
        except (OSError, ValueError, AttributeError):  # it ended, or what it wrote is no answer
            raise WorkerError(f"{self._name}: no answer to {request.get('do')!r}; {last_words(self._said)}") from None
        if problem:
            raise WorkerError(f"{self._name}: {problem}")
        return answer


def last_words(said: IO[str]) -> str:
    """The last line of what a process wrote to a file."""
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return f"its last line: {lines[-1]}" if lines else "it said nothing"
