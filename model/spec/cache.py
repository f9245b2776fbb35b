"""The cache: what the parts of a model keep between steps, and how devices share it. Imports no jax.

What is allocated, what executables are lowered for, the memory plan and the bytes that a step must read follow from it.
"""

import dataclasses
import math
from typing import Any

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.sharding import DATA, TENSOR, WHOLE, Split
from packlight.model.spec.state import KV_BLOCK, Q4_0, QUANTIZED, Buffer, Room, turned_width


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """What decides how large a cache is."""

    cfg: ModelConfig
    room: Room
    split: Split = WHOLE

    @property
    def state(self) -> dict[str, Any]:
        """The name of each mixer -> its state, a NamedTuple of Buffers, of all devices together; of an encoder none."""
        if not self.cfg.generates:
            return {}
        return {
            mixer.name: type(kept)(*map(self.split.spread, kept))
            for mixer, layers in self.cfg.mixers.items()
            if mixer.state_name == mixer.name
            for kept in [mixer.state(self.cfg, layers, self.room)]
        }

    @property
    def length(self) -> Buffer:
        """How many positions of each slot are filled."""
        return Buffer((self.room.slots,), "int32", ("B",))

    @property
    def device_bytes(self) -> int:
        """What one device holds."""
        devices = {DATA: self.split.data, TENSOR: self.split.tensor, None: 1}
        every = [self.length, *(each for kept in self.state.values() for each in kept)]
        return sum(each.nbytes // math.prod(devices[axis] for axis in self.split.axes(each)) for each in every)

    def keeps_text(self, buffer: Buffer) -> bool:
        """Whether an array holds every position of a text; else it is of the text's end."""
        return buffer.along_text and buffer.shape[-2] == self.room.capacity

    def block_bytes(self, positions: int) -> int:
        """What so many positions of a slot take in the arrays that hold whole texts."""
        every = (each for kept in self.state.values() for each in kept if self.keeps_text(each))
        return sum(each.nbytes // (self.room.slots * self.room.capacity) * positions for each in every)

    @property
    def end_bytes(self) -> int:
        """What a slot takes in the arrays that are of a text's end."""
        every = (each for kept in self.state.values() for each in kept if not self.keeps_text(each))
        return sum(each.nbytes // self.room.slots for each in every)

    def rewinds(self, written: int, length: int) -> bool:
        """Whether a slot whose first `written` positions were written can go on from its first `length` ones."""
        return all(mixer.rewinds(self.room, written, length) for mixer in self.cfg.mixers)


def check_kv_dtype(cfg: ModelConfig, dtype: str) -> str | None:
    """Why the cache of a model cannot be of a type, in words. None where it can, or where the model has no cache."""
    if dtype not in QUANTIZED or not cfg.generates:
        return None
    if any(isinstance(mixer, MlaPart) for mixer in cfg.mixers):
        return "the model's layers keep latents (mla), for which it is not made"
    widths = {mixer.width for mixer in cfg.mixers if isinstance(mixer, AttentionPart)}
    if not widths:
        return f"the model keeps no keys and values, only {', '.join(mixer.name for mixer in cfg.mixers)}"
    if dtype == Q4_0 and (unfit := [str(width) for width in sorted(widths) if turned_width(width) < KV_BLOCK]):
        return (
            f"the model has heads of {' and '.join(unfit)} channels, and only those of a multiple of {KV_BLOCK} can be "
            "turned, without which 4 bits are too few"
        )
    return None


def read_bytes(cfg: ModelConfig, dtype: str, rows: int, length: int) -> int:
    """Bytes of the state that `rows` tokens of a slot look back at, the last of them at position `length` - 1."""
    room = Room(1, length, rows, dtype)
    return sum(each.nbytes for mixer, layers in cfg.mixers.items() for each in mixer.state(cfg, layers, room))
