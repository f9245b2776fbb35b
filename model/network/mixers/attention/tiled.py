"""Attention in XLA, one tile of cached positions after the other: the reference of the other kernels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.mixers.attention.quantized import unpacked
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.write import in_order
from packlight.model.network.norms import softcap
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.model.spec.state import CACHE_TILE

# A tile's first place in the cache -> keys (B, K, tile, C) and values (B, K, tile, Cv) of the tile's positions.
Fetch = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def tiled_attention(
    q: jax.Array,
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    special: Scores = PLAIN,
    values: int = 0,
) -> jax.Array:
    """Attention to cached keys and values, in tiles. values: Cv, their first channels that count; 0: all.

    Rounded keys and values are unpacked to float32, a tile at a time.
    """
    B, K, S = q.shape[0], *state.k.shape[2:4]

    def fetch(place: jax.Array) -> tuple[jax.Array, jax.Array]:
        def tile(x: jax.Array, channels: int = 0) -> jax.Array:
            # in order: where keys are values too, XLA would want another order in this loop, and copy the whole cache
            at = (index, rows.slot, jnp.int32(0), place, jnp.int32(0))
            return lax.dynamic_slice(in_order(x), at, (1, B, K, CACHE_TILE, channels or x.shape[4]))[0]

        if isinstance(state, KV):
            return tile(state.k), tile(state.v, values)
        assert not values, "narrow values, rounded"
        return unpacked(tile(state.k), tile(state.k_scales)), unpacked(tile(state.v), tile(state.v_scales))

    return attention_in_tiles(q, fetch, S, rows, span, special)


def attention_in_tiles(
    q: jax.Array,  # float32 (B, T, H, C)
    fetch: Fetch,
    places: int,  # S
    rows: Rows,
    span: int,
    special: Scores = PLAIN,
) -> jax.Array:  # float32 (B, T, H * Cv)
    """One tile of cached positions at a time with a running softmax; the loop ends at the longest row.

    A tile that is masked for some row leaves that row's sums bit for bit as they are.
    Source: online softmax (1805.02867), FlashAttention (2205.14135).
    """
    B, T, H, C = q.shape
    tile = CACHE_TILE
    assert span % tile == 0, (span, tile)
    like, values_like = jax.eval_shape(fetch, jax.ShapeDtypeStruct((), jnp.int32))
    K, width = like.shape[1], values_like.shape[3]
    q = q.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4).reshape(B, K, (H // K) * T, C)
    q = (q * jnp.float32(C**-0.5)).astype(like.dtype)
    last = jnp.tile(rows.start[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :], (1, H // K))  # (B, G * T)

    def body(i, carry):
        top, total, mixed = carry
        keys, values = fetch(i * tile if special.window is None else i % (places // tile) * tile)
        scores = jnp.einsum("bkqc,bksc->bkqs", q, keys, preferred_element_type=jnp.float32)
        scores = softcap(scores, special.softcap)
        position = i * tile + jnp.arange(tile, dtype=jnp.int32)
        held = position[None, :] < rows.end[:, None]
        if special.window is not None:  # what is older may have been written over
            held &= position[None, :] > rows.start[:, None] - special.window
        values = jnp.where(held[:, None, :, None], values, 0)
        seen = position[None, None, :] <= last[:, :, None]
        if special.window is not None:
            seen &= position[None, None, :] >= special.oldest(last)[:, :, None]
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        part = jnp.einsum("bkqs,bksc->bkqc", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new_top, total * shrink + weights.sum(-1), mixed * shrink[..., None] + part

    zeros = jnp.zeros((B, K, (H // K) * T), jnp.float32)
    lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)
    tiles = jnp.minimum((jnp.max(last) + tile) // tile, span // tile)
    first = 0
    if special.window is not None:
        first = jnp.maximum(0, jnp.min(rows.start) + 1 - special.window) // tile
    begin = (lowest, zeros, jnp.zeros((*zeros.shape, width), jnp.float32))
    if special.sinks is not None:  # a sink is a score seen before all others, with value 0
        sinks = jnp.repeat(special.sinks.reshape(1, K, H // K), T, axis=-1)  # (1, K, G * T)
        begin = (jnp.broadcast_to(sinks, zeros.shape), jnp.ones_like(zeros), begin[2])
    _, total, mixed = lax.fori_loop(first, tiles, body, begin)
    out = mixed / total[..., None]
    return out.reshape(B, K, H // K, T, width).transpose(0, 3, 1, 2, 4).reshape(B, T, H * width)
