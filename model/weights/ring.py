"""Matrices of layers that pass through a device from the host's memory, and the one layer that a step has fetched.

Of a tensor the layers lie in pinned host memory one after the other, each as large as the widest of their formats, so
that one slice fetches a layer whatever its format is. Knows arrays, no steps.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from packlight.model.weights.stack import Stack
from packlight.quant.layouts import MOSAIC, byte_axis
from packlight.quant.qtensor import QTensor


class Kind(NamedTuple):
    """What a QTensor says beside its blocks, and how long their axis of bytes is."""

    qtype: str
    layout: str
    rows: int | None
    width: int | None
    size: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring:
    """One tensor of all streamed layers."""

    blocks: jax.Array  # uint8 (layers, ...) in host memory, along the axis of bytes as long as the widest kind's
    kinds: tuple[Kind, ...] = dataclasses.field(metadata={"static": True})
    places: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # streamed layer -> its kind

    def view(self, blocks: jax.Array, kept: int) -> Stack:
        """The stack in which a fetched layer, uint8 (...), stands for every streamed one.

        kept: how many layers of the model come before those.
        """

        def matrix(kind: Kind) -> QTensor:
            qtype, layout, rows, width, size = kind
            own = blocks if layout in MOSAIC else lax.slice_in_dim(blocks, 0, size, axis=byte_axis(layout))
            return QTensor(own[None], qtype, layout, rows, width)

        places = (self.places[0],) * kept + self.places
        return Stack(tuple(map(matrix, self.kinds)), tuple((kind, 0) for kind in places))


Rings = dict[str, dict[str, Ring]]  # the name of a part -> the names of its matrices
Fetched = dict[str, dict[str, jax.Array]]  # likewise, of one layer: uint8 (...)


def fetch(rings: Rings, number: jax.Array) -> Fetched:
    """Streamed layer `number`, brought to the device's memory."""

    def one(ring: Ring) -> jax.Array:
        layer = lax.dynamic_index_in_dim(ring.blocks, number, 0, keepdims=False)
        return jax.device_put(layer, jax.memory.Space.Device)

    return {part: {name: one(ring) for name, ring in named.items()} for part, named in rings.items()}


def viewed(rings: Rings, fetched: Fetched, kept: int) -> dict[str, dict[str, Stack]]:
    """Stacks in which the fetched layer stands for every streamed one."""
    return {
        part: {name: ring.view(fetched[part][name], kept) for name, ring in named.items()}
        for part, named in rings.items()
    }


def first_layers(stack: Stack, kept: int, take: Callable[[Any, int], Any]) -> Stack:
    """The stack without the layers behind the first `kept` ones.

    take: makes of a group's blocks the first so many. Groups are in the order of layers.
    """
    counts = collections.Counter(group for group, _ in stack.places[:kept])
    groups = (dataclasses.replace(w, blocks=take(w.blocks, n)) for g, n in counts.items() for w in (stack.groups[g],))
    order = list(counts)
    return Stack(tuple(groups), tuple((order.index(group), at) for group, at in stack.places[:kept]))


def last_layers(stack: Stack, kept: int, make: Callable[[tuple[int, ...]], Any]) -> Ring:
    """The layers behind the first `kept` ones; make: gives their blocks, of that shape."""
    order = list(dict.fromkeys(group for group, _ in stack.places[kept:]))
    axis = byte_axis(stack.groups[0].layout)
    kinds = tuple(
        Kind(w.qtype, w.layout, w.rows, w.width, w.blocks.shape[axis]) for w in (stack.groups[g] for g in order)
    )
    places = tuple(order.index(group) for group, _ in stack.places[kept:])
    widest = (max(sizes) for sizes in zip(*(stack.groups[group].blocks.shape[1:] for group in order), strict=True))
    return Ring(make((len(places), *widest)), kinds, places)


def filled(stack: Stack, kept: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Makes the blocks of the last layers of a stack of numpy's arrays; what is behind a narrower format is zeros."""

    def make(shape: tuple[int, ...]) -> np.ndarray:
        out = np.zeros(shape, np.uint8)
        for to, (group, at) in zip(out, stack.places[kept:], strict=True):
            blocks = stack.groups[group].blocks[at]
            to[tuple(map(slice, blocks.shape))] = blocks
        return out

    return make
