"""The IQ formats: quants are indices into codebooks ("grids"), or into one non-linear table of 16 values (IQ4_*).

Super-blocks of 256 elements (IQ4_NL: 32). Bytes are in file order, little-endian. d is the float16 scale, g the grid's
values for a group of 8 (IQ3: 4) elements, +- their signs, s a 4-bit (IQ1: 3-bit) scale.

    name     bits/weight  bytes                                               value
    IQ2_XXS  2.0625       d:f16 | qs[32]:u16                                  d * (s + 1/2) / 4 * +-g     s per 32
    IQ2_XS   2.3125       d:f16 | qs[32]:u16 | scales[8]                      d * (s + 1/2) / 4 * +-g     s per 16
    IQ2_S    2.5625       d:f16 | qs[32] | signs[32] | qh[8] | scales[8]      d * (s + 1/2) / 4 * +-g     s per 16
    IQ3_XXS  3.0625       d:f16 | qs[64] | scales_and_signs[8]:u32            d * (s + 1/2) / 2 * +-g     s per 32
    IQ3_S    3.4375       d:f16 | qs[64] | qh[8] | signs[32] | scales[4]      d * (2 s + 1) * +-g         s per 32
    IQ1_S    1.5625       d:f16 | qs[32] | qh[8]:u16                          d * (2 s + 1) * (g +- 1/8)  s per 32
    IQ1_M    1.75         qs[32] | qh[16] | scales[4]:u16                     d * (2 s + 1) * (g +- 1/8)  s per 16
    IQ4_NL   4.5          d:f16 | qs[16]                                      d * kvalues[q]
    IQ4_XS   4.25         d:f16 | scales_h:u16 | scales_l[4] | qs[128]        d * (s - 32) * kvalues[q]   6-bit s per 32

Where the indices, signs and scales are:

    IQ2_XXS  per 32 elements 8 bytes: four grid indices, then a u32
             ssss_DDDDDDD_CCCCCCC_BBBBBBB_AAAAAAA: s and 4 x 7 signs
    IQ2_XS   u16 SSSSSSS_iiiiiiiii: 7 signs, 9-bit index
    IQ2_S    index = qs byte | 2 bits of qh << 8; signs: one bit per element
    IQ3_XXS  index = qs byte (4 elements each); the u32 of IQ2_XXS per 32 elements
    IQ3_S    index = qs byte | 1 bit of qh << 8; signs: one bit per element
    IQ1_S    index = qs byte | 3 bits of qh << 8; qh per 32 elements is D_sss_hhh_hhh_hhh_hhh, D the sign of the 1/8
    IQ1_M    index = qs byte | 3 bits of qh << 8; a nibble of qh is D_hhh; scales: u16 dddd_sss_sss_sss_sss, the four
             dddd making up the float16 d, lowest nibble in scales[0]
    IQ4_XS   s = nibble of scales_l | 2 bits of scales_h << 4; quants per 32 elements 16 bytes, low | high nibbles
    IQ4_NL   quants low | high nibbles, as Q4_0

Seven stored signs stand for eight: the eighth makes their number even, so it is the parity of the seven.

The grids and kvalues are read from the installed `gguf` package on first use; none is repeated here. All products are
exact in f32 (a half has 11 significant bits, scale and grid together at most 11 more).

Source: `ggml-common.h` (block_iq*, iq*_grid), `ggml-quants.c` (dequantize_row_iq*).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.formats import bits
from packlight.quant.formats.bits import f32, fields, nibbles, tail

EIGHT_BITS = np.arange(8)
SEVEN_SIGNS = np.array([0, 7, 14, 21])
TWO_BITS = np.array([0, 2, 4, 6])
THREE_BITS = np.array([0, 3, 6, 9])


@functools.cache
def grid_words(name: str) -> np.ndarray:
    """The grid of format `name` as words of four int8 values: uint32 (entries, 2), for IQ3 (entries, 1); read-only.

    Words, so that one gather fetches four weights. Imports `gguf` on the first call.
    """
    from gguf import quants

    cls = getattr(quants, name)
    cls.init_grid()
    grid = np.ascontiguousarray(cls.grid[0, 0].astype(np.int8))
    assert np.array_equal(grid, cls.grid[0, 0]), f"{name}: a grid value does not fit int8"
    words = grid.view(np.uint32)
    words.flags.writeable = False
    return words


@functools.cache
def kvalue_words() -> np.ndarray:
    """IQ4's 16 int8 values as words of four: uint32 (4,), read-only. Imports `gguf` on the first call."""
    from gguf import quants

    words = np.array(quants.IQ4_NL.kvalues, np.int8).view(np.uint32)
    words.flags.writeable = False
    return words


