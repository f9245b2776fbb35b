"""What servers are loaded with, and the figures of one round. Imports no jax.

Every load is a closed loop: a client sends its next request when the last one is answered. Prompts are random token
ids, the same for every server, and new in every load of every round, so that nothing is remembered but what a load
repeats.
"""

import asyncio
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

from packlight.bench.http_client import UNFINISHED, Client, Exchange, Reply

FIRST_WORD = 300  # ids below may be special, or bytes
HEALTH_EVERY_S = 0.1
Figures = dict[str, float]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens, and how many of what."""

    prompt: int = 512
    answer: int = 64
    requests: int = 2  # of each of up to `clients` clients; of more clients one each
    clients: int = 4  # as many as slots
    crowd: int = 16
    shared: int = 400  # of a system prompt, before `own` others
    own: int = 64
    long: int = 4096  # the prompt that arrives
    streams: int = 3
    begun: int = 8  # pieces that each of the streams has sent by then
    streamed: int = 400  # tokens of a stream at most; it is closed when the long prompt is answered
    chats: int = 20
    opening: int = 256  # the first turn of each of them
    turn: int = 16  # what a turn adds, and its answer
    turns: int = 6  # of the single chat
    together: int = 192  # of each answer that is compared with the engine's own

    @property
    def context(self) -> int:
        """What a slot must hold, in steps of 256 as llama.cpp takes it."""
        longest = max(self.long, self.own + self.streamed, self.prompt + self.turns * self.turn + self.answer)
        return -(-(longest + self.answer) // 256) * 256


class Ids:
    """Random token ids."""

    def __init__(self, vocab: int, *seed: int):
        """seed: numbers; other ones give other ids, however many are drawn at a time."""
        self._rng, self._vocab = np.random.default_rng(seed), vocab

    def __call__(self, count: int) -> list[int]:
        return self._rng.integers(FIRST_WORD, self._vocab, count).tolist()


Load = Callable[[Client, Sizes, Ids], Awaitable[Figures]]


async def loop(client: Client, work: Sequence[Sequence[tuple[list[int] | str, int]]]) -> list[Reply]:
    """The replies of all clients, which begin together. work: each client's prompts, with the tokens of each answer."""

    async def one(requests: Sequence[tuple[list[int] | str, int]]) -> list[Reply]:
        return [await client.complete(prompt, tokens) for prompt, tokens in requests]

    return list(itertools.chain.from_iterable(await asyncio.gather(*map(one, work))))


async def watched(client: Client, work: Awaitable[T]) -> tuple[T, Figures]:
    """The result of some work, how long the slowest pages of /health took meanwhile, and how many were refused."""
    waits: list[float] = []
    unhealthy = 0

    async def ask() -> None:
        nonlocal unhealthy
        while True:
            began, status = time.perf_counter(), 0
            try:
                status, _ = await client.get("/health")
            except OSError:
                pass
            finally:  # one that is not answered by the end has waited so long
                waits.append(time.perf_counter() - began)
            unhealthy += status != 200
            await asyncio.sleep(HEALTH_EVERY_S)

    asking = asyncio.ensure_future(ask())
    try:
        result = await work
    finally:
        asking.cancel()
        await asyncio.wait([asking])
    return result, {"health_p99_s": percentile(waits, 0.99), "unhealthy": unhealthy}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not pass."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def figures(replies: Sequence[Reply], prompts: int = 0) -> Figures:
    """Of whole replies: tokens per second from the first request to the last token, seconds to a first token and
    between pieces of text. failed: how many were not whole. prompts: tokens of the prompts that had been read before;
    cached is the share of them that was not read again.
    """
    whole = [reply for reply in replies if not reply.error]
    found: Figures = {"failed": len(replies) - len(whole)}
    if not whole:
        return found
    seconds = max(reply.times[-1] for reply in whole) - min(reply.sent for reply in whole)
    firsts = [reply.first_s for reply in whole]
    found |= {
        "tok_s": sum(reply.tokens for reply in whole) / seconds,
        "first_p50_s": statistics.median(firsts),
        "first_p95_s": percentile(firsts, 0.95),
    }
    if gaps := [gap for reply in whole for gap in reply.gaps]:
        found |= {"gap_p50_s": statistics.median(gaps), "gap_p95_s": percentile(gaps, 0.95), "gap_max_s": max(gaps)}
    if prompts:
        found["cached"] = sum(reply.cached for reply in whole) / prompts
    return found


