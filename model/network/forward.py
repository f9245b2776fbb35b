"""The forward pass: `embed`, `layer`, `head`, and the loop over layers. Knows activations, not executables.

One function serves prefill (B = 1, T tokens of one slot) and decode (T = 1, the first B slots): x is (B, T, D), the
tokens of row b go to cache slot `slot + b` at `start[b] ..`, and each query sees the cache up to itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import gathered, summed, tensor_number
from packlight.model.network.ffn.moe import activate, moe
from packlight.model.network.mixers.attention import Cache, Rows, Scores, attention, softcap, write_cache
from packlight.model.network.rope import Turns, rope_divisors
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_matmul_many
from packlight.quant.formats.table import path_of
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import gather_rows


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What the plan decided for the traced code. Static.

    path: kernel path of every matrix product; dtype: what activations are rounded to before one; span: how many
    cached positions a query may look back at (the static length S of the step); context: tokens that a slot may hold;
    split: how the devices share the model. The ModelConfig beside it is then `split.local`'s, one device's. kernel:
    what computes attention (`model.network.mixers.attention.attention`).
    """

    path: str
    dtype: jnp.dtype
    span: int
    context: int
    split: Split = WHOLE
    kernel: str = "tiled"


def embed(cfg: ModelConfig, params: Params, tokens: jax.Array, split: Split = WHOLE) -> jax.Array:
    """int32 (B, T) -> float32 (B, T, D): packed rows are gathered, then unpacked, each on the device that has it."""
    weights = params["token_embd"]
    if split.tensor == 1:
        x = gather_rows(weights, tokens)
    else:
        row = tokens - tensor_number(split) * weights.shape[0]
        mine = (row >= 0) & (row < weights.shape[0])
        x = summed(jnp.where(mine[..., None], gather_rows(weights, row), jnp.float32(0)), split)
    return x if cfg.embedding_scale == 1 else x * jnp.float32(cfg.embedding_scale)


