"""The ternary formats: 256 weights of -1, 0 or 1 times one float16 scale. Value = d * (t - 1), t in 0..2, exact.

    name   bits/weight  bytes
    TQ1_0  1.6875       qs[48] | qh[4] | d:f16    five base-3 digits per byte of qs, four per byte of qh
    TQ2_0  2.0625       qs[64] | d:f16            four 2-bit fields per byte

TQ1_0. A byte b is the fraction b / 256 in base 3: multiplied by 3^n modulo 256 its next digit is (b * 3) >> 8. Digit n
of byte l of a run is the run's row n, so the elements are: qs[0..31] five rows of 32 (elements 0..159), qs[32..47]
five rows of 16 (160..239), qh four rows of 4 (240..255).

TQ2_0. qs[32 h + l] >> 2 j & 3 is element 128 h + 32 j + l, with h < 2, j < 4, l < 32.

Source: `ggml-common.h` (block_tq1_0, block_tq2_0), `ggml-quants.c` (dequantize_row_tq1_0, dequantize_row_tq2_0).
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.formats import bits
from packlight.quant.formats.bits import f32, fields, tail


def unpack_tq1_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 54) -> float32 (..., 256)."""
    runs = (_trits(blocks[..., 0:32], 5), _trits(blocks[..., 32:48], 5), _trits(blocks[..., 48:52], 4))
    return tail(bits.f16(blocks, 52), 1) * f32(jnp.concatenate(runs, axis=-1) - 1)


def _trits(run: jax.Array, digits: int) -> jax.Array:
    """The base-3 digits of a run, row by row: uint8 (..., n) -> int32 (..., digits * n)."""
    powers = (3 ** np.arange(digits, dtype=np.int32)).reshape((1,) * (run.ndim - 1) + (digits, 1))
    rest = (run.astype(jnp.int32)[..., None, :] * powers) & 255
    return ((rest * 3) >> 8).reshape(*run.shape[:-1], digits * run.shape[-1])


def unpack_tq2_0(blocks: jax.Array) -> jax.Array:
    """uint8 (..., 66) -> float32 (..., 256)."""
    lead = blocks.shape[:-1]
    q = fields(blocks[..., :64].reshape(*lead, 2, 1, 32), ((0,), (2,), (4,), (6,)), 3)  # (..., 2, 4, 32)
    return (tail(bits.f16(blocks, 64), 3) * f32(q - 1)).reshape(*lead, 256)
