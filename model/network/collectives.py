"""What the devices of a mesh tell each other inside a step, by the split of the model. No-ops on one device."""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.spec.sharding import DATA, TENSOR, Split
from packlight.quant.qtensor import QTensor, gather_rows


def summed(x: jax.Array, split: Split) -> jax.Array:
    """The sum over the tensor devices of their parts of it."""
    return x if split.tensor == 1 else lax.psum(x, TENSOR)


def gathered(x: jax.Array, width: int, split: Split) -> jax.Array:
    """The tensor devices' parts of the last axis side by side, without what padding there is beyond `width`."""
    if split.tensor == 1:
        return x
    return lax.all_gather(x, TENSOR, axis=x.ndim - 1, tiled=True)[..., :width]


def own_part(x: jax.Array, kept: int, split: Split) -> jax.Array:
    """This device's `kept` numbers of the last axis, with zeros behind the end of all."""
    if split.tensor == 1:
        return x
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, kept * split.tensor - x.shape[-1])])
    return lax.dynamic_slice_in_dim(padded, tensor_number(split) * kept, kept, axis=-1)


def look_up(table: QTensor, ids: jax.Array, split: Split) -> jax.Array:
    """Rows of a packed table, of which each device has its own: int32 (...) -> float32 (..., K)."""
    if split.tensor == 1:
        return gather_rows(table, ids)
    row = ids - tensor_number(split) * table.shape[0]
    mine = (row >= 0) & (row < table.shape[0])
    return summed(jnp.where(mine[..., None], gather_rows(table, row), jnp.float32(0)), split)


def tensor_number(split: Split) -> jax.Array:
    """This device's number along the tensor axis, int32 ()."""
    return jnp.int32(0) if split.tensor == 1 else lax.axis_index(TENSOR).astype(jnp.int32)


def data_number(split: Split) -> jax.Array:
    """This device's number along the data axis, int32 ()."""
    return jnp.int32(0) if split.data == 1 else lax.axis_index(DATA).astype(jnp.int32)


def from_owner(x: jax.Array, mine: jax.Array, split: Split) -> jax.Array:
    """x of the data group where `mine` is true, on all of them."""
    return x if split.data == 1 else lax.psum(jnp.where(mine, x, jnp.zeros_like(x)), DATA)


def anywhere(x: jax.Array, split: Split) -> jax.Array:
    """Whether x, bool (), is true in any data group."""
    return x if split.data == 1 else lax.psum(x.astype(jnp.int32), DATA) > 0


def rows_of_all(x: jax.Array, split: Split) -> jax.Array:
    """The data groups' rows one after the other."""
    return x if split.data == 1 else lax.all_gather(x, DATA, axis=0, tiled=True)
