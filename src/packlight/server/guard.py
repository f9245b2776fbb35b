"""What stands before the routes: who may ask, by which name, and how large a body may be. Every refusal is in OpenAI's
shape, and every request leaves an access line and its numbers.

Pure ASGI. Knows no route and decodes no body.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect

from packlight.server.accounts import Account, account_of
from packlight.server.bodies import json_depth
from packlight.server.errors import ApiError, api_error
from packlight.server.keys import Keys
from packlight.server.limits import Limits
from packlight.server.origins import Origins

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

OPEN = ("/health", "/v1/health")  # paths that need no key
SAFE = ("GET", "HEAD", "OPTIONS")
METHODS = b"GET, POST, OPTIONS"
JSON = re.compile(rb"application/(?:json|[\w.+-]+\+json)\s*(?:;.*)?", re.IGNORECASE)
NAMES = re.compile(rb"[\w-]+(?:\s*,\s*[\w-]+)*")  # of headers
LARGE = 1 << 16  # bytes of a body that is looked at beside the event loop
RETRY = 5  # seconds after which a client that was refused for want of room may try again
CLOSE = (b"connection", b"close")


class Guard:
    """The middleware. `done` is told of each request once nothing more of it will be sent."""

    def __init__(
        self,
        app: App,
        keys: Keys,
        origins: Origins,
        limits: Limits,
        done: Callable[[Scope, Account], None] = lambda scope, account: None,
        report: Callable[[BaseException], None] = lambda error: None,
    ):
        """report: told of errors that the app raised, which are our own faults."""
        self._app, self._keys, self._origins, self._limits = app, keys, origins, limits
        self._done, self._report = done, report
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account, held = account_of(scope), [0]
        answer = Answer(send, account, self._cors(scope))
        try:
            await self._admitted(scope, receive, answer, held)
        except ApiError as error:
            account.reason = error.code
            await answer.refuse(error)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            account.reason = "draining"
            if account.status is None:
                await answer.refuse(ApiError(503, "the server is ending", code="draining", retry_after=RETRY))
            raise
        except Exception as error:
            self._report(error)
            if account.status is None:
                await answer.refuse(api_error(error))
            elif not account.complete:
                raise  # the connection ends, so that nobody takes the answer for whole
        finally:
            self.held -= held[0]
            self._done(scope, account)

    async def _admitted(self, scope: Scope, receive: Receive, answer: "Answer", held: list[int]) -> None:
        """Answers a request, or raises ApiError where it is refused."""
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(400, "this is no request in HTTP/1.1", code="invalid_http")
        self._check_head(scope["headers"])
        self._check_names(scope)
        if scope["method"] == "OPTIONS" and _first(scope["headers"], b"access-control-request-method") is not None:
            await self._preflight(scope, answer)
            return
        if not (scope["path"] in OPEN and scope["method"] in SAFE) and not self._keys.admit(scope["headers"]):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] == "POST":
            body = await self._body(scope, receive, held)
            receive = replayed(body, receive)
        await self._app(scope, receive, answer)

    def _check_head(self, headers: list[tuple[bytes, bytes]]) -> None:
        limits = self._limits
        if len(headers) > limits.headers:
            raise ApiError(431, f"more than {limits.headers} headers", code="too_many_headers")
        if sum(len(name) + len(value) + 4 for name, value in headers) > limits.head:
            raise ApiError(431, f"headers of more than {limits.head} bytes", code="headers_too_large")

    def _check_names(self, scope: Scope) -> None:
        """Refuses names that this server does not go by, and what other sites' pages would have done."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:
            raise ApiError(400, "more than one Host header", code="invalid_host")
        if hosts and not self._origins.goes_by(hosts[0]):
            said = "this server does not go by the name in the Host header; --allowed_hosts adds names"
            raise ApiError(403, said, code="host_not_allowed")
        origin = _first(scope["headers"], b"origin")
        if origin is None or scope["method"] in SAFE:
            return
        text = origin.decode("latin-1")
        if not self._origins.shares_with(text) and not (hosts and self._origins.own(text, hosts[0])):
            said = "pages of this origin may not use this server; --cors_origins adds origins"
            raise ApiError(403, said, code="origin_not_allowed")

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = _first(scope["headers"], b"origin")
        return [] if origin is None else [*self._origins.cors_headers(origin.decode("latin-1"))]

    async def _preflight(self, scope: Scope, answer: "Answer") -> None:
        """Answers a browser that asks what a page may send. It has no key yet."""
        origin = _first(scope["headers"], b"origin")
        if origin is None or not self._origins.shares_with(origin.decode("latin-1")):
            said = "pages of this origin may not use this server; --cors_origins adds origins"
            raise ApiError(403, said, code="origin_not_allowed")
        headers = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", b"600")]
        wanted = _first(scope["headers"], b"access-control-request-headers")
        if wanted is not None and NAMES.fullmatch(wanted):
            headers.append((b"access-control-allow-headers", wanted))
        await answer({"type": "http.response.start", "status": 204, "headers": headers})
        await answer({"type": "http.response.body", "body": b""})

    async def _body(self, scope: Scope, receive: Receive, held: list[int]) -> bytes:
        """The body, once all of it has come. Raises ApiError, ClientDisconnect.

        held: the bytes of it that have come so far.
        """
        headers, most = scope["headers"], self._limits.body
        kind, coding = _first(headers, b"content-type"), _first(headers, b"content-encoding")
        if kind is None or not JSON.fullmatch(kind):
            raise ApiError(415, "a body is JSON: Content-Type: application/json", code="unsupported_media_type")
        if coding is not None and coding.lower() != b"identity":
            raise ApiError(415, "a body comes as it is, without Content-Encoding", code="unsupported_media_type")
        length = _first(headers, b"content-length")
        if length is not None and int(length) > most:  # h11 lets nothing but digits pass
            raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            chunks.append(chunk)
            held[0] += len(chunk)
            self.held += len(chunk)
            if held[0] > most:
                raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
            if self.held > self._limits.bodies:
                raise ApiError(503, "too many bytes of bodies are held", code="bodies_full", retry_after=RETRY)
        body = b"".join(chunks)
        depth = json_depth(body) if len(body) <= LARGE else await asyncio.to_thread(json_depth, body)
        if depth > self._limits.depth:
            said = f"the body has more than {self._limits.depth} brackets inside each other"
            raise ApiError(400, said, code="json_too_deep")
        return body