async def clients(client: Client, sizes: Sizes, ids: Ids, count: int) -> Figures:
    """So many clients with prompts of their own."""
    each = sizes.requests if count <= sizes.clients else 1
    work = [[(ids(sizes.prompt), sizes.answer) for _ in range(each)] for _ in range(count)]
    replies, health = await watched(client, loop(client, work))
    return figures(replies) | health


async def one(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    return await clients(client, sizes, ids, 1)


async def several(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    return await clients(client, sizes, ids, sizes.clients)


async def crowd(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    return await clients(client, sizes, ids, sizes.crowd)


async def shared(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    """Clients whose prompts begin alike; nobody has read that part before they all come."""
    system = ids(sizes.shared)
    work = [[(system + ids(sizes.own), sizes.answer) for _ in range(sizes.requests)] for _ in range(sizes.clients)]
    replies, health = await watched(client, loop(client, work))
    return figures(replies, sizes.shared * (len(replies) - 1)) | health


async def arrival(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    """A long prompt that arrives among streams. Tokens per second and gaps are theirs while it is read, the first token
    is its own.
    """
    opened: list[Exchange] = []
    streams = [
        asyncio.ensure_future(client.complete(ids(sizes.own), sizes.streamed, opened.append))
        for _ in range(sizes.streams)
    ]

    async def arrive() -> Reply:
        while len(opened) < len(streams) or min(exchange.events for exchange in opened) < sizes.begun:
            if any(stream.done() for stream in streams):
                break  # it failed, and says so below
            await asyncio.sleep(0.01)
        return await client.complete(ids(sizes.long), 1)

    long, health = await watched(client, arrive())
    for exchange in opened:
        exchange.close()
    replies = await asyncio.gather(*streams)
    failed = sum(reply.error not in ("", UNFINISHED) for reply in replies) + bool(long.error)
    if failed:
        return {"failed": failed} | health
    return {"failed": 0, **beside(long.sent, long.times[0], replies), "first_p50_s": long.first_s} | health


def beside(begin: float, end: float, streams: Sequence[Reply]) -> Figures:
    """What streams did between two times; of one that goes on, a gap that is open at the end counts as long as it has
    lasted.
    """
    gaps = []
    for stream in streams:
        times = [*stream.times, math.inf] if stream.error == UNFINISHED else stream.times
        gaps += [min(after, end) - at for at, after in itertools.pairwise(times) if after > begin and at < end]
    came = sum(begin < when <= end for stream in streams for when in stream.times)
    return {"tok_s": came / (end - begin), "gap_p95_s": percentile(gaps, 0.95), "gap_max_s": max(gaps)}


async def chats(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    """Second turns of more chats than there are slots, after the first turn of all."""
    openings = [ids(sizes.opening) for _ in range(sizes.chats)]
    first = [[(prompt, sizes.turn) for prompt in openings[i :: sizes.clients]] for i in range(sizes.clients)]
    second = [[(prompt + ids(sizes.turn), sizes.turn) for prompt, _ in requests] for requests in first]
    before = await loop(client, first)
    replies, health = await watched(client, loop(client, second))
    found = figures(replies, sizes.opening * sizes.chats) | health
    return found | {"failed": found["failed"] + sum(bool(reply.error) for reply in before)}


async def turns(client: Client, sizes: Sizes, ids: Ids) -> Figures:
    """The later turns of one chat, each with what the last one had and a little more."""
    prompts = [ids(sizes.prompt)]
    for _ in range(sizes.turns - 1):
        prompts.append(prompts[-1] + ids(sizes.turn))
    replies, health = await watched(client, loop(client, [[(prompt, sizes.turn) for prompt in prompts]]))
    found = figures(replies[1:], sum(map(len, prompts[:-1]))) | health
    return found | {"failed": found["failed"] + bool(replies[0].error)}


LOADS: dict[str, Load] = {
    "one": one,
    "several": several,
    "crowd": crowd,
    "shared": shared,
    "arrival": arrival,
    "chats": chats,
    "turns": turns,
}
