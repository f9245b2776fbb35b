"""Attention of one token of each row over the whole span at once, for GPUs."""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.mixers.attention.quantized import unpacked
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.norms import softcap
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV


def whole_attention(
    q: jax.Array,
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    special: Scores = PLAIN,
    values: int = 0,
) -> jax.Array:
    """One token of each row over the whole span, in use or not. values: Cv, their first channels that count; 0: all.

    No loop whose length a GPU would have to tell its host; length buckets keep the span near what is in use. The
    products multiply and add up instead of being matrix products, before which XLA would copy keys and values. Keys and
    values in int8 are unpacked to float32.
    """
    B, T, H, C = q.shape
    K, S = state.k.shape[2:4]
    span = min(span, S)
    assert T == 1, q.shape

    def seen_of(x: jax.Array, channels: int = 0) -> jax.Array:
        at = (index, rows.slot, jnp.int32(0), jnp.int32(0), jnp.int32(0))
        return lax.dynamic_slice(x, at, (1, B, K, span, channels or x.shape[4]))[0]

    if isinstance(state, KV):
        keys, kept = seen_of(state.k), seen_of(state.v, values)
    else:
        assert not values, "narrow values, rounded"
        keys = unpacked(seen_of(state.k), seen_of(state.k_scales))
        kept = unpacked(seen_of(state.v), seen_of(state.v_scales))
    q = (q * jnp.float32(C**-0.5)).reshape(B, K, H // K, C).astype(keys.dtype).astype(jnp.float32)
    scores = softcap((q[:, :, :, None] * keys[:, :, None].astype(jnp.float32)).sum(-1), special.softcap)  # (B, K, G, S)
    position, start = jnp.arange(span, dtype=jnp.int32)[None, :], rows.start[:, None]
    if special.window is None:
        seen, held = position <= start, position < rows.end[:, None]
    else:
        position = start - (start - position) % S  # the last one that was written there
        seen = held = (position >= 0) & (position >= special.oldest(start))
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    top = scores.max(-1, keepdims=True)
    sinks = None if special.sinks is None else special.sinks.reshape(1, K, H // K, 1)
    if sinks is not None:  # a sink is a score seen beside all others, with value 0
        top = jnp.maximum(top, sinks)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True) + (0 if sinks is None else jnp.exp(sinks - top))
    kept = jnp.where(held[:, None, :, None], kept, 0)
    mixed = jnp.einsum("bkgs,bksc->bkgc", weights.astype(kept.dtype), kept, preferred_element_type=jnp.float32)
    return (mixed / total).reshape(B, 1, -1)
