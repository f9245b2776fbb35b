"""Requests by the thousand, with every fault there is among them: nothing stays, and the next answer is right."""

import asyncio
import collections
import gc
import itertools
import json
import os
import random
import resource
import signal
import socket

import pytest
from asgi import freed
from fake_engine import fake_llm
from processes import children
from raw_http import served

from packlight import demo
from packlight.model.text import sandboxes
from packlight.server.app import Server
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

CLIENTS = 12
WARM = 200  # requests after which memory is looked at first: what is allocated once is there by then
GROWTH = 24 << 20  # bytes of resident memory that 10,000 requests may add: 2.5 KB each, less than one's own text
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SIP = 48  # bytes that a slow reader takes at a time
# What clients do; each is a body and how much of the answer is read before the connection is closed.
KINDS = {
    "whole": (CHAT, None),
    "several": (CHAT | {"n": 3, "logprobs": True, "top_logprobs": 2}, None),
    "stream": (CHAT | {"stream": True}, None),
    "echo": ({"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 0}, None),
    "left in a stream": (CHAT | {"stream": True}, 300),
    "left at once": (CHAT, 0),
    "read slowly": (CHAT | {"stream": True, "n": 2, "logprobs": True}, None),
    "left while read slowly": (CHAT | {"stream": True, "n": 2, "logprobs": True}, 10 * SIP),
    "a wrong field": (CHAT | {"temprature": 1}, None),
    "no JSON": (b"{", None),
    "half a body": (b"half", 0),
    "too long": ({"prompt": "word " * 400}, None),
}
RENDERED = ("whole", "several", "stream", "read slowly")  # kinds that a template is asked for, read to the end


def sent(kind: str, body: object) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(data) + (100 if kind == "half a body" else 0)
    path = "/v1/completions" if isinstance(body, dict) and "prompt" in body else "/v1/chat/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + data


async def slow_connection(address):
    """One whose client's side holds little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 11)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    return await asyncio.open_connection(sock=client, limit=SIP)


async def sipped(reader: asyncio.StreamReader, most: int | None) -> bytes:
    answer = b""
    while (most is None or len(answer) < most) and (piece := await reader.read(SIP)):
        answer += piece
        await asyncio.sleep(0)
    return answer


async def one(address, kind: str) -> str:
    """What came of one request: the status, and how a stream ended."""
    body, read = KINDS[kind]
    slow = kind.endswith("read slowly")
    reader, writer = await (slow_connection(address) if slow else asyncio.open_connection(*address))
    try:
        writer.write(sent(kind, body))
        await writer.drain()
        if slow:
            answer = await asyncio.wait_for(sipped(reader, read), 30)
        else:
            answer = await reader.read(read) if read is not None else await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
    status = answer[9:12].decode()
    return f"{status} done" if b"[DONE]" in answer else status


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes, without garbage: beside a heap as large as that of many tests, Python seldom looks for it."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.product)])
def test_nothing_is_left_behind(count, monkeypatch):
    llm = fake_llm(demo.MODEL, "A scripted answer, 日本.", slots=3)

    def faults(number):
        if number % 97 == 0:
            raise RuntimeError("injected")
        if number % 89 == 0:
            llm.engine.failing.add(llm.engine.numbers - 1)

    llm.engine.before_step = faults
    asked, real = itertools.count(1), sandboxes.Sandbox.ask

    def ask(sandbox, line, until):
        number = next(asked)
        if number % 41 == 0:
            os.killpg(sandbox._process.pid, signal.SIGKILL)
        return real(sandbox, line, 0.0 if number % 37 == 0 else until)  # which is over

    monkeypatch.setattr(sandboxes.Sandbox, "ask", ask)
    servers = []

    def load():
        servers.append(Server(llm, Settings(names=("demo",)), Metrics(), lambda error: None))
        return servers[0].app()

    drawn = random.Random(1)
    came = collections.defaultdict(collections.Counter)

    async def work(address):
        left = itertools.count()
        marks = []

        async def client():
            while (number := next(left)) < count:
                kind = drawn.choice([*KINDS])
                came[kind][await one(address, kind)] += 1
                if number == WARM:
                    marks.append(resident())
                llm.engine.seen.clear()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        await freed(llm, servers[0])
        llm.engine.before_step = lambda number: None
        monkeypatch.undo()
        return marks[0], await one(address, "whole"), await one(address, "stream")

    with served(load) as server:
        before, processes = open_files(), len(children(os.getpid()))
        warm, whole, stream = asyncio.run(work(server.address))
        grown, files = resident() - warm, open_files()
        processes = len(children(os.getpid())) - processes
    desk = servers[0].desk
    assert (whole, stream) == ("200", "200 done")
    assert llm.engine.idle
    assert (desk._of, desk._newest, llm.scheduler._runs, desk.driver._accepted) == ({}, {}, {}, set())
    assert files <= before + 2
    assert processes <= 2 * sandboxes.STAYING  # each with a copy of itself
    assert grown < GROWTH
    for kind in ("whole", "several"):  # 500: faults of the engine, 400: of the template's process
        assert {"200", "500"} <= set(came[kind]) <= {"200", "400", "500"}
    assert sum(came[kind]["400"] for kind in RENDERED) >= count // 200
    for kind in ("stream", "read slowly"):
        assert came[kind]["200 done"] > 0
    assert set(came["a wrong field"]) == set(came["no JSON"]) == set(came["too long"]) == {"400"}
    assert set(came["echo"]) <= {"200", "500"}
