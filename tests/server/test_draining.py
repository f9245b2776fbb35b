"""A server that is told to end with a request in each state: what each is answered, and that nothing is left."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fake_engine import fake_llm
from processes import children, gone
from raw_http import PATIENCE, QUICK, Served, reply, request, until
from whole_server import asking, everything, posted, serving

from packlight import demo
from packlight.model.text import sandboxes
from packlight.server import life

ANSWER = "word " * 100
BODY = {"prompt": [5, 6, 7]}
STREAM = BODY | {"stream": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
# Less than a stream with log-probabilities has, together with `unread`, so that who writes waits for its reader.
ROOM = 1 << 12
WHOLE = ("whole", "queued", "queued stream", "vectors", "chat")
STATES = ("slow reader", "stream", *WHOLE)


class Steps:
    """Lets a scripted engine's steps pass one by one, until they may run."""

    def __init__(self, engine):
        self._one = threading.Semaphore(0)
        self._free = threading.Event()
        self._seconds = 0.0
        engine.before_step = self._before

    def _before(self, number):
        if not self._free.is_set():
            self._one.acquire(timeout=PATIENCE)
        time.sleep(self._seconds)

    def until(self, true):
        """As many as it takes."""

        def stepped():
            if not (done := true()):
                self._one.release()
            return done

        until(stepped)

    def run(self, seconds=0.0):
        """From here on each takes so long."""
        self._seconds = seconds
        self._free.set()
        self._one.release()


@dataclasses.dataclass
class Scene:
    server: Served
    llm: object
    desk: object
    steps: Steps
    held: threading.Event  # a text that is read for its vector, and a template at work, go on when it is set
    clients: dict[str, socket.socket]

    def left(self) -> tuple:
        """What there should be nothing of."""
        desk = self.desk
        return (desk._of, desk._newest, desk.driver._accepted, self.llm.scheduler._runs, self.server.life.connections)


@pytest.fixture
def scene(monkeypatch):
    """Makes a server with a request in each of STATES, that has so many seconds to end them."""
    with contextlib.ExitStack() as stack:

        def make(drain_seconds):
            llm, held = fake_llm(demo.MODEL, ANSWER, slots=3), threading.Event()
            steps, render = Steps(llm.engine), sandboxes.answer
            monkeypatch.setattr(sandboxes, "answer", lambda *job: held.wait(PATIENCE) and render(*job))

            def hidden(ids):
                held.wait(PATIENCE)
                return np.ones((len(ids), llm.model.embedding_length), np.float32)

            monkeypatch.setattr(llm.engine, "hidden", hidden)
            limits = dataclasses.replace(QUICK, send_seconds=PATIENCE, drain_seconds=drain_seconds, unread=ROOM)
            server, desk = stack.enter_context(serving(llm, limits=limits))
            stack.callback(steps.run)
            stack.callback(held.set)
            server.life._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)  # of what it accepts
            clients = {}

            def ask(state, body, path="/v1/completions", **more):
                clients[state] = stack.enter_context(asking(server, path, body, **more))

            ask("slow reader", STREAM | {"logprobs": 2}, room=ROOM)
            steps.until(lambda: any(each.flow.write_paused for each in server.life._connections()))
            ask("stream", STREAM)
            steps.until(lambda: desk.driver.running == 2)
            ask("whole", BODY)
            steps.until(lambda: desk.driver.running == 3)
            ask("queued", BODY)
            until(lambda: desk.driver.waiting == 1)
            ask("queued stream", STREAM)
            until(lambda: desk.driver.waiting == 2)
            ask("vectors", {"input": [5, 6]}, "/v1/embeddings")
            ask("chat", CHAT, "/v1/chat/completions")
            until(lambda: server.life.running == len(STATES))
            return Scene(server, llm, desk, steps, held, clients)

        yield make


def access(server: Served) -> list[str]:
    return [line.partition(" in ")[0].rpartition(" ")[2] for line in server.said("POST /")]


