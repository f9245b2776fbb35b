"""Attention as a Pallas Mosaic GPU kernel (Hopper): its scores live in registers only, a tile at a time.

A block of threads, one warpgroup, takes 64 rows of a kv head. A row is one query: those of all heads of the group lie
side by side, token after token, so that they share each tile of keys and values. Only tiles that some row of the block
sees are fetched, each while the one before it is multiplied. Compiled, and its arithmetic checked, without a GPU; not
timed on one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.norms import softcap
from packlight.model.network.state import Rows
from packlight.model.spec.config import MOSAIC_CACHES, MOSAIC_WIDTHS
from packlight.model.spec.parts.attention import KV

ROWS = 64  # of a warpgroup's product
TILE = 64  # cached positions; the buffers of heads of 128 then leave room for a second block, and each hides the other
STAGES = 2  # tiles of keys, and of values, in a block's buffers
SWIZZLE = 128  # bytes: how copies lay out what tensor cores read without bank conflicts

BY_ROW = plgpu.Layout.WGMMA.reduce(1)

# Of each row: its highest score, the sum of its weights, the sum of weighted values. (ROWS,), (ROWS,), (ROWS, C).
_Sums = tuple[jax.Array, jax.Array, jax.Array]


def mosaic_attention(
    q: jax.Array,  # float32 (B, T, H, C)
    state: KV,
    index: jax.Array,
    rows: Rows,
    span: int,
    special: Scores = PLAIN,
    *,
    interpret: Any = False,
) -> jax.Array:  # float32 (B, T, H * C)
    """As `tiled.tiled_attention`, with the same roundings; what rows of padding give is
    finite.

    Raises ValueError for a width of heads or a cache that the kernel is not made for.
    """
    (B, T, H, C), (L, slots, K, S, _), dtype = q.shape, state.k.shape, state.k.dtype
    if C not in MOSAIC_WIDTHS or dtype.name not in MOSAIC_CACHES:
        raise ValueError(
            f"attention 'mosaic' takes heads of {MOSAIC_WIDTHS} in a cache of {MOSAIC_CACHES}, not {C} in {dtype}"
        )
    group = H // K
    padded = -(-T * group // ROWS) * ROWS
    q = (q * jnp.float32(C**-0.5)).astype(dtype).reshape(B, T, K, group, C).transpose(0, 2, 1, 3, 4)
    q = jnp.pad(q.reshape(B, K, T * group, C), ((0, 0), (0, 0), (0, padded - T * group), (0, 0)))
    keys, values = (x.reshape(L * slots * K, S, C) for x in (state.k, state.v))
    first_head = (index * slots + rows.slot + jnp.arange(B, dtype=jnp.int32)) * K
    window = jnp.int32(special.window or 0)
    place = jnp.stack([first_head, rows.start, jnp.minimum(rows.end, span), jnp.broadcast_to(window, (B,))], axis=1)
    sinks = None
    if special.sinks is not None:
        sinks = jnp.tile(special.sinks.reshape(K, group), -(-padded // group))[:, :padded]
    mixed = _attend(
        q, keys, values, place, sinks, _Static(group, special.window is not None, special.softcap, interpret)
    )
    return mixed[:, :, : T * group].reshape(B, K, T, group, C).transpose(0, 2, 1, 3, 4).reshape(B, T, H * C)


class _Static(NamedTuple):
    """What a kernel is traced for."""

    group: int  # G
    windowed: bool
    softcap: float
    interpret: Any


class _Refs(NamedTuple):
    """What a block of threads reads and writes, in the order in which Pallas passes it: arguments, result, scratch."""

    place: Any  # int32 (B, 4): where in keys the first head is, start, end, window
    q: Any  # (B, K, R, C), scaled
    keys: Any  # (L * slots * K, S, C)
    values: Any  # (L * slots * K, S, C)
    sinks: Any  # float32 (K, R), or None
    out: Any  # float32 (B, K, R, C)
    q_tile: Any  # (ROWS, C), the block's queries
    k_tiles: Any  # (STAGES, TILE, C)
    v_tiles: Any  # (STAGES, TILE, C)
    q_in: Any  # barrier: the queries have arrived
    k_in: Any  # STAGES barriers: a tile of keys has arrived
    v_in: Any  # STAGES barriers: a tile of values has arrived


class _Block(NamedTuple):
    """Which rows a block of threads computes, and which tiles they see."""

    line: jax.Array  # int32 (), the head's place in keys and values
    end: jax.Array  # int32 (), one past the last position that counts
    window: jax.Array  # int32 (), read only where the kernel is windowed
    first: jax.Array  # int32 (), the first tile that a row sees
    whole: jax.Array  # int32 (), the first tile that some row sees in part only
    tiles: jax.Array  # int32 (), one past the last tile that a row sees
    last: jax.Array  # int32 (ROWS,), the last position that each row sees


def _attend(
    q: jax.Array,  # (B, K, R, C), scaled
    keys: jax.Array,  # (L * slots * K, S, C)
    values: jax.Array,  # (L * slots * K, S, C)
    place: jax.Array,  # int32 (B, 4), see `_Refs`
    sinks: jax.Array | None,  # float32 (K, R)
    static: _Static,
) -> jax.Array:  # float32 (B, K, R, C)
    (B, K, padded, C), dtype = q.shape, q.dtype

    def kernel(*refs):
        _attend_block(static, _Refs(*refs))

    def buffer(*shape):
        tiling = plgpu.TilingTransform((8, SWIZZLE // dtype.itemsize))
        return plgpu.SMEM((*shape, C), dtype, transforms=(tiling, plgpu.SwizzleTransform(SWIZZLE)))

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, jnp.float32),
        grid=(B, K, padded // ROWS),
        grid_names=("b", "head", "rows"),
        scratch_types=(
            *(buffer(ROWS), buffer(STAGES, TILE), buffer(STAGES, TILE)),
            *(plgpu.Barrier(), plgpu.Barrier(num_barriers=STAGES), plgpu.Barrier(num_barriers=STAGES)),
        ),
        # exp in one instruction, off by 2 units; tanh in one would be off by 2^-11
        compiler_params=plgpu.CompilerParams(approx_math=not static.softcap),
        interpret=static.interpret,
    )(place, q, keys, values, sinks)


def _attend_block(static: _Static, refs: _Refs) -> None:
    """What one block of threads does: ROWS rows of a kv head, tile after tile of the positions that they see."""
    b, head, (padded, C) = lax.axis_index("b"), lax.axis_index("head"), refs.q.shape[2:]
    begin = (padded // ROWS - 1 - lax.axis_index("rows")) * ROWS  # the blocks that see most begin first
    block = _block_of(static, refs, b, head, begin)
    plgpu.copy_gmem_to_smem(refs.q.at[b, head, pl.ds(begin, ROWS)], refs.q_tile, refs.q_in)
    _fetch(static, refs, block, block.first)
    plgpu.barrier_wait(refs.q_in)
    laid = functools.partial(_laid, interpret=static.interpret)
    carry = (
        laid(jnp.full((ROWS,), jnp.finfo(jnp.float32).min), BY_ROW),
        laid(jnp.zeros((ROWS,), jnp.float32), BY_ROW),
        laid(jnp.zeros((ROWS, C), jnp.float32)),
    )
    step = functools.partial(_step, static, refs, block)
    carry = lax.fori_loop(block.first, block.whole, functools.partial(step, masked=False), carry)
    carry = lax.fori_loop(block.whole, block.tiles, functools.partial(step, masked=True), carry)
    refs.out[b, head, pl.ds(begin, ROWS)] = _finish(static, refs, carry, (head, pl.ds(begin, ROWS)))


def _block_of(static: _Static, refs: _Refs, b: Any, head: Any, begin: Any) -> _Block:
    """The block of rows `begin ..` of a head of row `b`."""
    line, start, end, window = refs.place[b, 0] + head, refs.place[b, 1], refs.place[b, 2], refs.place[b, 3]
    tiles = tiles_of(begin, start, end, window if static.windowed else None, static.group)
    row = begin + _laid(_iota((ROWS,), 0), BY_ROW, interpret=static.interpret)
    # a row of padding sees what the last real one does
    return _Block(line, end, window, *tiles, last=jnp.minimum(start + lax.div(row, static.group), end - 1))


def _fetch(static: _Static, refs: _Refs, block: _Block, i: Any) -> None:
    """Begins to copy tile `i` of keys and values into its buffers, if a row sees it."""

    @pl.when(i < block.tiles)
    def _():
        place = lax.rem(i, refs.keys.shape[1] // TILE) if static.windowed else i
        at, slot = (block.line, pl.ds(place * TILE, TILE)), lax.rem(i, STAGES)
        plgpu.copy_gmem_to_smem(refs.keys.at[at], refs.k_tiles.at[slot], refs.k_in.at[slot])
        plgpu.copy_gmem_to_smem(refs.values.at[at], refs.v_tiles.at[slot], refs.v_in.at[slot])


def _step(static: _Static, refs: _Refs, block: _Block, i: Any, carry: _Sums, *, masked: bool) -> _Sums:
    """Adds tile `i` to the running softmax. masked: some row sees it in part only."""
    top, total, mixed = carry
    slot = lax.rem(i, STAGES)
    _fetch(static, refs, block, i + 1)
    plgpu.barrier_wait(refs.k_in.at[slot])
    scores = softcap(_scores(refs.q_tile, refs.k_tiles.at[slot], static.interpret), static.softcap)
    if masked:
        scores = jnp.where(_seen(static, block, i), scores, -jnp.inf)
    new_top = jnp.maximum(top, scores.max(1))
    weights, shrink = jnp.exp(scores - _beside(new_top, TILE)), jnp.exp(top - new_top)
    plgpu.barrier_wait(refs.v_in.at[slot])
    values = refs.v_tiles.at[slot]
    if masked:
        pl.when((i + 1) * TILE > block.end)(lambda: _clear(values, block.end - i * TILE, static.interpret))
    mixed = mixed * _beside(shrink, mixed.shape[1])
    mixed = _add_product(mixed, weights.astype(values.dtype), values, static.interpret)
    return new_top, total * shrink + weights.sum(1), mixed


def _seen(static: _Static, block: _Block, i: Any) -> jax.Array:
    """bool (ROWS, TILE): whether each row sees each position of tile `i`."""
    position = i * TILE + _laid(_iota((ROWS, TILE), 1), interpret=static.interpret)
    seen = position <= _beside(block.last, TILE)
    if static.windowed:
        seen &= position > _beside(block.last - block.window, TILE)
    return seen


def _clear(values_ref: Any, begin: Any, interpret: Any) -> None:
    """Zeros behind the end: even with no weight, what is not finite would show."""
    shape, dtype = (TILE, values_ref.shape[1]), values_ref.dtype
    behind = _laid(_iota(shape, 0), interpret=interpret) >= begin
    values_ref[...] = jnp.where(behind, jnp.zeros(shape, dtype), values_ref[...])
    plgpu.commit_smem()


def _finish(static: _Static, refs: _Refs, carry: _Sums, at: tuple[Any, ...]) -> jax.Array:
    """float32 (ROWS, C): the softmax's sums, divided. at: the rows' place in `sinks`."""
    top, total, mixed = carry
    if refs.sinks is not None:  # a sink is a score seen beside all others, with value 0
        total = total + jnp.exp(_load(refs.sinks, at, static.interpret) - top)
    total = jnp.maximum(total, 1)  # as it is, because the largest weight is 1; a block of padding has none
    return mixed / _beside(total, mixed.shape[1])


def tiles_of(begin: Any, start: Any, end: Any, window: Any, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the rows `begin ..` of a block: the first tile that one of them sees, the first after those that all of them
    see whole, or an earlier one, and the first that none sees. All int32 (); no tiles for a block of padding.
    """
    lowest, highest = start + lax.div(begin, group), start + lax.div(begin + (ROWS - 1), group)
    tiles = jnp.where(lowest < end, lax.div(jnp.minimum(highest + 1, end) + (TILE - 1), TILE), 0)
    if window is None:
        return jnp.int32(0), jnp.minimum(lax.div(lowest + 1, TILE), tiles), tiles
    first = jnp.minimum(lax.div(jnp.maximum(lowest + 1 - window, 0), TILE), tiles)
    return first, first, tiles


