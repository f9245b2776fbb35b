"""Server-sent events: what a step gave in one write, a comment where nothing came for a while, an end that clients
know.

Source: the HTML standard, "Server-sent events"; OpenAI's API, whose streams end by [DONE].
"""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from packlight.server.accounts import account_of
from packlight.server.errors import ApiError

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def event(reply: dict[str, Any]) -> bytes:
    return b"data: " + encoded(reply) + b"\n\n"


def encoded(reply: Any) -> bytes:
    """The JSON of a reply; half a character that a model spelled by an escape stays one."""
    try:
        return msgspec.json.encode(reply)
    except UnicodeEncodeError:
        return json.dumps(reply).encode()


def events(replies: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(map(event, replies))


class EventStream(Response):
    """A response of events. It ends early where the client leaves, and after an error, which is an event of its own."""

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncGenerator[bytes], headers: dict[str, str]):
        self._parts = parts
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"} | headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with contextlib.aclosing(self._parts) as parts:  # at once, where it is stopped while it writes
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except ApiError as error:
            account_of(scope).reason = error.code or error.type
            await send({"type": "http.response.body", "body": event(error.body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(reply: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encoded(reply), status, headers, "application/json")
