"""The KV cache and attention over it, in XLA and in C++ (a GPU's kernel: `model.network.mixers.attention.mosaic`).
Knows activations, not weights.

q is (B, T, H, C); row b's tokens are at positions `start[b] ..` of cache slot `slot + b`, and each sees the cache up to
itself. No formulation copies the cache or repeats it for grouped heads, and but for `whole_attention` their cost grows
with the positions in use, not with the cache's length.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from packlight.model.spec.config import CACHE_TILE, ModelConfig
from packlight.model.weights.params import Params
from packlight.quant.kernels import native_ops


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every slot, and how many positions of each slot are filled."""

    k: jax.Array  # (L, B, K, S, C)
    v: jax.Array  # (L, B, K, S, C)
    length: jax.Array  # int32 (B,)


class Rows(NamedTuple):
    """Where the rows of x sit in the cache."""

    slot: jax.Array  # int32 (), first slot
    start: jax.Array  # int32 (B,), position of each row's first token
    end: jax.Array  # int32 (B,), one past each row's last real token: padding is behind it
    active: jax.Array  # bool (B,), rows that may write


def write_cache(
    cache: Cache,
    index: jax.Array,
    k: jax.Array,  # (B, T, K, C)
    v: jax.Array,  # (B, T, K, C)
    rows: Rows,
) -> Cache:
    """Puts k and v at their positions; a row that is not active leaves the cache as it is."""

    def put(buffer, new):
        new = new.astype(buffer.dtype).transpose(0, 2, 1, 3)  # (B, K, T, C)

        def row(b, buffer):  # a loop, because XLA:CPU copies the whole cache for a chain of updates in one fusion
            at = (index, rows.slot + b, jnp.int32(0), rows.start[b], jnp.int32(0))
            block = new[b][None, None]
            block = jnp.where(rows.active[b], block, lax.dynamic_slice(buffer, at, block.shape))
            return _in_order(lax.dynamic_update_slice(buffer, block, at))

        return lax.fori_loop(0, new.shape[0], row, buffer)

    return dataclasses.replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def _in_order(buffer: jax.Array) -> jax.Array:
    """The same, on a TPU in the order of axes that its arguments have: the last is padded to 128, so that the last two
    are exchanged where C would need it. Left alone, XLA updates single tokens in an order of its own, (S, K, C), and
    copies the whole cache into it and back in each step.
    """
    order = (0, 1, 2, 3, 4) if buffer.shape[-1] % 128 == 0 else (0, 1, 2, 4, 3)
    return lax.platform_dependent(buffer, tpu=lambda x: with_layout_constraint(x, Layout(order)), default=lambda x: x)


class Scores(NamedTuple):
    """What a family does to scores besides the causal mask: None where it does nothing."""

    window: jax.Array | None = None  # int32 (), positions a query of this layer sees, itself included
    softcap: float = 0.0
    sinks: jax.Array | None = None  # float32 (H,), scores that take weight and give no value

    @classmethod
    def of(cls, cfg: ModelConfig, blk: Params, index: jax.Array) -> "Scores":
        """Of layer `index`."""
        if cfg.plain_attention:
            return PLAIN
        window = None
        if any(cfg.slides):
            every = np.where(cfg.slides, cfg.sliding_window, np.iinfo(np.int32).max)
            window = jnp.asarray(every, jnp.int32)[index]
        sinks = blk["attn_sinks"][index] if cfg.architecture.sinks else None
        return cls(window, cfg.softcaps[0], sinks)


