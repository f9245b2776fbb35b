"""Pallas Mosaic TPU kernel for weights in layout "columns": unpacks in VMEM what it multiplies on the MXU.

XLA alone does not fuse unpacking into a product on a TPU: it splits at every reshape and keeps several copies of the
whole unpacked matrix, in VMEM while they fit. Here each packed byte is read from HBM once for up to 1024 rows of x, and
nothing of the matrix is ever written. Compiled and checked without a TPU; not timed on one.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from packlight.quant.kernels.recipes import Plane, Recipe, recipe, weigh
from packlight.quant.layouts import SUPERBLOCK, superblock_bytes

COLUMNS = 512  # rows of the matrix per step of the grid
MOST_ROWS = 1024  # of x per step
BLOCK_BYTES = 1 << 21  # of packed bytes, and of x, per step at most: twice each, and the sums, stay below 16 MB of VMEM


def product(
    x: jax.Array,  # float (M, in)
    packed: jax.Array,  # uint8 (matrices, S, bytes or more, out, in whole groups of 128)
    qtype: str,
    index: jax.Array,  # int32 (), which matrix
    out: int,
    *,
    interpret: bool = False,
) -> jax.Array:  # float32 (M, out)
    """x @ w.T with float32 accumulation, the weights rounded to x's dtype."""
    (rows, width), (_, count, _, padded) = x.shape, packed.shape
    how, size = recipe(qtype), superblock_bytes(qtype, "columns")
    x = jnp.pad(x, ((0, 0), (0, count * SUPERBLOCK - width)))
    x = x.reshape(rows, count, SUPERBLOCK).transpose(1, 0, 2)  # (S, M, 256)
    high = min(rows, MOST_ROWS)
    chunk = _chunk(count, max(size * COLUMNS, high * SUPERBLOCK * x.dtype.itemsize))

    def kernel(index_ref, x_ref, packed_ref, out_ref, sums):
        @pl.when(pl.program_id(2) == 0)
        def _():
            sums[...] = jnp.zeros_like(sums)

        @pl.loop(0, chunk)
        def _(c):
            unpacked = _unpack(packed_ref[c].astype(jnp.int32), how).astype(x_ref.dtype)  # (256, columns)
            sums[...] += lax.dot_general(
                x_ref[c],
                unpacked,
                (((1,), (0,)), ((), ())),
                precision=lax.Precision.HIGHEST if x_ref.dtype == jnp.float32 else None,
                preferred_element_type=jnp.float32,
            )

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            out_ref[...] = sums[...]

    row_tiles, column_tiles = -(-rows // high), -(-padded // COLUMNS)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(row_tiles, column_tiles, count // chunk),
        in_specs=[
            pl.BlockSpec((chunk, high, SUPERBLOCK), lambda m, o, s, i: (s, m, 0)),
            pl.BlockSpec((None, chunk, size, COLUMNS), lambda m, o, s, i: (i[0], s, 0, o)),
        ],
        out_specs=pl.BlockSpec((high, COLUMNS), lambda m, o, s, i: (m, o)),
        scratch_shapes=[pltpu.VMEM((high, COLUMNS), jnp.float32)],
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, padded), jnp.float32),
        grid_spec=grid,
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * count * SUPERBLOCK * padded,
            transcendentals=0,
            bytes_accessed=row_tiles * count * size * padded + column_tiles * x.nbytes + 4 * rows * padded,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(index.reshape(1), x, packed)[:, :out]


def _chunk(count: int, nbytes: int) -> int:
    """Super-blocks per step: the most that divide them all and stay below BLOCK_BYTES, or one."""
    return max(c for c in range(1, count + 1) if c == 1 or (count % c == 0 and c * nbytes <= BLOCK_BYTES))


def _unpack(block: jax.Array, how: Recipe) -> jax.Array:
    """The weights of one super-block of many columns: int32 (bytes, columns) -> float32 (256, columns)."""
    scales = how.scales(lambda k: block[k : k + 1])  # each (1, columns)
    planes = sorted(how.planes, key=lambda plane: plane.element)
    return jnp.concatenate(
        [weigh(how.number(_code(block, plane, how.run)), scales[plane.scale]) for plane in planes], axis=0
    )


def _code(block: jax.Array, plane: Plane, run: int) -> jax.Array:
    """int32 (bytes, columns) -> int32 (run, columns)."""
    code = None
    for part in plane.parts:
        bits = ((block[part.at : part.at + run] >> part.shift) & part.mask) << part.up
        code = bits if code is None else code | bits
    assert code is not None
    if plane.bits is None:
        return code
    shift = lax.broadcasted_iota(jnp.int32, (8, block.shape[1]), 0)
    bytes_ = [block[plane.bits + i : plane.bits + i + 1] for i in range(run // 8)]
    return code | jnp.concatenate([((byte >> shift) & 1) << 4 for byte in bytes_], axis=0)
