"""`Stack`: one tensor of every layer, grouped by format, and the product with one layer's matrix of it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from quant.formats import path_of
from quant.matmul import matmul
from quant.qtensor import QTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """One tensor of every layer, grouped by format.

    groups: QTensors whose blocks are `(layers of this format, ..., out, N, block_bytes)`.
    places: per layer, (group, index in the group).
    """

    groups: tuple[QTensor, ...]
    places: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})


def stacked_matmul(x: jax.Array, stack: Stack, index: jax.Array, path: str, inner: tuple = ()) -> jax.Array:
    """x (M, in) times the matrix of layer `index` (then `inner`, an expert): float32 (M, out)."""
    group, place = (jnp.asarray([p[i] for p in stack.places], jnp.int32)[index] for i in (0, 1))
    branches = [lambda place, x, w=w: matmul(x, w, path_of(w.qtype, path), (place, *inner)) for w in stack.groups]
    return branches[0](place, x) if len(branches) == 1 else lax.switch(group, branches, place, x)
