"""The whole server, from its socket to a scripted engine, on a thread of this process."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

from fake_engine import FakeLLM
from raw_http import PATIENCE, Served, request, served

from packlight.server.app import Server
from packlight.server.generation import Desk
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings


@contextlib.contextmanager
def serving(
    llm: FakeLLM, say: Callable[[str], None] = lambda line: None, **chosen: Any
) -> Iterator[tuple[Served, Desk]]:
    """say: is told the server's lines too. chosen: of Settings."""
    made: list[Server] = []

    def report(error: BaseException) -> None:
        running.life.fault(error)

    def load() -> Any:
        made.append(Server(llm, Settings(names=("demo",), **chosen), Metrics(), report))
        return made[0].app()

    with served(load, say=say, **chosen) as running:
        yield running, made[0].desk


def posted(path: str, body: Any, **headers: str) -> bytes:
    """A POST of JSON as bytes."""
    return request(path, "POST", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)


def asking(server: Served, path: str, body: Any, room: int | None = None) -> socket.socket:
    """A connection on which a request was sent. room: bytes that the client's side of it holds."""
    client = socket.socket()
    if room is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.settimeout(PATIENCE)
    client.connect(server.address)
    client.sendall(posted(path, body))
    return client


def said_to(server: Served, path: str, body: Any) -> bytes:
    """All of an answer, whole or a stream, with its head."""
    with server.connect() as client:
        client.sendall(posted(path, body, Connection="close"))
        return everything(client)


def everything(client: socket.socket) -> bytes:
    """What comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            data += piece
    return data
