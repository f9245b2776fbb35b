"""How a step changes logits before the sampler sees them: tables of a few tokens, and the tokens that are allowed.

What stands in the tables is the host's: `model.sampling.penalties`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.model.sampling.config import MOST_BIASES

Array = jax.Array | np.ndarray


class Adjustment(NamedTuple):
    """How logits change, for B slots. An unused entry of the table has id V."""

    ids: Array  # (B, N) i32, no id twice in a row
    bias: Array  # (B, N) f32, added first
    repeat: Array  # (B, N) f32: what is positive then is divided by it, the rest multiplied
    minus: Array  # (B, N) f32, subtracted last
    allowed: Array  # (B, ceil(V / 32)) u32: bit i of word w is token 32 w + i


def table_size(vocab: int, context: int) -> int:
    """N that any request fits: every token of its context, and its biases."""
    return min(vocab, context + MOST_BIASES)


def nothing(slots: int, vocab: int, size: int) -> Adjustment:
    """The adjustment that changes no logit."""
    bias, minus = np.zeros((slots, size), np.float32), np.zeros((slots, size), np.float32)
    words = np.full((slots, -(-vocab // 32)), 0xFFFFFFFF, np.uint32)
    return Adjustment(np.full((slots, size), vocab, np.int32), bias, np.ones_like(bias), minus, words)


def adjusted(
    logits: jax.Array,  # (B, V) f32
    adjustment: Adjustment,
) -> jax.Array:  # (B, V) f32
    """The logits that the sampler is to see. Costs a look at the tables when there is nothing to change."""
    vocab = logits.shape[1]

    def tables(logits: jax.Array) -> jax.Array:
        x = jnp.take_along_axis(logits, jnp.minimum(adjustment.ids, vocab - 1), axis=1) + adjustment.bias
        x = jnp.where(x <= 0, x * adjustment.repeat, x / adjustment.repeat) - adjustment.minus
        return jax.vmap(lambda row, ids, new: row.at[ids].set(new, mode="drop"))(logits, adjustment.ids, x)

    def mask(logits: jax.Array) -> jax.Array:
        bits = (adjustment.allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & jnp.uint32(1)
        return jnp.where(bits.reshape(len(logits), -1)[:, :vocab] == 1, logits, -jnp.inf)

    logits = lax.cond(jnp.any(adjustment.ids < vocab), tables, lambda x: x, logits)
    return lax.cond(jnp.any(adjustment.allowed != jnp.uint32(0xFFFFFFFF)), mask, lambda x: x, logits)
