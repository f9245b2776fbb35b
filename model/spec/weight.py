"""`Weight`: one declared tensor, its shape, and how devices share it. Imports no jax."""

import dataclasses
from typing import Literal, NamedTuple

from packlight.quant import layouts
from packlight.quant.formats.table import FORMATS

Axis = Literal["", "rows", "inputs", "experts"]
Kind = Literal["matrix", "heads", "bias", "vector", "taps"]
Letter = Literal["D", "E", "F", "H", "J", "K", "P", "U", "V"]  # of `model.__init__`


class Segment(NamedTuple):
    """Consecutive rows, inputs or experts of a weight that lie on one logical axis."""

    axis: Letter
    length: int  # rows, inputs or experts: for heads, their number times the width of one
    unit: int = 1  # of them that stay together: the width of a head


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor, or one for each layer that has a part: what a part, or the model, declares."""

    name: str  # as in the file, without its suffix
    shape: tuple[int, ...]  # (out, in), experts before; taps: (channels, taps)
    cut: Axis = ""  # the axis that devices share; "": each of them holds all of it. A bias states its matrix's
    segments: tuple[Segment, ...] = ()  # what lies along that axis, in order
    # A matrix stays packed, and so do the small ones that each of the "heads" has: those of a layer are multiplied
    # together, and a device that computes all heads holds all of them. Biases, vectors such as norms or sinks, and the
    # taps of a convolution become float32.
    kind: Kind = "matrix"
    looked_up: bool = False  # a matrix whose rows are looked up and, but for a head's that is the embedding, no more
    part: str = ""  # the name of the part of a layer that it belongs to; "": of none, there is one in the model
    layers: tuple[int, ...] = ()  # those that have the part
    optional: bool = False  # a file may lack it, then in all these layers
    suffix: str = ".weight"  # behind the name in the file
    replaces: tuple[str, ...] = ()  # names of weights of the part that a file with this one does not have
    fill: float | None = None  # what stands for it in layers without it, where others have it; None: all have it

    def __post_init__(self):
        if self.cut and not (self.is_vector and self.cut == "inputs"):
            assert self.shape[self.position(self.cut)] == sum(segment.length for segment in self.segments), self

    @property
    def is_vector(self) -> bool:
        """Whether it is kept as float32 rather than packed."""
        return self.kind not in ("matrix", "heads")

    @property
    def per_layer(self) -> bool:
        return bool(self.part)

    def position(self, axis: Axis) -> int:
        """Where in the shape `axis` is. The rows of a bias are its last axis, and it has no inputs."""
        match axis:
            case "experts":
                return 0
            case "rows":
                return {"vector": 0, "bias": len(self.shape) - 1}.get(self.kind, len(self.shape) - 2)
            case _:
                return len(self.shape) - 1

    @property
    def tensors(self) -> list[str]:
        """Full names in the file, one per layer or just one."""
        prefixes = [f"blk.{layer}." for layer in self.layers] if self.per_layer else [""]
        return [f"{prefix}{self.name}{self.suffix}" for prefix in prefixes]

    def blocks_shape(self, qtype: str, layout: str = "ggml") -> tuple[int, ...]:
        """(..., out, N, block_bytes) of one such matrix in format `qtype`, or the last three axes of another layout."""
        fmt, (*lead, out, width) = FORMATS[qtype], self.shape
        return (*lead, *layouts.blocks_shape(out, width // fmt.elements, fmt.bytes, layout, qtype))
