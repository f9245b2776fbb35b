"""Mamba-2, as in Granite 4 and Nemotron-H. What it computes is in `model.network.mixers.mamba2`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from packlight.model.spec.state import Buffer, Room
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig
    from packlight.model.spec.keys import Keys


class Scan(NamedTuple):
    """The last inputs of the convolution, and what the heads remember: arrays, or what says how they lie. float32."""

    columns: Any  # (L, B, taps - 1, channels), of x, B and C
    memory: Any  # (L, B, heads, memory, width)


@dataclasses.dataclass(frozen=True)
class Mamba2Part:
    """Heads that each remember a matrix, which fades. Consecutive heads share what is written by and asked with."""

    heads: int
    groups: int  # of heads that read the same B and C
    width: int  # channels of a head
    memory: int  # numbers that each channel remembers
    taps: int  # positions that the convolution sees, the present included
    name: str = "mamba2"

    @property
    def state_name(self) -> str:
        return self.name

    @classmethod
    def read(cls, keys: "Keys") -> Self:
        """Raises GGUFError naming the key that is missing, impossible or at odds with another."""
        heads = keys.integer("ssm.time_step_rank", high=65536)
        groups = keys.integer("ssm.group_count", high=65536)
        if heads % groups:
            keys.fail("ssm.group_count", f"{groups} does not divide {heads} heads")
        inner = keys.integer("ssm.inner_size")
        if inner % heads:
            keys.fail("ssm.inner_size", f"{inner} is not a multiple of {heads} heads")
        taps = keys.integer("ssm.conv_kernel", low=2, high=1024)
        return cls(heads, groups, inner // heads, keys.integer("ssm.state_size", high=65536), taps)

    @property
    def channels(self) -> Segment:
        """Of all heads, as they lie along rows and inputs of matrices."""
        return Segment("J", self.heads * self.width, self.width)

    @property
    def convolved(self) -> tuple[Segment, ...]:
        """What goes through the convolution: x, B and C."""
        shared = Segment("U", self.groups * self.memory, self.memory)
        return (self.channels, shared, shared)

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, inner, one_each = cfg.embedding_length, self.channels.length, (Segment("J", self.heads),)
        convolved = sum(segment.length for segment in self.convolved)
        opened = (self.channels, *self.convolved, *one_each)  # gates, what is convolved, and each head's step
        yield Weight("ssm_in", (inner + convolved + self.heads, D), "rows", opened)
        yield Weight("ssm_conv1d", (convolved, self.taps), "rows", self.convolved, "taps")
        yield Weight("ssm_conv1d.bias", (convolved,), "rows", self.convolved, "vector", suffix="", optional=True)
        yield Weight("ssm_dt.bias", (self.heads,), "rows", one_each, "vector", suffix="")
        yield Weight("ssm_a", (self.heads, 1), "rows", one_each, "vector", suffix="")
        yield Weight("ssm_d", (self.heads, 1), "rows", one_each, "vector", suffix="")
        yield Weight("ssm_norm", (self.groups, inner // self.groups), kind="vector", optional=True)
        yield Weight("ssm_out", (D, inner), "inputs", (self.channels,))

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Scan:
        convolved = sum(segment.length for segment in self.convolved)
        columns = (layers, room.slots, self.taps - 1, convolved)
        memory = (layers, room.slots, self.heads, self.memory, self.width)
        return Scan(
            Buffer(columns, "float32", ("", "B", "", "J"), self.convolved),
            Buffer(memory, "float32", ("", "B", "J", "", "")),
        )

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Never: what was remembered before the last inputs is gone."""
        return length == written
