"""How the Mosaic kernels read a super-block of 256 weights: a table of bit fields, and functions for scales and values.

One table serves the TPU, which reads a run of bytes of many columns at a time, and the GPU, which reads words of four
bytes of one row per thread. Bytes are in the order of `quant.layouts.superblock_order`: of formats with short blocks,
a super-block holds all the scales of its blocks, then all their minima, and so on. What the fields mean is in
`quant.formats.legacy`, `quant.formats.kquants`, `quant.formats.iquants` and `quant.formats.fp4`; the values are those,
bit for bit, but for MXFP4 blocks with exponent 0 or 1 (below 2^-123), which become 0 as a GPU or TPU may flush them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.quant.formats.bits import f32
from packlight.quant.formats.fp4 import MAGNITUDES
from packlight.quant.formats.iquants import kvalue_words

Byte = Callable[[int], jax.Array]  # byte k of the super-block, as int32, of every row at hand
Scale = tuple[jax.Array | None, jax.Array | None]  # value = scale * number - minimum; None: 1, 0


class Part(NamedTuple):
    """Bits of a code: of byte `at + l`, `(byte >> shift & mask) << up` for element l of the plane."""

    at: int
    shift: int
    mask: int
    up: int = 0


class Plane(NamedTuple):
    """Consecutive elements whose codes lie at the same bits of consecutive bytes, under one scale.

    bits: None, or the byte at which one more bit of each element begins, bit 4 of its code, eight elements to a byte.
    """

    element: int
    scale: int
    parts: tuple[Part, ...]
    bits: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A format. run: elements of a plane; number: what a code stands for; scales: of each sub-block, in order."""

    run: int
    planes: tuple[Plane, ...]
    number: Callable[[jax.Array], jax.Array]  # int32 -> float32
    scales: Callable[[Byte], list[Scale]]


def half(byte: Byte, at: int) -> jax.Array:
    """The IEEE half at bytes `at` and `at + 1` as float32, from its bits: no kernel language has float16 everywhere."""
    return half_of(byte(at) | (byte(at + 1) << 8))


def half_of(bits: jax.Array) -> jax.Array:
    """The value of an IEEE half: int32 bits -> float32."""
    exponent, mantissa = (bits >> 10) & 31, bits & 1023
    normal = lax.bitcast_convert_type(((exponent + 112) << 23) | (mantissa << 13), jnp.float32)
    magnitude = jnp.where(exponent == 0, f32(mantissa) * np.float32(2**-24), normal)
    return jnp.where(bits >= 0x8000, -magnitude, magnitude)


def signed(code: jax.Array, bits: int) -> jax.Array:
    """Two's complement of `bits` bits: int32 -> int32."""
    top = 1 << (bits - 1)
    return (code ^ top) - top


def _minus(bias: int) -> Callable[[jax.Array], jax.Array]:
    return lambda code: f32(code - bias) if bias else f32(code)


def _int8(code: jax.Array) -> jax.Array:
    return f32(signed(code, 8))


def _kvalue(code: jax.Array) -> jax.Array:
    w = [np.int32(x) for x in kvalue_words().view(np.int32)]
    word = jnp.where(code < 8, jnp.where(code < 4, w[0], w[1]), jnp.where(code < 12, w[2], w[3]))
    return f32(signed((word >> ((code & 3) << 3)) & 255, 8))


def _e2m1(code: jax.Array) -> jax.Array:
    magnitude = (np.int32(MAGNITUDES.view(np.int32)) >> ((code & 7) << 2)) & 15
    return f32(jnp.where(code < 8, magnitude, -magnitude))


def _halves(at: int, minimum: int | None = None) -> Callable[[Byte], list[Scale]]:
    """Eight halves, and eight that are added: of the blocks of 32 in a super-block."""

    def scales(byte: Byte) -> list[Scale]:
        return [(half(byte, at + 2 * j), None if minimum is None else -half(byte, minimum + 2 * j)) for j in range(8)]

    return scales


