"""Layouts of packed weights: ggml's own, and rows side by side for the native CPU kernels. Imports no jax.

In "rowsN" the blocks of N consecutive rows are one block of N times the bytes, cut into fields and interleaved, so that
one vector load brings the same 4 bytes (or the same scale) of N rows. The bytes are the same; rows beyond the last are
zero blocks. `quant.qtensor.gather_rows` reads rows of every layout.
"""

import numpy as np

LANES = {"ggml": 1, "rows4": 4, "rows8": 8, "rows16": 16}  # layout -> rows side by side
# (offset, length, unit) of each field of a block: kFormats in native/weights.h, where the cuts are explained.
FIELDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "Q4_0": ((0, 2, 2), (2, 16, 4)),
    "Q4_1": ((0, 2, 2), (2, 2, 2), (4, 16, 4)),
    "Q5_0": ((0, 2, 2), (2, 20, 4)),
    "Q5_1": ((0, 2, 2), (2, 2, 2), (4, 20, 4)),
    "Q8_0": ((0, 2, 2), (2, 32, 4)),
    "Q2_K": ((0, 16, 2), (16, 64, 4), (80, 2, 2), (82, 2, 2)),
    "Q3_K": ((0, 108, 4), (108, 2, 2)),
    "Q4_K": ((0, 2, 2), (2, 2, 2), (4, 140, 4)),
    "Q5_K": ((0, 2, 2), (2, 2, 2), (4, 172, 4)),
    "Q6_K": ((0, 192, 4), (192, 16, 2), (208, 2, 2)),
    "IQ4_NL": ((0, 2, 2), (2, 16, 4)),
    "IQ4_XS": ((0, 2, 2), (2, 2, 2), (4, 132, 4)),
    "MXFP4": ((0, 1, 1), (1, 16, 4)),
}


def blocks_shape(rows: int, n_blocks: int, block_bytes: int, layout: str) -> tuple[int, int, int]:
    """Shape of the packed array that holds a matrix of `rows` rows."""
    lanes = LANES[layout]
    return -(-rows // lanes), n_blocks, lanes * block_bytes


def pack(blocks: np.ndarray, qtype: str, layout: str) -> np.ndarray:
    """From ggml's layout: uint8 (out, N, bytes) -> uint8 (ceil(out / lanes), N, lanes * bytes), zero rows at the end.

    The slow twin of `native_build.pack_into`.
    """
    (out, n, size), lanes = blocks.shape, LANES[layout]
    groups = -(-out // lanes)
    padded = np.zeros((groups * lanes, n, size), np.uint8)
    padded[:out] = blocks
    by_group = padded.reshape(groups, lanes, n, size)
    packed = np.empty((groups, n, lanes * size), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = by_group[..., offset : offset + length].reshape(groups, lanes, n, length // unit, unit)
        packed[..., lanes * offset : lanes * (offset + length)] = field.transpose(0, 2, 3, 1, 4).reshape(groups, n, -1)
    return packed


def unpack(packed: np.ndarray, qtype: str, layout: str, out: int) -> np.ndarray:
    """The inverse of `pack`: uint8 (ceil(out / lanes), N, lanes * bytes) -> uint8 (out, N, bytes)."""
    (groups, n, size), lanes = packed.shape, LANES[layout]
    blocks = np.empty((groups, lanes, n, size // lanes), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = packed[..., lanes * offset : lanes * (offset + length)].reshape(groups, n, -1, lanes, unit)
        blocks[..., offset : offset + length] = field.transpose(0, 3, 1, 2, 4).reshape(groups, lanes, n, length)
    return blocks.reshape(groups * lanes, n, -1)[:out]
