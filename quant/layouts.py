"""Layouts of packed weights: ggml's own, and those that kernels read. Imports no jax.

In "rowsN" (native CPU kernels) the blocks of N consecutive rows are one block of N times the bytes, cut into fields and
interleaved, so that one vector load brings the same 4 bytes (or the same scale) of N rows. The bytes are the same; rows
beyond the last are zero blocks.

The Mosaic kernels read super-blocks of 256 weights, S of them to a row: shorter blocks are grouped, all their scales
first, then all minima, and so on (`superblock_order`); plain numbers are blocks of one, all their lowest bytes first.
What does not fill a group of rows, a super-block or its last bytes is zeros.

    "words"    (ceil(out / 128), S, W * 128 * 4)   GPU: the same word of 128 rows is one coalesced load of 128 threads
    "columns"  (S, bytes, ceil(out / 128) * 128)   TPU: rows of the matrix along its 128 lanes; bytes a multiple of 8,
                                                   or XLA keeps another order of axes and copies all to this one

The axis of blocks or super-blocks is one of its own, so sharding any axis but the last of "rowsN" and "words", and any
but the middle one of "columns", never cuts a block. `quant.qtensor.gather_rows` reads rows of every layout.
"""

import collections
import concurrent.futures
import functools
import os

import numpy as np

LANES = {"ggml": 1, "rows4": 4, "rows8": 8, "rows16": 16}  # layout -> rows side by side
SUPERBLOCK = 256  # weights
GROUP = 128  # rows side by side in "words" and "columns"
GROUPS_AT_A_TIME = 4  # when they are packed
MOSAIC = {"words": 4, "columns": 8}  # layout -> what the bytes of a super-block are a multiple of
LAYOUTS = (*LANES, *MOSAIC)
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
    "IQ2_XXS": ((0, 2, 2), (2, 64, 4)),
    "IQ2_XS": ((0, 2, 2), (2, 64, 4), (66, 8, 1)),
    "IQ2_S": ((0, 2, 2), (2, 64, 4), (66, 16, 1)),
    "IQ3_XXS": ((0, 2, 2), (2, 96, 4)),
    "IQ3_S": ((0, 2, 2), (2, 64, 4), (66, 8, 1), (74, 32, 4), (106, 4, 1)),
    "IQ1_S": ((0, 2, 2), (2, 32, 4), (34, 16, 2)),
    "IQ1_M": ((0, 32, 4), (32, 24, 2)),
    "IQ4_NL": ((0, 2, 2), (2, 16, 4)),
    "IQ4_XS": ((0, 2, 2), (2, 2, 2), (4, 132, 4)),
    "MXFP4": ((0, 1, 1), (1, 16, 4)),
    "Q1_0": ((0, 2, 2), (2, 16, 4)),
    "Q2_0": ((0, 2, 2), (2, 16, 4)),
    "TQ1_0": ((0, 52, 4), (52, 2, 2)),
    "TQ2_0": ((0, 64, 4), (64, 2, 2)),
    "NVFP4": ((0, 4, 1), (4, 32, 4)),
    "F32": ((0, 4, 4),),
    "F16": ((0, 2, 2),),
    "BF16": ((0, 2, 2),),
}
# Blocks in a super-block, and the lengths of a block's fields in order, of the formats that the Mosaic kernels read.
SUPERBLOCKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "F32": (256, (1, 1, 1, 1)),
    "F16": (256, (1, 1)),
    "BF16": (256, (1, 1)),
    "Q4_0": (8, (2, 16)),
    "Q4_1": (8, (2, 2, 16)),
    "Q5_0": (8, (2, 4, 16)),
    "Q5_1": (8, (2, 2, 4, 16)),
    "Q8_0": (8, (2, 32)),
    "Q2_K": (1, (84,)),
    "Q3_K": (1, (110,)),
    "Q4_K": (1, (144,)),
    "Q5_K": (1, (176,)),
    "Q6_K": (1, (210,)),
    "IQ4_NL": (8, (2, 16)),
    "IQ4_XS": (1, (136,)),
    "MXFP4": (8, (1, 16)),
    "NVFP4": (4, (4, 32)),
}