def test_what_ends_in_time_is_answered_in_full(scene):
    made = scene(drain_seconds=PATIENCE)
    server, clients = made.server, made.clients
    server.life.drain()
    until(lambda: server.life.state == "draining")
    for asked in (request(), posted("/v1/completions", BODY), posted("/v1/embeddings", {"input": "a"})):
        told = server.ask(asked)
        assert (told.status, told.headers["retry-after"]) == (503, "5")
    assert told.code == "draining"
    server.life.drain()  # once more changes nothing
    made.steps.run()
    made.held.set()
    for state in ("whole", "queued", "chat"):
        told = reply(clients[state])
        assert (told.status, told.json["choices"][0]["finish_reason"]) == (200, "stop"), state
    assert reply(clients["vectors"]).json["data"][0]["embedding"]
    for state in ("stream", "queued stream", "slow reader"):
        said = everything(clients[state])
        assert said.startswith(b"HTTP/1.1 200 "), state
        assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), state
        assert b"".join(re.findall(rb'"text":"([^"]*)"', said)) == ANSWER.encode(), state
    until(lambda: server.ended)
    assert server.ended == [True]
    assert made.llm.engine.idle
    assert made.left() == ({}, {}, set(), {}, 0)
    assert sorted(access(server)) == ["200"] * len(STATES) + ["503"] * 2
    assert not server.said("not sent to its end")
    assert not server.said("warning")


def test_what_does_not_end_in_time_is_told_or_cut(scene, monkeypatch):
    monkeypatch.setattr(life, "FLUSH_SECONDS", 0.1)
    made = scene(drain_seconds=0.2)
    server, clients = made.server, made.clients
    made.steps.run(0.02)
    server.life.drain()
    for state in WHOLE:
        told = reply(clients[state])
        assert (told.status, told.code, told.headers["retry-after"]) == (503, "draining", "5"), state
    made.held.set()
    for state in ("stream", "slow reader"):
        said = everything(clients[state])
        assert said.startswith(b"HTTP/1.1 200 "), state
        assert b"[DONE]" not in said, state
        assert not said.endswith(b"0\r\n\r\n"), state  # nobody takes it for whole
    until(lambda: server.ended)
    assert server.ended == [True]
    assert server.said(f"warning: {len(STATES)} requests did not end in time and are stopped")
    assert made.llm.engine.idle
    assert made.left() == ({}, {}, set(), {}, 0)
    assert sorted(access(server)) == ["200"] * 2 + ["503"] * len(WHOLE)
    cut = server.said("POST /v1/completions 200")
    assert len(cut) == 2
    for line in cut:
        assert re.search(r": 3 \+ \d+ tokens, .*, draining, not sent to its end$", line), line
    assert all(line.endswith("draining") for line in server.said("POST") if " 503 " in line)


COMMAND = [sys.executable, str(pathlib.Path(__file__).parents[1] / "helpers" / "scripted_serve.py")]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks for processes in /proc")
def test_a_second_signal_ends_the_process_and_what_it_started():
    words = [*COMMAND, ANSWER, "0.2", "--port=0", "--slots=1", "--drain_seconds=100", "--context=256"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        said = []
        while not (said and said[-1].endswith(": ready\n")):
            said.append(process.stderr.readline())
            assert said[-1], said
        port = int(re.search(r":(\d+): ready", said[-1])[1])

        def asked(sent):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            client.sendall(sent)
            return client

        for _ in range(2):  # the second one of a template starts a process that stays
            assert reply(asked(posted("/apply-template", CHAT))).status == 200
        stream, queued = asked(posted("/v1/completions", STREAM)), asked(posted("/v1/completions", BODY))
        begun = stream.recv(1 << 16)
        assert begun.startswith(b"HTTP/1.1 200 ")
        started = children(process.pid)
        assert started
        process.send_signal(signal.SIGTERM)
        until(lambda: reply(asked(request())).status == 503)
        told = reply(asked(posted("/v1/completions", BODY)))
        assert (told.status, told.code, told.headers["retry-after"]) == (503, "draining", "5")
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 128 + signal.SIGTERM
        assert rest.endswith("\nterminated\n")
        assert "draining: 2 requests run, for 100 s at most" in rest
        assert b"[DONE]" not in everything(stream)
        assert everything(queued) == b""
        assert gone(started)
