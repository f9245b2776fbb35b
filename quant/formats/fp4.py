"""The 4-bit float formats: E2M1 codes under a power-of-two scale (MXFP4) or a small float scale (NVFP4).

    name   bits/weight  elements  bytes             scale             one scale per
    MXFP4  4.25         32        e | qs[16]        E8M0 e            32 elements
    NVFP4  4.5          64        d[4] | qs[32]     UE4M3 d[s]        16 elements

A code is 0 SEEM: sign, two exponent bits, one mantissa bit. As in ggml its value is counted in halves, so that it is a
small integer k and the scale carries the factor 1/2:

    code & 7   0  1  2  3  4  5  6  7
    |k|        0  1  2  3  4  6  8 12      code 8 is +0, not -0: k is an integer

MXFP4: value = k * 2^(e - 128). qs[l] has element l in its low nibble and element l + 16 in its high nibble. e = 255 is
NaN in the OCP specification; ggml decodes it as 2^127 and so do we (quant/formats/scales.py reports it). For e < 2 the
values are f32 subnormals (or reach them), which XLA:CPU flushes in arithmetic: those are built from bits.

NVFP4: value = k * scale(d[s]) for s < 4, with qs[8 s + l] holding elements 16 s + l (low) and 16 s + l + 8 (high). A
scale byte x is EEEEMMM below its top bit, which is ignored: half of (1 + M / 8) * 2^(E - 7), or of M * 2^-9 where
E = 0. x = 0x7F is NaN in UE4M3; ggml decodes it as 0. The smallest value is 2^-10: no subnormals.

Source: `ggml-common.h` (block_mxfp4, block_nvfp4), `ggml-impl.h` (ggml_e8m0_to_fp32_half, ggml_ue4m3_to_fp32); OCP
Microscaling Formats (MX) v1.0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.formats import bits
from packlight.quant.formats.bits import f32, tail

MAGNITUDES = np.uint32(0xC8643210)  # nibble c is |k| of code c: a table look-up without a gather


def _e2m1(qs: jax.Array) -> jax.Array:
    """The integers k of a run's nibbles: uint8 (..., n) -> int32 (..., 2, n), low nibbles first."""
    code = bits.nibbles(qs)
    magnitude = ((MAGNITUDES >> ((code & 7) << 2).astype(jnp.uint32)) & 15).astype(jnp.int32)
    return jnp.where(code < 8, magnitude, -magnitude)


def unpack_mxfp4(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 17) -> float32 (..., 32)."""
    k = _e2m1(blocks[..., 1:])  # (..., 2, 16)
    e = tail(blocks[..., 0].astype(jnp.int32), 2)  # (..., 1, 1)
    scale = jax.lax.bitcast_convert_type(jnp.maximum(e - 1, 1) << 23, jnp.float32)  # 2^(e - 128), for e >= 2
    normal = jax.lax.bitcast_convert_type(f32(k) * scale, jnp.int32)
    value = jnp.where(e < 2, _tiny(k, e), normal)  # select on the bits
    return jax.lax.bitcast_convert_type(value, jnp.float32).reshape(*blocks.shape[:-1], 32)


def _tiny(k: jax.Array, e: jax.Array) -> jax.Array:
    """The bits of k * 2^(e - 128) for e = 0 or 1, which may be subnormal: int32 (...), (...) -> int32 (...)."""
    n = jnp.abs(k) << jnp.minimum(e, 1)  # the value is n * 2^-128
    subnormal = n << 21  # 2^-128 is bit 21 of the mantissa; below 4 * 2^-128 = 2^-126 the exponent field is 0
    normal = jax.lax.bitcast_convert_type(f32(n), jnp.int32) - (128 << 23)
    sign = jnp.where(k < 0, np.int32(-(2**31)), np.int32(0))
    return jnp.where(n < 4, subnormal, normal) | sign


def unpack_nvfp4(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 36) -> float32 (..., 64)."""
    lead = blocks.shape[:-1]
    k = _e2m1(blocks[..., 4:].reshape(*lead, 4, 8))  # (..., 4, 2, 8)
    x = blocks[..., :4].astype(jnp.int32)
    exponent, mantissa = (x >> 3) & 15, x & 7
    normal = jax.lax.bitcast_convert_type(((exponent + (127 - 8)) << 23) | (mantissa << 20), jnp.float32)
    d = jnp.where(exponent == 0, f32(mantissa) * np.float32(2**-10), normal)
    d = jnp.where(x == 0x7F, np.float32(0), d)
    return (tail(d, 2) * f32(k)).reshape(*lead, 64)
