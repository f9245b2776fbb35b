"""Calls an ASGI application as a server would, with clients that leave in the middle."""

import asyncio
import contextlib
import json


@contextlib.asynccontextmanager
async def running(app):
    """The application between its startup and its shutdown."""
    async with app.router.lifespan_context(app):
        yield app


async def freed(llm, server):
    """Waits until the engine has nothing under way."""
    for _ in range(1000):
        if llm.engine.idle and not server.desk.driver.waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a slot was not freed")


async def call(app, method, path, body=None, leave=None, headers=(), on_part=lambda part: None):
    """(status, headers, body) of a request; status None where nothing was answered. leave: an asyncio.Event at which
    the client goes.
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent, told = [{"type": "http.request", "body": data, "more_body": False}], {"status": None, "headers": {}}
    parts = []

    async def receive():
        if sent:
            return sent.pop()
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            told["status"] = message["status"]
            told["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
        elif part := message.get("body"):
            parts.append(part)
            on_part(part)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), *headers],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    await app(scope, receive, send)
    return told["status"], told["headers"], b"".join(parts)


def stream_of(body: bytes) -> list:
    """The events of a stream: decoded JSON, or the text of [DONE]. Comments are left out."""
    lines = [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
