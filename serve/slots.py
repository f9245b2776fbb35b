"""Slots: which request is in which, what the free ones still hold, and where the next request goes. Imports no jax.

A free slot is parked: its cache holds what its last text left there. The next request takes the beginning of its prompt
from wherever most of it is, and the slot that was left longest ago, unless that one has the beginning itself.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from packlight.common.errors import PacklightError
from packlight.compile.plan import Chunk, Plan
from packlight.model.sampling.config import SamplingConfig
from packlight.model.spec.cache import CacheShape
from packlight.serve.pool import Found, Pool
from packlight.serve.prefix import WORTH_A_COPY, Held, Keep, common, kept, left
from packlight.serve.speculation import Drafter

if TYPE_CHECKING:
    from packlight.model.sampling.penalties import Steering


class SlotsTakenError(PacklightError):
    """Every slot has a text under way."""


@dataclasses.dataclass
class Request:
    """A text on its way: its prompt, then what was generated."""

    id: int
    prompt: list[int]
    sampling: SamplingConfig
    limit: int  # tokens to generate at most
    past_end: bool  # end tokens end nothing
    steering: "Steering"
    mu: float  # Mirostat's state
    keep: Keep
    salt: str = ""  # what it begins with is shared only with requests of the same one
    states: bool = False  # its hidden states are wanted, and no token
    tokens: list[int] = dataclasses.field(default_factory=list)  # generated; the newest is not in the cache yet
    read: int = 0  # tokens of its prompt that are in the cache
    to_read: int = 0  # of them, those that prefill steps read: all, or the last one less, which a decode step reads
    written: int = 0  # positions of its slot that hold something of it, the padding of its prompt included
    chunks: tuple[Chunk, ...] = ()  # that have read its prompt
    kept: int = 0  # tokens of its prompt that were not read
    failure: PacklightError | None = None  # why nothing can be sampled for it
    drafter: Drafter | None = None  # where its drafts can be verified

    @property
    def reads(self) -> bool:
        """Whether some of its prompt is to be read before a token can follow."""
        return self.read < self.to_read

    @property
    def length(self) -> int:
        """Its tokens that are in the cache."""
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else self.read

    @property
    def newest(self) -> int:
        """Its last token, which the next step reads."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    @property
    def held(self) -> Held:
        """What it leaves in its slot."""
        ids = [*self.prompt, *self.tokens][: self.length]
        return Held(ids, max(self.written, self.length), self.chunks, self.salt)


class Seat(NamedTuple):
    """Where a request goes."""

    slot: int
    kept: int  # tokens of its prompt that the cache has
    source: int  # the slot that has them; another one: they are copied
    found: Found | None = None  # what of them is loaded, where the slot or its source has not all
    pooled: bool = False  # whether the pool has them, and no slot


class SlotState(NamedTuple):
    """What a slot does."""

    state: Literal["empty", "parked", "reading", "running"]
    tokens: int  # that its cache holds
    request: int | None  # the number of its request


