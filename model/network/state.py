"""The cache, where the rows of a step lie in it, and what the plan decided. Knows no weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.spec.state import CACHE_TILE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What the model keeps of every slot, and how many positions of each slot are filled."""

    length: jax.Array  # int32 (B,)
    state: dict[str, Any]  # the name of each mixer -> its state, as `model.spec.parts` says it: KV, Columns


class Rows(NamedTuple):
    """Where the rows of x lie in the cache."""

    slot: jax.Array  # int32 (), first slot
    start: jax.Array  # int32 (B,), position of each row's first token
    end: jax.Array  # int32 (B,), one past each row's last real token: padding is behind it
    active: jax.Array  # bool (B,), rows that may write


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What the plan decided for the traced code. Static."""

    paths: Mapping[str, str]  # format -> kernel path of products with matrices of it (`compile.kernels.KernelPlan`)
    dtype: jnp.dtype  # activations are rounded to it before a product
    span: int  # S of the step: how many cached positions a query may look back at
    context: int  # tokens that a slot may hold
    split: Split = WHOLE  # how devices share the model
    kernel: str = "tiled"  # which kernel computes attention (`model.network.mixers.attention.attention`)
    native: bool = False  # whether a CPU's C++ kernels run, which other mixers may have too

    def in_float32(self) -> "Numerics":
        """The same but for activations, which stay float32: for a few numbers that weigh or choose much."""
        return dataclasses.replace(self, dtype=jnp.dtype(jnp.float32))


def copied(
    array: jax.Array,  # (L, slots, ...), or (L, slots, ..., S, C) where it lies along a text
    source: jax.Array,  # int32 ()
    target: jax.Array,  # int32 ()
    count: jax.Array | None,  # int32 (), positions of a text; None: all there is
) -> jax.Array:
    """The array with a slot's contents in another slot too.

    A ring of S positions is copied whole where more than S are wanted. Tile by tile, because memory that was never
    written takes none on a CPU; what is read passes a barrier, because XLA copies the whole array where it reads and
    writes it at two places in one fusion.
    """
    slot = [array.shape[0], 1, *array.shape[2:]]
    if count is None:
        tiles, size = jnp.int32(1), 0
    else:
        slot[-2] = size = min(CACHE_TILE, slot[-2])
        tiles = (jnp.minimum(count, array.shape[-2]) + size - 1) // size

    def tile(number: jax.Array, array: jax.Array) -> jax.Array:
        def at(place: jax.Array) -> list[jax.Array]:
            begin = [jnp.int32(0)] * array.ndim
            begin[1] = place
            if size:
                begin[-2] = number * size
            return begin

        read = lax.optimization_barrier(lax.dynamic_slice(array, at(source), slot))
        return lax.dynamic_update_slice(array, read, at(target))

    return lax.fori_loop(0, tiles, tile, array)


def saved(
    array: jax.Array,  # (L, slots, ...), or (L, slots, ..., S, C) where a part of a text is taken
    slot: jax.Array,  # int32 ()
    start: jax.Array,  # int32 (), its first position
    shape: tuple[int, ...],  # of what is taken: (L, ...), or (L, ..., P, C)
) -> jax.Array:
    """What an array has of a slot, or of so many of its positions."""
    read = lax.dynamic_slice(array, _place(array, slot, start, shape), [shape[0], 1, *shape[1:]])
    return read[:, 0]


def loaded(array: jax.Array, slot: jax.Array, start: jax.Array, part: jax.Array) -> jax.Array:
    """The array with a part of a slot as `saved` has given it."""
    return lax.dynamic_update_slice(array, part[:, None], _place(array, slot, start, part.shape))


def _place(array: jax.Array, slot: jax.Array, start: jax.Array, part: tuple[int, ...]) -> list[jax.Array]:
    """Where a part of a slot begins in an array; `start` means nothing where the part is all of the slot."""
    begin = [jnp.int32(0)] * array.ndim
    begin[1] = slot
    if part != (array.shape[0], *array.shape[2:]):
        begin[-2] = start
    return begin
