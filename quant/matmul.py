"""`matmul(x, w, path)`: activations times packed weights. The caller names the path; nothing is guessed here.

Paths: `reference` unpacks the whole matrix, then multiplies; it works everywhere and is the twin of every other path.
`xla` unpacks a tile of rows at a time: the scratch is one tile (2 MB) whatever the matrix, and the tile is still in
cache when it is multiplied; one unpack serves all rows of `x`. `native` (CPU) is C++ from `quant.kernels.native_ops`,
with x rounded to int8 per block as llama.cpp does it. `mosaic_gpu` and `mosaic_tpu` are Pallas kernels on their own
layouts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from packlight.quant.kernels import native_ops
from packlight.quant.qtensor import QTensor, unpack

PATHS = ("reference", "xla", "native", "mosaic_gpu", "mosaic_tpu")
TILE_ELEMENTS = 1 << 19  # weights unpacked at a time by `xla`: 2 MB of float32
UNPACK_SCOPE = (
    "unpack_{qtype}_{out}x{width}"  # names the matrix in the compiled program, where `compile.targets.hlo` finds it
)


def matmul(
    x: jax.Array,  # float (M, in)
    w: QTensor,  # blocks (..., out, N, block_bytes)
    path: str,
    index: Sequence[jax.Array | int] = (),
) -> jax.Array:  # float32 (M, out)
    """`x @ w.T` with float32 accumulation; `index` picks the matrix when `w` stacks several on leading axes.

    Products are made in x's dtype: float32 exactly, bfloat16 with the weights rounded to it (`mosaic_gpu` does not
    round them for a few rows).
    Raises ValueError for a path that is not in PATHS or shapes that do not fit.
    """
    *lead, out, width = w.shape
    if x.ndim != 2 or x.shape[1] != width or len(lead) != len(index):
        raise ValueError(f"matmul: x {x.shape} does not fit weights {w.shape} indexed by {len(index)} axes")
    match path:
        case "reference":
            return _dot(x, _weights(_rows(w, index, 0, out), w, x.dtype))
        case "xla":
            return _tiled(x, w, index)
        case "native":
            return matmul_many(x, [w], path, [index])[0]
        case "mosaic_gpu" | "mosaic_tpu":
            return _mosaic(x, w, path, index)
        case _:
            raise ValueError(f"unknown kernel path {path!r}; there are: {', '.join(PATHS)}")


def matmul_many(
    x: jax.Array,  # float (M, in)
    ws: Sequence[QTensor],  # each (..., out, in)
    path: str,
    indices: Sequence[Sequence[jax.Array | int]],
) -> list[jax.Array]:  # float32 (M, out) each
    """`matmul` of one x with several weights. `native` makes one call of it: x is rounded once, threads wake once."""
    if path != "native":
        return [matmul(x, w, path, index) for w, index in zip(ws, indices, strict=True)]
    return native_ops.matmul_many(
        x,
        [w.blocks for w in ws],
        [w.qtype for w in ws],
        [w.layout for w in ws],
        [w.shape[-2] for w in ws],
        [_flat(index, w.shape[:-2]) for w, index in zip(ws, indices, strict=True)],
    )


def matmul_each(
    x: jax.Array,  # float (n, M, in)
    w: QTensor,  # blocks (..., n, out, N, block_bytes)
    path: str,
    index: Sequence[jax.Array | int],
) -> jax.Array:  # float32 (n, M, out)
    """`matmul` of n runs of rows, each with a matrix of its own; `index` picks the n matrices. `native` makes one call.

    Raises ValueError as `matmul` does.
    """
    count, rows, width = x.shape
    if path != "native":
        numbers = jnp.arange(count, dtype=jnp.int32)
        return lax.map(lambda run: matmul(run[1], w, path, (*index, run[0])), (numbers, x))
    first = _flat((*index, 0), w.shape[:-2])
    flat = x.reshape(count * rows, width)
    (y,) = native_ops.matmul_many(flat, [w.blocks], [w.qtype], [w.layout], [w.shape[-2]], [first], each=count)
    return y.reshape(count, rows, -1)


def unpacked(w: QTensor, index: Sequence[jax.Array | int], dtype: jnp.dtype) -> jax.Array:
    """A matrix, or the stack of them that `index` picks, as a whole and in `dtype`: (..., out, in). The layout must be
    ggml's.

    On a CPU it is unpacked tile after tile, for the reason that `_over_tiles` gives.
    """
    *lead, out, width = w.shape
    picked = lead[len(index) :]
    flat = dataclasses.replace(w, blocks=w.blocks.reshape(*lead[: len(index)], -1, *w.blocks.shape[-2:]))
    every = flat.shape[-2]

    def tiled(*index: jax.Array) -> jax.Array:
        def put(whole: jax.Array, blocks: jax.Array, start: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(whole, _weights(blocks, w, dtype), (start, jnp.int32(0)))

        return _over_tiles(flat, index, put, jnp.zeros((every, width), dtype))

    def at_once(*index: jax.Array) -> jax.Array:
        return _weights(_rows(flat, index, 0, every), w, dtype)

    found = lax.platform_dependent(*map(jnp.int32, index), cpu=tiled, default=at_once)
    return found.reshape(*picked, out, width)


def _mosaic(x: jax.Array, w: QTensor, path: str, index: Sequence[jax.Array | int]) -> jax.Array:
    """The Pallas kernels, imported when they are used: it takes a third of a second."""
    from packlight.quant.kernels import mosaic_gpu, mosaic_tpu

    kernel, layout = (mosaic_gpu, "words") if path == "mosaic_gpu" else (mosaic_tpu, "columns")
    if w.layout != layout:
        raise ValueError(f"matmul: path {path!r} reads layout {layout!r}, not {w.layout!r}")
    packed = w.blocks.reshape(-1, *w.blocks.shape[-3:])
    return kernel.product(x, packed, w.qtype, _flat(index, w.shape[:-2]), w.shape[-2])


def _flat(index: Sequence[jax.Array | int], lead: Sequence[int]) -> jax.Array:
    """The index of a matrix counted over all leading axes: int32 ()."""
    flat = jnp.int32(0)
    for i, size in zip(index, lead, strict=True):
        flat = flat * size + i
    return flat


def tile_rows(out: int, width: int) -> int:
    """Rows per tile of the `xla` path: at most half of `out`, and a multiple of 16 that divides it if there is one."""
    most = max(16, min(TILE_ELEMENTS // width, out // 2) // 16 * 16)
    return min(out, next((rows for rows in range(most, 15, -16) if out % rows == 0), most))


def _tiled(x: jax.Array, w: QTensor, index: Sequence[jax.Array | int]) -> jax.Array:
    """The product with a tile of rows after the other."""

    def put(y: jax.Array, blocks: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(y, _dot(x, _weights(blocks, w, x.dtype)), (jnp.int32(0), start))

    return _over_tiles(w, index, put, jnp.zeros((x.shape[0], w.shape[-2]), jnp.float32))


def _over_tiles(
    w: QTensor,
    index: Sequence[jax.Array | int],
    put: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    result: jax.Array,
) -> jax.Array:
    """`result` after put(result, packed rows of a tile, the first of them) has added to it what each tile gives.

    The packed bytes of the next tile are part of the loop's state: unpacking then reads a buffer. Read where it is
    sliced, XLA:CPU fuses the slice's clamped offset into every byte's address and is 10 times slower.
    """
    *_, out, width = w.shape
    rows = tile_rows(out, width)

    def start(tile):
        return jnp.minimum(tile * rows, out - rows)  # a ragged last tile recomputes rows, to the same values

    def body(tile, carry):
        blocks, result = carry
        return _rows(w, index, start(tile + 1), rows), put(result, blocks, start(tile))

    return lax.fori_loop(0, -(-out // rows), body, (_rows(w, index, 0, rows), result))[1]


def _rows(w: QTensor, index: Sequence[jax.Array | int], start: jax.Array | int, rows: int) -> jax.Array:
    """Packed rows start..start+rows of the indexed matrix: uint8 (rows, N, block_bytes)."""
    blocks = w.blocks
    lead = len(index)
    starts = (*index, start, 0, 0)
    sizes = (1,) * lead + (rows, *blocks.shape[-2:])
    return lax.dynamic_slice(blocks, [jnp.asarray(s, jnp.int32) for s in starts], sizes).reshape(sizes[lead:])


def _weights(blocks: jax.Array, w: QTensor, dtype: jnp.dtype) -> jax.Array:
    """Packed rows of `w`, uint8 (rows, N, block_bytes), as weights (rows, in)."""
    with jax.named_scope(UNPACK_SCOPE.format(qtype=w.qtype, out=w.shape[-2], width=w.shape[-1])):
        return unpack(blocks, w.qtype).astype(dtype)


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (M, in) · w (out, in) -> float32 (M, out)."""
    return lax.dot_general(
        x,
        w,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,  # no TF32 for float32 on a GPU
        preferred_element_type=jnp.float32,
    )
