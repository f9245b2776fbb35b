"""Attention as a Pallas Mosaic GPU kernel (Hopper): its scores live in registers only, a tile at a time.

A block of threads, one warpgroup, takes 64 rows of a kv head. A row is one query: those of all heads of the group lie
side by side, token after token, so that they share each tile of keys and values. Only tiles that some row of the block
sees are fetched, each while the one before it is multiplied. Compiled, and its arithmetic checked, without a GPU; not
timed on one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.norms import softcap
from packlight.model.network.state import Cache, Rows
from packlight.model.spec.config import MOSAIC_CACHES, MOSAIC_WIDTHS

ROWS = 64  # of a warpgroup's product
TILE = 64  # cached positions; the buffers of heads of 128 then leave room for a second block, and each hides the other
STAGES = 2  # tiles of keys, and of values, in a block's buffers
SWIZZLE = 128  # bytes: how copies lay out what tensor cores read without bank conflicts

BY_ROW = plgpu.Layout.WGMMA.reduce(1)


def mosaic_attention(
    q: jax.Array,  # float32 (B, T, H, C)
    cache: Cache,
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
    (B, T, H, C), (L, slots, K, S, _), dtype = q.shape, cache.k.shape, cache.k.dtype
    if C not in MOSAIC_WIDTHS or dtype.name not in MOSAIC_CACHES:
        raise ValueError(
            f"attention 'mosaic' takes heads of {MOSAIC_WIDTHS} in a cache of {MOSAIC_CACHES}, not {C} in {dtype}"
        )
    group = H // K
    padded = -(-T * group // ROWS) * ROWS
    q = (q * jnp.float32(C**-0.5)).astype(dtype).reshape(B, T, K, group, C).transpose(0, 2, 1, 3, 4)
    q = jnp.pad(q.reshape(B, K, T * group, C), ((0, 0), (0, 0), (0, padded - T * group), (0, 0)))
    keys, values = (x.reshape(L * slots * K, S, C) for x in (cache.k, cache.v))
    first_head = (index * slots + rows.slot + jnp.arange(B, dtype=jnp.int32)) * K
    window = jnp.int32(0) if special.window is None else special.window
    place = jnp.stack([first_head, rows.start, jnp.minimum(rows.end, span), jnp.broadcast_to(window, (B,))], axis=1)
    sinks = None
    if special.sinks is not None:
        sinks = jnp.tile(special.sinks.reshape(K, group), -(-padded // group))[:, :padded]
    mixed = _attend(q, keys, values, place, sinks, group, special, interpret)
    return mixed[:, :, : T * group].reshape(B, K, T, group, C).transpose(0, 2, 1, 3, 4).reshape(B, T, H * C)


def _attend(
    q: jax.Array,  # (B, K, R, C), scaled
    keys: jax.Array,  # (L * slots * K, S, C)
    values: jax.Array,  # (L * slots * K, S, C)
    place: jax.Array,  # int32 (B, 4): where in keys the first head is, start, end, window
    sinks: jax.Array | None,  # float32 (K, R)
    group: int,
    special: Scores,
    interpret: Any,
) -> jax.Array:  # float32 (B, K, R, C)
    (B, K, padded, C), dtype = q.shape, q.dtype
    laid = functools.partial(_laid, interpret=interpret)

    def clear(values_ref, begin):  # behind the end: even with no weight, what is not finite would show
        behind = laid(_iota((TILE, C), 0)) >= begin
        values_ref[...] = jnp.where(behind, jnp.zeros((TILE, C), dtype), values_ref[...])
        plgpu.commit_smem()

    def kernel(place_ref, q_ref, keys_ref, values_ref, sinks_ref, out_ref, q_tile, k_tiles, v_tiles, q_in, k_in, v_in):
        b, head = lax.axis_index("b"), lax.axis_index("head")
        begin = (padded // ROWS - 1 - lax.axis_index("rows")) * ROWS  # the blocks that see most begin first
        line, start, end, window = place_ref[b, 0] + head, place_ref[b, 1], place_ref[b, 2], place_ref[b, 3]
        first, whole, tiles = tiles_of(begin, start, end, None if special.window is None else window, group)
        # a row of padding sees what the last real one does
        last = jnp.minimum(start + lax.div(begin + laid(_iota((ROWS,), 0), BY_ROW), group), end - 1)

        def fetch(i):
            @pl.when(i < tiles)
            def _():
                at, slot = (line, pl.ds(i * TILE, TILE)), lax.rem(i, STAGES)
                plgpu.copy_gmem_to_smem(keys_ref.at[at], k_tiles.at[slot], k_in.at[slot])
                plgpu.copy_gmem_to_smem(values_ref.at[at], v_tiles.at[slot], v_in.at[slot])

        def step(i, carry, masked):
            top, total, mixed = carry
            slot = lax.rem(i, STAGES)
            fetch(i + 1)
            plgpu.barrier_wait(k_in.at[slot])
            scores = softcap(_scores(q_tile, k_tiles.at[slot], interpret), special.softcap)
            if masked:
                position = i * TILE + laid(_iota((ROWS, TILE), 1))
                seen = position <= _beside(last, TILE)
                if special.window is not None:
                    seen &= position > _beside(last - window, TILE)
                scores = jnp.where(seen, scores, -jnp.inf)
            new_top = jnp.maximum(top, scores.max(1))
            weights, shrink = jnp.exp(scores - _beside(new_top, TILE)), jnp.exp(top - new_top)
            plgpu.barrier_wait(v_in.at[slot])
            if masked:
                pl.when((i + 1) * TILE > end)(lambda: clear(v_tiles.at[slot], end - i * TILE))
            mixed = _add_product(mixed * _beside(shrink, C), weights.astype(dtype), v_tiles.at[slot], interpret)
            return new_top, total * shrink + weights.sum(1), mixed

        plgpu.copy_gmem_to_smem(q_ref.at[b, head, pl.ds(begin, ROWS)], q_tile, q_in)
        fetch(first)
        plgpu.barrier_wait(q_in)
        carry = (
            laid(jnp.full((ROWS,), jnp.finfo(jnp.float32).min), BY_ROW),
            laid(jnp.zeros((ROWS,), jnp.float32), BY_ROW),
            laid(jnp.zeros((ROWS, C), jnp.float32)),
        )
        carry = lax.fori_loop(first, whole, functools.partial(step, masked=False), carry)
        top, total, mixed = lax.fori_loop(whole, tiles, functools.partial(step, masked=True), carry)
        if sinks_ref is not None:  # a sink is a score seen beside all others, with value 0
            total = total + jnp.exp(_load(sinks_ref, (head, pl.ds(begin, ROWS)), interpret) - top)
        total = jnp.maximum(total, 1)  # as it is, because the largest weight is 1; a block of padding has none
        out_ref[b, head, pl.ds(begin, ROWS)] = mixed / _beside(total, C)

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
        compiler_params=plgpu.CompilerParams(approx_math=not special.softcap),
        interpret=interpret,
    )(place, q, keys, values, sinks)


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
