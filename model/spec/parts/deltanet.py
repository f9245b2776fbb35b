"""A gated delta net, as in Qwen 3.5. What it computes is in `model.network.mixers.deltanet`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from packlight.common.errors import UnsupportedError
from packlight.model.spec.state import Buffer, Room
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig
    from packlight.model.spec.keys import Keys


class Memory(NamedTuple):
    """The last inputs of the convolution, and what the heads remember: arrays, or what says how they lie. float32."""

    columns: Any  # (L, B, taps - 1, channels), of queries, keys and values
    matrices: Any  # (L, B, heads, width, width): from each key channel to each value channel


@dataclasses.dataclass(frozen=True)
class DeltaNetPart:
    """Each value head remembers a matrix. Several of them read the keys and queries of one key head."""

    heads: int  # of values
    groups: int  # key heads
    width: int  # channels of a head
    taps: int  # positions that the convolution sees, the present included
    # The value heads of a key head follow each other, and their betas and alphas are one tensor. Else value head h
    # reads key head h % groups.
    consecutive: bool = False
    name: str = "deltanet"

    @classmethod
    def read(cls, keys: "Keys", consecutive: bool) -> "DeltaNetPart":
        """Raises GGUFError or UnsupportedError naming the key that is wrong."""
        width = keys.integer("ssm.state_size", high=65536)
        groups = keys.integer("ssm.group_count", high=65536)
        heads = keys.integer("ssm.time_step_rank", high=65536)
        if heads % groups:
            keys.fail("ssm.time_step_rank", f"{heads} value heads are not a multiple of {groups} key heads")
        inner = keys.integer("ssm.inner_size")
        if inner % heads:
            keys.fail("ssm.inner_size", f"{inner} is not a multiple of {heads} heads")
        if inner // heads != width:
            raise UnsupportedError(
                f"key '{keys.full('ssm.inner_size')}': values of {inner // heads} channels and keys of {width} are not "
                "supported together"
            )
        return cls(heads, groups, width, keys.integer("ssm.conv_kernel", low=2, high=1024), consecutive)

    @property
    def state_name(self) -> str:
        return self.name

    @property
    def shared(self) -> int:
        """How many value heads read each key head."""
        return self.heads // self.groups

    def of_heads(self, each: int) -> tuple[Segment, ...]:
        """`each` rows or inputs for every value head, such that a device's value heads are those of its key heads."""
        if self.consecutive:
            return (Segment("J", self.heads * each, self.shared * each),)
        return (Segment("J", self.groups * each, each),) * self.shared

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, H, G, S = cfg.embedding_length, self.heads, self.groups, self.width
        keys, values, one_each = Segment("J", G * S, S), self.of_heads(S), self.of_heads(1)
        qkv, channels = (keys, keys, *values), (2 * G + H) * S
        if self.consecutive:
            both = Segment("J", channels + H * S, (2 + 2 * self.shared) * S)  # of each key head: q, k, values, gates
            yield Weight("ssm_in", (both.length, D), "rows", (both,), replaces=("attn_qkv", "attn_gate"))
        yield Weight("attn_qkv", (channels, D), "rows", qkv)
        yield Weight("attn_gate", (H * S, D), "rows", values)
        if self.consecutive:
            yield Weight("ssm_ba", (2 * H, D), "rows", (Segment("J", 2 * H, 2 * self.shared),))
        else:
            yield Weight("ssm_beta", (H, D), "rows", one_each)
            yield Weight("ssm_alpha", (H, D), "rows", one_each)
        yield Weight("ssm_dt.bias", (H,), "rows", one_each, "vector", suffix="")
        yield Weight("ssm_a", (H,), "rows", one_each, "vector", suffix="")
        yield Weight("ssm_conv1d", (channels, self.taps), "rows", qkv, "taps")
        yield Weight("ssm_norm", (S,), kind="vector")
        yield Weight("ssm_out", (D, H * S), "inputs", values)

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Memory:
        channels = (2 * self.groups + self.heads) * self.width
        return Memory(
            Buffer((layers, room.slots, self.taps - 1, channels), "float32", ("", "B", "", "J")),
            Buffer((layers, room.slots, self.heads, self.width, self.width), "float32", ("", "B", "J", "", "")),
        )

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Never: what was remembered before the last inputs is gone."""
        return length == written