def superblock_bytes(qtype: str, layout: str) -> int:
    """Bytes of a super-block, padding included."""
    (blocks, lengths), unit = SUPERBLOCKS[qtype], MOSAIC[layout]
    return -(-blocks * sum(lengths) // unit) * unit


@functools.cache
def superblock_order(qtype: str) -> np.ndarray:
    """Where each byte of a super-block is among its blocks' bytes in file order: int (blocks * block_bytes,)."""
    per, lengths = SUPERBLOCKS[qtype]
    starts = np.cumsum((0, *lengths))
    blocks = starts[-1] * np.arange(per)[:, None]
    return np.concatenate([(blocks + np.arange(at, at + n)).ravel() for at, n in zip(starts, lengths, strict=False)])


def axis_of(what: str, layout: str) -> int:
    """Which of a layout's last three axes is that of "rows" or of blocks, "inputs": along it devices share a matrix."""
    return {"rows": -1, "inputs": -3}[what] if layout == "columns" else {"rows": -3, "inputs": -2}[what]


def byte_axis(layout: str) -> int:
    """Which of a layout's last three axes is that of a block's or a super-block's bytes."""
    return -2 if layout == "columns" else -1


def blocks_shape(rows: int, n_blocks: int, block_bytes: int, layout: str, qtype: str = "") -> tuple[int, int, int]:
    """Shape of the packed array that holds a matrix of `rows` rows. qtype: needed by the Mosaic layouts."""
    if layout in LANES:
        lanes = LANES[layout]
        return -(-rows // lanes), n_blocks, lanes * block_bytes
    count, size = -(-n_blocks // SUPERBLOCKS[qtype][0]), superblock_bytes(qtype, layout)
    groups = -(-rows // GROUP)
    return (count, size, groups * GROUP) if layout == "columns" else (groups, count, GROUP * size)


def pack(blocks: np.ndarray, qtype: str, layout: str, packed: np.ndarray | None = None) -> np.ndarray:
    """From ggml's layout: uint8 (out, N, bytes) -> uint8 of `blocks_shape`, zero rows and blocks at the end.

    packed: where a Mosaic layout is put, if that is there already. For "rowsN" this is the slow twin of
    `native_build.pack_into`.
    """
    out, n, size = blocks.shape
    if layout not in LANES:
        packed = np.empty(blocks_shape(out, n, size, layout, qtype), np.uint8) if packed is None else packed
        _pack_superblocks(blocks, qtype, layout, packed)
        return packed
    assert packed is None
    lanes = LANES[layout]
    groups = -(-out // lanes)
    padded = np.zeros((groups * lanes, n, size), np.uint8)
    padded[:out] = blocks
    by_group = padded.reshape(groups, lanes, n, size)
    packed = np.empty((groups, n, lanes * size), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = by_group[..., offset : offset + length].reshape(groups, lanes, n, length // unit, unit)
        packed[..., lanes * offset : lanes * (offset + length)] = field.transpose(0, 2, 3, 1, 4).reshape(groups, n, -1)
    return packed


def unpack(packed: np.ndarray, qtype: str, layout: str, out: int, n_blocks: int | None = None) -> np.ndarray:
    """The inverse of `pack`: -> uint8 (out, N, bytes). n_blocks: N, which the Mosaic layouts do not say."""
    if layout not in LANES:
        assert n_blocks is not None
        return _unpack_superblocks(packed, qtype, layout, out, n_blocks)
    (groups, n, size), lanes = packed.shape, LANES[layout]
    blocks = np.empty((groups, lanes, n, size // lanes), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = packed[..., lanes * offset : lanes * (offset + length)].reshape(groups, n, -1, lanes, unit)
        blocks[..., offset : offset + length] = field.transpose(0, 3, 1, 2, 4).reshape(groups, lanes, n, length)
    return blocks.reshape(groups * lanes, n, -1)[:out]


def _pack_superblocks(blocks: np.ndarray, qtype: str, layout: str, packed: np.ndarray) -> None:
    """Some groups of rows at a time, so that what is made on the way is small; as many at once as there are cores, for
    numpy lets other threads run while it copies.
    """

    def pack_some(at: int) -> None:
        part = slice(at * GROUP, (at + GROUPS_AT_A_TIME) * GROUP)
        into = packed[..., part] if layout == "columns" else packed[at : at + GROUPS_AT_A_TIME]
        _pack_groups(blocks[part], qtype, layout, into)

    starts = range(0, -(-blocks.shape[0] // GROUP), GROUPS_AT_A_TIME)
    with concurrent.futures.ThreadPoolExecutor(max(1, min(len(starts), os.cpu_count() or 1))) as pool:
        collections.deque(pool.map(pack_some, starts), maxlen=0)  # whose errors are raised here


def _pack_groups(blocks: np.ndarray, qtype: str, layout: str, packed: np.ndarray) -> None:
    """Rows of some groups to where they belong, every byte of which is written."""
    (out, n, _), (per, lengths) = blocks.shape, SUPERBLOCKS[qtype]
    count, whole = packed.shape[:2] if layout == "columns" else (packed.shape[1], packed.shape[2] // GROUP)
    rows = packed.shape[2] if layout == "columns" else packed.shape[0] * GROUP
    ordered = np.zeros((rows, count, whole), np.uint8)
    filled = n // per  # whole super-blocks of a row; of the last one there may be some blocks only
    unit = next(unit for unit in (4, 2, 1) if not any(length % unit for length in (*lengths, whole)))
    blocks, ordered = (array.view(f"u{unit}") for array in (blocks, ordered))
    lengths = [length // unit for length in lengths]
    for start, length in zip(np.cumsum((0, *lengths)).tolist(), lengths, strict=False):
        to = ordered[:out, :, per * start : per * (start + length)].reshape(out, count, per, length)
        field = blocks[..., start : start + length]
        to[:, :filled] = field[:, : filled * per].reshape(out, filled, per, length)
        to[:, filled:, : n - filled * per] = field[:, None, filled * per :]
    ordered = ordered.view(np.uint8)
    if layout == "columns":
        packed[...] = ordered.transpose(1, 2, 0)
    else:
        words = ordered.view(np.uint32).reshape(-1, GROUP, count, whole // 4)
        packed.view(np.uint32).reshape(-1, count, whole // 4, GROUP)[...] = words.transpose(0, 2, 3, 1)


def _unpack_superblocks(packed: np.ndarray, qtype: str, layout: str, out: int, n_blocks: int) -> np.ndarray:
    order = superblock_order(qtype)
    if layout == "columns":
        rows = packed[..., :out].transpose(2, 0, 1)  # (out, S, bytes)
    else:
        groups, count, _ = packed.shape
        words = packed.reshape(groups, count, -1, GROUP, 4).transpose(0, 3, 1, 2, 4)
        rows = words.reshape(groups * GROUP, count, -1)[:out]
    blocks = np.empty((out, rows.shape[1], order.size), np.uint8)
    blocks[..., order] = rows[..., : order.size]
    return blocks.reshape(out, rows.shape[1] * SUPERBLOCKS[qtype][0], -1)[:, :n_blocks]
