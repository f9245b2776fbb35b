"""Attention over cached keys and values. What it computes is in `model.network.mixers.attention`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from packlight.model.spec.state import Buffer, Room, whole_tiles
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


class KV(NamedTuple):
    """Keys and values: arrays, or what says how they lie. (L, B, K, S, C), L of the layers that have the part.

    Position p lies at p of S, or at p % S where a window keeps fewer positions than a slot may have.
    """

    k: Any
    v: Any


@dataclasses.dataclass(frozen=True)
class AttentionPart:
    """Grouped-query attention to all of the context, or to a sliding window."""

    kv_heads: int  # K
    window: int = 0  # positions that a query sees, itself included; 0: all before it
    name: str = "attention"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, C = cfg.embedding_length, cfg.key_length
        heads, kv_heads = Segment("H", cfg.head_count * C), Segment("K", self.kv_heads * C)
        Q, KV = heads.length, kv_heads.length
        attention = cfg.architecture.attention
        if attention.fused:
            yield Weight("attn_qkv", (Q + 2 * KV, D), "rows", (heads, kv_heads, kv_heads))
        else:
            yield Weight("attn_q", (Q, D), "rows", (heads,))
            yield Weight("attn_k", (KV, D), "rows", (kv_heads,))
            yield Weight("attn_v", (KV, D), "rows", (kv_heads,))
        yield Weight("attn_output", (D, Q), "inputs", (heads,))
        match attention.qk_norm:
            case "head":
                yield Weight("attn_q_norm", (C,), kind="vector")
                yield Weight("attn_k_norm", (C,), kind="vector")
            case "whole":
                yield Weight("attn_q_norm", (Q,), "rows", (heads,), "vector")
                yield Weight("attn_k_norm", (KV,), "rows", (kv_heads,), "vector")
        if attention.sinks:
            yield Weight("attn_sinks", (cfg.head_count,), "rows", (Segment("H", cfg.head_count),), "vector")

    def positions(self, room: Room) -> int:
        """S: what a window sees and one step writes lie there together, in whole tiles of the attention loop."""
        return min(room.capacity, whole_tiles(self.window + room.chunk - 1)) if self.window else room.capacity

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> KV:
        shape = (layers, room.slots, self.kv_heads, self.positions(room), cfg.key_length)
        each = Buffer(shape, room.dtype, ("", "B", "K", "", ""))
        return KV(each, each)

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Whether no position that the next query sees was written over by a later one."""
        return not self.window or max(0, length + 1 - self.window) >= written - self.positions(room)
