"""Keys and values in few bits, each 32 channels of a head with a scale: how they are rounded, and what they stand for.

In int8 a block is ggml's Q8_0, 34 bytes for 32 numbers; in 4 bits it is ggml's Q4_0, 18 bytes, where byte j of 16 has
number j in its low nibble and number j + 16 in its high one. The scales are in an array of their own. What is kept in 4
bits was turned by `hadamard` before, as one large channel would leave its block's others no steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.model.spec.state import KV_BLOCK
from packlight.quant.formats.bits import nibbles, quotient

NIBBLE_ZERO = 8  # the nibble that stands for 0


def is_turned(state: KV | QuantizedKV) -> bool:
    """Whether what the state keeps was turned before: all that is in 4 bits."""
    return isinstance(state, QuantizedKV) and state.k.dtype == jnp.uint8


def rounded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 (..., C) -> int8 (..., C) and the scales, float16 (..., N): C / 32 of them, where the last block may be
    of fewer channels.

    With top the largest magnitude of a block, a number becomes round_half_even(x * (127 / top)) and the scale
    float16(top / 127), each operation in float32: the scale is rounded last, and nothing follows from its rounding.
    Every operation goes number by number, so that the bits of a token do not depend on its neighbours. A block whose
    top is below 2^-100 becomes zeros. One with a number that is not finite gets NaN for a scale.
    """
    width = x.shape[-1]
    padding = [*((0, 0) for _ in x.shape[:-1]), (0, -width % KV_BLOCK)]
    runs = _blocks(jnp.pad(x, padding))
    numbers, scales = _divided(runs, jnp.max(jnp.abs(runs), axis=-1, keepdims=True), 127)
    return numbers.astype(jnp.int8).reshape(*x.shape[:-1], -1)[..., :width], scales


def packed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 (..., C), C a multiple of 32 -> uint8 (..., C / 2) and the scales, float16 (..., C / 32).

    As `rounded`, with top the number of largest magnitude, sign and all, the positive one of two: a number becomes
    round_half_even(x * (-8 / top)), 7 at most, and the scale float16(top / -8). So top itself is -8 steps.
    """
    runs = _blocks(x)
    most, least = (reduce(runs, axis=-1, keepdims=True) for reduce in (jnp.max, jnp.min))
    numbers, scales = _divided(runs, jnp.where(most >= -least, most, least), -8)
    codes = (jnp.minimum(numbers, np.float32(7)) + np.float32(NIBBLE_ZERO)).astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=-1)
    return (low | high << 4).reshape(*x.shape[:-1], -1), scales


def unpacked(
    numbers: jax.Array,  # int8 (..., C), or uint8 (..., C / 2)
    scales: jax.Array,  # float16 (..., N)
) -> jax.Array:  # float32 (..., C)
    """What rounded numbers stand for. Exact: a product of 7 bits, or 4, and 11."""
    if numbers.dtype == jnp.uint8:
        halves = numbers.reshape(*scales.shape, KV_BLOCK // 2)
        numbers = (nibbles(halves) - NIBBLE_ZERO).reshape(*numbers.shape[:-1], -1)
    each = jnp.repeat(scales.astype(jnp.float32), KV_BLOCK, axis=-1)[..., : numbers.shape[-1]]
    return numbers.astype(jnp.float32) * each


def _blocks(x: jax.Array) -> jax.Array:
    """(..., C) -> (..., C / 32, 32)."""
    return x.reshape(*x.shape[:-1], -1, KV_BLOCK)


def _divided(runs: jax.Array, top: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Blocks (..., N, 32) in whole steps of which `steps` make their top (..., N, 1), and these steps, float16."""
    used = jnp.isfinite(top) & (jnp.abs(top) >= np.float32(2.0**-100))
    inverse = np.float32(steps) / jnp.where(used, top, np.float32(1))
    numbers = jnp.where(used, jnp.round(runs * inverse), np.float32(0))
    scales = jnp.where(jnp.isfinite(top), quotient(top, steps), jnp.nan).astype(jnp.float16)
    return numbers, scales[..., 0]
