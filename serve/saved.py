"""Parts of slots on their way to the pool and back, by the plan's steps. Knows no requests."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from packlight.compile.plan import Part, Plan, StepKey
from packlight.compile.steps import LoadArgs, SaveArgs
from packlight.model.network.state import Cache
from packlight.model.spec.cache import CacheShape
from packlight.serve.pool import BLOCK, OVERHEAD, Entry, Found, Pool
from packlight.serve.prefix import WORTH_A_COPY, Held

Run = Callable[[StepKey, Cache, NamedTuple], Any]


class Saved:
    """Fills a pool from slots, and slots from it.

    A part that the memory has no room for is not kept, or read anew; `failed` counts them.
    """

    def __init__(self, plan: Plan, shape: CacheShape, budget: int, run: Run):
        self._plan, self._run, self._capacity = plan, run, shape.room.capacity
        self._bytes = {Part.BLOCK: shape.block_bytes(BLOCK), Part.END: shape.end_bytes}
        self.pool = Pool(budget, Part.BLOCK in plan.saves, Part.END in plan.saves)
        self.failed = 0

    def park(self, cache: Cache, slot: int, held: Held) -> None:
        """Keeps what a slot has of a text, blocks and end."""
        if not self._keeps(held):
            return
        names = self.pool.names(held.salt, held.ids)
        blocks, size = names[1:] if self.pool.blocks else [], self._bytes[Part.BLOCK] + OVERHEAD
        whole = size * len(blocks) + self._end_of(held)[2] <= self.pool.budget
        if not whole and self.pool.stateful:  # blocks without their end are of no use
            return
        for number, name in enumerate(blocks if whole else blocks[: self.pool.budget // size]):
            if not self.pool.has(name) and not self._save(cache, slot, BLOCK * number, name):
                return
        if whole:
            self._end(cache, slot, names[-1], held)
        for name in reversed(names[1:]):  # the first ones are the last to go
            self.pool.has(name)

    def mark(self, cache: Cache, slot: int, held: Held) -> None:
        """Keeps the end of what a slot has read, where its text could not be gone back to without."""
        if self.pool.stateful and self._keeps(held):
            self._end(cache, slot, self.pool.names(held.salt, held.ids)[-1], held)

    def load(self, cache: Cache, slot: int, found: Found) -> tuple[Cache, bool]:
        """The cache with what was found in a slot, and whether there was room for all of it."""
        parts = [(Part.BLOCK, start, arrays) for start, arrays in found.blocks]
        if found.end is not None and found.end.state:
            parts.append((Part.END, 0, found.end.state))
        for part, start, arrays in parts:
            args = LoadArgs(np.int32(slot), np.int32(start), tuple(arrays))
            try:
                cache = self._run(self._plan.load_key(part), cache, args)
            except (MemoryError, jax.errors.JaxRuntimeError):
                self.failed += 1
                return cache, False
        return cache, True

    def _save(self, cache: Cache, slot: int, start: int, name: bytes) -> bool:
        """Keeps a block. Whether there was room."""
        nbytes = self._bytes[Part.BLOCK] + OVERHEAD
        block = self._take(cache, Part.BLOCK, slot, start) if self.pool.room(nbytes) else None
        if block is not None:
            self.pool.put(name, Entry(nbytes, block))
        return block is not None

    def _end(self, cache: Cache, slot: int, name: bytes, held: Held) -> None:
        """Keeps an end, unless it is there or says nothing that the blocks do not."""
        tail, parts, nbytes = self._end_of(held)
        if not parts or self.pool.has(name, tail) or not self.pool.room(nbytes):
            return
        taken = {part: self._take(cache, part, slot, len(held.ids) - len(tail)) for part in parts}
        if None not in taken.values():
            block, state = (taken.get(part) or () for part in (Part.BLOCK, Part.END))
            self.pool.put(name, Entry(nbytes, block, state, held.written), tail)

    def _keeps(self, held: Held) -> bool:
        """Whether it is worth it, and whole: padding behind the capacity lies on what a window has."""
        return len(held.ids) >= WORTH_A_COPY and held.written <= self._capacity

    def _end_of(self, held: Held) -> tuple[list[int], list[Part], int]:
        """The ids behind a text's last whole block, the parts of an end with them, and its bytes."""
        tail = list(held.ids[len(held.ids) // BLOCK * BLOCK :])
        parts = [part for part in self._plan.saves if part is Part.END or tail]
        return tail, parts, sum(self._bytes[part] for part in parts) + OVERHEAD + 4 * len(tail)

    def _take(self, cache: Cache, part: Part, slot: int, start: int) -> Sequence[np.ndarray] | None:
        """A part of a slot in the host's memory, or None where that has no room."""
        try:
            made = self._run(self._plan.save_key(part), cache, SaveArgs(np.int32(slot), np.int32(start)))
            return tuple(map(np.asarray, made))
        except (MemoryError, jax.errors.JaxRuntimeError):
            self.failed += 1
            return None