def _powers(byte: Byte) -> list[Scale]:
    """2^(e - 128); 0 for e < 2."""
    codes = [byte(j) for j in range(8)]
    return [(lax.bitcast_convert_type(jnp.where(e < 2, 0, (e - 1) << 23), jnp.float32), None) for e in codes]


def _ue4m3(byte: Byte) -> list[Scale]:
    """Half of the small floats EEEE_MMM, 0 where all bits are ones; their top bit does not count."""

    def scale(x: jax.Array) -> Scale:
        exponent, mantissa = (x >> 3) & 15, x & 7
        normal = lax.bitcast_convert_type(((exponent + (127 - 8)) << 23) | (mantissa << 20), jnp.float32)
        d = jnp.where(exponent == 0, f32(mantissa) * np.float32(2**-10), normal)
        return jnp.where(x == 0x7F, np.float32(0), d), None

    return [scale(byte(s)) for s in range(16)]


def _no_scales(byte: Byte) -> list[Scale]:
    return [(None, None)]


def _bytes(count: int) -> tuple[Plane, ...]:
    """Numbers of `count` bytes, the lowest bytes of all first."""
    return tuple(Plane(e, 0, tuple(Part(256 * i + e, 0, 255, 8 * i) for i in range(count))) for e in range(0, 256, 32))


def _scales_q2_k(byte: Byte) -> list[Scale]:
    d, dmin = half(byte, 80), half(byte, 82)
    return [(d * f32(byte(s) & 15), dmin * f32(byte(s) >> 4)) for s in range(16)]


