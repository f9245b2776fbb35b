"""A gated convolution over a few positions, as in LFM2. What it computes is in `model.network.mixers.shortconv`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from packlight.model.spec.state import Buffer, Room
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


class Columns(NamedTuple):
    """The last inputs of a convolution: an array, or what says how it lies. float32 (L, B, taps - 1, D)."""

    columns: Any


@dataclasses.dataclass(frozen=True)
class ShortConvPart:
    """Each channel of D is convolved with its own taps, the last of which lies on the present."""

    taps: int
    name: str = "shortconv"

    @property
    def state_name(self) -> str:
        return self.name

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D = cfg.embedding_length
        channels = Segment("D", D)
        yield Weight("shortconv.in_proj", (3 * D, D), "rows", (channels,) * 3)  # gates before and after, and inputs
        yield Weight("shortconv.conv", (D, self.taps), "rows", (channels,), "taps")
        yield Weight("shortconv.out_proj", (D, D), "inputs", (channels,))

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Columns:
        shape = (layers, room.slots, self.taps - 1, cfg.embedding_length)
        return Columns(Buffer(shape, "float32", ("", "B", "", "D")))

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Never: what was before the last inputs is forgotten."""
        return length == written
