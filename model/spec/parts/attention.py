"""Attention over cached keys and values. What it computes is in `model.network.mixers.attention`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from packlight.model.spec.state import KV_BLOCK, Q8_0, QUANTIZED, Buffer, Room, whole_tiles
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig

QKV = ("attn_q", "attn_k", "attn_v")
KEYS_AND_VALUES = ("attn_k", "attn_v", "attn_k_norm")  # what makes them alone


class KV(NamedTuple):
    """Keys and values: arrays, or what says how they lie. (L, B, K, S, C), L of the layers that have the part.

    Position p lies at p of S, or at p % S where a window keeps fewer positions than a slot may have.
    """

    k: Any
    v: Any


class QuantizedKV(NamedTuple):
    """Rounded keys and values at the places of `KV`, and what to multiply them with. N is C / 32, rounded up.

    What they are made of is in `model.network.mixers.attention.quantized`.
    """

    k: Any  # int8 (L, B, K, S, C), or in 4 bits uint8 (L, B, K, S, C / 2)
    v: Any  # as k
    k_scales: Any  # float16 (L, B, K, S, N), of each 32 channels
    v_scales: Any  # float16 (L, B, K, S, N)


class Source(NamedTuple):
    """One layer's keys and values."""

    part: str  # the name of the part that made them
    layer: int  # its number among the layers that have the part


@dataclasses.dataclass(frozen=True)
class AttentionPart:
    """Grouped-query attention to all of the context, or to a sliding window."""

    heads: int  # H
    kv_heads: int  # K
    width: int  # C
    window: int = 0  # positions that a query sees, itself included; 0: all before it
    rotation: bool = True  # positions rotate queries and keys
    name: str = "attention"
    reads: Source | None = None  # another layer's keys and values, which it attends to; None: it makes its own

    @property
    def state_name(self) -> str:
        return self.name if self.reads is None else self.reads.part

    @property
    def queries(self) -> Segment:
        """Query heads, as they lie along rows and inputs of matrices."""
        return Segment("H", self.heads * self.width, self.width)

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        unread = () if self.reads is None else KEYS_AND_VALUES
        return (weight for weight in self._declared(cfg) if weight.name not in unread)

    def _declared(self, cfg: "ModelConfig") -> Iterator[Weight]:
        """The tensors of a layer that makes its own keys and values."""
        D, H, C, heads = cfg.embedding_length, self.heads, self.width, self.queries
        kv_heads = Segment("K", self.kv_heads * C, C)
        Q, KV = heads.length, kv_heads.length
        attention = cfg.architecture.attention
        asked = Segment("H", 2 * Q, 2 * C) if attention.gate == "query" else heads  # each head's query, then its gate
        fused = (asked, kv_heads, kv_heads)
        yield Weight("attn_qkv", (asked.length + 2 * KV, D), "rows", fused, replaces=QKV)
        yield Weight("attn_q", (asked.length, D), "rows", (asked,))
        yield Weight("attn_k", (KV, D), "rows", (kv_heads,))
        yield Weight("attn_v", (KV, D), "rows", (kv_heads,), optional=attention.keys_as_values)
        match attention.gate:
            case "channels":
                yield Weight("attn_gate", (Q, D), "rows", (heads,))
            case "heads":
                yield Weight("attn_gate", (H, D), "rows", (Segment("H", H),))
        yield Weight("attn_output", (D, Q), "inputs", (heads,))
        optional = attention.qk_norm_optional
        match attention.qk_norm:
            case "head":
                yield Weight("attn_q_norm", (C,), kind="vector", optional=optional)
                yield Weight("attn_k_norm", (C,), kind="vector", optional=optional)
            case "heads":
                one_each = (Segment("H", H),), (Segment("K", self.kv_heads),)
                yield Weight("attn_q_norm", (H, C), "rows", one_each[0], "vector", optional=optional)
                yield Weight("attn_k_norm", (self.kv_heads, C), "rows", one_each[1], "vector", optional=optional)
            case "whole":
                yield Weight("attn_q_norm", (Q,), "rows", (heads,), "vector", optional=optional)
                yield Weight("attn_k_norm", (KV,), "rows", (kv_heads,), "vector", optional=optional)
                if cfg.architecture.norms.biases:
                    yield Weight("attn_q_norm.bias", (Q,), "rows", (heads,), "vector", suffix="", optional=True)
                    yield Weight("attn_k_norm.bias", (KV,), "rows", (kv_heads,), "vector", suffix="", optional=True)
        if attention.sinks:
            yield Weight("attn_sinks", (H,), "rows", (Segment("H", H),), "vector")

    def positions(self, room: Room) -> int:
        """S: what a window sees and one step writes lie there together, in whole tiles of the attention loop."""
        return min(room.capacity, whole_tiles(self.window + room.chunk - 1)) if self.window else room.capacity

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> KV | QuantizedKV:
        def buffer(channels: int, dtype: str) -> Buffer:
            shape = (layers, room.slots, self.kv_heads, self.positions(room), channels)
            return Buffer(shape, dtype, ("", "B", "K", "", ""), along_text=True)

        if room.dtype in QUANTIZED:
            numbers = buffer(self.width, "int8") if room.dtype == Q8_0 else buffer(self.width // 2, "uint8")
            scales = buffer(-(-self.width // KV_BLOCK), "float16")
            return QuantizedKV(numbers, numbers, scales, scales)
        each = buffer(self.width, room.dtype)
        return KV(each, each)

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Whether no position that the next query sees was written over by a later one."""
        return not self.window or max(0, length + 1 - self.window) >= written - self.positions(room)
