"""Attention over cached keys and values: the mixer, and the choice among its kernels. Knows no executables.

q is (B, T, H, C); row b's tokens are at positions `start[b] ..` of cache slot `slot + b`, and each sees the cache up to
itself. No kernel copies the cache or repeats it for grouped heads, and but for `whole` their cost grows with the
positions in use, not with the cache's length.
"""

import jax
import jax.numpy as jnp

from packlight.model.network.collectives import gathered
from packlight.model.network.mixers.attention.native import native_attention
from packlight.model.network.mixers.attention.scores import Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.norms import norm
from packlight.model.network.products import closing, linears
from packlight.model.network.state import Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import KV, AttentionPart
from packlight.model.spec.sharding import WHOLE
from packlight.model.weights.params import Params


def mix(
    step: Step,
    part: AttentionPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: KV,
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, KV]:  # float32 (B, T, D)
    """What attention adds to a layer's input, and the state with this step's keys and values."""
    q, k, v = project(step, part, weights, index, h)
    turns, slides = step.turns, part.window > 0
    q, k = turns.sharpen(turns.rotate(q, slides)), turns.rotate(k, slides)
    state = write(state, index, k, v, step.rows, part.window)
    scores = Scores.of(step.cfg, part, weights, index)
    numerics = step.numerics
    mixed = attention(scaled(step.cfg, q), state, index, step.rows, numerics.span, numerics.kernel, scores)
    return closing(step, mixed, weights, "attn_output", index, "H"), state


def project(
    step: Step, part: AttentionPart, weights: Params, index: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q (B, T, H, C), k and v (B, T, K, C) of normed inputs (B, T, D), before rotation."""
    cfg, numerics, family = step.cfg, step.numerics, step.cfg.architecture.attention
    heads, kv_heads, width = cfg.head_count, numerics.split.local_kv_heads(part.kv_heads), cfg.key_length
    names = ("attn_qkv",) if family.fused else ("attn_q", "attn_k", "attn_v")
    parts = linears(h, weights, names, index, numerics)
    if not numerics.split.heads:
        widths = (heads + 2 * kv_heads,) if family.fused else (heads, kv_heads, kv_heads)
        parts = [gathered(x, n * width, numerics.split) for x, n in zip(parts, widths, strict=True)]
    if family.fused:
        parts = jnp.split(parts[0], [heads * width, (heads + kv_heads) * width], axis=-1)
    q, k, v = parts
    if family.qk_norm == "whole":
        split = numerics.split if numerics.split.heads else WHOLE
        q, k = norm(cfg, q, weights, "attn_q_norm", index, split), norm(cfg, k, weights, "attn_k_norm", index, split)
    q, k, v = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
    if family.qk_norm == "head":
        q, k = norm(cfg, q, weights, "attn_q_norm", index), norm(cfg, k, weights, "attn_k_norm", index)
    return q, k, v


def scaled(cfg: ModelConfig, q: jax.Array) -> jax.Array:
    """Queries such that attention's own 1 / sqrt(C) makes the model's scale."""
    return q * jnp.float32(cfg.attention_scale * cfg.key_length**0.5) if cfg.attention_scale else q


def attention(
    q: jax.Array,  # float32 (B, T, H, C)
    state: KV,
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
            return tiled_attention(q, state, index, rows, span, scores)
        case "whole":
            return whole_attention(q, state, index, rows, span, scores)
        case "native" if scores.plain:
            return native_attention(q, state, index, rows, span)
        case "mosaic":
            from packlight.model.network.mixers.attention.mosaic import mosaic_attention  # here: only GPUs need Mosaic

            return mosaic_attention(q, state, index, rows, span, scores)
        case _:
            raise ValueError(f"attention {kernel!r} is unknown, or does not know windows, soft caps and sinks")


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * C) -> (B, T, heads, C)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
