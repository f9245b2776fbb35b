"""Writing keys and values into the cache, in place."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from packlight.model.network.state import Cache, Rows


def write_cache(
    cache: Cache,
    index: jax.Array,
    k: jax.Array,  # (B, T, K, C)
    v: jax.Array,  # (B, T, K, C)
    rows: Rows,
) -> Cache:
    """Puts k and v at their positions; a row that is not active leaves the cache as it is."""

    def put(buffer, new):
        new = new.astype(buffer.dtype).transpose(0, 2, 1, 3)  # (B, K, T, C)

        def row(b, buffer):  # a loop, because XLA:CPU copies the whole cache for a chain of updates in one fusion
            at = (index, rows.slot + b, jnp.int32(0), rows.start[b], jnp.int32(0))
            block = new[b][None, None]
            block = jnp.where(rows.active[b], block, lax.dynamic_slice(buffer, at, block.shape))
            return _in_order(lax.dynamic_update_slice(buffer, block, at))

        return lax.fori_loop(0, new.shape[0], row, buffer)

    return dataclasses.replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def _in_order(buffer: jax.Array) -> jax.Array:
    """The same, on a TPU in the order of axes that its arguments have: the last is padded to 128, so that the last two
    are exchanged where C would need it. Left alone, XLA updates single tokens in an order of its own, (S, K, C), and
    copies the whole cache into it and back in each step.
    """
    order = (0, 1, 2, 3, 4) if buffer.shape[-1] % 128 == 0 else (0, 1, 2, 4, 3)
    return lax.platform_dependent(buffer, tpu=lambda x: with_layout_constraint(x, Layout(order)), default=lambda x: x)