def _scales_q3_k(byte: Byte) -> list[Scale]:
    d = half(byte, 108)

    def six_bits(s: int) -> jax.Array:
        low = (byte(96 + s % 8) >> 4 * (s // 8)) & 15
        return low | (((byte(104 + s % 4) >> 2 * (s // 4)) & 3) << 4)

    return [(d * f32(six_bits(s) - 32), None) for s in range(16)]


def _scales_q4_k(byte: Byte) -> list[Scale]:
    d, dmin = half(byte, 0), half(byte, 2)

    def pair(s: int) -> tuple[jax.Array, jax.Array]:
        a, b = byte(4 + s % 4), byte(8 + s % 4)
        if s < 4:
            return a & 63, b & 63
        c = byte(8 + s)
        return (c & 15) | ((a >> 6) << 4), (c >> 4) | ((b >> 6) << 4)

    return [(d * f32(sc), dmin * f32(mn)) for sc, mn in map(pair, range(8))]


def _scales_q6_k(byte: Byte) -> list[Scale]:
    d = half(byte, 208)
    return [(d * _int8(byte(192 + s)), None) for s in range(16)]


def _scales_iq4_xs(byte: Byte) -> list[Scale]:
    d = half(byte, 0)

    def six_bits(s: int) -> jax.Array:
        return ((byte(4 + s // 2) >> 4 * (s % 2)) & 15) | (((byte(2 + s // 4) >> 2 * (s % 4)) & 3) << 4)

    return [(d * f32(six_bits(s) - 32), None) for s in range(8)]


def _nibbles(at: int, bits: int | None = None) -> tuple[Plane, ...]:
    """Eight blocks of 32, low nibbles then high; `bits`: where their fifth bits are, four bytes a block."""
    return tuple(
        Plane(32 * j + 16 * n, j, (Part(at + 16 * j, 4 * n, 15),), None if bits is None else bits + 4 * j + 2 * n)
        for j in range(8)
        for n in range(2)
    )


def _q2_or_3(at: int, mask: int | None) -> tuple[Plane, ...]:
    """Two bits of the bytes from `at`, a third of those from `mask`."""
    third = [] if mask is None else [mask]
    return tuple(
        Plane(
            128 * h + 32 * j + 16 * v,
            8 * h + 2 * j + v,
            (Part(at + 32 * h + 16 * v, 2 * j, 3), *(Part(m + 16 * v, 4 * h + j, 1, 2) for m in third)),
        )
        for h in range(2)
        for j in range(4)
        for v in range(2)
    )


def _q4_or_5(at: int, high: int | None) -> tuple[Plane, ...]:
    """Nibbles of the bytes from `at`, a fifth bit of those from `high`."""
    fifth = [] if high is None else [high]
    return tuple(
        Plane(64 * i + 32 * n, 2 * i + n, (Part(at + 32 * i, 4 * n, 15), *(Part(h, 2 * i + n, 1, 4) for h in fifth)))
        for i in range(4)
        for n in range(2)
    )


def _q6() -> tuple[Plane, ...]:
    return tuple(
        Plane(
            128 * h + 64 * n + 32 * r + 16 * v,
            8 * h + 4 * n + 2 * r + v,
            (Part(64 * h + 32 * r + 16 * v, 4 * n, 15), Part(128 + 32 * h + 16 * v, 2 * (2 * n + r), 3, 4)),
        )
        for h in range(2)
        for n in range(2)
        for r in range(2)
        for v in range(2)
    )


@functools.cache
def recipe(qtype: str) -> Recipe:
    """The recipe of a format in `quant.layouts.SUPERBLOCKS`. Raises KeyError for any other."""
    return {
        "F32": lambda: Recipe(32, _bytes(4), lambda code: lax.bitcast_convert_type(code, jnp.float32), _no_scales),
        "F16": lambda: Recipe(32, _bytes(2), half_of, _no_scales),
        "BF16": lambda: Recipe(
            32, _bytes(2), lambda code: lax.bitcast_convert_type(code << 16, jnp.float32), _no_scales
        ),
        "Q4_0": lambda: Recipe(16, _nibbles(16), _minus(8), _halves(0)),
        "Q4_1": lambda: Recipe(16, _nibbles(32), _minus(0), _halves(0, 16)),
        "Q5_0": lambda: Recipe(16, _nibbles(48, 16), _minus(16), _halves(0)),
        "Q5_1": lambda: Recipe(16, _nibbles(64, 32), _minus(0), _halves(0, 16)),
        "Q8_0": lambda: Recipe(
            32, tuple(Plane(32 * j, j, (Part(16 + 32 * j, 0, 255),)) for j in range(8)), _int8, _halves(0)
        ),
        "Q2_K": lambda: Recipe(16, _q2_or_3(16, None), _minus(0), _scales_q2_k),
        "Q3_K": lambda: Recipe(16, _q2_or_3(32, 0), _minus(4), _scales_q3_k),
        "Q4_K": lambda: Recipe(32, _q4_or_5(16, None), _minus(0), _scales_q4_k),
        "Q5_K": lambda: Recipe(32, _q4_or_5(48, 16), _minus(0), _scales_q4_k),
        "Q6_K": lambda: Recipe(16, _q6(), _minus(32), _scales_q6_k),
        "IQ4_NL": lambda: Recipe(16, _nibbles(16), _kvalue, _halves(0)),
        "IQ4_XS": lambda: Recipe(
            16,
            tuple(Plane(32 * s + 16 * n, s, (Part(8 + 16 * s, 4 * n, 15),)) for s in range(8) for n in range(2)),
            _kvalue,
            _scales_iq4_xs,
        ),
        "NVFP4": lambda: Recipe(
            8,
            tuple(Plane(16 * s + 8 * n, s, (Part(16 + 8 * s, 4 * n, 15),)) for s in range(16) for n in range(2)),
            _e2m1,
            _ue4m3,
        ),
        "MXFP4": lambda: Recipe(16, _nibbles(8), _e2m1, _powers),
    }[qtype]()


def weigh(number: jax.Array, scale: Scale) -> jax.Array:
    """scale * number - minimum; the product is exact, so FMA or not makes no difference."""
    factor, minimum = scale
    value = number if factor is None else factor * number
    return value if minimum is None else value - minimum
