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

from packlight.quant.formats import bits
from packlight.quant.formats.bits import f32, fields, tail


def unpack_q2_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 84) -> float32 (..., 256)."""
    q = [_run(blocks, 16 + 32 * h) >> 2 * j & 3 for h in range(2) for j in range(4)]
    scales = blocks[..., :16]
    dl = tail(bits.f16(blocks, 80), 1) * f32(scales & 15)
    ml = tail(bits.f16(blocks, 82), 1) * f32(scales >> 4)
    return _scaled(q, dl, ml)


def unpack_q3_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 110) -> float32 (..., 256)."""
    hmask = _run(blocks, 0)
    low = [_run(blocks, 32 + 32 * h) >> 2 * j & 3 for h in range(2) for j in range(4)]
    q = [(run | (hmask >> bit & 1) << 2) - 4 for bit, run in enumerate(low)]
    lead = blocks.shape[:-1]
    sc_low = fields(blocks[..., None, 96:104], ((0,), (4,)), 15).reshape(*lead, 16)
    sc_high = fields(blocks[..., None, 104:108], ((0,), (2,), (4,), (6,)), 3).reshape(*lead, 16)
    return _scaled(q, tail(bits.f16(blocks, 108), 1) * f32((sc_low | (sc_high << 4)) - 32))


def unpack_q4_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 144) -> float32 (..., 256)."""
    q = [_run(blocks, 16 + 32 * i) >> 4 * n & 15 for i in range(4) for n in range(2)]
    return _scaled(q, *_scale_min(blocks))


def unpack_q5_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 176) -> float32 (..., 256)."""
    qh = _run(blocks, 16)
    low = [_run(blocks, 48 + 32 * i) >> 4 * n & 15 for i in range(4) for n in range(2)]
    return _scaled([run | (qh >> bit & 1) << 4 for bit, run in enumerate(low)], *_scale_min(blocks))


def unpack_q6_k(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 210) -> float32 (..., 256)."""
    q = [
        (_run(blocks, 64 * h + 32 * r) >> 4 * n & 15 | (_run(blocks, 128 + 32 * h) >> 2 * (2 * n + r) & 3) << 4) - 32
        for h in range(2)
        for n in range(2)
        for r in range(2)
    ]
    return _scaled(q, tail(bits.f16(blocks, 208), 1) * bits.int8(blocks[..., 192:208]))


def _run(blocks: jax.Array, at: int) -> jax.Array:
    """The 32 bytes from byte `at`: uint8 (..., bytes) -> int32 (..., 32)."""
    return blocks[..., at : at + 32].astype(jnp.int32)


def _scaled(quants: list[jax.Array], scale: jax.Array, minimum: jax.Array | None = None) -> jax.Array:
    """scale * q - minimum: 8 runs of int32 (..., 32), float32 (..., 8 or 16) each -> float32 (..., 256).

    Each run is shifted by a number, then all are stacked: XLA:CPU vectorizes that 2 to 7 times better than one shift
    of all runs by an array of numbers.
    """
    *lead, subs = scale.shape
    q = f32(jnp.stack(quants, axis=-2)).reshape(*lead, subs, 256 // subs)
    values = tail(scale, 1) * q
    return (values if minimum is None else values - tail(minimum, 1)).reshape(*lead, 256)


def _scale_min(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """d * sc and dmin * mn of the 8 sub-blocks of Q4_K or Q5_K: uint8 (..., bytes) -> two float32 (..., 8)."""
    lead = blocks.shape[:-1]
    a, b, c = (blocks[..., None, at : at + 4] for at in (4, 8, 12))  # (..., 1, 4): the three rows of the diagram
    # A broadcast select between sub-blocks 0..3 and 4..7. Concatenating the halves instead costs XLA:CPU a factor of
    # six over the whole tile, because the fused concatenate becomes a branch per element.
    first = np.array([True, False]).reshape((1,) * len(lead) + (2, 1))
    sc = jnp.where(first, a & 63, (c & 15) | ((a >> 6) << 4))  # (..., 2, 4)
    mn = jnp.where(first, b & 63, (c >> 4) | ((b >> 6) << 4))
    dl = tail(bits.f16(blocks, 0), 2) * f32(sc)
    ml = tail(bits.f16(blocks, 2), 2) * f32(mn)
    return dl.reshape(*lead, 8), ml.reshape(*lead, 8)