def _grid(name: str, index: jax.Array) -> jax.Array:
    """Grid values for each index: int32 (...) -> float32 (..., 8), for IQ3 (..., 4)."""
    words = jnp.take(jnp.asarray(grid_words(name)), index, axis=0, mode="clip")  # (..., 1 or 2)
    values = jax.lax.bitcast_convert_type(words, jnp.int8)  # (..., 1 or 2, 4)
    return f32(values.reshape(*index.shape, 4 * words.shape[-1]))


def _kvalues(q: jax.Array) -> jax.Array:
    """kvalues[q] for q in 0..15: int32 (...) -> float32 (...)."""
    w = [np.uint32(x) for x in kvalue_words()]
    # Selects and one shift vectorize; a gather from 16 entries is a scalar load per weight.
    word = jnp.where(q < 8, jnp.where(q < 4, w[0], w[1]), jnp.where(q < 12, w[2], w[3]))
    byte = (word >> ((q & 3) << 3).astype(jnp.uint32)).astype(jnp.uint8)
    return bits.int8(byte)


def _plus_minus(signs: jax.Array) -> jax.Array:
    """1 or -1 for each bit, lowest first: integer (..., 1) -> float32 (..., 8)."""
    return f32(1 - 2 * fields(signs, EIGHT_BITS, 1))


def _with_parity(seven: jax.Array) -> jax.Array:
    """Seven sign bits completed by their parity: int32 (...) -> int32 (...)."""
    return seven | ((jax.lax.population_count(seven) & 1) << 7)


def unpack_iq2_xxs(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 66) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    groups = blocks[..., 2:].reshape(*lead, 8, 8)
    word = bits.u32(groups, 4)  # (..., 8)
    db = tail(bits.f16(blocks, 0), 1) * (f32(word >> 28) + np.float32(0.5)) * np.float32(0.25)
    signs = _with_parity(fields(word[..., None], SEVEN_SIGNS, 127))  # (..., 8, 4)
    g = _grid("IQ2_XXS", groups[..., :4].astype(jnp.int32))  # (..., 8, 4, 8)
    return (tail(db, 2) * g * _plus_minus(signs[..., None])).reshape(*lead, 256)


def unpack_iq2_xs(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 74) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    pairs = blocks[..., 2:66].reshape(*lead, 16, 2, 2)
    qs = bits.u16(pairs, 0).astype(jnp.int32)  # (..., 16, 2)
    g = _grid("IQ2_XS", qs & 511)  # (..., 16, 2, 8)
    signs = _with_parity(qs >> 9)
    return (_quarter_scales(blocks, 66) * g * _plus_minus(signs[..., None])).reshape(*lead, 256)


def unpack_iq2_s(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 82) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    high = fields(blocks[..., 66:74, None], TWO_BITS, 3).reshape(*lead, 16, 2)
    index = blocks[..., 2:34].astype(jnp.int32).reshape(*lead, 16, 2) | (high << 8)
    signs = blocks[..., 34:66].reshape(*lead, 16, 2, 1)
    return (_quarter_scales(blocks, 74) * _grid("IQ2_S", index) * _plus_minus(signs)).reshape(*lead, 256)


def _quarter_scales(blocks: jax.Array, at: int) -> jax.Array:
    """d * (s + 1/2) / 4 of the 8 scale bytes at `at`, low nibble first: uint8 (..., b) -> float32 (..., 16, 1, 1)."""
    s = fields(blocks[..., at : at + 8, None], (0, 4), 15).reshape(*blocks.shape[:-1], 16)
    return tail(tail(bits.f16(blocks, 0), 1) * (f32(s) + np.float32(0.5)) * np.float32(0.25), 2)


