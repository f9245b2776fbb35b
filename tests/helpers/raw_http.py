"""A server of trivial routes on a thread of this process, and clients that speak to it byte by byte."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from packlight.server.accounts import Account
from packlight.server.life import Life
from packlight.server.limits import Limits
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

PATIENCE = 10.0  # seconds after which a test gives up
PIECE = b"x" * 65536


@dataclasses.dataclass
class Served:
    """A server under test, and what it said."""

    life: Life
    metrics: Metrics
    lines: list[str]
    details: list[str]
    left: list[str]  # routes whose client left while they ran
    ended: list[Any] = dataclasses.field(default_factory=list)  # what `Life.run` gave, or raised

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.life.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def said(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def ask(self, sent: bytes) -> "Reply":
        """The first answer to these bytes, on a connection of its own."""
        with self.connect() as client:
            client.sendall(sent)
            return reply(client)


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]["code"]


def routes(left: list[str], release: threading.Event) -> Starlette:
    """Routes that do as they are named."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def echo(request: Request) -> Response:
        body = await request.body()
        account: Account = request.state.account
        account.prompt_tokens, account.generated_tokens, account.cached_tokens = 7, 3, 2
        account.first_token_s, account.queue_s = 0.25, 0.01
        account.drafted_tokens, account.accepted_tokens = 5, 1
        return Response(body, media_type="application/json")

    async def endless(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield PIECE
                    await asyncio.sleep(0)
            finally:
                left.append("endless")

        return StreamingResponse(pieces())

    async def slow(request: Request) -> Response:
        await request.body()
        gone = asyncio.ensure_future(request.receive())
        while not release.is_set():
            if gone.done():
                left.append("slow")
                return Response(status_code=499)
            await asyncio.sleep(0.005)
        gone.cancel()
        return JSONResponse({"slow": True})

    async def fail(_: Request) -> Response:
        raise ValueError("a secret prompt")

    async def fail_late(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ValueError("late")

        return StreamingResponse(pieces())

    table = [("/health", health, "GET"), ("/echo", echo, "POST"), ("/endless", endless, "GET"), ("/slow", slow, "GET")]
    table += [("/fail", fail, "GET"), ("/fail_late", fail_late, "GET"), ("/models/{name:path}", health, "GET")]
    return Starlette(routes=[Route(path, handler, methods=[method]) for path, handler, method in table])


@contextlib.contextmanager
def served(
    load: Callable[[], Any] | None = None,
    release: threading.Event | None = None,
    wait: bool = True,
    say: Callable[[str], None] = lambda line: None,
    **chosen: Any,
) -> Iterator[Served]:
    """A server on a free port. wait: until it is ready. say: is told its lines too. chosen: of Settings."""
    left: list[str] = []
    lines: list[str] = []
    details: list[str] = []
    metrics = Metrics()
    app = routes(left, release or threading.Event())

    def note(line: str) -> None:
        lines.append(line)
        say(line)

    life = Life(load or (lambda: app), Settings(port=0, **chosen), metrics, note, details.append)
    server = Served(life, metrics, lines, details, left)

    def work() -> None:
        try:
            server.ended.append(life.run())
        except BaseException as error:
            server.ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        if wait:
            until(lambda: life.state == "ok")
        yield server
    finally:
        life.drain()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits for what another thread or process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def request(path: str = "/health", method: str = "GET", body: bytes | None = None, **headers: str) -> bytes:
    """A request as bytes; an underscore in a header's name is a hyphen."""
    named = {"Host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named = {"Content-Type": "application/json", "Content-Length": str(len(body))} | named
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")


def reply(client: socket.socket) -> Reply:
    """The next answer, of known length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(1)
        assert more, f"the connection ended after {data!r}"
        data += more
    head, _, _ = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    body = b""
    while left := int(headers.get("content-length", 0)) - len(body):
        more = client.recv(left)
        assert more, f"the connection ended after {body!r}"
        body += more
    return Reply(int(first.split()[1]), headers, body)


def ends(client: socket.socket) -> bool:
    """Whether the server closes the connection, before patience does."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


QUICK = Limits(head_seconds=0.3, body_seconds=0.3, keep_alive_seconds=0.4, send_seconds=0.3, drain_seconds=0.5)
