"""Float weights to packed blocks: the inverse of `unpack`, with scales searched for as llama.cpp's quantizer does.

Every function takes float32 (n, elements) and gives uint8 (n, bytes), all n blocks at once; the bytes are drawn in
`quant.formats.legacy` and `quant.formats.kquants`. The one-level formats take their scale from the extreme weight. The
K formats search: a few scales near the extreme one are tried, each with its codes, and fitted to them by least squares;
what leaves the least weighted error of its sub-block stays. Then the sub-blocks' scales are rounded themselves, and the
codes made anew.

Source: llama.cpp `ggml-quants.c`: quantize_row_*_ref, make_qkx2_quants and make_qx_quants, without importance matrix.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.common.errors import UnsupportedError
from packlight.quant.formats.bits import f32, quotient, tail

TINY = 1e-15  # weights below it count as 0


def quantize_q8_0(x: jax.Array) -> jax.Array:
    """float32 (n, 32) -> uint8 (n, 34)."""
    d = quotient(jnp.abs(x).max(-1), 127)
    q = x * tail(_inverse(d), 1)
    q = jnp.sign(q) * jnp.floor(jnp.abs(q) + 0.5)  # halves away from 0
    return _joined(_half(d), lax.bitcast_convert_type(q.astype(jnp.int8), jnp.uint8))


def quantize_q4_0(x: jax.Array) -> jax.Array:
    """float32 (n, 32) -> uint8 (n, 18)."""
    d = _extreme(x) / -8
    q = _codes(jnp.floor(x * tail(_inverse(d), 1) + 8.5), 15)
    return _joined(_half(d), _nibbles(q))


def quantize_q5_0(x: jax.Array) -> jax.Array:
    """float32 (n, 32) -> uint8 (n, 22)."""
    d = _extreme(x) / -16
    q = _codes(jnp.floor(x * tail(_inverse(d), 1) + 16.5), 31)
    return _joined(_half(d), _fifth_bits(q), _nibbles(q & 15))


def quantize_q5_1(x: jax.Array) -> jax.Array:
    """float32 (n, 32) -> uint8 (n, 24)."""
    low = x.min(-1)
    d = quotient(x.max(-1) - low, 31)
    q = _codes(jnp.floor((x - tail(low, 1)) * tail(_inverse(d), 1) + 0.5), 31)
    return _joined(_half(d), _half(low), _fifth_bits(q), _nibbles(q & 15))


def quantize_q4_k(x: jax.Array) -> jax.Array:
    """float32 (n, 256) -> uint8 (n, 144)."""
    head, q = _affine_superblock(x, 15, -1.0, 20)
    return _joined(head, _nibbles(q.reshape(-1, 4, 64)).reshape(-1, 128))


def quantize_q5_k(x: jax.Array) -> jax.Array:
    """float32 (n, 256) -> uint8 (n, 176)."""
    head, q = _affine_superblock(x, 31, -0.5, 15)
    high = (q >> 4 << np.arange(8, dtype=np.int32)[None, :, None]).sum(1).astype(jnp.uint8)  # bit s of byte l
    return _joined(head, high, _nibbles((q & 15).reshape(-1, 4, 64)).reshape(-1, 128))


def quantize_q6_k(x: jax.Array) -> jax.Array:
    """float32 (n, 256) -> uint8 (n, 210)."""
    x = x.reshape(-1, 16, 16)
    scale = _symmetric(x, 32)
    inverse = -128 * _inverse(_extreme(scale))
    d = _rounded(_inverse(inverse))
    sc = jnp.minimum(jnp.round(tail(inverse, 1) * scale), 127)
    q = jnp.clip(jnp.round(x * tail(_inverse(tail(d, 1) * sc), 1)), -32, 31).astype(jnp.int32) + 32
    q = q.reshape(-1, 2, 2, 2, 32)  # [.., h, n, r, l], element 128 h + 64 n + 32 r + l
    low = (q[:, :, 0] & 15) | (q[:, :, 1] & 15) << 4  # (.., h, r, l)
    by = np.array([[0, 2], [4, 6]], np.int32)[None, None, :, :, None]
    high = (q >> 4 << by).sum((2, 3))  # (.., h, l)
    sc = lax.bitcast_convert_type(sc.astype(jnp.int8), jnp.uint8)
    return _joined(low.astype(jnp.uint8).reshape(-1, 128), high.astype(jnp.uint8).reshape(-1, 64), sc, _half(d))


def quantize_f16(x: jax.Array) -> jax.Array:
    """float32 (n, 1) -> uint8 (n, 2)."""
    return _half(x[:, 0])


QUANTIZERS = {
    "F16": quantize_f16,
    "Q8_0": quantize_q8_0,
    "Q4_0": quantize_q4_0,
    "Q5_0": quantize_q5_0,
    "Q5_1": quantize_q5_1,
    "Q4_K": quantize_q4_k,
    "Q5_K": quantize_q5_k,
    "Q6_K": quantize_q6_k,
}


def quantizer(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that packs format `name`. Raises UnsupportedError where there is none."""
    if name not in QUANTIZERS:
        raise UnsupportedError(f"no quantizer for format {name}; there are: {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def _affine_superblock(x: jax.Array, most: int, start: float, tries: int) -> tuple[jax.Array, jax.Array]:
    """d, dmin and the 6-bit scales, uint8 (n, 16), and codes 0..most, int32 (n, 8, 32)."""
    x = x.reshape(-1, 8, 32)
    scale, minimum = _affine(x, most, start, tries)

    def rounded(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = values.max(-1)
        return _rounded(quotient(top, 63)), jnp.minimum(jnp.round(tail(63 * _inverse(top), 1) * values), 63)

    (d, sc), (dmin, mn) = rounded(scale), rounded(minimum)
    q = jnp.round((x + tail(tail(dmin, 1) * mn, 1)) * tail(_inverse(tail(d, 1) * sc), 1))
    sc, mn = sc.astype(jnp.int32), mn.astype(jnp.int32)
    rows = [
        (sc[:, :4] & 63) | (sc[:, 4:] >> 4) << 6,
        (mn[:, :4] & 63) | (mn[:, 4:] >> 4) << 6,
        (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4,
    ]
    return _joined(_half(d), _half(dmin), *(row.astype(jnp.uint8) for row in rows)), _codes(q, most)


def _affine(x: jax.Array, most: int, start: float, tries: int) -> tuple[jax.Array, jax.Array]:
    """Scales and minimums >= 0 with x about scale * q - minimum: float32 (..., k) -> (...), (...)."""
    weight = jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)) + jnp.abs(x)
    high = x.max(-1)
    sum_w, sum_x = weight.sum(-1), (weight * x).sum(-1)

    def codes(low: jax.Array, levels: jax.Array | float) -> jax.Array:
        return jnp.clip(jnp.round(tail(levels * _inverse(high - low), 1) * (x - tail(low, 1))), 0, most)

    def error(scale: jax.Array, low: jax.Array, q: jax.Array) -> jax.Array:
        return (weight * (tail(scale, 1) * q + tail(low, 1) - x) ** 2).sum(-1)

    def improve(i: jax.Array, best: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, low, least = best
        q = codes(low, start + 0.1 * f32(i) + most)
        sum_q, sum_qq, sum_xq = (weight * q).sum(-1), (weight * q * q).sum(-1), (weight * q * x).sum(-1)
        determinant = sum_w * sum_qq - sum_q * sum_q
        by = _inverse(determinant)
        new_scale, new_low = (sum_w * sum_xq - sum_x * sum_q) * by, (sum_qq * sum_x - sum_q * sum_xq) * by
        new_scale = jnp.where(new_low > 0, sum_xq * _inverse(sum_qq), new_scale)
        new_low = jnp.minimum(new_low, 0)
        found = error(new_scale, new_low, q)
        better = (determinant > 0) & (found < least)
        return tuple(jnp.where(better, n, o) for n, o in ((new_scale, scale), (new_low, low), (found, least)))  # pyright: ignore[reportReturnType]

    low = jnp.minimum(x.min(-1), 0)
    scale = quotient(high - low, most)
    first = scale, low, error(scale, low, codes(low, most))
    scale, low, _ = lax.fori_loop(0, tries + 1, improve, first)
    return scale, -low


def _symmetric(x: jax.Array, most: int) -> jax.Array:
    """Scales with x about scale * q, -most <= q < most: float32 (..., k) -> (...)."""
    extreme = _extreme(x)

    def fit(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = jnp.clip(jnp.round(tail(-levels * _inverse(extreme), 1) * x), -most, most - 1)
        return (x * x * x * q).sum(-1), (x * x * q * q).sum(-1)

    def improve(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scale, most_explained = best
        sum_xq, sum_qq = fit(most + 0.1 * f32(i))
        better = (sum_qq > 0) & (sum_xq * sum_xq > most_explained * sum_qq)
        new = sum_xq * _inverse(sum_qq)
        return jnp.where(better, new, scale), jnp.where(better, new * sum_xq, most_explained)

    sum_xq, sum_qq = fit(jnp.float32(most))
    scale = sum_xq * _inverse(sum_qq)
    scale, _ = lax.fori_loop(-9, 10, improve, (scale, scale * sum_xq))
    return jnp.where(jnp.abs(extreme) < TINY, 0.0, scale)


def _extreme(x: jax.Array) -> jax.Array:
    """The element of largest magnitude, the first of equals: (..., k) -> (...)."""
    return jnp.take_along_axis(x, jnp.argmax(jnp.abs(x), -1, keepdims=True), -1)[..., 0]


def _inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for 0."""
    return jnp.where(x == 0, 0.0, 1 / jnp.where(x == 0, 1.0, x))


def _codes(q: jax.Array, most: int) -> jax.Array:
    return jnp.clip(q, 0, most).astype(jnp.int32)


def _rounded(x: jax.Array) -> jax.Array:
    """To a half and back."""
    return x.astype(jnp.float16).astype(jnp.float32)


def _half(x: jax.Array) -> jax.Array:
    """The two bytes of each: float32 (n,) -> uint8 (n, 2)."""
    return lax.bitcast_convert_type(x.astype(jnp.float16), jnp.uint8)


def _nibbles(q: jax.Array) -> jax.Array:
    """The first half of each run in low nibbles, the second in high ones: int32 (..., 2 k) -> uint8 (..., k)."""
    low, high = jnp.split(q, 2, axis=-1)
    return (low | high << 4).astype(jnp.uint8)


def _fifth_bits(q: jax.Array) -> jax.Array:
    """Bit 4 of element j as bit j % 8 of byte j / 8: int32 (n, 32) -> uint8 (n, 4)."""
    bits = (q >> 4).reshape(-1, 4, 8) << np.arange(8, dtype=np.int32)[None, None]
    return bits.sum(-1).astype(jnp.uint8)


def _joined(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)
