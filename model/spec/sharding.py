"""How the devices of a mesh share a model: which part of every weight each one holds. Pure arithmetic, imports no jax.

Two mesh axes: "data" shares the cache's slots, "tensor" the weights. Along "tensor" a branch of a layer is cut twice:
the matrices that open it (q, k, v; gate, up) by rows, so that a device computes its own heads, features or channels,
and the one that closes it (`attn_output`, `ffn_down`) along its inputs, by whole blocks, so that one sum over the
devices ends the branch. Where blocks do not divide, they are padded with zero blocks if that costs little; else the
closing matrix is cut by rows and the activations are gathered before and after. Experts, and the rows of embedding and
head, are shared out whole.
Source: Megatron-LM (1909.08053).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts import Mixer
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.state import Buffer
from packlight.model.spec.weight import Axis, Letter, Segment, Weight
from packlight.quant.formats.table import FORMATS

DATA, TENSOR = "data", "tensor"  # the mesh's axes
MOST_PADDING = 1 / 8  # zero blocks a device may hold, of its own real ones, before activations are gathered instead

Closing = Literal["inputs", "rows"]


class Branch(NamedTuple):
    """How devices share the branches of layers in whose middle there is as much of the same."""

    axis: Letter  # what lies along the inputs of the matrix that closes it
    name: str  # of that matrix
    # It is cut along its "inputs", and the results are summed; or by "rows", and both its inputs and its results are
    # gathered.
    closing: Closing
    length: int  # inputs
    kept: int  # of them that a device computes, padding included


@dataclasses.dataclass(frozen=True)
class Split:
    """How one model is cut among `tensor` devices, and its slots among `data` groups of them. Static."""

    data: int = 1
    tensor: int = 1
    # Each device computes its own query heads, with the kv heads they read; several devices may hold the same kv head.
    # If false, every device computes all heads, and q, k and v are gathered.
    heads: bool = True
    branches: tuple[Branch, ...] = ()  # of which experts are none: they are shared out whole
    # As `heads`, of what remembers: key heads of delta nets with the value heads that read them, and Mamba-2's heads,
    # with the groups that they read.
    groups: bool = True

    @property
    def devices(self) -> int:
        """How many devices share the model and its slots."""
        return self.data * self.tensor

    @property
    def gathered(self) -> str:
        """The axes of which every device computes all."""
        return ("" if self.heads else "HK") + ("" if self.groups else "JU")

    def local_heads(self, heads: int) -> int:
        """How many of a layer's query heads one device computes."""
        return heads // self.tensor if self.heads else heads

    def local_kv_heads(self, kv_heads: int) -> int:
        """How many of a layer's kv heads one device computes: at least one, which several devices may share."""
        return max(1, kv_heads // self.tensor) if self.heads else kv_heads

    def local_groups(self, groups: int) -> int:
        """How many of a delta net's key heads, or of Mamba-2's heads or groups, one device computes: at least one
        group, which several devices may share.
        """
        return max(1, groups // self.tensor) if self.groups else groups

    def part(self, weight: Weight) -> Weight:
        """`weight` with the shape that one device holds of it, which is cut no further."""
        share = cut(self, weight, 0)
        shape = list(weight.shape)
        if share.axis:
            shape[weight.position(share.axis)] = share.size
        return dataclasses.replace(weight, shape=tuple(shape), cut="", segments=())

    def branch(self, segment: Segment) -> Branch:
        """The branch that a matrix closes whose inputs are `segment`."""
        return next(each for each in self.branches if (each.axis, each.length) == (segment.axis, segment.length))

    def axes(self, buffer: Buffer) -> tuple[str | None, ...]:
        """For each dimension of a buffer, the axis of the mesh along which devices share it."""
        letters = {"": None, "B": DATA, "D": TENSOR}
        letters |= {"J": TENSOR if self.groups else None, "K": TENSOR if self.heads else None}
        return tuple(letters[letter] for letter in buffer.axes)

    def spread(self, buffer: Buffer) -> Buffer:
        """A buffer as all devices together hold it: with kv heads that several hold, and channels that are padding."""
        if self.tensor == 1:
            return buffer
        sizes = dict(zip(buffer.axes, buffer.shape, strict=True))
        wider = {}
        if "K" in sizes and self.heads:
            wider["K"] = self.local_kv_heads(sizes["K"]) * self.tensor
        if "D" in sizes:
            wider["D"] = self.branch(Segment("D", sizes["D"])).kept * self.tensor
        if buffer.segments and self.groups:
            wider["J"] = sum(_share_of(segment, self, 0).kept for segment in buffer.segments) * self.tensor
        shape = tuple(wider.get(letter, size) for letter, size in zip(buffer.axes, buffer.shape, strict=True))
        return dataclasses.replace(buffer, shape=shape)

    def __str__(self) -> str:
        """In words, for the plan."""
        attention = "own heads" if self.heads else "all heads on every device"
        memory = "" if self.groups else "; all heads that remember on every device"
        ways = {"inputs": "summed", "rows": "gathered"}
        closings = ", ".join(dict.fromkeys(f"{branch.name} {ways[branch.closing]}" for branch in self.branches))
        shared = f"mesh {DATA} {self.data}, {TENSOR} {self.tensor}: {attention}{memory}"
        return shared + (f"; {closings}" if closings else "")


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
    by_heads = all(_shares_heads(mixer, tensor) for mixer in cfg.mixers)
    closings: dict[Segment, list[Weight]] = {}
    for weight in used:
        if weight.cut == "inputs" and not weight.is_vector:
            closings.setdefault(weight.segments[0]._replace(unit=1), []).append(weight)
    blocks = {
        segment: max(FORMATS[formats[name]].elements for weight in weights for name in weight.tensors)
        for segment, weights in closings.items()
    }
    # Inputs of a closing matrix that lie apart, as a delta net's, are shared by blocks or not at all.
    apart = [segment for segment, weights in closings.items() if any(len(weight.segments) > 1 for weight in weights)]
    by_groups = all(_shares_groups(mixer, tensor) for mixer in cfg.mixers) and all(
        segment.length // tensor % blocks[segment] == 0 for segment in apart
    )
    branches = []
    for segment, weights in closings.items():
        block = blocks[segment]
        if segment.axis in ("H", "J"):
            own = by_heads if segment.axis == "H" else by_groups
            kept = segment.length // tensor if own else segment.length
            closing: Closing = "inputs" if own and kept % block == 0 else "rows"
        else:
            closing, kept = _share_features(segment.length, block, tensor)
        branches.append(Branch(segment.axis, weights[0].name, closing, segment.length, kept))
    return Split(data, tensor, by_heads, tuple(branches), by_groups)


def _shares_heads(mixer: Mixer, tensor: int) -> bool:
    """Whether each device can compute equally many query heads of a mixer, with the kv heads that they read."""
    match mixer:
        case AttentionPart(heads=heads, kv_heads=kv_heads):
            return heads % tensor == 0 and (kv_heads % tensor == 0 or tensor % kv_heads == 0)
        case MlaPart(heads=heads):
            return heads % tensor == 0
        case _:
            return True


def _shares_groups(mixer: Mixer, tensor: int) -> bool:
    """Whether each device can compute equally much of what a mixer remembers, with what is read of it together."""
    match mixer:
        case DeltaNetPart(groups=groups):
            return groups % tensor == 0
        case Mamba2Part(heads=heads, groups=groups):
            return heads % tensor == 0 and (groups % tensor == 0 or tensor % groups == 0)
        case _:
            return True


def _share_features(length: int, block: int, tensor: int) -> tuple[Closing, int]:
    """How a branch is closed in whose middle there are `length` features, and how many of them a device computes.

    block: inputs of the largest block in which the file stores the matrix that closes it.
    """
    blocks = length // block
    padded = -(-blocks // tensor) * tensor
    if padded <= blocks * (1 + MOST_PADDING):
        return "inputs", padded * block // tensor
    return "rows", -(-length // tensor)


def cut(split: Split, weight: Weight, device: int) -> Cut:
    """The part of `weight` that the tensor device number `device` holds."""
    if split.tensor == 1 or not weight.cut:
        return Cut()
    if weight.cut == "inputs":  # it closes a branch
        if split.branch(weight.segments[0]).closing == "rows":
            return _cut_evenly(weight, "rows", split, device)
        if weight.is_vector:
            return Cut()  # added to the sum, which is everywhere
    elif weight.segments[0].axis in split.gathered:  # what such matrices give is gathered from any of their rows
        whole = weight.kind in ("vector", "heads", "taps")
        return Cut() if whole else _cut_evenly(weight, weight.cut, split, device)
    pieces, at, base = [], 0, 0
    for segment in weight.segments:
        share = _share_of(segment, split, device)
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


def _share_of(segment: Segment, split: Split, device: int) -> _Share:
    match segment.axis:
        case "K" | "U":  # a device holds one kv head or group at least, which several may share
            count = segment.length // segment.unit
            local = split.local_groups(count) if segment.axis == "U" else split.local_kv_heads(count)
            kept = local * segment.unit
            return _Share(kept, device * count // split.tensor * segment.unit, kept)
        case "F" | "D":
            return _padded_share(segment.length, split.branch(segment).kept, device)
        case _:
            return _equal_share(segment.length, split.tensor, device)


def _equal_share(length: int, tensor: int, device: int) -> _Share:
    return _padded_share(length, -(-length // tensor), device)


def _padded_share(length: int, kept: int, device: int) -> _Share:
    """`kept` of `length` on each device, until there are no more."""
    first = min(device * kept, length)
    return _Share(kept, first, min(kept, length - first))
