"""Packed blocks to weights, for callers who have bytes and no file."""

import numpy as np

from packlight.quant.formats.table import format_named


def unpack(blocks: np.ndarray, qtype: str) -> np.ndarray:
    """The weights in rows of packed blocks: uint8 (..., n * block_bytes) -> float32 (..., n * elements).

    Raises UnsupportedError for an unknown format, listing the known ones, and ValueError for another dtype or a row
    that is no whole number of blocks.
    """
    size = format_named(qtype).bytes
    blocks = np.asarray(blocks)
    if blocks.dtype != np.uint8 or blocks.ndim < 1 or blocks.shape[-1] % size:
        raise ValueError(
            f"{qtype} blocks are uint8 rows of a multiple of {size} bytes, not {blocks.dtype} {blocks.shape}"
        )
    import jax

    from packlight.quant import qtensor

    rows = blocks.reshape(*blocks.shape[:-1], blocks.shape[-1] // size, size)
    return np.asarray(jax.jit(qtensor.unpack, static_argnums=1)(rows, qtype))
