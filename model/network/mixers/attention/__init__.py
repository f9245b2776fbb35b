"""Attention over cached keys and values: the mixer, and the choice among its kernels. Knows no executables.

q is (B, T, H, C); row b's tokens are at positions `start[b] ..` of cache slot `slot + b`, and each sees the cache up to
itself. No kernel copies the cache or repeats it for grouped heads, and but for `whole` their cost grows with the
positions in use, not with the cache's length.
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.collectives import gathered
from packlight.model.network.mixers.attention.full import full_attention
from packlight.model.network.mixers.attention.hadamard import hadamard
from packlight.model.network.mixers.attention.native import native_attention
from packlight.model.network.mixers.attention.quantized import is_turned
from packlight.model.network.mixers.attention.scores import Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.norms import norm, unweighted_norm
from packlight.model.network.products import closing, linears
from packlight.model.network.state import Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import KV, AttentionPart, QuantizedKV
from packlight.model.spec.sharding import WHOLE
from packlight.model.weights.params import Params


def mix(
    step: Step,
    part: AttentionPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: KV | QuantizedKV | None,  # None: rows are whole texts, of which nothing is kept
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, KV | QuantizedKV | None]:  # float32 (B, T, D)
    """What attention adds to a layer's input, and the state with this step's keys and values, if it makes them."""
    family, numerics, slides = step.cfg.architecture.attention, step.numerics, part.window > 0
    q, k, v, gate = project(step, part, weights, index, h)

    def placed(x: jax.Array, name: str) -> jax.Array:
        """Queries or keys, normed and turned."""
        x = x if family.rotates_first else _normed(step, part, weights, index, x, name)
        x = step.turns.rotate(x, slides) if part.rotation else x
        return _normed(step, part, weights, index, x, name) if family.rotates_first else x

    q = placed(q, "attn_q_norm")
    if family.sharpens == "stated" or not part.rotation:
        q = step.turns.sharpen(q)
    scores, q = Scores.of(step.cfg, part, weights, index, numerics.split), scaled(step.cfg, q)
    if k is None or v is None:
        assert part.reads is not None, part.name
        assert state is not None, part.name
        source = jnp.int32(part.reads.layer)
        mixed = attention(q, state, source, step.rows, numerics.span, numerics.kernel, scores)
    else:
        k, v = placed(k, "attn_k_norm"), unweighted_norm(step, v) if family.values_normed else v
        if state is None:
            mixed = full_attention(q, k, v, step.rows.end, step.cfg.causal, scores, numerics)
        else:
            state = write(state, index, k, v, step.rows, part.window)
            mixed = attention(q, state, index, step.rows, numerics.span, numerics.kernel, scores)
    mixed = mixed if gate is None else mixed * gate
    return closing(step, mixed, weights, "attn_output", index, part.queries), state


def project(
    step: Step, part: AttentionPart, weights: Params, index: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
    """q (B, T, H, C), k and v (B, T, K, C) of inputs (B, T, D), before norms and rotation, None where the layer makes
    none; and the gate of the mixed values, (B, T, H * C), where the family has one.
    """
    numerics, gating, C = step.numerics, step.cfg.architecture.attention.gate, part.width
    heads, kv_heads = numerics.split.local_heads(part.heads), numerics.split.local_kv_heads(part.kv_heads)
    qkv = {"attn_q": 2 * heads * C if gating == "query" else heads * C, "attn_k": kv_heads * C, "attn_v": kv_heads * C}
    gates = {"channels": heads * C, "heads": heads}
    widths = {"attn_qkv": sum(qkv.values()), **qkv, **({"attn_gate": gates[gating]} if gating in gates else {})}
    widths = {name: width for name, width in widths.items() if name in weights}
    made = dict(zip(widths, linears(h, weights, tuple(widths), index, numerics), strict=True))
    if not numerics.split.heads:
        made = {name: gathered(x, widths[name], numerics.split) for name, x in made.items()}
    if "attn_qkv" in made:
        made |= dict(zip(qkv, jnp.split(made["attn_qkv"], np.cumsum([*qkv.values()][:2]), axis=-1), strict=True))
    q, gate = _heads(made["attn_q"], heads), None
    k = _heads(made["attn_k"], kv_heads) if "attn_k" in made else None
    v = _heads(made["attn_v"], kv_heads) if "attn_v" in made else k
    k, v = (k, v) if part.reads is None else (None, None)  # one tensor makes them with the queries
    match gating:
        case "query":
            q, gate = jnp.split(q, 2, axis=-1)
            gate = jax.nn.sigmoid(gate).reshape(*h.shape[:-1], heads * C)
        case "channels":
            gate = jax.nn.sigmoid(made["attn_gate"])
        case "heads":
            gate = jnp.repeat(jax.nn.softplus(made["attn_gate"]), C, axis=-1)
    return q, k, v, gate


def _normed(step: Step, part: AttentionPart, weights: Params, index: jax.Array, x: jax.Array, name: str) -> jax.Array:
    """Queries (B, T, H, C) or keys (B, T, K, C), normed as the family has it, with the weights `name`.

    Llama 4 does it in layers that rotate, unless it has 128 experts. Source: llama.cpp's `llama4` graph.
    """
    cfg, split = step.cfg, step.numerics.split
    kind = cfg.architecture.attention.qk_norm
    if kind == "unweighted":
        without = not part.rotation or cfg.expert_count == 128
        return x if without else unweighted_norm(step, x)
    if name not in weights:
        return x
    if kind != "whole":
        return norm(step, x, weights, name, index)
    flat = x.reshape(*x.shape[:-2], -1)
    return norm(step, flat, weights, name, index, split if split.heads else WHOLE).reshape(x.shape)


def scaled(cfg: ModelConfig, q: jax.Array) -> jax.Array:
    """Queries such that attention's own 1 / sqrt(C) makes the model's scale."""
    return q * jnp.float32(cfg.attention_scale * q.shape[-1] ** 0.5) if cfg.attention_scale else q


def attention(
    q: jax.Array,  # float32 (B, T, H, C)
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    kernel: str,
    scores: Scores,
    values: int = 0,
) -> jax.Array:  # float32 (B, T, H * Cv)
    """Causal grouped-query attention of layer `index`; `span`: positions that the step may look back at.

    values: Cv, the first channels of each value that count; 0: all.

    What lies behind a row's end counts as 0 even if it is not finite, so neither neighbours nor padding nor what the
    slot held before can change a result. `compile.kernels.attention` chooses the kernel: "native" is C++ on a CPU.
    "mosaic" is a GPU's. "whole" looks at the whole span at once for one token of each row. "tiled" takes
    tile after tile. Where keys and values were turned before they were kept, queries are turned alike, so that scores
    stay what they are, and the mixed values back. Raises ValueError for an unknown kernel, and for scores that a kernel
    does not know.
    """
    if not is_turned(state):
        return _by_kernel(q, state, index, rows, span, kernel, scores, values)
    mixed = _by_kernel(hadamard(q), state, index, rows, span, kernel, scores, values)
    return hadamard(mixed.reshape(q.shape)).reshape(mixed.shape)


def _by_kernel(
    q: jax.Array,
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    kernel: str,
    scores: Scores,
    values: int,
) -> jax.Array:
    """`attention` to what the state holds, turned or not."""
    match kernel:
        case "tiled":
            return tiled_attention(q, state, index, rows, span, scores, values)
        case "whole":
            return whole_attention(q, state, index, rows, span, scores, values)
        case "native":
            return native_attention(q, state, index, rows, span, scores, values)
        case "mosaic" if not values and isinstance(state, KV):
            from packlight.model.network.mixers.attention.mosaic import mosaic_attention  # here: only GPUs need Mosaic

            return mosaic_attention(q, state, index, rows, span, scores)
        case _:
            raise ValueError(f"attention {kernel!r} is unknown, or does not know narrow or rounded values")


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * C) -> (B, T, heads, C)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
