"""Plain numbers as blocks of one element, so that every matrix of a file is packed bytes alike.

    F32   32 bits/weight   f32 x                 value = x
    F16   16 bits/weight   f16 x                 value = x, exact in f32
    BF16  16 bits/weight   the high half of an f32: value = f32 bits  x << 16

All three only move bits (F16 widens), so subnormals survive XLA:CPU's flush-to-zero arithmetic.

Source: ggml `ggml_fp16_to_fp32`, `ggml_bf16_to_fp32`.
"""

import jax
import jax.numpy as jnp

from packlight.quant.formats import bits


def unpack_f32(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 4) -> float32 (..., 1), the stored bits."""
    return jax.lax.bitcast_convert_type(bits.u32(blocks, 0), jnp.float32)[..., None]


def unpack_f16(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 2) -> float32 (..., 1)."""
    return bits.f16(blocks, 0)[..., None]


def unpack_bf16(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 2) -> float32 (..., 1)."""
    # A shift of the bits, not a conversion: bfloat16 has f32's exponents, so its subnormals are f32 subnormals.
    word = bits.u16(blocks, 0).astype(jnp.uint32) << 16
    return jax.lax.bitcast_convert_type(word, jnp.float32)[..., None]