def unpack_iq3_xxs(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 98) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    word = bits.u32(blocks[..., 66:].reshape(*lead, 8, 4), 0)  # (..., 8)
    db = tail(bits.f16(blocks, 0), 1) * (f32(word >> 28) + np.float32(0.5)) * np.float32(0.5)
    signs = _with_parity(fields(word[..., None], SEVEN_SIGNS, 127))  # (..., 8, 4)
    g = _grid("IQ3_XXS", blocks[..., 2:66].astype(jnp.int32)).reshape(*lead, 8, 4, 8)
    return (tail(db, 2) * g * _plus_minus(signs[..., None])).reshape(*lead, 256)


def unpack_iq3_s(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 110) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    high = fields(blocks[..., 66:74, None], EIGHT_BITS, 1).reshape(*lead, 64)
    g = _grid("IQ3_S", blocks[..., 2:66].astype(jnp.int32) | (high << 8)).reshape(*lead, 8, 4, 8)
    s = fields(blocks[..., 106:, None], (0, 4), 15).reshape(*lead, 8)
    db = tail(bits.f16(blocks, 0), 1) * f32(2 * s + 1)
    signs = blocks[..., 74:106].reshape(*lead, 8, 4, 1)
    return (tail(db, 2) * g * _plus_minus(signs)).reshape(*lead, 256)


def unpack_iq1_s(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 50) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    qh = bits.u16(blocks[..., 34:].reshape(*lead, 8, 2), 0).astype(jnp.int32)  # (..., 8)
    index = blocks[..., 2:34].astype(jnp.int32).reshape(*lead, 8, 4) | (fields(qh[..., None], THREE_BITS, 7) << 8)
    dl = tail(bits.f16(blocks, 0), 1) * f32(2 * ((qh >> 12) & 7) + 1)
    delta = jnp.where(qh < 0x8000, np.float32(0.125), np.float32(-0.125))
    return (tail(dl, 2) * (_grid("IQ1_S", index) + tail(delta, 2))).reshape(*lead, 256)


def unpack_iq1_m(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 56) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    scales = bits.u16(blocks[..., 48:].reshape(*lead, 4, 2), 0)  # (..., 4)
    low, high = ((blocks[..., at] >> 4) | (blocks[..., at + 2] & 0xF0) for at in (49, 53))
    d = bits.half(low.astype(jnp.uint16) | (high.astype(jnp.uint16) << 8))
    s = fields(scales[..., None], THREE_BITS, 7).reshape(*lead, 16)
    dl = tail(d, 1) * f32(2 * s + 1)  # (..., 16)
    nibble = fields(blocks[..., 32:48, None], (0, 4), 15)  # (..., 16, 2)
    index = blocks[..., :32].astype(jnp.int32).reshape(*lead, 16, 2) | ((nibble & 7) << 8)
    delta = jnp.where(nibble < 8, np.float32(0.125), np.float32(-0.125))
    return (tail(dl, 2) * (_grid("IQ1_S", index) + tail(delta, 1))).reshape(*lead, 256)


def unpack_iq4_nl(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 18) -> float32 (..., 32)."""
    k = _kvalues(nibbles(blocks[..., 2:]))  # (..., 2, 16)
    return (tail(bits.f16(blocks, 0), 2) * k).reshape(*blocks.shape[:-1], 32)


def unpack_iq4_xs(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 136) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    low = fields(blocks[..., 4:8, None], (0, 4), 15).reshape(*lead, 8)
    high = fields(bits.u16(blocks, 2)[..., None], 2 * EIGHT_BITS, 3)
    dl = tail(bits.f16(blocks, 0), 1) * f32((low | (high << 4)) - 32)  # (..., 8)
    k = _kvalues(nibbles(blocks[..., 8:].reshape(*lead, 8, 16)))  # (..., 8, 2, 16)
    return (tail(dl, 2) * k).reshape(*lead, 256)
