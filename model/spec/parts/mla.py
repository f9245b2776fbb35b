"""Multi-head latent attention, as in DeepSeek V2. What it computes is in `model.network.mixers.mla`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from packlight.model.spec.state import Buffer, Room
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig
    from packlight.model.spec.keys import Keys


class Latent(NamedTuple):
    """What all heads share of every position: an array, or what says how it lies. (L, B, 1, S, R + rot).

    The first R channels are the normed latent, from which each head makes its key and its value. The rest is the part
    of the keys that is rotated. Position p lies at p.
    """

    latent: Any


@dataclasses.dataclass(frozen=True)
class MlaPart:
    """Attention whose keys and values are made of one narrow latent for each position."""

    heads: int  # H
    q_rank: int  # of the queries, which are made in two products; 0: in one
    kv_rank: int  # R, the latent's width
    rotated: int  # rot, channels of a key that the heads share and that are rotated
    key_length: int  # channels of a head's query and key, the rotated ones, which are its last, included
    value_length: int  # channels of a head's value
    split: bool = True  # a file has a head's keys and values in two tensors, keys transposed; else they are in one
    name: str = "mla"

    @property
    def state_name(self) -> str:
        return self.name

    @property
    def plain(self) -> int:
        """Channels of a head's query and key that are not rotated."""
        return self.key_length - self.rotated

    @property
    def width(self) -> int:
        """Channels of the state at each position."""
        return self.kv_rank + self.rotated

    @property
    def mixed(self) -> Segment:
        """What attention gives, as it lies along the inputs of the matrix that closes the branch."""
        return Segment("H", self.heads * self.value_length, self.value_length)

    @classmethod
    def read(cls, keys: "Keys", heads: int) -> Self:
        """The part that a file's keys describe.

        Raises GGUFError or UnsupportedError naming the key that is missing, impossible or at odds with another.
        Source: llama.cpp's `llama_model_deepseek2`.
        """
        kv_rank, rotated = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count", high=65536)
        if rotated % 2:
            keys.fail("rope.dimension_count", f"{rotated} is odd")
        suffix = "_mla" if keys.has("attention.key_length_mla") or keys.has("attention.value_length_mla") else ""
        key_length = keys.integer(f"attention.key_length{suffix}", low=rotated + 1, high=65536)
        value_length = keys.integer(f"attention.value_length{suffix}", high=65536)
        if suffix:  # the plain keys speak of the one head that all share
            for key, needed in (("attention.key_length", kv_rank + rotated), ("attention.value_length", kv_rank)):
                if (stated := keys.integer(key, needed)) != needed:
                    keys.fail(key, f"{stated} is not {needed}, the width of what heads share")
        q_rank = 0 if _is_lite(keys) else keys.integer("attention.q_lora_rank", 0, low=0)
        return cls(heads, q_rank, kv_rank, rotated, key_length, value_length, bool(suffix))

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        """The low-rank products, whose results the norms need whole, are every device's."""
        D, H, R = cfg.embedding_length, self.heads, self.kv_rank
        queries = Segment("H", H * self.key_length, self.key_length)
        if self.q_rank:
            yield Weight("attn_q_a", (self.q_rank, D))
            yield Weight("attn_q_a_norm", (self.q_rank,), kind="vector")
            yield Weight("attn_q_b", (queries.length, self.q_rank), "rows", (queries,))
        else:
            yield Weight("attn_q", (queries.length, D), "rows", (queries,))
        yield Weight("attn_kv_a_mqa", (self.width, D))
        yield Weight("attn_kv_a_norm", (R,), kind="vector")
        if self.split:
            heads = (Segment("H", H),)
            yield Weight("attn_k_b", (H, R, self.plain), "experts", heads, "heads")
            yield Weight("attn_v_b", (H, self.value_length, R), "experts", heads, "heads")
        else:
            each = self.plain + self.value_length
            both = Segment("H", H * each, each)
            yield Weight("attn_kv_b", (both.length, R), "rows", (both,), "heads")
        yield Weight("attn_output", (D, self.mixed.length), "inputs", (self.mixed,))

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Latent:
        shape = (layers, room.slots, 1, room.capacity, self.width)
        return Latent(Buffer(shape, room.dtype, ("", "B", "", "", ""), along_text=True))

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Always: no position is written over by a later one."""
        return True

    def expands(self, tokens: int) -> bool:
        """Whether a step of so many tokens does less if it makes every head's keys and values.

        For each cached position that is R * (plain + value_length) products more for each head. It saves each query
        the difference between the latent's channels and its own head's.
        """
        saved = self.kv_rank + self.width - self.key_length - self.value_length
        return tokens * saved > self.kv_rank * (self.plain + self.value_length)


def _is_lite(keys: "Keys") -> bool:
    """Whether queries are made in one product whatever the file says of a rank: known by the depth, as in llama.cpp."""
    return keys.layers in (26, 27) or (keys.layers == 48 and len(keys.tokens or ()) == 128256)
