"""Random packed blocks of every format: uniform quants under scales that give the weights a chosen spread.

It knows where each format keeps its scales; it knows nothing of tensors, models or files, and imports no jax.
The blocks are valid (every scale finite, every field in its range) but they are noise: no format's rounding can be
judged by them, only bytes, shapes and speed.
"""

import dataclasses

import numpy as np

from packlight.quant.formats.table import Format


@dataclasses.dataclass(frozen=True)
class Scales:
    """Where a block keeps its float16 scale `d`, and what its weights' spread is at d = 1 with uniform quants.

    Formats with a minimum hold a second float16 at `minimum`, set to `ratio` * d, which makes the mean 0. The others
    get d of either sign: their quants are lopsided (-8..7), and K weights of one mean would drown the rest.
    """

    at: int
    spread: float
    minimum: int | None = None
    ratio: float = 0.0


# Spreads measured with gguf-py's dequantizer on 1.3 M weights (Q1_0, Q2_0 by their formulas).
# Source: `ggml-common.h` for the offsets.
SCALES = {
    "Q1_0": Scales(0, 1.0),
    "Q2_0": Scales(0, 1.225),  # {-1, 0, 1, 2}, root mean square
    "Q4_0": Scales(0, 4.61),
    "Q4_1": Scales(0, 4.61, 2, -7.5),
    "Q5_0": Scales(0, 9.24),
    "Q5_1": Scales(0, 9.24, 2, -15.5),
    "Q8_0": Scales(0, 73.9),
    "Q2_K": Scales(80, 13.85, 82, 1.5),
    "Q3_K": Scales(108, 43.2),
    "Q4_K": Scales(0, 258.0, 2, 7.5),
    "Q5_K": Scales(0, 526.0, 2, 15.5),
    "Q6_K": Scales(208, 1369.0),
    "IQ2_XXS": Scales(0, 53.4),
    "IQ2_XS": Scales(0, 56.1),
    "IQ2_S": Scales(0, 56.5),
    "IQ3_XXS": Scales(0, 142.5),
    "IQ3_S": Scales(0, 140.7),
    "IQ1_S": Scales(0, 7.17),
    "IQ4_NL": Scales(0, 67.2),
    "IQ4_XS": Scales(0, 1247.0),
    "TQ1_0": Scales(52, 0.817),
    "TQ2_0": Scales(64, 0.707),
}
IQ1_M_SPREAD, FP4_SPREAD = 7.20, 2.925
# NVFP4's unsigned E4M3 scales, 0 EEEEMMM, without the two codes above 126 that mean 0; 2^-9 is the smallest step.
UE4M3 = np.array([(c % 8 if c < 8 else (8 + c % 8) * 2 ** (c // 8 - 1)) * 2.0**-9 for c in range(127)])


def random_blocks(fmt: Format, count: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """`count` blocks of `fmt` as uint8 (count, fmt.bytes), whose weights have about zero mean and deviation `std`."""
    if fmt.elements == 1:
        return _floats(fmt, count, std, rng)
    # whole 64-bit draws: 3 times as fast as bytes
    words = rng.integers(0, 1 << 64, -(-count * fmt.bytes // 8), np.uint64)
    blocks = words.view(np.uint8)[: count * fmt.bytes].reshape(count, fmt.bytes)
    # No two blocks alike: a kernel that takes its neighbour's scale must show.
    wanted = std * rng.uniform(0.75, 1.25, count)
    match fmt.name:
        case "IQ1_M":
            _set_iq1_m(blocks, wanted / IQ1_M_SPREAD)
        case "MXFP4":
            # a power of two, rounded up or down by chance
            exponents = np.floor(np.log2(wanted / FP4_SPREAD) + rng.random(count))
            blocks[:, 0] = np.clip(127 + exponents, 0, 254)
        case "NVFP4":
            groups = (std / FP4_SPREAD * rng.uniform(0.75, 1.25, (count, 4))).astype(np.float32)
            blocks[:, :4] = np.clip(np.searchsorted(UE4M3, groups), 1, 126)
        case name:
            _set_float16(blocks, SCALES[name], wanted, rng)
    if fmt.name == "TQ2_0":  # 2-bit fields hold 0, 1, 2; a drawn 3 becomes 1
        quants = blocks[:, :64]
        quants ^= (quants & (quants >> 1) & 0x55) << 1
    return blocks


def _floats(fmt: Format, count: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """Uniform rather than normal weights: eight times as fast, and nothing here depends on the tails."""
    values = rng.integers(-(1 << 31), 1 << 31, count, np.int32).astype(np.float32)
    values *= np.float32(std * 3**0.5 / 2**31)
    match fmt.name:
        case "F16":
            packed = values.astype("<f2")
        case "BF16":
            packed = ((values.view(np.uint32) + 0x8000) >> 16).astype("<u2")
        case _:
            packed = values
    return packed.view(np.uint8).reshape(count, fmt.bytes)


def _set_float16(blocks: np.ndarray, scales: Scales, wanted: np.ndarray, rng: np.random.Generator) -> None:
    """Writes d (and the minimum) of each block so that its weights spread by `wanted` (count,)."""
    d = wanted / scales.spread
    if scales.minimum is None:
        d *= rng.integers(0, 2, len(d)) * 2 - 1
    else:
        blocks[:, scales.minimum : scales.minimum + 2] = _float16_bytes(scales.ratio * d)
    blocks[:, scales.at : scales.at + 2] = _float16_bytes(d)


def _set_iq1_m(blocks: np.ndarray, d: np.ndarray) -> None:
    """IQ1_M keeps its float16 scale in the top four bits of four uint16 at byte 48."""
    bits = d.astype("<f2").view("<u2")
    words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
    for i in range(4):
        words[:, i] = (words[:, i] & 0x0FFF) | ((bits >> (4 * i) & 0xF) << 12)
    blocks[:, 48:56] = words.view(np.uint8)


def _float16_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)
