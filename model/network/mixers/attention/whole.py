"""Attention of one token of each row over the whole span at once, for GPUs."""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.norms import softcap
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV


def whole_attention(
    q: jax.Array, state: KV, index: jax.Array, rows: Rows, span: int, special: Scores = PLAIN, values: int = 0
) -> jax.Array:
    """One token of each row over the whole span, in use or not. values: Cv, their first channels that count; 0: all.

    No loop whose length a GPU would have to tell its host; length buckets keep the span near what is in use. The
    products multiply and add up instead of being matrix products, before which XLA would copy keys and values.
    """
    B, T, H, C = q.shape
    K, S = state.k.shape[2:4]
    span = min(span, S)
    assert T == 1, q.shape
    q = (q * jnp.float32(C**-0.5)).reshape(B, K, H // K, C).astype(state.k.dtype).astype(jnp.float32)
    at = (index, rows.slot, jnp.int32(0), jnp.int32(0), jnp.int32(0))
    width = values or state.v.shape[4]
    keys, kept = (lax.dynamic_slice(x, at, (1, B, K, span, n))[0] for x, n in zip(state, (C, width), strict=True))
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
    return (mixed / total).reshape(B, 1, H * width)
