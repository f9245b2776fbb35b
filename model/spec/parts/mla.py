"""Multi-head latent attention, as in DeepSeek V2. What it computes is in `model.network.mixers.mla`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from packlight.common.errors import UnsupportedError
from packlight.model.spec.state import Buffer, Room
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig, _Keys


class Latent(NamedTuple):
    """What all heads share of every position: an array, or what says how it lies. (L, B, 1, S, R + rot).

    The first R channels are the normed latent, from which each head makes its key and its value. The rest is the part
    of the keys that is rotated. Position p lies at p.
    """

    latent: Any


@dataclasses.dataclass(frozen=True)
class MlaPart:
    """Attention whose keys and values are made of one narrow latent for each position."""

    q_rank: int  # of the queries, which are made in two products; 0: in one
    kv_rank: int  # R, the latent's width
    rotated: int  # rot, channels of a key that the heads share and that are rotated
    key_length: int  # channels of a head's query and key, the rotated ones, which are its last, included
    value_length: int  # channels of a head's value
    split: bool = True  # a file has a head's keys and values in two tensors, keys transposed; else they are in one
    sharpening: float = 0.0  # queries at position p are multiplied with 1 + sharpening * ln(1 + p // sharpened_from)
    sharpened_from: int = 0  # positions; 0 where queries are not sharpened
    name: str = "mla"

    @property
    def plain(self) -> int:
        """Channels of a head's query and key that are not rotated."""
        return self.key_length - self.rotated

    @property
    def width(self) -> int:
        """Channels of the state at each position."""
        return self.kv_rank + self.rotated

    @classmethod
    def read(cls, keys: "_Keys") -> Self:
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
                if keys.has(key) and (stated := keys.integer(key, high=2**31 - 1)) != needed:
                    keys.fail(key, f"{stated} is not {needed}, the width of what heads share")
        q_rank = 0 if _is_lite(keys) else keys.integer("attention.q_lora_rank", 0, low=0)
        return cls(q_rank, kv_rank, rotated, key_length, value_length, bool(suffix), *_sharpening(keys))

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        """The low-rank products, whose results the norms need whole, are every device's."""
        D, H, R = cfg.embedding_length, cfg.head_count, self.kv_rank
        queries, values = (Segment("H", H * each) for each in (self.key_length, self.value_length))
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
            both = Segment("H", H * (self.plain + self.value_length))
            yield Weight("attn_kv_b", (both.length, R), "rows", (both,), "heads")
        yield Weight("attn_output", (D, values.length), "inputs", (values,))

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Latent:
        shape = (layers, room.slots, 1, room.capacity, self.width)
        return Latent(Buffer(shape, room.dtype, ("", "B", "", "", "")))

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


def _is_lite(keys: "_Keys") -> bool:
    """Whether queries are made in one product whatever the file says of a rank: known by the depth, as in llama.cpp."""
    layers = keys.integer("block_count")
    if keys.has("nextn_predict_layers"):
        layers -= keys.integer("nextn_predict_layers", low=0)
    return layers in (26, 27) or (layers == 48 and len(keys.tokens or ()) == 128256)


def _sharpening(keys: "_Keys") -> tuple[float, int]:
    """How much queries are sharpened, and from which position on."""
    if not keys.has("attention.temperature_scale"):
        return 0.0, 0
    amount = keys.number("attention.temperature_scale", None, low=0.0, high=1e6)
    if amount and not keys.has("attention.temperature_length"):
        raise UnsupportedError(
            f"key '{keys.full('attention.temperature_scale')}' is there without 'attention.temperature_length'"
        )
    return (amount, keys.integer("attention.temperature_length")) if amount else (0.0, 0)
