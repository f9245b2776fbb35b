"""Random packed blocks of every format with scales at the edges of float16. Imports no jax."""

import numpy as np

from packlight.quant.formats.scales import SCALES
from packlight.quant.formats.table import FORMATS

# +-0, smallest and largest subnormals, smallest normal, largest, 1: the halves a scale can go wrong on.
SPECIAL_HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00], np.uint16
)


def plant(qtype: str, blocks: np.ndarray, halves: np.ndarray | int) -> None:
    """Overwrites every float16 scale of each block, in place; the formats without one keep their bytes."""
    low, high = np.uint16(halves) & 0xFF, np.uint16(halves) >> 8
    if qtype == "IQ1_M":
        for at, nibble in zip((49, 51, 53, 55), (low & 15, low >> 4, high & 15, high >> 4), strict=True):
            blocks[:, at] = (blocks[:, at] & 0x0F) | (nibble << 4)
    elif qtype not in ("F32", "BF16", "MXFP4", "NVFP4"):
        for ((high_at, _),) in SCALES[qtype]:
            blocks[:, high_at - 1], blocks[:, high_at] = low, high


def clean_blocks(qtype: str, n: int, seed: int = 0) -> np.ndarray:
    """Random blocks whose scales are finite: uint8 (n, bytes), the special halves first."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, FORMATS[qtype].bytes), dtype=np.uint8)
    halves = rng.integers(0, 0x7C00, n, dtype=np.uint16) | (rng.integers(0, 2, n, dtype=np.uint16) << 15)
    halves[: len(SPECIAL_HALVES)] = SPECIAL_HALVES[:n]
    plant(qtype, blocks, halves)
    for scale in SCALES[qtype] if qtype in ("F32", "BF16", "MXFP4", "NVFP4") else ():
        blocks[:, scale[-1][0]] &= 0xBF  # clears one of the bits that would all have to be set
    return blocks
