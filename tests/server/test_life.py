"""A server from loading to its end: in this process, and as a command that signals reach."""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from raw_http import QUICK, Served, ends, reply, request, routes, served, until

from packlight.common.errors import ConfigError
from packlight.server.keys import Keys
from packlight.server.life import bind
from packlight.server.settings import Settings


def status(server: Served, path: str = "/health") -> tuple[int, str]:
    told = server.ask(request(path))
    return told.status, told.json["status"] if path == "/health" else told.code


def test_health_is_told_from_the_socket_on():
    loaded = threading.Event()

    def load():
        loaded.wait()
        return routes([], threading.Event())

    with served(load, wait=False, limits=QUICK) as server:
        until(lambda: server.lines)
        assert status(server) == (503, "loading")
        told = server.ask(request("/echo", "POST", b"{}"))
        assert (told.status, told.code, told.headers["retry-after"]) == (503, "loading", "5")
        assert server.ask(request("/metrics")).status == 200
        assert server.ask(request(Host="evil")).status == 403
        loaded.set()
        until(lambda: server.life.state == "ok")
        assert status(server) == (200, "ok")
    assert server.lines[0] == f"{server.life.url}: loading"
    assert server.said(": ready")
    assert server.ended == [True]


def test_what_loading_raises_ends_the_server():
    def load():
        raise ConfigError("no such model")

    with served(load, wait=False) as server:
        until(lambda: server.ended)
    assert repr(server.ended) == repr([ConfigError("no such model")])


def test_an_end_while_loading_waits_for_nothing():
    loaded = threading.Event()
    with served(loaded.wait, wait=False) as server:
        until(lambda: server.lines)
        server.life.drain()
        until(lambda: server.ended)
        assert server.ended == [False]
        loaded.set()


def test_running_requests_end_and_new_ones_are_refused():
    release = threading.Event()
    with served(release=release) as server:
        with server.connect() as client, server.connect() as kept:
            kept.sendall(request())
            reply(kept)
            client.sendall(request("/slow"))
            until(lambda: server.life.running == 1)
            server.life.drain()
            until(lambda: server.life.state == "draining")
            assert ends(kept)
            assert status(server) == (503, "draining")
            assert status(server, "/echo") == (503, "draining")
            release.set()
            told = reply(client)
            assert (told.status, told.json) == (200, {"slow": True})
            assert ends(client)
        until(lambda: server.ended)
        assert server.ended == [True]
        assert server.said("draining: 1 requests run, for 30 s at most")


def test_requests_that_do_not_end_are_stopped():
    limits = dataclasses.replace(QUICK, send_seconds=10)
    with served(limits=limits) as server, server.connect() as waiting, server.connect() as streaming:
        waiting.sendall(request("/slow"))
        streaming.sendall(request("/endless"))
        until(lambda: server.life.running == 2)
        server.life.drain()
        told = reply(waiting)
        assert (told.status, told.code) == (503, "draining")
        assert ends(streaming)
        until(lambda: server.ended)
        assert server.said("warning: 2 requests did not end in time and are stopped")
        assert server.left == ["endless"]


def test_an_application_begins_and_ends_on_the_loop():
    told = []

    @contextlib.asynccontextmanager
    async def lifespan(_):
        told.append("begun")
        yield
        told.append("ended")

    def load():
        app = routes([], threading.Event())
        app.router.lifespan_context = lifespan
        return app

    with served(load):
        assert told == ["begun"]
    assert told == ["begun", "ended"]


def test_an_application_that_does_not_begin_ends_the_server():
    @contextlib.asynccontextmanager
    async def lifespan(_):
        raise ValueError("cannot")
        yield

    def load():
        app = routes([], threading.Event())
        app.router.lifespan_context = lifespan
        return app

    with served(load, wait=False) as server:
        until(lambda: server.ended)
    assert isinstance(server.ended[0], RuntimeError)
    assert any("cannot" in line for line in server.details)


def test_libraries_say_nothing_of_their_own(capfd, caplog):
    with served(limits=QUICK) as server:
        server.ask(b"nonsense\r\n\r\n")
        server.ask(request("/fail"))
        server.ask(request())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not server.said("Invalid HTTP")
    assert "uvicorn.error: Invalid HTTP request received." in server.details


def test_a_socket_that_cannot_be_is_one_line():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^--port={port}: Address already in use$"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"^--host=no.such.host.invalid: "):
        bind("no.such.host.invalid", 0)
    with pytest.raises(ConfigError, match=r"^--host=192.0.2.1: "):
        bind("192.0.2.1", 0)
    for port in (-1, 65536):
        with pytest.raises(ConfigError, match=f"--port={port} is none of 0 to 65535"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("keys", [(), ("key",)])
def test_an_open_door_is_warned_of(keys):
    with served(host="0.0.0.0", keys=Keys(keys)) as server:
        assert bool(server.said("warning: --host=0.0.0.0 lets everyone")) == (not keys)
    with served() as server:
        assert not server.said("warning")


def test_only_this_machine_reaches_it_unless_told():
    assert Settings().host == "127.0.0.1"


# As a process

CHILD = """
import sys, threading, time
from raw_http import QUICK, routes
from packlight.cli.terminal import end_by_signals
from packlight.server.life import Life, drained_by_signals
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings
import dataclasses, os
def load():
    if sys.argv[1] == "loading":
        threading.Event().wait()
    return routes([], threading.Event())
end_by_signals()
limits = dataclasses.replace(QUICK, drain_seconds=float(sys.argv[2]))
life = Life(load, Settings(port=0, limits=limits), Metrics(), lambda line: print(line, flush=True))
with drained_by_signals(life):
    loaded = life.run()
if not loaded:
    os._exit(0)
"""


class Child:
    """A server in a process of its own, that has said so much."""

    def __init__(self, state: str, drain_seconds: float = 0.3):
        command = [sys.executable, "-c", CHILD, state, str(drain_seconds)]
        path = os.pathsep.join([os.path.dirname(__file__) + "/../helpers", os.environ["PYTHONPATH"]])
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]
        if state != "loading":
            self.lines.append(self.process.stdout.readline())
        address = re.fullmatch(r"http://127.0.0.1:(\d+): loading\n", self.lines[0])
        assert address, self.lines + self.process.stdout.readlines()
        self.port = int(address[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def end(self, *numbers: int) -> tuple[int, str]:
        """What the process exits with after these signals, and what it still says."""
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.1)
        text, _ = self.process.communicate(timeout=20)
        return self.process.returncode, text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["loading", "ready"])
def test_a_signal_ends_a_server_that_does_nothing(state, number):
    assert Child(state).end(number) == (0, "")


def test_a_signal_drains():
    child = Child("ready")
    with child.connect() as half, child.connect() as running:
        half.sendall(b"GET /hea")
        running.sendall(request("/slow"))
        time.sleep(0.1)
        code, text = child.end(signal.SIGTERM)
        assert reply(running).status == 503
    assert code == 0
    assert "draining: 1 requests run, for 0.3 s at most" in text


def test_a_second_signal_ends_at_once():
    child = Child("ready", 100)
    with child.connect() as running:
        running.sendall(request("/slow"))
        time.sleep(0.1)
        code, text = child.end(signal.SIGTERM, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert text.endswith("\nterminated\n")
