"""Writing keys, values and latents to their places, without a copy of what lies there."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from packlight.model.network.mixers.attention.hadamard import hadamard
from packlight.model.network.mixers.attention.quantized import is_turned, packed, rounded
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV


def write(
    state: KV | QuantizedKV,
    index: jax.Array,
    k: jax.Array,  # (B, T, K, C)
    v: jax.Array,  # (B, T, K, C)
    rows: Rows,
    window: int = 0,
) -> KV | QuantizedKV:
    """Puts k and v at their positions, as `put` does it, rounded as the state keeps them, with their scales."""
    if isinstance(state, KV):
        return KV(put(state.k, index, k, rows, window), put(state.v, index, v, rows, window))
    if is_turned(state):
        (k, k_scales), (v, v_scales) = packed(hadamard(k)), packed(hadamard(v))
    else:
        (k, k_scales), (v, v_scales) = rounded(k), rounded(v)
    new = QuantizedKV(k, v, k_scales, v_scales)
    return QuantizedKV(*(put(buffer, index, each, rows, window) for buffer, each in zip(state, new, strict=True)))


def put(
    buffer: jax.Array,  # (L, slots, K, S, C)
    index: jax.Array,
    new: jax.Array,  # (B, T, K, C)
    rows: Rows,
    window: int = 0,
) -> jax.Array:
    """The buffer with new channels at their positions; a row that is not active leaves it as it is.

    Where a window and the T tokens have room in S, position p lies at p % S. Elsewhere S holds every position that a
    slot may have, and padding behind them is left out.
    """
    (B, T), S = new.shape[:2], buffer.shape[3]
    wraps = 0 < window <= S - (T - 1)
    new = new.astype(buffer.dtype)
    if B == 1 and not (wraps and T > 1):  # one block
        return in_blocks(buffer, index, new, rows, wraps)
    blocks, scatter = (functools.partial(way, wraps=wraps) for way in (in_blocks, scattered))
    return lax.platform_dependent(buffer, index, new, rows, default=blocks, cuda=scatter)


def in_blocks(buffer: jax.Array, index: jax.Array, new: jax.Array, rows: Rows, wraps: bool) -> jax.Array:
    """`put` by a block of T positions at a time, of which what is not a row's is written as it was. wraps: position p
    lies at p % S.
    """
    (B, T), S = new.shape[:2], buffer.shape[3]
    at = rows.start % S if wraps else rows.start
    place = jnp.minimum(at, S - T)
    late = at - place  # tokens that do not fit behind `at`; before it, as many places of the block are others'
    pieces = 2 if wraps and T > 1 else 1  # the second has those tokens, at the beginning
    new = new.transpose(0, 2, 1, 3)  # (B, K, T, C)

    def piece(n, buffer):  # a loop, because XLA:CPU copies the whole cache for a chain of updates in one fusion
        b, first, block = n // pieces, n % pieces == 0, new[n // pieces][None, None]
        begin, mine = jnp.where(first, place[b], jnp.int32(0)), rows.active[b]
        if T > 1:
            block = jnp.roll(block, late[b], axis=3)
            mine = (mine & ((jnp.arange(T) >= late[b]) == first))[None, None, None, :, None]
        here = (index, rows.slot + b, jnp.int32(0), begin, jnp.int32(0))
        block = jnp.where(mine, block, lax.dynamic_slice(buffer, here, block.shape))
        return in_order(lax.dynamic_update_slice(buffer, block, here))

    return lax.fori_loop(0, B * pieces, piece, buffer)


def scattered(buffer: jax.Array, index: jax.Array, new: jax.Array, rows: Rows, wraps: bool) -> jax.Array:
    """`put` at once: the same bits as `in_blocks`. To a GPU it is one kernel, where the loop is two for each block and
    keeps the rest of a layer out of a CUDA graph.
    """
    (B, T), S = new.shape[:2], buffer.shape[3]
    token, slots = jnp.arange(T, dtype=jnp.int32)[None], rows.slot + jnp.arange(B, dtype=jnp.int32)
    at = rows.start[:, None] + token
    at = at % S if wraps else at
    at = jnp.where(rows.active[:, None], at, S + token)  # what lies outside is dropped; still no place twice
    return buffer.at[index, slots[:, None], :, at].set(new, mode="drop", unique_indices=True)


def in_order(buffer: jax.Array) -> jax.Array:
    """The same, on a TPU in the order of axes that its arguments have: the last is padded to 128, so that the last two
    are exchanged where C would need it. Left alone, XLA updates single tokens in an order of its own, (S, K, C), and
    copies the whole cache into it and back in each step.
    """
    order = (0, 1, 2, 3, 4) if buffer.shape[-1] % 128 == 0 else (0, 1, 2, 4, 3)
    return lax.platform_dependent(buffer, tpu=lambda x: with_layout_constraint(x, Layout(order)), default=lambda x: x)
