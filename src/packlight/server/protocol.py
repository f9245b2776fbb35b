"""uvicorn's HTTP/1.1 connection with bounds: of the time for heads, bodies and readers, and of connections at once.

uvicorn alone waits forever for the rest of a head or a body, and for a reader (its `h11_impl.py`, `flow_control.py`).
Knows no routes; what is wrong with HTTP itself is answered here, in OpenAI's shape.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import h11
import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from packlight.server.accounts import account_of
from packlight.server.errors import ApiError
from packlight.server.guard import CLOSE, RETRY, Scope, error_headers
from packlight.server.limits import Limits

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

REPLYING = (h11.IDLE, h11.SEND_RESPONSE)  # states in which an answer may still begin


class Flow(FlowControl):
    """Reads on while little is held: a connection that is not read does not tell that its client has left.

    uvicorn stops reading as soon as a second request has come behind one that runs.
    """

    def __init__(self, transport: asyncio.Transport, held: Callable[[], int]):
        super().__init__(transport)
        self._held = held

    def pause_reading(self) -> None:
        if self._held() > HIGH_WATER_LIMIT:
            super().pause_reading()


class Connection(H11Protocol):
    """One connection. At any time one deadline holds: for a head, for a body, or for the reader."""

    def __init__(
        self,
        limits: Limits,
        reject: Callable[[str], None],
        config: "Config",
        server_state: "ServerState",
        loop: asyncio.AbstractEventLoop,
    ):
        """reject: told why a connection was refused or cut, in a word."""
        super().__init__(config, server_state, {}, loop)
        self._limits, self._reject = limits, reject
        self._deadline: asyncio.TimerHandle | None = None  # of what is to come
        self._patience: asyncio.TimerHandle | None = None  # with the reader
        self._begun = False  # bytes of a head have come
        self._in_body = False  # the head of a request has come, and its body not yet
        self._dropped = 0  # bytes of a body that nobody reads
        self._idle_since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a request has come whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    # What asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        transport.set_write_buffer_limits(high=self._limits.unread)
        super().connection_made(transport)
        self.flow = Flow(transport, lambda: len(self.cycle.body) + len(self.conn.trailing_data[0]))
        if len(self.connections) > self._limits.sockets and not self._make_room():
            self._refuse(ApiError(503, "too many connections", code="too_many_connections", retry_after=RETRY))
        else:
            self._wait(self._limits.head_seconds, self._no_head)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if not self.busy and not self._in_body:
            self._begin_head()
        if self._in_body and not self.busy:
            self._dropped += len(data)
            if self._dropped > self._limits.dropped:
                self._cut("body_too_large")
                return
        self.conn.receive_data(data)
        self.handle_events()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.transport.is_closing():
            return
        if self.cycle is not before:  # a head is whole
            self._begun, self._in_body, self._dropped = False, True, 0
            self._idle_since = time.monotonic()
            self._wait(self._limits.body_seconds, self._no_body)
        if self._in_body and (not self.cycle.more_body or self.conn.their_state is h11.IDLE):
            self._in_body = False
            self._end_wait()
        if not self.busy and not self._in_body and self.conn.trailing_data[0]:
            self._begin_head()

    def eof_received(self) -> None:
        self._watch_reader()  # asyncio closes the connection now, once all is sent

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._forgive_reader()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection broke

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._forgive_reader()
        super().resume_writing()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        if not self._in_body:  # else the deadline of the body holds
            super().timeout_keep_alive_handler()
            self._watch_reader()

    def shutdown(self) -> None:
        """Closes the connection, once an answer that is under way is complete."""
        if self.conn.our_state is h11.ERROR:
            self.transport.abort()
            return
        super().shutdown()
        if self.transport.is_closing():
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()  # uvicorn calls this while it handles h11's
        status = getattr(error, "error_status_hint", 400)
        code = "headers_too_large" if status == 431 else "invalid_http"
        self._refuse(ApiError(status, f"this is no request in HTTP/1.1: {error}", code=code))

    # Deadlines

    def _begin_head(self) -> None:
        if not self._begun:
            self._begun = True
            self._wait(self._limits.head_seconds, self._no_head)

    def _wait(self, seconds: float, late: Callable[[], None]) -> None:
        self._end_wait()
        self._deadline = self.loop.call_later(seconds, late)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _no_head(self) -> None:
        if not self._begun:  # a browser opens connections before it has something to ask
            self.transport.close()
            return
        said = f"the head of the request did not come within {self._limits.head_seconds:g} s"
        self._refuse(ApiError(408, said, code="head_timeout"))

    def _no_body(self) -> None:
        said = f"the body of the request did not come within {self._limits.body_seconds:g} s"
        self._refuse(ApiError(408, said, code="body_timeout"))

    def _watch_reader(self) -> None:
        """From here on a reader that takes nothing, though there is something, is cut when its time is up."""
        left = self.transport.get_write_buffer_size()
        if self._patience is None and left:
            self._patience = self.loop.call_later(self._limits.send_seconds, self._check_reader, left)

    def _forgive_reader(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _check_reader(self, before: int) -> None:
        self._patience = None
        if self.transport.get_write_buffer_size() >= before:  # nothing was added: who writes waits, or is done
            self._cut("reader_timeout")
        else:
            self._watch_reader()

    # Ends

    def _make_room(self) -> bool:
        """Cuts the connection whose client has let us wait for longest, if one has for a while."""
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        waiting = [each for each in others if each._in_body or not each.busy]
        oldest = min(waiting, key=lambda each: each._idle_since, default=None)
        if oldest is None or oldest._idle_since > time.monotonic() - self._limits.idle_seconds:
            return False
        oldest._cut("idle")
        self.connections.discard(oldest)  # it is told in the loop's next turn
        return True

    def _cut(self, reason: str) -> None:
        self._reject(reason)
        self._end_wait()
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answers with an error where an answer may still begin, and closes. No handler is heard any more."""
        assert error.code is not None
        self._end_wait()
        if self.conn.our_state not in REPLYING:
            self._cut(error.code)
            return
        if self.busy:
            account = account_of(cast(Scope, self.scope))
            account.status, account.reason, account.complete = error.status, error.code, True
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._reject(error.code)
        body = msgspec.json.encode(error.body)
        headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), CLOSE]
        reply = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
        try:
            for event in (reply, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # HEAD has no body
            self.transport.abort()
        self.transport.close()
        self._watch_reader()
