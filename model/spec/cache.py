"""The arrays of the cache: their shapes, and how devices share them. Pure arithmetic, imports no jax.

What is allocated, what executables are lowered for, the memory plan and the bytes that a step must read follow from it.
"""

import dataclasses
import math
from typing import NamedTuple

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import DATA, TENSOR, WHOLE, Split

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}


class Buffer(NamedTuple):
    """One array of the cache."""

    shape: tuple[int, ...]  # of all devices together
    dtype: str
    axes: tuple[str | None, ...]  # for each dimension, the axis of the mesh along which devices share it

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """What decides how large a cache is."""

    cfg: ModelConfig
    slots: int
    capacity: int  # positions of each slot
    dtype: str  # of keys and values
    split: Split = WHOLE

    @property
    def buffers(self) -> dict[str, Buffer]:
        """Every array, under its name in `model.network.state.Cache`.

        Slots lie along "data", kv heads along "tensor" unless every device computes all of them.
        """
        cfg = self.cfg
        shape = (cfg.block_count, self.slots, self.split.cache_heads(cfg), self.capacity, cfg.key_length)
        each = Buffer(shape, self.dtype, (None, DATA, TENSOR if self.split.heads else None, None, None))
        return {"k": each, "v": each, "length": Buffer((self.slots,), "int32", (DATA,))}

    @property
    def device_bytes(self) -> int:
        """What one device holds."""
        devices = {DATA: self.split.data, TENSOR: self.split.tensor, None: 1}
        return sum(each.nbytes // math.prod(devices[axis] for axis in each.axes) for each in self.buffers.values())


def position_bytes(cfg: ModelConfig, dtype: str) -> int:
    """Bytes of one position's keys and values in every layer."""
    buffers = CacheShape(cfg, 1, 1, dtype).buffers
    return buffers["k"].nbytes + buffers["v"].nbytes
