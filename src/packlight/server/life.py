"""A server from its socket to its end: loading, ready, draining. Knows neither models nor routes.

The socket is bound at once and health is told from then on, so that whoever starts a server can ask it. uvicorn has the
connections; its own server is not used, as it closes the socket when it drains, and then nobody hears that it does.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import msgspec
import uvicorn
from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from packlight.common.text import shown
from packlight.server.accounts import Account
from packlight.server.errors import ApiError
from packlight.server.guard import OPEN, RETRY, App, Guard, Receive, Scope, Send
from packlight.server.listening import BACKLOG, bind, make_room
from packlight.server.metrics import CONTENT_TYPE, Metrics, route_of
from packlight.server.origins import is_loopback
from packlight.server.protocol import Connection
from packlight.server.settings import Settings

METRICS = "/metrics"
WATCHED = (*OPEN, METRICS)  # paths that are asked all the time
FLUSH_SECONDS = 2.0  # that finished answers have to reach their readers in at the end
MOST_SHOWN = 100_000  # characters of a text that is said
# Seconds that a thread at work keeps the interpreter while the event loop wants it, which it does several times in a
# request. Python's own 5 ms made it 300 ms until /health was told while three threads read prompts.
SWITCH = 0.0005
TICK = 0.05  # seconds between two looks at whether all has ended


class Gate:
    """What stands before the app: nothing passes before it is ready, and nothing new once it drains."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self.app: App | None = None
        self.draining = False
        self.running = 0  # requests that the app has

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == METRICS and scope["method"] in ("GET", "HEAD"):
            await _send(send, 200, self._metrics.text(), CONTENT_TYPE)
        elif self.app is not None and not self.draining:
            self.running += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.running -= 1
        elif scope["path"] in OPEN:
            body = msgspec.json.encode({"status": self.state})
            await _send(send, 503, body, "application/json", (b"retry-after", b"%d" % RETRY))
        else:
            said = "the server is ending" if self.draining else "the model is being loaded"
            raise ApiError(503, said, code=self.state, retry_after=RETRY)

    @property
    def state(self) -> str:
        return "draining" if self.draining else "loading" if self.app is None else "ok"


async def _send(send: Send, status: int, body: bytes, kind: str, *headers: tuple[bytes, bytes]) -> None:
    told = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