class Answer:
    """What is sent to one client. Errors that are plain text, such as a router's 404 and 405, are told in our shape."""

    def __init__(self, send: Send, account: Account, headers: list[tuple[bytes, bytes]]):
        self._send, self._account, self._headers = send, account, headers
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        account = self._account
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
            if status >= 400 and (_first(headers, b"content-type") or b"").startswith(b"text/plain"):
                self._replaced = True
                allow = [(name, value) for name, value in headers if name == b"allow"]
                await self.refuse(ApiError(status, _words(status, account), code=_code(status)), allow)
                return
            account.status = status
            message = {**message, "headers": [*headers, *self._headers, (b"x-content-type-options", b"nosniff")]}
        elif self._replaced:
            return
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            account.complete = True

    async def refuse(self, error: ApiError, further: Headers = ()) -> None:
        """Sends an error as the whole answer."""
        headers = [*self._headers, *error_headers(error), *further]
        self._account.status = error.status
        body = msgspec.json.encode(error.body)
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        self._account.complete = True


def error_headers(error: ApiError) -> list[tuple[bytes, bytes]]:
    """The headers that an error is sent with, without its length."""
    headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers + [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body first."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again


def _first(headers: Headers, name: bytes) -> bytes | None:
    return next((value for each, value in headers if each == name), None)


def _words(status: int, account: Account) -> str:
    match status:
        case 404:
            return "there is no such path"
        case 405:
            return f"this path does not take {account.method}"
    return "the server failed at this request; its log says how" if status >= 500 else f"status {status}"


def _code(status: int) -> str | None:
    return {404: "unknown_path", 405: "method_not_allowed"}.get(status)
