"""The one-level formats: a float16 scale `d`, sometimes a float16 minimum `m`, and the quants of one short run.

Bytes are in file order, little-endian. "low | high" quants: byte j of `qs` holds element j in its low nibble and
element j + 16 in its high nibble. `qh` is one bit per element: bit j % 8 of its byte j / 8 is bit 4 of element j.

    name  bits/weight  bytes                           value
    Q1_0  1.125        d:f16 | qs[16]                  bit ? d : -d      bit j % 8 of byte j / 8 is element j
    Q2_0  2.25         d:f16 | qs[16]                  d * (q - 1)       2 bits, element 4i + k at bit 2k of byte i
    Q4_0  4.5          d:f16 | qs[16]                  d * (q - 8)       low | high
    Q4_1  5            d:f16 | m:f16 | qs[16]          d * q + m         low | high
    Q5_0  5.5          d:f16 | qh[4] | qs[16]          d * (q - 16)      low | high, fifth bit in qh
    Q5_1  6            d:f16 | m:f16 | qh[4] | qs[16]  d * q + m         low | high, fifth bit in qh
    Q8_0  8.5          d:f16 | qs[32]                  d * q             int8

Blocks have 32 elements, Q1_0 128 and Q2_0 64. A product of a half (11 significant bits) and a quant is exact in f32;
only `+ m` rounds, once, so neither FMA nor reassociation can change a bit. `q - 8` is taken before the product because
d * q - 8 * d would turn the -0.0 of a negative d into +0.0.

Source: `ggml-common.h` (block_q4_0 ... block_q8_0), `ggml-quants.c` (dequantize_row_*).
"""

import jax
import numpy as np

from packlight.quant.formats import bits
from packlight.quant.formats.bits import f32, fields, nibbles, tail


def _flat(values: jax.Array) -> jax.Array:
    """The last two axes joined: (..., a, b) -> (..., a * b)."""
    *lead, a, b = values.shape
    return values.reshape(*lead, a * b)


def unpack_q1_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 18) -> float32 (..., 128)."""
    q = fields(blocks[..., 2:, None], np.arange(8), 1)  # (..., 16, 8)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(2 * q - 1))


def unpack_q2_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 18) -> float32 (..., 64)."""
    q = fields(blocks[..., 2:, None], (0, 2, 4, 6), 3)  # (..., 16, 4)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(q - 1))


def unpack_q4_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 18) -> float32 (..., 32)."""
    q = nibbles(blocks[..., 2:])  # (..., 2, 16)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(q - 8))


def unpack_q4_1(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 20) -> float32 (..., 32)."""
    q = nibbles(blocks[..., 4:])  # (..., 2, 16)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(q) + tail(bits.f16(blocks, 2), 2))


def unpack_q5_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 22) -> float32 (..., 32)."""
    q = _five_bits(blocks, 2)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(q - 16))


def unpack_q5_1(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 24) -> float32 (..., 32)."""
    q = _five_bits(blocks, 4)
    return _flat(tail(bits.f16(blocks, 0), 2) * f32(q) + tail(bits.f16(blocks, 2), 2))


def _five_bits(blocks: jax.Array, at: int) -> jax.Array:
    """Quants 0..31 of a block whose `qh` starts at byte `at`: uint8 (..., bytes) -> int32 (..., 2, 16)."""
    # Bits of bytes, not shifts of the 32-bit word: the same values, 2.7 instead of 0.6 G weights/s on XLA:CPU.
    high = fields(blocks[..., at : at + 4, None], np.arange(8), 1).reshape(*blocks.shape[:-1], 2, 16)
    return nibbles(blocks[..., at + 4 :]) | (high << 4)


def unpack_q8_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 34) -> float32 (..., 32)."""
    return tail(bits.f16(blocks, 0), 1) * bits.int8(blocks[..., 2:])