class Life:
    """One server. `run` returns when it has drained; `drain` may be called from any thread."""

    def __init__(
        self,
        load: Callable[[], App],
        settings: Settings,
        metrics: Metrics,
        say: Callable[[str], None],
        detail: Callable[[str], None] = lambda line: None,
    ):
        """load: makes the app, on a thread of its own; its lifespan begins and ends on the event loop.

        say: takes the server's lines, detail: those for who wants to know all.

        Raises ConfigError where it cannot listen.
        """
        self._load, self._settings, self._metrics, self._say, self._detail = load, settings, metrics, say, detail
        self._gate = Gate(metrics)
        self._guard = Guard(self._gate, settings.keys, settings.origins, settings.limits, self._book, self.fault)
        self._config = _config(self._guard, settings)
        self._state = ServerState()
        self._listener = bind(settings.host, settings.port)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"  # with the port that it has
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_end = threading.Event()
        self._end: asyncio.Event | None = None

    @property
    def state(self) -> str:
        """loading, ok or draining."""
        return self._gate.state

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    @property
    def running(self) -> int:
        """Requests that the app has."""
        return self._gate.running

    @property
    def held(self) -> int:
        """Bytes of the bodies of all requests."""
        return self._guard.held

    def run(self) -> bool:
        """Serves until it is told to end. Whether loading had ended by then: else its thread still runs. Raises what
        `load` raised.
        """
        if not is_loopback(self._settings.host) and not self._settings.keys:
            self._say(
                f"warning: --host={self._settings.host} lets everyone on the network use this server, without a key; "
                "--api_key_file names a file of keys"
            )
        with self._listener, _lines_of_libraries(self._detail), _quick_switches():
            return asyncio.run(self._serve())

    def drain(self) -> None:
        """Has running requests end, and no new ones begin."""
        self._told_to_end.set()
        if self._loop is not None and self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end.set)

    async def _serve(self) -> bool:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        if self._told_to_end.is_set():
            return True
        loop, limits = self._loop, self._settings.limits
        if (sockets := make_room(limits.sockets)) < limits.sockets:
            limits = dataclasses.replace(limits, sockets=sockets)
            self._say(f"warning: this process may open few files: {sockets} connections at once; ulimit -n raises that")
        server = await loop.create_server(
            lambda: Connection(limits, self._metrics.reject, self._config, self._state, loop),
            sock=self._listener,
            backlog=BACKLOG,
        )
        clock = loop.create_task(self._tell_dates())
        end = loop.create_task(self._end.wait())
        self._say(f"{self.url}: loading")
        loading = loop.create_task(self._in_thread(self._load))
        lifespan = None
        try:
            await asyncio.wait({loading, end}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not self._end.is_set():
                app = loading.result()
                lifespan = LifespanOn(_config(app, self._settings, lifespan="on"))
                await lifespan.startup()
                if lifespan.should_exit:
                    raise RuntimeError("the application did not start; --verbose says why")
                self._gate.app = app
                self._say(f"{self.url}: ready")
                await end
            self._gate.draining = True
            if self._gate.running:
                self._say(f"draining: {self._gate.running} requests run, for {limits.drain_seconds:g} s at most")
            await self._drain()
            return loading.done()
        finally:
            clock.cancel()
            loading.cancel()
            end.cancel()
            server.close()
            await self._close_connections()
            if lifespan is not None:
                await lifespan.shutdown()

    async def _drain(self) -> None:
        """Waits for running requests to end, and stops those that do not."""
        for connection in self._connections():
            connection.shutdown()
        until = asyncio.get_running_loop().time() + self._settings.limits.drain_seconds
        while self._gate.running and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(TICK)
        if self._gate.running:
            self._say(f"warning: {self._gate.running} requests did not end in time and are stopped")
            for task in list(self._state.tasks):
                task.cancel()

    async def _close_connections(self) -> None:
        """Lets what was sent reach its readers, then ends all connections."""
        until = asyncio.get_running_loop().time() + FLUSH_SECONDS
        for connection in self._connections():
            connection.shutdown()
        while self._state.connections and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(TICK)
        for connection in self._connections():
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    async def _in_thread(self, load: Callable[[], App]) -> App:
        """What `load` gives, from a thread that the process's end does not wait for: jax stops for no exception."""
        loop = asyncio.get_running_loop()
        came: asyncio.Future[App] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                told, value = came.set_result, context.run(load)
            except BaseException as error:
                told, value = came.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: came.done() or told(value))  # pyright: ignore[reportArgumentType]

        threading.Thread(target=work, name="load", daemon=True).start()
        return await came

    def _connections(self) -> list[Connection]:
        return [each for each in self._state.connections if isinstance(each, Connection)]

    async def _tell_dates(self) -> None:
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(1)

    def _book(self, scope: Scope, account: Account) -> None:
        """Notes a request that has ended."""
        own = scope["path"] in WATCHED
        self._metrics.book(scope["path"] if own else route_of(self._gate.app, scope), account)
        (self._detail if own else self._say)(account.line())
        for text in account.texts or ():
            self._say(f"text: {shown(text, MOST_SHOWN)}")

    def fault(self, error: BaseException) -> None:
        """Says an error that is our own fault. What it says itself, perhaps with a text in it, only --verbose shows."""
        places = traceback.extract_tb(error.__traceback__)
        where = f", {os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else ""
        self._say(f"error: a request failed: {type(error).__name__}{where}; --verbose says more")
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._detail(line)


def _config(app: Any, settings: Settings, lifespan: Any = "off") -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        lifespan=lifespan,
        interface="asgi3",
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.limits.keep_alive_seconds,  # pyright: ignore[reportArgumentType]
        h11_max_incomplete_event_size=settings.limits.head,
    )
    config.load()
    return config


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._say(f"{record.name}: {line}")


@contextlib.contextmanager
def _lines_of_libraries(say: Callable[[str], None]) -> Iterator[None]:
    """As long as this lasts, what uvicorn and asyncio log goes to `say` and nowhere else."""
    handler, loggers = _Lines(say), [logging.getLogger(name) for name in ("uvicorn", "asyncio")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """As long as this lasts, threads take turns so often that the event loop is not kept waiting."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def drained_by_signals(life: Life) -> Iterator[None]:
    """As long as this lasts, the first SIGTERM or SIGINT drains; a second does what it did before. Main thread only."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(_number: int, _frame: object) -> None:
        restore()
        life.drain()

    for number in numbers:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
