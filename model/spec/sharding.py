"""How the devices of a mesh share a model: which part of every weight each one holds. Pure arithmetic, imports no jax.

Two mesh axes: "data" shares the cache's slots, "tensor" the weights. Along "tensor" a branch of a layer is cut twice:
the matrices that open it (q, k, v; gate, up) by rows, so that a device computes its own heads or features, and the one
that closes it (`attn_output`, `ffn_down`) along its inputs, by whole blocks, so that one sum over the devices ends the
branch. Where blocks do not divide, they are padded with zero blocks if that costs little; else the closing matrix is
cut by rows and the activations are gathered before and after. Experts, and the rows of embedding and head, are shared
out whole.
Source: Megatron-LM (1909.08053).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import Axis, Segment, Weight
from packlight.quant.formats.table import FORMATS

DATA, TENSOR = "data", "tensor"  # the mesh's axes
MOST_PADDING = 1 / 8  # zero blocks a device may hold, of its own real ones, before activations are gathered instead

Closing = Literal["inputs", "rows"]


@dataclasses.dataclass(frozen=True)
class Split:
    """How one model is cut among `tensor` devices, and its slots among `data` groups of them. Static."""

    data: int = 1
    tensor: int = 1
    # Each device computes its own query heads, with the kv heads they read; several devices may hold the same kv head.
    # If false, every device computes all heads, and q, k and v are gathered.
    heads: bool = True
    # A closing matrix is cut along its "inputs", and the results are summed; or by "rows", and both its inputs and its
    # results are gathered.
    attn_output: Closing = "inputs"
    ffn_down: Closing = "inputs"
    ffn: int = 0  # features of the feed-forward part that a device computes, padding included; experts are not cut

    def local(self, cfg: ModelConfig) -> ModelConfig:
        """The hyperparameters that one device's computation sees."""
        if self.tensor == 1 or not self.heads:
            return cfg
        kv_heads = max(1, cfg.head_count_kv // self.tensor)
        return dataclasses.replace(cfg, head_count=cfg.head_count // self.tensor, head_count_kv=kv_heads)

    def part(self, cfg: ModelConfig, weight: Weight) -> Weight:
        """`weight` with the shape that one device holds of it, which is cut no further."""
        share = cut(cfg, self, weight, 0)
        shape = list(weight.shape)
        if share.axis:
            shape[weight.position(share.axis)] = share.size
        return dataclasses.replace(weight, shape=tuple(shape), cut="", segments=())

    def closing(self, weight: Weight) -> Closing:
        """How a matrix that is declared as cut along its inputs, or its bias, is really cut."""
        (segment,) = weight.segments
        ways: dict[str, Closing] = {"H": self.attn_output, "F": self.ffn_down}
        return ways[segment.axis]

    def cache_heads(self, cfg: ModelConfig) -> int:
        """kv heads of the whole cache, repeated ones counted."""
        return self.local(cfg).head_count_kv * (self.tensor if self.heads else 1)

    def __str__(self) -> str:
        """In words, for the plan."""
        attention = "own heads" if self.heads else "all heads on every device"
        ways = {"inputs": "summed", "rows": "gathered"}
        return (
            f"mesh {DATA} {self.data}, {TENSOR} {self.tensor}: {attention}; "
            f"attn_output {ways[self.attn_output]}, ffn_down {ways[self.ffn_down]}"
        )


WHOLE = Split()


class Piece(NamedTuple):
    """Consecutive rows, inputs or experts of a weight that a device keeps."""

    to: int  # the first one's number on the device
    start: int  # the first one's number in the weight
    length: int


class Cut(NamedTuple):
    """One device's part of a weight."""

    axis: Axis = ""  # the axis that is cut; "": every device holds all of the weight
    size: int = 0  # rows, inputs or experts that the device keeps, padding included
    pieces: tuple[Piece, ...] = ()  # the real ones


def make_split(cfg: ModelConfig, used: tuple[Weight, ...], formats: Mapping[str, str], data: int, tensor: int) -> Split:
    """The split of a model whose tensors have `formats` on a mesh of data x tensor devices."""
    if tensor == 1:
        return Split(data)
    heads, kv_heads = cfg.head_count, cfg.head_count_kv
    by_heads = heads % tensor == 0 and (kv_heads % tensor == 0 or tensor % kv_heads == 0)

    def block(axis: str) -> int:
        """Elements of the largest block in which the file stores the matrix that closes the branch of `axis`.

        It is 1 where no matrix does.
        """
        closing = [w for w in used if w.cut == "inputs" and not w.is_vector and w.segments[0].axis == axis]
        names = [name for weight in closing for name in weight.tensors(cfg.block_count)]
        return max((FORMATS[formats[name]].elements for name in names), default=1)

    width = heads // tensor * cfg.key_length
    attn_output: Closing = "inputs" if by_heads and width % block("H") == 0 else "rows"
    blocks = cfg.feed_forward_length // block("F")
    padded = -(-blocks // tensor) * tensor
    summed = padded <= blocks * (1 + MOST_PADDING)
    features = padded * block("F") if summed else -(-cfg.feed_forward_length // tensor) * tensor
    return Split(data, tensor, by_heads, attn_output, "inputs" if summed else "rows", features // tensor)


def cut(cfg: ModelConfig, split: Split, weight: Weight, device: int) -> Cut:
    """The part of `weight` that the tensor device number `device` holds."""
    if split.tensor == 1 or not weight.cut:
        return Cut()
    if weight.cut == "inputs":  # it closes a branch
        if split.closing(weight) == "rows":
            return _cut_evenly(weight, "rows", split, device)
        if weight.is_vector:
            return Cut()  # added to the sum, which is everywhere
    elif not split.heads and weight.segments[0].axis in ("H", "K"):  # q, k and v are gathered from any of their rows
        return Cut() if weight.kind == "vector" else _cut_evenly(weight, weight.cut, split, device)
    pieces, at, base = [], 0, 0
    for segment in weight.segments:
        share = _share_of(segment, cfg, split, device)
        pieces.append(Piece(at, base + share.first, share.real))
        at, base = at + share.kept, base + segment.length
    return Cut(weight.cut, at, tuple(piece for piece in pieces if piece.length))


def _cut_evenly(weight: Weight, axis: Axis, split: Split, device: int) -> Cut:
    """An axis in equal parts, whatever lies on it."""
    share = _equal_share(weight.shape[weight.position(axis)], split.tensor, device)
    return Cut(axis, share.kept, (Piece(0, share.first, share.real),) if share.real else ())


class _Share(NamedTuple):
    """What a device holds of a segment: `kept` rows, inputs or experts, of which the first `real` are no padding."""

    kept: int
    first: int  # the first real one's number in the segment
    real: int


def _share_of(segment: Segment, cfg: ModelConfig, split: Split, device: int) -> _Share:
    match segment.axis:
        case "K":  # a device holds one kv head at least, which several may share
            width = segment.length // cfg.head_count_kv
            kept = width * split.local(cfg).head_count_kv
            return _Share(kept, device * cfg.head_count_kv // split.tensor * width, kept)
        case "F":
            return _padded_share(segment.length, split.ffn, device)
        case _:
            return _equal_share(segment.length, split.tensor, device)


def _equal_share(length: int, tensor: int, device: int) -> _Share:
    return _padded_share(length, -(-length // tensor), device)


def _padded_share(length: int, kept: int, device: int) -> _Share:
    """`kept` of `length` on each device, until there are no more."""
    first = min(device * kept, length)
    return _Share(kept, first, min(kept, length - first))
