"""A client of OpenAI's API that costs little beside the server it loads. Imports no jax.

Each request has a connection of its own; what arrives is kept with its time and understood when everything is over, so
that the generator does not take the processor from the server it measures. Times are `time.perf_counter`'s.
"""

import asyncio
import bisect
import collections
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from packlight.common.text import reason

EVENT = b"data: "
UNFINISHED = "the stream has no end"
PAGE_S, ANSWER_S = 10, 900  # a server that says nothing for so long does not answer


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a streamed completion was.

    sent: when the request was made. times: when each piece of text came, all tokens of a piece together. tokens: of the
    answer. cached: of the prompt, tokens that were not read anew. error: why it is no whole answer, "" of a whole one.
    """

    sent: float
    times: list[float]
    tokens: int = 0
    cached: int = 0
    error: str = ""

    @property
    def first_s(self) -> float:
        return self.times[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.times)]


class Exchange(asyncio.Protocol):
    """One request on its connection. `events` counts what a stream has sent so far; `close` leaves it unfinished, and
    then it is `left`.
    """

    def __init__(self, message: bytes):
        self.events, self.left = 0, False
        self._message = message
        self.arrived: list[tuple[float, bytes]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self.arrived.append((time.perf_counter(), data))
        self.events += data.count(EVENT)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    async def end(self, seconds: float) -> None:
        """Waits until the server has closed the connection. Raises TimeoutError, having closed it."""
        try:
            async with asyncio.timeout(seconds):
                await self.over
        except TimeoutError:
            self.close()
            raise TimeoutError(f"no end within {seconds:g} s") from None

    def close(self) -> None:
        self.left = True
        self._transport.abort()


class Client:
    """Requests to the server at a port of this machine."""

    def __init__(self, port: int, model: str = ""):
        self._port, self._model = port, model
        self.url = f"http://127.0.0.1:{port}"
        self._failures: collections.Counter[str] = collections.Counter()

    async def complete(
        self, prompt: Sequence[int] | str, tokens: int, on_open: Callable[[Exchange], None] = lambda _: None
    ) -> Reply:
        """The greedy continuation of token ids, or of a text, by exactly so many tokens, as a stream. A server's
        failure is the reply's `error`.

        on_open: gets the exchange once it is sent.
        """
        body = {
            **({"model": self._model} if self._model else {}),
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent, left = time.perf_counter(), False
        try:
            exchange = await self._exchange(_message("POST", "/v1/completions", json.dumps(body).encode()))
            on_open(exchange)
            await exchange.end(ANSWER_S)
            reply, left = read_reply(sent, exchange.arrived, tokens), exchange.left
        except OSError as error:
            reply = Reply(sent, [], error=reason(error))
        if reply.error and not left:
            self._failures[reply.error] += 1
        return reply

    def told(self) -> list[str]:
        """Why completions have failed since the last call, each reason once."""
        found = [f"{count} times {error}" for error, count in self._failures.items()]
        self._failures.clear()
        return found

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page; raises OSError where nobody answers."""
        exchange = await self._exchange(_message("GET", path))
        await exchange.end(PAGE_S)
        status, pieces = read_pieces(exchange.arrived)
        return status, b"".join(piece for _, piece in pieces)

    async def _exchange(self, message: bytes) -> Exchange:
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(lambda: Exchange(message), "127.0.0.1", self._port)
        return exchange


def _message(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def read_pieces(arrived: Sequence[tuple[float, bytes]]) -> tuple[int, list[tuple[float, bytes]]]:
    """Status of a reply and the pieces of its body, each with the time at which it was whole; status 0 of no reply."""
    whole = b"".join(data for _, data in arrived)
    ends = list(itertools.accumulate(len(data) for _, data in arrived))
    head, _, _ = whole.partition(b"\r\n\r\n")
    start = len(head) + 4
    lines = head.split(b"\r\n")
    words = lines[0].split()
    if len(words) < 2 or start > len(whole):
        return 0, []
    chunked = any(line.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for line in lines)
    spans = _chunks(whole, start) if chunked else [(start, len(whole))]
    return int(words[1]), [(arrived[bisect.bisect_left(ends, last)][0], whole[at:last]) for at, last in spans]


def _chunks(whole: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Where each chunk's bytes begin and end. Source: RFC 9112, section 7.1."""
    while (end := whole.find(b"\r\n", at)) >= 0:
        size = int(whole[at:end].partition(b";")[0], 16)
        if size == 0 or end + 2 + size > len(whole):
            return
        yield end + 2, end + 2 + size
        at = end + 2 + size + 2


def read_events(pieces: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """What each event of a stream says, with the time at which it was whole; comments are left out."""
    found, rest = [], b""
    for when, piece in pieces:
        *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        found += [(when, event.removeprefix(EVENT)) for event in events if event.startswith(EVENT)]
    return found


def read_reply(sent: float, arrived: Sequence[tuple[float, bytes]], tokens: int) -> Reply:
    """The reply in what arrived; one that is not whole, or has not so many tokens, says so in `error`."""
    status, pieces = read_pieces(arrived)
    if status != 200:
        said = b"".join(piece for _, piece in pieces).decode(errors="replace")
        return Reply(sent, [], error=f"status {status}: {said[:200]}" if status else "no reply")
    times: list[float] = []
    usage: dict[str, Any] = {}
    error, ended = "", False
    for when, text in read_events(pieces):
        if ended := text == b"[DONE]":
            break
        event = json.loads(text)
        error = error or json.dumps(event["error"]) if "error" in event else error
        usage = event.get("usage") or usage
        times += [when for choice in event.get("choices", ()) if choice.get("text")]
    answered = usage.get("completion_tokens", 0)
    if not error and not ended:
        error = UNFINISHED
    if not error and (answered != tokens or not times):
        error = f"{answered} tokens instead of {tokens}"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Reply(sent, times, answered, cached, error)
