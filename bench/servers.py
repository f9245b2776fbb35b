"""Servers as processes, to be loaded in turn: packlight's and llama.cpp's. Imports no jax."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Self

from packlight.bench.http_client import Client
from packlight.bench.worker import WorkerError, last_words

READY_S = 300.0  # a start that compiles, on a busy machine
END_S = 10.0


class Server:
    """A running server that answers requests; leaving the context ends it. Raises WorkerError when it gets not ready.

    command: with "{port}" where the number goes.
    """

    def __init__(self, name: str, command: Sequence[str], model: str = ""):
        self.name = name
        self._said = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115  closed with the server
        port = free_port()
        words = [word.replace("{port}", str(port)) for word in command]
        try:
            self._process = subprocess.Popen(words, stdout=self._said, stderr=subprocess.STDOUT)
        except OSError as error:
            raise WorkerError(f"{name}: {words[0]} does not run: {error.strerror}") from None
        self.pid, self.client = self._process.pid, Client(port, model)

    def __enter__(self) -> Self:
        try:
            asyncio.run(self._ready())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def last_words(self) -> str:
        """What it said last."""
        return last_words(self._said)

    async def _ready(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                status, _ = await self.client.get("/health")
                if status == 200:
                    return
            except OSError:
                pass  # nobody listens yet
            if self._process.poll() is not None:
                raise WorkerError(f"{self.name}: the server ended; {self.last_words()}")
            await asyncio.sleep(0.1)
        raise WorkerError(f"{self.name}: not ready after {READY_S:g} s; {self.last_words()}")


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def packlight(model: str, slots: int, context: int) -> Server:
    """This checkout's server."""
    lengths = [f"--slots={slots}", f"--context={context}"]
    return Server(
        "packlight", [sys.executable, "-m", "packlight", "serve", f"--model={model}", "--port={port}", *lengths]
    )


def llama_server(program: str, model: str, slots: int, context: int, threads: int) -> Server:
    """The peer with its defaults, but for threads, slots and the context of each, which its --ctx-size has for all."""
    lengths = ["--parallel", str(slots), "--ctx-size", str(slots * context), "--threads", str(threads)]
    where = ["--model", os.path.abspath(model), "--host", "127.0.0.1", "--port", "{port}"]
    return Server("llama-server", [program, *where, *lengths])


def version(program: str) -> str:
    """What llama-server calls itself. Raises WorkerError when it does not run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkerError(f"--peer_server={program} does not run: {error}") from None
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("version")]
    return lines[0].partition(":")[2].strip() if lines else "unknown"