PLAIN = Scores()


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), or x where cap is 0. Source: Gemma 2 (2408.00118)."""
    return jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap)) if cap else x


def attention(
    q: jax.Array,  # float32 (B, T, H, C)
    cache: Cache,
    index: jax.Array,
    rows: Rows,
    span: int,
    kernel: str,
    scores: Scores,
) -> jax.Array:  # float32 (B, T, H * C)
    """Causal grouped-query attention of layer `index`; `span`: positions that the step may look back at.

    What lies behind a row's end counts as 0 even if it is not finite, so neither neighbours nor padding nor what the
    slot held before can change a result. kernel, which `compile.kernels.attention` chooses: "native" is C++ on a CPU,
    for plain scores; "mosaic" is a GPU's; "whole" looks at the whole span at once for one token of each row; "tiled"
    takes tile after tile. Raises ValueError where a kernel does not do what is asked.
    """
    match kernel:
        case "tiled":
            return tiled_attention(q, cache, index, rows, span, scores)
        case "whole":
            return whole_attention(q, cache, index, rows, span, scores)
        case "native" if scores is PLAIN:
            return native_attention(q, cache, index, rows, span)
        case "mosaic":
            from packlight.model.network.mixers.attention.mosaic import mosaic_attention  # here: only GPUs need Mosaic

            return mosaic_attention(q, cache, index, rows, span, scores)
        case _:
            raise ValueError(f"attention {kernel!r} is unknown, or does not know windows, soft caps and sinks")


def whole_attention(
    q: jax.Array, cache: Cache, index: jax.Array, rows: Rows, span: int, special: Scores = PLAIN
) -> jax.Array:
    """One token of each row over the whole span, whatever is in use of it.

    No loop whose length a GPU would have to tell its host; length buckets keep the span near what is in use. The
    products multiply and add up instead of being matrix products, before which XLA would copy keys and values.
    """
    B, T, H, C = q.shape
    K = cache.k.shape[2]
    assert T == 1, q.shape
    q = (q * jnp.float32(C**-0.5)).reshape(B, K, H // K, C).astype(cache.k.dtype).astype(jnp.float32)
    at = (index, rows.slot, jnp.int32(0), jnp.int32(0), jnp.int32(0))
    keys, values = (lax.dynamic_slice(c, at, (1, B, K, span, C))[0] for c in (cache.k, cache.v))
    scores = softcap((q[:, :, :, None] * keys[:, :, None].astype(jnp.float32)).sum(-1), special.softcap)  # (B, K, G, S)
    position = jnp.arange(span, dtype=jnp.int32)[None, :]
    seen = position <= rows.start[:, None]
    if special.window is not None:
        seen &= position > rows.start[:, None] - special.window
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    top = scores.max(-1, keepdims=True)
    sinks = None if special.sinks is None else special.sinks.reshape(1, K, H // K, 1)
    if sinks is not None:  # a sink is a score seen beside all others, with value 0
        top = jnp.maximum(top, sinks)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True) + (0 if sinks is None else jnp.exp(sinks - top))
    values = jnp.where((position < rows.end[:, None])[:, None, :, None], values, 0)
    mixed = jnp.einsum("bkgs,bksc->bkgc", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / total).reshape(B, 1, H * C)


def tiled_attention(
    q: jax.Array, cache: Cache, index: jax.Array, rows: Rows, span: int, special: Scores = PLAIN
) -> jax.Array:
    """One tile of cached positions at a time with a running softmax; the loop ends at the longest row.

    A tile that is masked for some row leaves that row's sums bit for bit as they are.
    Source: online softmax (1805.02867), FlashAttention (2205.14135).
    """
    B, T, H, C = q.shape
    K = cache.k.shape[2]
    tile = CACHE_TILE
    assert span % tile == 0, (span, tile)
    q = q.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4).reshape(B, K, (H // K) * T, C)
    q = (q * jnp.float32(C**-0.5)).astype(cache.k.dtype)
    last = jnp.tile(rows.start[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :], (1, H // K))  # (B, G * T)

    def body(i, carry):
        top, total, mixed = carry
        at = (index, rows.slot, jnp.int32(0), i * tile, jnp.int32(0))
        keys, values = (lax.dynamic_slice(c, at, (1, B, K, tile, C))[0] for c in (cache.k, cache.v))
        scores = jnp.einsum("bkqc,bksc->bkqs", q, keys, preferred_element_type=jnp.float32)
        scores = softcap(scores, special.softcap)
        position = i * tile + jnp.arange(tile, dtype=jnp.int32)
        values = jnp.where((position[None, :] < rows.end[:, None])[:, None, :, None], values, 0)
        seen = position[None, None, :] <= last[:, :, None]
        if special.window is not None:
            seen &= position[None, None, :] > last[:, :, None] - special.window
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        part = jnp.einsum("bkqs,bksc->bkqc", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new_top, total * shrink + weights.sum(-1), mixed * shrink[..., None] + part

    zeros = jnp.zeros((B, K, (H // K) * T), jnp.float32)
    lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)
    tiles = jnp.minimum((jnp.max(last) + tile) // tile, span // tile)
    first = 0
    if special.window is not None:  # written so that no window cannot overflow
        first = jnp.maximum(0, jnp.min(rows.start) + 1 - jnp.minimum(special.window, span)) // tile
    begin = (lowest, zeros, jnp.zeros((*zeros.shape, C), jnp.float32))
    if special.sinks is not None:  # a sink is a score seen before all others, with value 0
        sinks = jnp.repeat(special.sinks.reshape(1, K, H // K), T, axis=-1)  # (1, K, G * T)
        begin = (jnp.broadcast_to(sinks, zeros.shape), jnp.ones_like(zeros), begin[2])
    _, total, mixed = lax.fori_loop(first, tiles, body, begin)
    out = mixed / total[..., None]
    return out.reshape(B, K, H // K, T, C).transpose(0, 3, 1, 2, 4).reshape(B, T, H * C)


BLOCK_ROWS = 64  # queries that share a pass over keys and values
PART = 256  # cached positions that one thread takes at a time when all queries of a head fit a block
MOST_PARTS = 32  # of a head: a longer span has longer parts, so that adding them up stays small


def native_attention(
    q: jax.Array, cache: Cache, index: jax.Array, rows: Rows, span: int, *, threads: int = 0, isa: str = "best"
) -> jax.Array:
    """The same by `quant/kernels/native/attention.cc` on the whole cache, on XLA's own threads.

    A few queries (decode) are cut along the cached positions, many (prefill) into blocks of queries: by shapes and the
    row's own length alone, so that a row's bits depend on no neighbour, slot or number of threads. Queries of padding
    give something finite. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    """
    B, T, H, C = q.shape
    K = cache.k.shape[2]
    group, part, scratch = H // K, 0, 0
    if T * group <= BLOCK_ROWS or T == 1:
        part = PART * -(-span // (PART * MOST_PARTS))
        scratch = B * K * -(-span // part) * _partial_floats(T * group, C)
    results = [jax.ShapeDtypeStruct((B, T, H * C), jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.float32)]
    call = jax.ffi.ffi_call(native_ops.target("packlight_attention"), results)
    out, _ = call(
        *(q, cache.k, cache.v, index, rows.slot, rows.start, rows.end),
        block_rows=np.int64(BLOCK_ROWS),
        part=np.int64(part),
        threads=np.int64(threads),
        isa=np.int64(native_ops.ISAS.index(isa)),
    )
    return out


def _partial_floats(rows: int, width: int) -> int:
    """Partial::floats of native/attention.h: two numbers a row and a row of values, each padded to 16."""
    return 2 * (-(-rows // 16) * 16) + rows * (-(-width // 16) * 16)
