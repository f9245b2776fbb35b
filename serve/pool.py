"""Beginnings of texts in the host's memory: blocks of positions, and ends that a text can be gone back to. Knows ids
and bytes, no model; imports no jax.

A block is named by a hash of the salt and of all ids up to its end, so that equal beginnings are there once. An end is
what a text was at one of its lengths: the positions behind its last whole block and, where a model's layers cannot go
back, their state. What was used longest ago goes first, of one text the later blocks before the earlier ones.
"""

import collections
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from packlight.model.spec.state import CACHE_TILE
from packlight.serve.prefix import common

BLOCK = CACHE_TILE  # positions
OVERHEAD = 1000  # bytes that an entry takes beside its arrays
Arrays = Sequence[np.ndarray]  # as a step has made them


class Entry(NamedTuple):
    """What is kept under one name."""

    nbytes: int  # `OVERHEAD` included
    block: Arrays  # positions of a text; of an end those behind its last whole block
    state: Arrays = ()  # of an end: what layers that cannot go back had there
    written: int = 0  # of an end: positions that something had been written to, padding included


class Found(NamedTuple):
    """A beginning of a prompt that can be put into a slot."""

    tokens: int = 0
    blocks: tuple[tuple[int, Arrays], ...] = ()  # (first position, what belongs there)
    end: Entry | None = None  # whose state belongs behind them

    def beyond(self, there: int) -> "Found":
        """The same for a slot that has the first `there` positions of the text."""
        return self._replace(blocks=tuple(each for each in self.blocks if min(each[0] + BLOCK, self.tokens) > there))


class Pool:
    """Blocks and ends under a budget of bytes.

    blocks: whether there is anything to be kept of positions. stateful: whether a text can be gone back to only where
    an end of it is kept.
    """

    def __init__(self, budget: int, blocks: bool, stateful: bool):
        self.budget, self.blocks, self.stateful = budget, blocks, stateful
        self.bytes = 0  # that are held
        self.evicted = 0  # entries that had to make room
        self._entries: collections.OrderedDict[tuple[bytes, bytes], Entry] = collections.OrderedDict()
        self._tails: dict[bytes, set[bytes]] = {}  # name of a text's last whole block -> ids behind it, of its ends

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self._tails.clear()
        self.bytes = 0

    def names(self, salt: str, ids: Sequence[int]) -> list[bytes]:
        """The name of the empty beginning, and that of each whole block of a text."""
        names = [hashlib.blake2b(salt.encode(), digest_size=16).digest()]
        packed = _packed(ids)
        for at in range(0, len(ids) // BLOCK):
            block = packed[4 * BLOCK * at : 4 * BLOCK * (at + 1)]
            names.append(hashlib.blake2b(names[-1] + block, digest_size=16).digest())
        return names

    def has(self, name: bytes, tail: Sequence[int] | None = None) -> bool:
        """Whether a block is kept, or with the ids behind it an end; it counts as used now."""
        key = (name, b"" if tail is None else b"end" + _packed(tail))
        if key in self._entries:
            self._entries.move_to_end(key)
        return key in self._entries

    def room(self, nbytes: int) -> bool:
        """Makes room for so many bytes. Whether there can be any."""
        if nbytes > self.budget:
            return False
        while self.bytes + nbytes > self.budget:
            (name, tail), entry = self._entries.popitem(last=False)
            self.bytes -= entry.nbytes
            self.evicted += 1
            if tail:
                self._tails[name].discard(tail)
                if not self._tails[name]:
                    del self._tails[name]
        return True

    def put(self, name: bytes, entry: Entry, tail: Sequence[int] | None = None) -> None:
        """Keeps a block, or with the ids behind it an end, for which `room` has been made and which is not here yet."""
        key = (name, b"" if tail is None else b"end" + _packed(tail))
        self._entries[key] = entry
        self.bytes += entry.nbytes
        if tail is not None:
            self._tails.setdefault(name, set()).add(key[1])

    def find(self, names: Sequence[bytes], prompt: Sequence[int]) -> Found:
        """The longest beginning of a prompt that is here whole, but for the prompt's last token, which is always read.

        names: those of the prompt.
        """
        most = len(prompt) - 1
        missing = (n for n, name in enumerate(names[1:]) if self.blocks and (name, b"") not in self._entries)
        whole = next(missing, len(names) - 1)
        if not self.stateful and BLOCK * whole > most:
            count, end, used = most, None, whole
        else:
            count, end = self.end(names, prompt, most, min(whole, most // BLOCK))
            count = count if end is not None or self.stateful else BLOCK * whole
            used = count // BLOCK if self.blocks else 0
        keys = [(name, b"") for name in names[1 : used + 1]]
        for key in reversed(keys):  # a later block is of no use without those before
            self._entries.move_to_end(key)
        blocks = [(BLOCK * n, self._entries[key].block) for n, key in enumerate(keys)]
        if end is not None and end.block:
            blocks.append((BLOCK * len(keys), end.block))
        return Found(count, tuple(blocks), end)

    def end(
        self, names: Sequence[bytes], prompt: Sequence[int], most: int, whole: int | None = None
    ) -> tuple[int, Entry | None]:
        """The longest beginning of a prompt, of `most` tokens at most, that is an end: its tokens and the entry.

        whole: blocks that it has at most. Where nothing needs a state, a part of an end's positions is one too.
        """
        for blocks in range(most // BLOCK if whole is None else whole, -1, -1):
            rest = prompt[BLOCK * blocks : min(most, BLOCK * (blocks + 1))]
            best, found = 0, None
            for tail in self._tails.get(names[blocks], ()):
                ids = np.frombuffer(tail[3:], np.int32).tolist()
                equal = common(ids, rest)
                if (equal == len(ids) or not self.stateful) and (found is None or equal > best):
                    best, found = equal, tail
            if found is not None and (best or self.stateful) and BLOCK * blocks + best:
                self._entries.move_to_end((names[blocks], found))
                return BLOCK * blocks + best, self._entries[names[blocks], found]
            if not self.stateful:
                break
        return 0, None


def _packed(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()
