"""What the cache still holds of a text that has left its slot, and how much of it the next prompt keeps. Pure
arithmetic, imports no jax.

A prompt that begins as the slot's last text did need not be read from its beginning. The steps that wrote those
positions may have had other shapes than the ones that would read the prompt alone. Sums of another shape differ in the
last bits of float32 (`Keep`).
"""

import dataclasses
import enum
import itertools
from collections.abc import Sequence

from packlight.compile.plan import Chunk, Plan
from packlight.model.spec.cache import CacheShape

WORTH_A_COPY = 32  # tokens that are read as fast as they are copied from another slot, or saved and loaded


class Keep(enum.Enum):
    """Which tokens of a prompt are taken from the cache. The last one is always read, as the next follows from it."""

    NOTHING = enum.auto()
    CHUNKS = enum.auto()  # what the same steps have read that the prompt alone would be read by: not a bit changes
    TOKENS = enum.auto()  # all that are equal: numbers may change in their last bits


@dataclasses.dataclass(frozen=True)
class Held:
    """What a free slot's cache holds."""

    ids: Sequence[int] = ()
    written: int = 0  # positions that something was written to, padding included
    chunks: tuple[Chunk, ...] = ()  # what was read in, in order; the tokens behind were generated
    salt: str = ""  # of the request that left it


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    equal, most = 0, min(len(a), len(b))
    while equal < most:  # by slices, which Python compares at a time, from the largest that may be equal
        half = (equal + most + 1) // 2
        equal, most = (half, most) if a[equal:half] == b[equal:half] else (equal, half - 1)
    return equal


def kept(held: Held, prompt: Sequence[int], keep: Keep, plan: Plan, shape: CacheShape, salt: str = "") -> int:
    """How many tokens at the beginning of a prompt the slot has already, where it can go back to their end.

    A text of another salt has none.
    """
    if held.salt != salt:
        return 0
    equal = common(held.ids, prompt[:-1])
    match keep:
        case Keep.NOTHING:
            return 0
        case Keep.CHUNKS:
            alone = zip(plan.chunks(0, len(prompt)), held.chunks, strict=False)
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], alone)
            ends = (mine.start + mine.count for mine, _ in same)
            equal = max((end for end in ends if end <= equal), default=0)
    return equal if equal == len(held.ids) or shape.rewinds(held.written, equal) else 0


def left(held: Held, start: int) -> tuple[Chunk, ...]:
    """The chunks of a slot that goes on from its first `start` tokens."""
    return tuple(chunk for chunk in held.chunks if chunk.start + chunk.count <= start)


def in_words(plan: Plan, shape: CacheShape) -> str:
    """How much of a conversation its next turn reads anew."""
    full = plan.capacity
    back = next((n for n in range(full) if not shape.rewinds(full, full - n - 1)), None)
    match back:
        case None:
            return "a turn reads only what is new"
        case 0:
            return "a turn reads only what is new if it goes on where the last one ended, else everything"
        case _:
            return f"a turn reads only what is new, or everything if it goes back by more than {back:,} tokens"