# The interpreter knows neither layouts nor transposed references nor `run_state`: it gets plain jax for these.


def _laid(x: jax.Array, layout: Any = plgpu.Layout.WGMMA, *, interpret: Any) -> jax.Array:
    return x if interpret else plgpu.layout_cast(x, layout)


def _load(ref: Any, at: tuple[Any, ...], interpret: Any) -> jax.Array:
    """A number for each row."""
    return ref[at] if interpret else plgpu.load(ref, at, layout=BY_ROW, optimized=False)


def _scores(q_ref: Any, keys_ref: Any, interpret: Any) -> jax.Array:
    """(ROWS, C), (TILE, C) -> float32 (ROWS, TILE)."""
    if interpret:
        return jnp.dot(q_ref[...], keys_ref[...].T, preferred_element_type=jnp.float32)

    def product(sums):
        plgpu.wgmma(sums, q_ref, plgpu.transpose_ref(keys_ref, (1, 0)))
        return sums[...]

    return pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((q_ref.shape[0], keys_ref.shape[0]), jnp.float32))


def _add_product(mixed: jax.Array, weights: jax.Array, values_ref: Any, interpret: Any) -> jax.Array:
    """float32 (ROWS, C) + (ROWS, TILE) @ (TILE, C)."""
    if interpret:
        return mixed + jnp.dot(weights, values_ref[...], preferred_element_type=jnp.float32)
    sums: Any = plgpu.WGMMAAccumulatorRef.init(mixed)
    return pl.run_state(lambda sums: plgpu.wgmma(sums, weights, values_ref))(sums)


def _iota(shape: tuple[int, ...], axis: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _beside(x: jax.Array, columns: int) -> jax.Array:
    """(rows,) -> (rows, columns)."""
    return lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))
