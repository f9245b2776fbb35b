"""The processes that render chat templates (`chat_sandbox.py`): one for a template that is new, and a few that stay for
those that come again. Knows lines and processes, no templates.

A process that renders once takes 60 to 175 ms, mostly Python's start and its imports. One that stays answers from a
copy of itself in 2 to 3 ms. Who renders once only has no second process, and none that stays behind it.
"""

import atexit
import collections
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

SANDBOX = pathlib.Path(__file__).parent / "chat_sandbox.py"
ENVIRONMENT = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # what Python may need to start, and the time zone, no more
STAYING = 2  # processes at most
RENDERS = 1000  # of one process. Nothing in it wears out, so this is for what nobody foresaw, at < 0.2 ms a render
LONGEST = 1 << 26  # bytes of an answer: 4 Mi characters are at most 12 in JSON and one for their kind
REMEMBERED = 16  # templates


def answer(opening: str, job: str, seconds: float) -> bytes:
    """The line that a sandbox answers to a job after an opening; only its beginning, or nothing, if it was killed.

    Raises TimeoutError where that takes longer. May be called by several threads.
    """
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if _POOL.has_met(opening) and hasattr(os, "fork"):
        return _POOL.answer(opening, environment, job, seconds)
    try:
        return subprocess.run(
            [sys.executable, "-I", str(SANDBOX)],
            input=f"{opening}\n{job}\n".encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the caller
        ).stdout
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


class Sandbox:
    """A process that stays, with one template, for one thread at a time."""

    def __init__(self, opening: str, environment: dict[str, str]):
        self._for = opening, environment
        self._asked = 0
        self._idle = False  # at the end of a line, and so fit for the next
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(SANDBOX), "--stay"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def fits(self, opening: str, environment: dict[str, str]) -> bool:
        """Whether it can answer to a job after this opening."""
        return self._for == (opening, environment) and self.serves()

    def serves(self) -> bool:
        return self._idle and self._asked <= RENDERS and self._process.poll() is None

    def ask(self, line: str, until: float) -> bytes:
        """What it answers to a line, as `answer` does. until: by time.monotonic."""
        self._idle = False
        self._asked += 1
        said = bytearray()
        with contextlib.suppress(ConnectionError):
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            self._socket.sendall(line.encode() + b"\n")
            while not self._idle and len(said) <= LONGEST:
                self._socket.settimeout(max(until - time.monotonic(), 0.001))
                piece = self._socket.recv(1 << 16)
                if not piece:
                    break
                said += piece
                self._idle = piece.endswith(b"\n")
        return bytes(said)

    def close(self) -> None:
        """Ends the process, and what it is at."""
        self._socket.close()  # it notices
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:  # still compiling
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def forget(self) -> None:
        """Leaves the process to the one that started it: this is a copy of that one."""
        self._socket.close()
        self._process.returncode = 0


class _Pool:
    """The sandboxes that stay."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free: list[Sandbox | None] = [None] * STAYING  # places that no thread uses, the longest unused first
        self._living: set[Sandbox] = set()
        self._met: collections.deque[int] = collections.deque(maxlen=REMEMBERED)

    def has_met(self, opening: str) -> bool:
        """Whether this opening came before, among the last."""
        with self._changed:
            known = hash(opening) in self._met
            if not known:
                self._met.append(hash(opening))
            return known

    def answer(self, opening: str, environment: dict[str, str], job: str, seconds: float) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            sandbox = max(self._free, key=lambda place: 1 if place is None else 2 * place.fits(opening, environment))
            self._free.remove(sandbox)
        try:
            until = time.monotonic() + seconds
            if sandbox is None or not sandbox.fits(opening, environment):
                self._end(sandbox)
                sandbox = None
                sandbox = Sandbox(opening, environment)
                self._living.add(sandbox)
                sandbox.ask(opening, until)
            return sandbox.ask(job, until)
        finally:
            if sandbox is not None and not sandbox.serves():
                self._end(sandbox)
                sandbox = None
            with self._changed:
                self._free.append(sandbox)
                self._changed.notify()

    def _end(self, sandbox: Sandbox | None) -> None:
        if sandbox is not None:
            sandbox.close()
            self._living.discard(sandbox)

    def close(self) -> None:
        """Ends the sandboxes that no thread uses. The others notice that this process has ended."""
        with self._changed:
            for sandbox in self._free:
                self._end(sandbox)
            self._free = [None] * len(self._free)

    def forget(self) -> None:
        """Begins anew in a copy of this process, in which two would talk to the same sandboxes."""
        for sandbox in self._living:
            sandbox.forget()
        self.__init__()


_POOL = _Pool()
atexit.register(_POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)
