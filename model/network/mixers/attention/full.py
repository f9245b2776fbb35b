"""Attention of whole texts to themselves, which needs no cache: of encoders, and of models made for embeddings."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.mixers.attention.native import native_full_attention
from packlight.model.network.mixers.attention.scores import Scores
from packlight.model.network.norms import softcap
from packlight.model.network.state import Numerics

BLOCK = 64  # queries of each head whose scores are held at a time


def full_attention(
    q: jax.Array,  # float32 (B, T, H, C)
    k: jax.Array,  # float32 (B, T, K, C)
    v: jax.Array,  # float32 (B, T, K, C)
    end: jax.Array,  # int32 (B,), tokens of each text: those behind them are padding
    causal: bool,
    special: Scores,
    numerics: Numerics,
) -> jax.Array:  # float32 (B, T, H * C)
    """Each token sees its text: what is before it and itself, or all of it, and of a window half to each side.

    What a text gets depends on its own tokens and on T alone, not on its neighbours. Queries of padding give something
    finite where there is a token.
    """
    assert special.sinks is None, "sinks"
    assert not special.chunked, "chunks"
    if numerics.kernel == "native":
        return native_full_attention(q, k, v, end, causal, special)
    return blocked_attention(q, k, v, end, causal, special, numerics.dtype)


def blocked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, end: jax.Array, causal: bool, special: Scores, dtype: jnp.dtype
) -> jax.Array:
    """`full_attention` in XLA, a block of queries at a time over the keys that the block may see."""
    B, T, H, C = q.shape
    K, block = k.shape[2], math.gcd(T, BLOCK)
    before, after = _reach(special.window, causal, T)
    span = min(T, before + block + after)  # keys that a block may see
    q = (q * jnp.float32(C**-0.5)).reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4).astype(dtype)
    real = jnp.arange(T, dtype=jnp.int32)[None, :] < end[:, None]
    k = k.transpose(0, 2, 1, 3).astype(dtype)
    v = jnp.where(real[:, :, None, None], v, 0).transpose(0, 2, 1, 3).astype(dtype)  # (B, K, T, C)
    slopes = None if special.alibi is None else special.alibi.reshape(1, K, H // K, 1, 1)

    def one(first: jax.Array) -> jax.Array:
        """Of the queries from `first` on: (B, K, G, block, C)."""
        begin = jnp.clip(first - before, 0, T - span)
        keys, values = (lax.dynamic_slice_in_dim(x, begin, span, 2) for x in (k, v))
        queries = lax.dynamic_slice_in_dim(q, first, block, 3)
        scores = jnp.einsum("bkgtc,bksc->bkgts", queries, keys, preferred_element_type=jnp.float32)
        scores = softcap(scores, special.softcap)
        position = begin + jnp.arange(span, dtype=jnp.int32)
        distance = position[None, :] - (first + jnp.arange(block, dtype=jnp.int32))[:, None]  # (block, span)
        if slopes is not None:
            scores = scores - slopes * jnp.abs(distance).astype(jnp.float32)[None, None, None]
        near = (distance >= -before) & (distance <= after)
        seen = near[None] & (position[None, None, :] < end[:, None, None])  # (B, block, span)
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        mixed = jnp.einsum("bkgts,bksc->bkgtc", weights.astype(dtype), values, preferred_element_type=jnp.float32)
        return mixed / weights.sum(-1, keepdims=True)

    out = lax.map(one, jnp.arange(0, T, block, dtype=jnp.int32))  # (blocks, B, K, G, block, C)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, T, H * C)


def _reach(window: int | None, causal: bool, tokens: int) -> tuple[int, int]:
    """How many positions before its own a query sees, and how many behind."""
    if causal:
        return tokens if window is None else window - 1, 0
    reach = tokens if window is None else window // 2
    return reach, reach
