"""The K formats: super-blocks of 256 elements with a float16 scale, cut into sub-blocks with small integer scales.

Bytes are in file order, little-endian. s is the sub-block's index, sc its scale and mn its minimum.

    name  bits/weight  bytes                                             value
    Q2_K  2.625        scales[16] | qs[64] | d:f16 | dmin:f16            d * sc * q - dmin * mn      16 x 16 elements
    Q3_K  3.4375       hmask[32] | qs[64] | scales[12] | d:f16           d * (sc - 32) * (q - 4)     16 x 16
    Q4_K  4.5          d:f16 | dmin:f16 | scales[12] | qs[128]           d * sc * q - dmin * mn       8 x 32
    Q5_K  5.5          d:f16 | dmin:f16 | scales[12] | qh[32] | qs[128]  d * sc * q - dmin * mn       8 x 32
    Q6_K  6.5625       ql[128] | qh[64] | scales[16] | d:f16             d * sc * (q - 32)           16 x 16

Q5_K is 2 + 2 + 12 + 32 + 128 = 176 bytes.

Quants. A run of 32 bytes holds several rows of 32 elements, one row per bit field:

    Q2_K, Q3_K  qs[32 h + l] >> 2 j & 3       element 128 h + 32 j + l      h < 2, j < 4, l < 32
    Q3_K        hmask[l] >> (4 h + j) & 1     its third bit, so that q - 4 is in -4..3
    Q4_K, Q5_K  qs[32 i + l] >> 4 n & 15      element  64 i + 32 n + l      i < 4, n < 2, l < 32
    Q5_K        qh[l] >> (2 i + n) & 1        its fifth bit
    Q6_K        ql[64 h + 32 r + l] >> 4 n & 15, qh[32 h + l] >> 2 (2 n + r) & 3
                                              element 128 h + 64 n + 32 r + l,  h, n, r < 2, l < 32

Scales. Q2_K: low nibble sc, high nibble mn. Q6_K: int8. Q3_K: 6 bits, scale s has its low 4 in nibble s / 8 of byte
s % 8 and its high 2 in bits 2 (s / 4) of byte 8 + s % 4. Q4_K and Q5_K: 6 bits, letters A..H for sc and a..h for mn
of sub-blocks 0..7 (most significant bit first):

    scales[0..3]   EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD
    scales[4..7]   eeaaaaaa ffbbbbbb ggcccccc hhdddddd
    scales[8..11]  eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH

d (11 significant bits) * sc (at most 8) * q (at most 5) needs 24 bits and is exact in f32, and so is dmin * mn. Only
the subtraction rounds, once: neither FMA nor reassociation can change a bit.

Source: `ggml-common.h` (block_q2_K ... block_q6_K), `ggml-quants.c` (dequantize_row_*, get_scale_min_k4).
"""

import jax
import jax.numpy as jnp
import numpy as np

from quant import bits
from quant.bits import f32, fields, tail

TWO_BITS = np.array([0, 2, 4, 6])


def unpack_q2_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 84) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    scales = blocks[..., :16].reshape(*lead, 2, 4, 2, 1)
    q = fields(blocks[..., 16:80].reshape(*lead, 2, 1, 2, 16), TWO_BITS.reshape(4, 1, 1), 3)  # (..., 2, 4, 2, 16)
    dl = tail(bits.f16(blocks, 80), 4) * f32(scales & 15)
    ml = tail(bits.f16(blocks, 82), 4) * f32(scales >> 4)
    return (dl * f32(q) - ml).reshape(*lead, 256)


def unpack_q3_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 110) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    low = fields(blocks[..., 32:96].reshape(*lead, 2, 1, 2, 16), TWO_BITS.reshape(4, 1, 1), 3)  # (..., 2, 4, 2, 16)
    high = fields(blocks[..., :32].reshape(*lead, 1, 1, 2, 16), np.arange(8).reshape(2, 4, 1, 1), 1)
    sc_low = fields(blocks[..., None, 96:104], ((0,), (4,)), 15).reshape(*lead, 16)
    sc_high = fields(blocks[..., None, 104:108], TWO_BITS.reshape(4, 1), 3).reshape(*lead, 16)
    sc = (sc_low | (sc_high << 4)) - 32
    dl = tail(bits.f16(blocks, 108), 1) * f32(sc)
    return (dl.reshape(*lead, 2, 4, 2, 1) * f32((low | (high << 2)) - 4)).reshape(*lead, 256)


def unpack_q4_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 144) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    q = bits.nibbles(blocks[..., 16:].reshape(*lead, 4, 32))  # (..., 4, 2, 32)
    dl, ml = _scale_min(blocks)
    return (dl * f32(q) - ml).reshape(*lead, 256)


def unpack_q5_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 176) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    low = bits.nibbles(blocks[..., 48:].reshape(*lead, 4, 32))  # (..., 4, 2, 32)
    high = fields(blocks[..., None, None, 16:48], np.arange(8).reshape(4, 2, 1), 1)
    dl, ml = _scale_min(blocks)
    return (dl * f32(low | (high << 4)) - ml).reshape(*lead, 256)


def _scale_min(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d * sc and dmin * mn of the 8 sub-blocks of Q4_K or Q5_K: uint8 (..., bytes) -> two float32 (..., 4, 2, 1)."""
    lead = blocks.shape[:-1]
    a, b, c = (blocks[..., None, at : at + 4] for at in (4, 8, 12))  # (..., 1, 4): the three rows of the diagram
    # A broadcast select between sub-blocks 0..3 and 4..7. Concatenating the halves instead costs XLA:CPU a factor of
    # six over the whole tile, because the fused concatenate becomes a branch per element.
    first = np.array([True, False]).reshape((1,) * len(lead) + (2, 1))
    sc = jnp.where(first, a & 63, (c & 15) | ((a >> 6) << 4))  # (..., 2, 4)
    mn = jnp.where(first, b & 63, (c >> 4) | ((b >> 6) << 4))
    dl = tail(bits.f16(blocks, 0), 2) * f32(sc)
    ml = tail(bits.f16(blocks, 2), 2) * f32(mn)
    return dl.reshape(*lead, 4, 2, 1), ml.reshape(*lead, 4, 2, 1)


def unpack_q6_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 210) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    # Axes (h, n, r, 2, 16): the last two are the two sub-blocks of 16 in a run of 32.
    low = fields(blocks[..., :128].reshape(*lead, 2, 1, 2, 2, 16), np.array([0, 4]).reshape(2, 1, 1, 1), 15)
    high = fields(blocks[..., 128:192].reshape(*lead, 2, 1, 1, 2, 16), TWO_BITS.reshape(2, 2, 1, 1), 3)
    dl = tail(bits.f16(blocks, 208), 1) * bits.int8(blocks[..., 192:208])
    return (dl.reshape(*lead, 2, 2, 2, 2, 1) * f32((low | (high << 4)) - 32)).reshape(*lead, 256)
