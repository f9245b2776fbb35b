"""Attention over the KV cache: the part of a layer, and the choice among its kernels. Knows no executables.

q is (B, T, H, C); row b's tokens are at positions `start[b] ..` of cache slot `slot + b`, and each sees the cache up to
itself. No kernel copies the cache or repeats it for grouped heads, and but for `whole` their cost grows with the
positions in use, not with the cache's length.
"""

import jax
import jax.numpy as jnp

from packlight.model.network.collectives import gathered
from packlight.model.network.mixers.attention.cache import write_cache
from packlight.model.network.mixers.attention.native import native_attention
from packlight.model.network.mixers.attention.scores import Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.norms import norm
from packlight.model.network.products import closing, linears
from packlight.model.network.rope import Turns
from packlight.model.network.state import Cache, Numerics, Rows
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE
from packlight.model.weights.params import Params


def mix(
    cfg: ModelConfig,
    blk: Params,
    index: jax.Array,  # int32 (), the layer
    h: jax.Array,  # float32 (B, T, D), normed
    cache: Cache,
    rows: Rows,
    turns: Turns,
    numerics: Numerics,
) -> tuple[jax.Array, Cache]:  # float32 (B, T, D)
    """What attention adds to a layer's input, and the cache with this step's keys and values."""
    q, k, v = project(cfg, h, blk, index, numerics)
    q, k = turns.sharpen(turns.rotate(q, index)), turns.rotate(k, index)
    cache = write_cache(cache, index, k, v, rows)
    scores = Scores.of(cfg, blk, index)
    mixed = attention(scaled(cfg, q), cache, index, rows, numerics.span, numerics.kernel, scores)
    return closing(cfg, mixed, blk, "attn_output", index, numerics), cache


def project(
    cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q (B, T, H, C), k and v (B, T, K, C) of normed inputs (B, T, D), before rotation."""
    heads, kv_heads, width = cfg.head_count, cfg.head_count_kv, cfg.key_length
    names = ("attn_qkv",) if cfg.architecture.attention.fused else ("attn_q", "attn_k", "attn_v")
    parts = linears(h, blk, names, index, numerics)
    if not numerics.split.heads:
        widths = (heads + 2 * kv_heads,) if cfg.architecture.attention.fused else (heads, kv_heads, kv_heads)
        parts = [gathered(x, n * width, numerics.split) for x, n in zip(parts, widths, strict=True)]
    if cfg.architecture.attention.fused:
        parts = jnp.split(parts[0], [heads * width, (heads + kv_heads) * width], axis=-1)
    q, k, v = parts
    if cfg.architecture.attention.qk_norm == "whole":
        split = numerics.split if numerics.split.heads else WHOLE
        q, k = norm(cfg, q, blk, "attn_q_norm", index, split), norm(cfg, k, blk, "attn_k_norm", index, split)
    q, k, v = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
    if cfg.architecture.attention.qk_norm == "head":
        q, k = norm(cfg, q, blk, "attn_q_norm", index), norm(cfg, k, blk, "attn_k_norm", index)
    return q, k, v


def scaled(cfg: ModelConfig, q: jax.Array) -> jax.Array:
    """Queries such that attention's own 1 / sqrt(C) makes the model's scale."""
    return q * jnp.float32(cfg.attention_scale * cfg.key_length**0.5) if cfg.attention_scale else q


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
    slot held before can change a result. `compile.kernels.attention` chooses the kernel: "native" is C++ on a CPU, for
    plain scores. "mosaic" is a GPU's. "whole" looks at the whole span at once for one token of each row. "tiled" takes
    tile after tile. Raises ValueError for an unknown kernel, and for scores that a kernel does not know.
    """
    match kernel:
        case "tiled":
            return tiled_attention(q, cache, index, rows, span, scores)
        case "whole":
            return whole_attention(q, cache, index, rows, span, scores)
        case "native" if scores.plain:
            return native_attention(q, cache, index, rows, span)
        case "mosaic":
            from packlight.model.network.mixers.attention.mosaic import mosaic_attention  # here: only GPUs need Mosaic

            return mosaic_attention(q, cache, index, rows, span, scores)
        case _:
            raise ValueError(f"attention {kernel!r} is unknown, or does not know windows, soft caps and sinks")


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * C) -> (B, T, heads, C)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