def norm(
    cfg: ModelConfig, x: jax.Array, weights: Params, name: str, index: jax.Array | None = None, split: Split = WHOLE
) -> jax.Array:
    """Normalizes the last axis with the weights `name` (of layer `index`).

    "rms": x / rms(x) * w. "layer": (x - mean) / deviation * w + b. split: of devices that hold equal parts of the axis.
    Sources: 1910.07467, 1607.06450.
    """

    def along(vector: jax.Array) -> jax.Array:
        vector = vector if index is None else vector[index]
        return vector.reshape((1,) * (x.ndim - 1) + vector.shape)

    epsilon = jnp.float32(cfg.norm_epsilon)
    if cfg.architecture.norm == "rms":
        square = summed(jnp.mean(x * x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
        return x * lax.rsqrt(square + epsilon) * along(weights[name])
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x * along(weights[name]) + along(weights[f"{name}.bias"])


def layers(
    cfg: ModelConfig,
    params: Params,
    x: jax.Array,  # float32 (B, T, D)
    cache: Cache,
    rows: Rows,
    numerics: Numerics,
) -> tuple[jax.Array, Cache]:
    """Runs every layer and the final norm: hidden states (B, T, D) and the cache with this step's keys and values.

    The cache's lengths are the caller's business. The loop carries the cache, so that XLA updates it in place.
    """
    positions = rows.start[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
    turns = Turns(cfg, positions, rope_divisors(cfg, params, numerics.context))

    def body(index, carry):
        x, cache = carry
        return layer(cfg, params["blk"], index, x, cache, rows, turns, numerics)

    x, cache = lax.fori_loop(0, cfg.block_count, body, (x, cache))
    return norm(cfg, x, params, "output_norm"), cache


def layer(
    cfg: ModelConfig,
    blk: Params,
    index: jax.Array,  # int32 ()
    x: jax.Array,  # float32 (B, T, D)
    cache: Cache,
    rows: Rows,
    turns: Turns,
    numerics: Numerics,
) -> tuple[jax.Array, Cache]:
    """One transformer layer: x + attention(norm(x)), then x + ffn(norm(x)), with the norms the family has."""
    arch = cfg.architecture

    def add(x, y, post):
        y = norm(cfg, y, blk, post, index) if arch.post_norms else y
        return x + (y if cfg.residual_scale == 1 else y * jnp.float32(cfg.residual_scale))

    with jax.named_scope("attention"):
        h = norm(cfg, x, blk, "attn_norm", index) if arch.pre_norms else x
        q, k, v = project(cfg, h, blk, index, numerics)
        q, k = turns.sharpen(turns.rotate(q, index)), turns.rotate(k, index)
        cache = write_cache(cache, index, k, v, rows)
        scores = Scores.of(cfg, blk, index)
        mixed = attention(scaled(cfg, q), cache, index, rows, numerics.span, numerics.kernel, scores)
        x = add(x, closing(cfg, mixed, blk, "attn_output", index, numerics), "post_attention_norm")
    with jax.named_scope("ffn"):
        h = norm(cfg, x, blk, arch.ffn_norm, index) if arch.pre_norms else x
        return add(x, ffn(cfg, h, blk, index, numerics), "post_ffw_norm"), cache


def project(
    cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q (B, T, H, C), k and v (B, T, K, C) of normed inputs (B, T, D), before rotation."""
    heads, kv_heads, width = cfg.head_count, cfg.head_count_kv, cfg.key_length
    names = ("attn_qkv",) if cfg.architecture.fused else ("attn_q", "attn_k", "attn_v")
    parts = linears(h, blk, names, index, numerics)
    if not numerics.split.heads:
        widths = (heads + 2 * kv_heads,) if cfg.architecture.fused else (heads, kv_heads, kv_heads)
        parts = [gathered(x, n * width, numerics.split) for x, n in zip(parts, widths, strict=True)]
    if cfg.architecture.fused:
        parts = jnp.split(parts[0], [heads * width, (heads + kv_heads) * width], axis=-1)
    q, k, v = parts
    if cfg.architecture.qk_norm == "whole":
        split = numerics.split if numerics.split.heads else WHOLE
        q, k = norm(cfg, q, blk, "attn_q_norm", index, split), norm(cfg, k, blk, "attn_k_norm", index, split)
    q, k, v = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
    if cfg.architecture.qk_norm == "head":
        q, k = norm(cfg, q, blk, "attn_q_norm", index), norm(cfg, k, blk, "attn_k_norm", index)
    return q, k, v


def scaled(cfg: ModelConfig, q: jax.Array) -> jax.Array:
    """Queries such that attention's own 1 / sqrt(C) makes the model's scale."""
    return q * jnp.float32(cfg.attention_scale * cfg.key_length**0.5) if cfg.attention_scale else q


def ffn(cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics) -> jax.Array:
    """The feed-forward part, dense or over the chosen experts: (B, T, D) -> (B, T, D)."""
    arch = cfg.architecture
    if cfg.expert_count:
        router = linear(h, blk, "ffn_gate_inp", index, dataclasses.replace(numerics, dtype=jnp.dtype(jnp.float32)))
        flat = h.reshape(-1, h.shape[-1]).astype(numerics.dtype)
        y = moe(cfg, flat, router.reshape(flat.shape[0], -1), blk, index, numerics.path, numerics.split)
        return y.reshape(h.shape)
    if arch.fused:
        gate, up = jnp.split(linear(h, blk, "ffn_up", index, numerics), 2, axis=-1)
    elif arch.ffn == "gelu":
        gate = up = linear(h, blk, "ffn_up", index, numerics)
    else:
        gate, up = linears(h, blk, ("ffn_gate", "ffn_up"), index, numerics)
    return closing(cfg, activate(arch.ffn, gate, up), blk, "ffn_down", index, numerics)


def head(
    cfg: ModelConfig,
    params: Params,
    hidden: jax.Array,  # float32 (M, D), normed
    numerics: Numerics,
) -> jax.Array:  # float32 (M, V)
    """Logits, from `output` or, in a model that ties them, from `token_embd`."""
    with jax.named_scope("head"):
        weights = params.get("output", params["token_embd"])
        logits = matmul(hidden.astype(numerics.dtype), weights, path_of(weights.qtype, numerics.path))
        logits = gathered(logits, cfg.vocab_size, numerics.split)
        if cfg.logit_scale != 1:
            logits = logits / jnp.float32(cfg.logit_scale)
        return softcap(logits, cfg.softcaps[1])


def closing(cfg: ModelConfig, x: jax.Array, blk: Params, name: str, index: jax.Array, numerics: Numerics) -> jax.Array:
    """`linear` with the matrix that ends a branch, `attn_output` or `ffn_down`: whole results from a device's part."""
    split = numerics.split
    if split.tensor == 1:
        return linear(x, blk, name, index, numerics)
    if (split.attn_output if name == "attn_output" else split.ffn_down) == "inputs":
        weights, bias = blk[name], blk.get(f"{name}.bias")
        y = summed(linear(x, {name: weights}, name, index, numerics), split)
        return y if bias is None else y + bias[index][None, None, :]
    if name == "ffn_down":
        x = gathered(x, cfg.feed_forward_length, split)
    elif split.heads:
        x = gathered(x, x.shape[-1] * split.tensor, split)
    return gathered(linear(x, blk, name, index, numerics), cfg.embedding_length, split)


def linear(x: jax.Array, blk: Params, name: str, index: jax.Array, numerics: Numerics) -> jax.Array:
    """x (B, T, in) times layer `index`'s matrix `name`, plus its bias when the file has one: float32 (B, T, out)."""
    return linears(x, blk, (name,), index, numerics)[0]


def linears(x: jax.Array, blk: Params, names: tuple[str, ...], index: jax.Array, numerics: Numerics) -> list[jax.Array]:
    """`linear` with several matrices, which a path may do in one call."""
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    ys = stacked_matmul_many(flat, [blk[name] for name in names], index, numerics.path)
    biases = [blk.get(f"{name}.bias") for name in names]
    ys = [y if bias is None else y + bias[index][None, :] for y, bias in zip(ys, biases, strict=True)]
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys]


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * C) -> (B, T, heads, C)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