class Slots:
    """Which request is in which slot, and what the others hold."""

    def __init__(self, plan: Plan, shape: CacheShape, pool: Pool | None = None):
        self._plan, self._shape, self._pool = plan, shape, pool
        self.forget()

    def forget(self) -> None:
        """Ends every request; no slot holds anything."""
        self.requests: list[Request | None] = [None] * self._plan.slots
        self._held = [Held()] * self._plan.slots  # of the free ones
        self._left = [0] * self._plan.slots  # when each was left, counted
        self._count = itertools.count(1)

    @property
    def full(self) -> bool:
        return None not in self.requests

    def taken(self) -> Iterator[tuple[int, Request]]:
        """(slot, its request), of those that have one."""
        return ((slot, request) for slot, request in enumerate(self.requests) if request is not None)

    def states(self) -> list[SlotState]:
        """What each slot does, without a word of any text."""
        every = []
        for slot, request in enumerate(self.requests):
            tokens = len(self.holds(slot).ids)
            if request is None:
                every.append(SlotState("parked" if tokens else "empty", tokens, None))
            else:
                every.append(SlotState("reading" if request.reads else "running", tokens, request.id))
        return every

    def free(self, groups: Collection[int] | None = None) -> int:
        """The free slot that was left longest ago, of these groups of devices: those that hold nothing come first, the
        lowest of equal ones.
        """
        slots = (slot for slot in self._free() if groups is None or self._plan.group(slot) in groups)
        return min(slots, key=lambda slot: (bool(self._held[slot].ids), self._left[slot], self._plan.rank(slot), slot))

    def _free(self) -> list[int]:
        return [slot for slot, request in enumerate(self.requests) if request is None]

    def choose(self, request: Request) -> Seat | None:
        """Where a request goes, there being a free slot. None: it waits while another one reads what it begins with."""
        oldest = self.free()
        if request.keep is Keep.NOTHING:
            return Seat(oldest, 0, oldest)
        pool = self._pool if request.keep is Keep.TOKENS else None
        names = pool.names(request.salt, request.prompt) if pool else []
        kept_by = [self._kept(slot, request, names) for slot in range(self._plan.slots)]
        found = [each.tokens for each in kept_by]
        slot = max(self._free(), key=lambda slot: (found[slot], slot == oldest))
        goes_on = found[slot] and 2 * found[slot] >= len(self._held[slot].ids)  # or begins as most of its text
        groups = {self._plan.group(each) for each in ([slot] if goes_on else self._free())}
        source = max(
            (each for each in range(self._plan.slots) if self._plan.group(each) in groups),
            key=lambda each: (found[each], each in (slot, oldest)),
        )
        if not goes_on:
            slot = self.free({self._plan.group(source)}) if found[source] >= WORTH_A_COPY else oldest
        if found[source] < found[slot] + WORTH_A_COPY:
            source = slot
        pooled = pool.find(names, request.prompt) if pool else Found()
        loads = pooled.tokens >= found[source] + WORTH_A_COPY
        if self._coming(request) > max(pooled.tokens if loads else found[source], WORTH_A_COPY - 1):
            return None
        if not loads:
            return Seat(slot, found[source], source, kept_by[source] if kept_by[source].end else None)
        slot = slot if goes_on else oldest
        held = self._held[slot]
        whole = held.salt == request.salt and held.written <= self._shape.room.capacity
        there = common(held.ids, request.prompt) if whole else 0
        return Seat(slot, pooled.tokens, slot, pooled.beyond(there), pooled=True)

    def _coming(self, request: Request) -> int:
        """How many tokens that a prompt begins with another request has still to read, and will give away."""
        if request.keep is not Keep.TOKENS:
            return 0
        most, ends = 0, self._pool is not None and self._pool.stateful
        for _, taken in self.taken():
            if taken.reads and taken.salt == request.salt:
                equal = common(taken.prompt[: taken.to_read], request.prompt[:-1])
                goes_back = ends or equal == taken.to_read or self._shape.rewinds(taken.to_read, equal)
                most = max(most, equal if goes_back and equal > taken.read else 0)
        return most

    def _kept(self, slot: int, request: Request, names: Sequence[bytes]) -> Found:
        """How many tokens of a prompt a slot has, and what end of the pool it needs to go back to them.

        names: of the prompt's blocks, where there is a pool.
        """
        held = self.holds(slot)
        count = kept(held, request.prompt, request.keep, self._plan, self._shape, request.salt)
        equal = common(held.ids, request.prompt[:-1]) if held.salt == request.salt else 0
        if not names or self._pool is None or not self._pool.stateful or held.written > self._shape.room.capacity:
            return Found(count)
        back, end = self._pool.end(names, request.prompt, equal)
        return Found(back, end=end) if back > count else Found(count)

    def holds(self, slot: int) -> Held:
        """What a slot has, whether it is free or not."""
        taken = self.requests[slot]
        return self._held[slot] if taken is None else taken.held

    def seat(self, request: Request, seat: Seat) -> None:
        """Puts a request into its slot, which then holds `seat.kept` tokens of its prompt."""
        held, end = self.holds(seat.source), seat.found and seat.found.end
        request.kept = request.read = seat.kept
        request.chunks = () if seat.found else left(held, seat.kept)
        if end is not None and end.state:
            request.written = end.written
        elif seat.pooled or not seat.kept:
            request.written = seat.kept
        else:  # a copy has what was written behind those tokens too, where a window is short
            request.written = held.written
        self._held[seat.slot], self.requests[seat.slot] = Held(), request

    def leave(self, slot: int, held: Held) -> None:
        """Frees a slot, which then holds that."""
        self.requests[slot], self._held[slot], self._left[slot] = None, held, next(self._count)

    def spoil(self, slot: int) -> None:
        """What a free slot held is written over."""
        self._held[slot] = Held()
