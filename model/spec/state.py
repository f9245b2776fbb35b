"""What a part of a layer keeps between steps: arrays in words, before there are any. Imports no jax."""

import dataclasses
import math
from typing import Literal, NamedTuple

from packlight.model.spec.weight import Segment

CACHE_TILE = 128  # cached positions per pass of the attention loop; cache lengths are multiples of it
RECURRENCE_LANES = 16  # native kernels know recurrences whose heads have a multiple of so many channels
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int8": 1, "uint8": 1}
Q8_0 = "q8_0"  # the type of keys and values in int8 with a scale for every KV_BLOCK of them
Q4_0 = "q4_0"  # that of keys and values in 4 bits, two a byte, turned first, with a scale for as many
QUANTIZED = (Q8_0, Q4_0)
KV_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array. Its letters are those of `model.__init__`: where devices share one, so they share the axis."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[Literal["", "B", "D", "J", "K"], ...]  # for each dimension, the letter of what lies along it
    segments: tuple[Segment, ...] = ()  # what lies along the last axis, in order, where that is more than one thing
    along_text: bool = False  # whether the axis before the last one holds positions of a text; else all is of its end

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Room(NamedTuple):
    """How much a state must hold."""

    slots: int
    capacity: int  # positions of each slot
    chunk: int  # the most tokens of a slot that one step runs
    dtype: str  # of keys and values, or one of QUANTIZED


def has_native_recurrence(width: int) -> bool:
    """Whether native kernels know a recurrence whose heads have so many channels."""
    return width % RECURRENCE_LANES == 0


def turned_width(width: int) -> int:
    """Channels of a head that are turned together before they are kept in 4 bits: the largest power of two in it."""
    return width & -width


def whole_tiles(positions: int) -> int:
    """As many positions in whole tiles of the attention loop."""
    return -(-positions // CACHE_TILE) * CACHE_TILE
