"""Pallas Mosaic GPU kernels for weights in layout "words" (Hopper and newer): a product, and unpacking to bfloat16.

A thread has one row of the matrix, a warpgroup 128. A few rows of x (decode): each block of threads fetches some
super-blocks of its rows, once, unpacks them in registers and multiplies by every row of x in float32; what the blocks
of threads of the same rows have summed is added afterwards, in order, so a result does not depend on timing. Many rows
of x (prefill): a tile of the matrix is unpacked to x's dtype and multiplied by XLA's matrix product on tensor cores,
tile after tile; the tile is the scratch. Compiled and checked without a GPU; not timed on one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from packlight.quant.formats.bits import f32
from packlight.quant.kernels.recipes import Recipe, Scale, recipe, weigh
from packlight.quant.layouts import GROUP, SUPERBLOCK, superblock_bytes

FEW_ROWS = 8  # of x; each costs an FMA per weight, and unpacking one costs about five operations
BUFFER_BYTES = 1 << 16  # of packed words that a block of threads has on their way: three such fit a multiprocessor
BLOCKS = 4 * 132  # of threads, at least, where the matrix has so many super-blocks: four to each multiprocessor
TILE_BYTES = 1 << 24  # of weights unpacked at a time for many rows of x
MOST_TILE_BYTES = 1 << 25  # of them where fewer do not fill the card: the L2 cache of a Hopper GPU, 50 MB, holds them
RESULTS = 128  # pieces of 128 x 128, at least, of a product with a tile: one for almost each of 132 multiprocessors

Word = Callable[[Any], jax.Array]  # word k of the super-block, int32 (128,), of 128 rows


def product(
    x: jax.Array,  # float (M, in)
    packed: jax.Array,  # uint8 (matrices, groups of 128 rows, S, W * 512 or more)
    qtype: str,
    index: jax.Array,  # int32 (), which matrix
    out: int,
    *,
    interpret: Any = False,
) -> jax.Array:  # float32 (M, out)
    """x @ w.T with float32 accumulation."""
    matrices, groups, count, size = packed.shape
    words = lax.bitcast_convert_type(packed.reshape(matrices, groups, count, -1, GROUP, 4), jnp.int32)
    x = jnp.pad(x, ((0, 0), (0, count * SUPERBLOCK - x.shape[1])))
    many = x.shape[0] > FEW_ROWS
    run = _unpack_and_multiply if many else _multiply
    return run(x, words, superblock_bytes(qtype, "words") // 4, recipe(qtype), index, interpret)[:, :out]


def _multiply(x: jax.Array, words: jax.Array, size: int, how: Recipe, index: jax.Array, interpret: Any) -> jax.Array:
    """A few rows: float (M, S * 256), int32 (matrices, G, S, W, 128) -> float32 (M, G * 128).

    size: words of a super-block, which are the first of W.
    """
    rows, (_, groups, count, _, _) = x.shape[0], words.shape
    chunk = _chunk(groups, count, size * GROUP * 4)
    parts = count // chunk
    x = f32(x).reshape(rows, count, SUPERBLOCK).transpose(1, 0, 2)  # (S, M, 256)

    def kernel(index_ref, x_ref, words_ref, out_ref, x_buffer, buffer, arrived):
        group, part = lax.axis_index("group"), lax.axis_index("part")
        for c in range(chunk):
            at = part * chunk + c
            plgpu.copy_gmem_to_smem(words_ref.at[index_ref[0], group, at, pl.ds(0, size)], buffer.at[c], arrived.at[c])
            plgpu.copy_gmem_to_smem(x_ref.at[at], x_buffer.at[c], arrived.at[c])

        def superblock(c, sums):
            plgpu.barrier_wait(arrived.at[c])

            def each(w, sums):
                sums = list(sums)
                for element, weight in weights(how, lambda k: buffer[c, k], scales, w):
                    for m in range(rows):
                        sums[m] = sums[m] + weight * x_buffer[c, m, element]
                return tuple(sums)

            scales = how.scales(lambda k: (buffer[c, k // 4] >> 8 * (k % 4)) & 255)
            return lax.fori_loop(0, how.run // 4, each, sums)

        zeros = jnp.zeros((GROUP,), jnp.float32)
        if not interpret:  # which knows no layouts
            zeros = plgpu.layout_cast(zeros, plgpu.Layout.WG_STRIDED((GROUP,), vec_size=1))
        sums = lax.fori_loop(0, chunk, superblock, (zeros,) * rows)
        for m in range(rows):
            out_ref[part, m, pl.ds(group * GROUP, GROUP)] = sums[m]

    made = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((parts, rows, groups * GROUP), jnp.float32),
        grid=(groups, parts),
        grid_names=("group", "part"),
        scratch_types=(
            plgpu.SMEM((chunk, rows, SUPERBLOCK), jnp.float32),
            plgpu.SMEM((chunk, size, GROUP), jnp.int32),
            plgpu.Barrier(num_arrivals=2, num_barriers=chunk),
        ),
        interpret=interpret,
    )(index.reshape(1), x, words)
    return made.sum(0)


def _chunk(groups: int, count: int, nbytes: int) -> int:
    """Super-blocks per block of threads: as many as its buffer holds, while there are enough blocks of threads."""
    fitting = [c for c in range(1, count + 1) if count % c == 0 and c * nbytes <= BUFFER_BYTES]
    return max((c for c in fitting if groups * (count // c) >= BLOCKS), default=1)


def weights(how: Recipe, word: Word, scales: list[Scale], w: Any):
    """(element, float32 (128,) weights) of the elements whose code's first part is in word `w` of their plane's run."""
    for plane in how.planes:
        loaded = [word(part.at // 4 + w) for part in plane.parts]
        fifth = None if plane.bits is None else word(plane.bits // 4) >> (8 * (plane.bits % 4) + 4 * w)
        for b in range(4):
            code = None
            for part, value in zip(plane.parts, loaded, strict=True):
                bits = ((value >> (8 * b + part.shift)) & part.mask) << part.up
                code = bits if code is None else code | bits
            assert code is not None
            if fifth is not None:
                code = code | (((fifth >> b) & 1) << 4)
            yield plane.element + 4 * w + b, weigh(how.number(code), scales[plane.scale])


def _unpack_and_multiply(
    x: jax.Array, words: jax.Array, size: int, how: Recipe, index: jax.Array, interpret: Any
) -> jax.Array:
    """Many rows: as `_multiply`, a tile of the matrix at a time."""
    _, groups, count, _, _ = words.shape
    tile = tile_groups(x.shape[0], groups, count * SUPERBLOCK * x.dtype.itemsize)

    def body(at, y):
        begin = jnp.minimum(at * tile, groups - tile)  # a ragged last tile makes some rows again, to the same values
        unpacked = _unpack(words, size, how, jnp.stack([index, begin]), tile, x.dtype, interpret)
        made = lax.dot_general(
            x,
            unpacked,
            (((1,), (0,)), ((), ())),
            precision=lax.Precision.HIGHEST,  # no TF32 for float32
            preferred_element_type=jnp.float32,
        )
        return lax.dynamic_update_slice(y, made, (jnp.int32(0), begin * GROUP))

    y = jnp.zeros((x.shape[0], groups * GROUP), jnp.float32)
    return lax.fori_loop(0, -(-groups // tile), body, y)


def tile_groups(rows: int, groups: int, row_bytes: int) -> int:
    """Groups of rows that are unpacked at a time: equal shares of them all, each at most TILE_BYTES, or as many more as
    their product with `rows` rows of x takes to fill the card, at most MOST_TILE_BYTES.

    row_bytes: of a row of the matrix, unpacked.
    """
    enough = -(-RESULTS // -(-rows // 128))  # groups, each of which makes a piece with every 128 rows
    each = GROUP * row_bytes
    most = max(1, min(max(TILE_BYTES // each, enough), MOST_TILE_BYTES // each))
    tiles = -(-groups // most)
    return -(-groups // tiles)


def _unpack(
    words: jax.Array, size: int, how: Recipe, place: jax.Array, tile: int, dtype: Any, interpret: Any
) -> jax.Array:  # (S * 256, tile * 128)
    """The groups place[1] ... of matrix place[0], transposed: 128 threads write 128 neighbouring numbers."""
    count = words.shape[2]
    # A thread writes each number of its column once and reads none of them, and the words that it reads, which the copy
    # has brought, are written by nobody: so nothing has to be waited for around a store. Pallas cannot know and puts a
    # barrier of all 128 threads before and behind each, 512 to a super-block.
    unordered = plgpu.CompilerParams(unsafe_no_auto_barriers=True)

    def kernel(place_ref, words_ref, out_ref, buffer, arrived):
        group, at = lax.axis_index("group"), lax.axis_index("at")
        plgpu.copy_gmem_to_smem(words_ref.at[place_ref[0], place_ref[1] + group, at, pl.ds(0, size)], buffer, arrived)
        plgpu.barrier_wait(arrived)
        scales = how.scales(lambda k: (buffer[k // 4] >> 8 * (k % 4)) & 255)

        @pl.loop(0, how.run // 4)
        def _(w):
            for element, weight in weights(how, lambda k: buffer[k], scales, w):
                out_ref[at * SUPERBLOCK + element, pl.ds(group * GROUP, GROUP)] = weight.astype(dtype)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((count * SUPERBLOCK, tile * GROUP), dtype),
        grid=(tile, count),
        grid_names=("group", "at"),
        scratch_types=(plgpu.SMEM((size, GROUP), jnp.int32), plgpu.Barrier(num_arrivals=1)),
        compiler_params=unordered,
        interpret=interpret,
    )(place, words)
