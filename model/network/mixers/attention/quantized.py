"""Keys and values in int8, each 32 channels of a head with a scale: how they are rounded, and what they stand for.

The block is ggml's Q8_0, 34 bytes for 32 numbers, with its scales in an array of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.spec.state import Q8_0_BLOCK
from packlight.quant.formats.bits import quotient


def rounded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 (..., C) -> int8 (..., C) and the scales, float16 (..., N): C / 32 of them, where the last block may be
    of fewer channels.

    With top the largest magnitude of a block, a number becomes round_half_even(x * (127 / top)) and the scale
    float16(top / 127), each operation in float32: the scale is rounded last, and nothing follows from its rounding.
    Every operation goes number by number, so that the bits of a token do not depend on its neighbours. A block whose
    top is below 2^-100 becomes zeros. One with a number that is not finite gets NaN for a scale.
    """
    width = x.shape[-1]
    blocks = -(-width // Q8_0_BLOCK)
    padding = [*((0, 0) for _ in x.shape[:-1]), (0, blocks * Q8_0_BLOCK - width)]
    runs = jnp.pad(x, padding).reshape(*x.shape[:-1], blocks, Q8_0_BLOCK)
    top = jnp.max(jnp.abs(runs), axis=-1, keepdims=True)
    used = jnp.isfinite(top) & (top >= np.float32(2.0**-100))
    inverse = np.float32(127) / jnp.where(used, top, np.float32(1))
    numbers = jnp.where(used, jnp.round(runs * inverse), np.float32(0)).astype(jnp.int8)
    scales = jnp.where(jnp.isfinite(top), quotient(top, 127), jnp.nan).astype(jnp.float16)
    return numbers.reshape(*x.shape[:-1], -1)[..., :width], scales[..., 0]


def unpacked(
    numbers: jax.Array,  # int8 (..., C)
    scales: jax.Array,  # float16 (..., N)
) -> jax.Array:  # float32 (..., C)
    """What rounded numbers stand for. Exact: a product of 7 and 11 bits."""
    each = jnp.repeat(scales.astype(jnp.float32), Q8_0_BLOCK, axis=-1)[..., : numbers.shape[-1]]
    return numbers.astype(jnp.float32) * each
