"""Finds blocks whose scale is not a finite number, before the weights are used. Imports no jax.

A file with such a block is damaged or badly converted, and one NaN weight turns every logit into NaN. Only the bytes
that can say so are read: a float is inf or NaN exactly when all its exponent bits are one, so each scale is described
by the masked bytes that hold those bits.
"""

import numpy as np

from packlight.quant.formats.table import format_named

CHUNK_BLOCKS = 1 << 20  # temporaries of one step: at most a word of 4 bytes and three bools per block, 7 MB

Scale = tuple[tuple[int, int], ...]  # ((byte offset, mask), ...): non-finite when every masked bit is one


def _f16(*offsets: int) -> tuple[Scale, ...]:
    """Halves at these offsets: the five exponent bits are 0x7C of the high byte."""
    return tuple(((at + 1, 0x7C),) for at in offsets)


SCALES: dict[str, tuple[Scale, ...]] = {
    "F32": (((2, 0x80), (3, 0x7F)),),  # the value itself
    "F16": _f16(0),
    "BF16": (((0, 0x80), (1, 0x7F)),),
    "Q1_0": _f16(0),
    "Q2_0": _f16(0),
    "Q4_0": _f16(0),
    "Q4_1": _f16(0, 2),
    "Q5_0": _f16(0),
    "Q5_1": _f16(0, 2),
    "Q8_0": _f16(0),
    "Q2_K": _f16(80, 82),
    "Q3_K": _f16(108),
    "Q4_K": _f16(0, 2),
    "Q5_K": _f16(0, 2),
    "Q6_K": _f16(208),
    "IQ2_XXS": _f16(0),
    "IQ2_XS": _f16(0),
    "IQ2_S": _f16(0),
    "IQ3_XXS": _f16(0),
    "IQ3_S": _f16(0),
    "IQ1_S": _f16(0),
    "IQ1_M": (((53, 0xC0), (55, 0x70)),),  # nibbles 2 and 3 of the half, in the high bytes of scales[2] and [3]
    "IQ4_NL": _f16(0),
    "IQ4_XS": _f16(0),
    "TQ1_0": _f16(52),
    "TQ2_0": _f16(64),
    "MXFP4": (((0, 0xFF),),),  # E8M0 255 is NaN
    "NVFP4": tuple(((at, 0x7F),) for at in range(4)),  # UE4M3 0x7F is NaN; it has no inf
}


def nonfinite_block(blocks: np.ndarray, qtype: str) -> int | None:
    """The flat index of the first block with a non-finite scale, or None. F32, F16 and BF16 values are their own scale.

    `blocks`: uint8 (..., bytes), C-contiguous, a memory map included; temporaries stay below 8 MB. MXFP4's 255 and
    NVFP4's 0x7F count although ggml decodes them as finite numbers: their specifications say NaN.
    Raises ValueError when the array is not made of such blocks, UnsupportedError for an unknown format.
    """
    fmt = format_named(qtype)
    if blocks.dtype != np.uint8 or not blocks.ndim or blocks.shape[-1] != fmt.bytes or not blocks.flags.c_contiguous:
        raise ValueError(f"{qtype}: want C-contiguous uint8 (..., {fmt.bytes}), got {blocks.dtype} {blocks.shape}")
    rows = blocks.reshape(-1, fmt.bytes)
    for start in range(0, len(rows), CHUNK_BLOCKS):
        chunk = rows[start : start + CHUNK_BLOCKS]
        bad = np.zeros(len(chunk), bool)
        for scale in SCALES[qtype]:
            bad |= _all_ones(chunk, scale)
        if bad.any():
            return start + int(bad.argmax())
    return None


def _all_ones(chunk: np.ndarray, scale: Scale) -> np.ndarray:
    """Whether every masked bit of `scale` is one: uint8 (n, bytes) -> bool (n,)."""
    if chunk.shape[-1] in (2, 4):  # a plain float is one word: contiguous words are several times faster than strides
        word = np.dtype(f"<u{chunk.shape[-1]}")
        ones_in = word.type(sum(mask << (8 * at) for at, mask in scale))
        return (chunk.view(word)[:, 0] & ones_in) == ones_in
    (at, mask), *rest = scale
    ones = (chunk[:, at] & mask) == mask
    for at, mask in rest:
        ones &= (chunk[:, at] & mask) == mask
    return ones
