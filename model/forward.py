"""The forward pass: `embed`, `layer`, `head`, and the loop over layers. Knows activations, not executables.

One function serves prefill (B = 1, T tokens of one slot) and decode (T = 1, the first B slots): x is (B, T, D), the
tokens of row b go to cache slot `slot + b` at `start[b] ..`, and each query sees the cache up to itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from model.attention import Cache, Rows, attention, write_cache
from model.config import ModelConfig
from model.moe import moe
from model.params import Params
from model.rope import rotate, rotation
from model.stack import stacked_matmul_many
from quant.formats import path_of
from quant.matmul import matmul
from quant.qtensor import gather_rows


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What the plan decided for the traced code. Static.

    path: kernel path of every matrix product; dtype: what activations are rounded to before one; span: how many
    cached positions a query may look back at (the static length S of the step).
    """

    path: str
    dtype: jnp.dtype
    span: int


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """int32 (B, T) -> float32 (B, T, D): packed rows are gathered, then unpacked."""
    return gather_rows(params["token_embd"], tokens)


def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) * weight over the last axis. Source: RMSNorm (1910.07467)."""
    scale = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(epsilon))
    return x * scale * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


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
    turn = rotation(cfg, positions, params.get("rope_freqs"))

    def body(index, carry):
        x, cache = carry
        return layer(cfg, params["blk"], index, x, cache, rows, turn, numerics)

    x, cache = lax.fori_loop(0, cfg.block_count, body, (x, cache))
    return rms_norm(x, params["output_norm"], cfg.rms_epsilon), cache


def layer(
    cfg: ModelConfig,
    blk: Params,
    index: jax.Array,  # int32 ()
    x: jax.Array,  # float32 (B, T, D)
    cache: Cache,
    rows: Rows,
    turn: tuple[jax.Array, jax.Array],  # cos, sin (B, T, rot/2)
    numerics: Numerics,
) -> tuple[jax.Array, Cache]:
    """One transformer layer: x + attention(norm(x)), then x + ffn(norm(x))."""
    with jax.named_scope("attention"):
        h = rms_norm(x, blk["attn_norm"][index], cfg.rms_epsilon)
        q, k, v = linears(h, blk, ("attn_q", "attn_k", "attn_v"), index, numerics)
        q, k, v = _heads(q, cfg.head_count), _heads(k, cfg.head_count_kv), _heads(v, cfg.head_count_kv)
        q = rotate(q, *turn, cfg.architecture.rope_style)
        k = rotate(k, *turn, cfg.architecture.rope_style)
        cache = write_cache(cache, index, k, v, rows)
        mixed = attention(q, cache, index, rows, numerics.span, numerics.path)
        x = x + linear(mixed, blk, "attn_output", index, numerics)
    with jax.named_scope("ffn"):
        h = rms_norm(x, blk["ffn_norm"][index], cfg.rms_epsilon)
        return x + ffn(cfg, h, blk, index, numerics), cache


def ffn(cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics) -> jax.Array:
    """SwiGLU, dense or over the chosen experts: (B, T, D) -> (B, T, D). Source: 2002.05202, Mixtral (2401.04088)."""
    if cfg.expert_count:
        router = linear(h, blk, "ffn_gate_inp", index, dataclasses.replace(numerics, dtype=jnp.dtype(jnp.float32)))
        flat = h.reshape(-1, h.shape[-1]).astype(numerics.dtype)
        return moe(cfg, flat, router.reshape(flat.shape[0], -1), blk, index, numerics.path).reshape(h.shape)
    gate, up = linears(h, blk, ("ffn_gate", "ffn_up"), index, numerics)
    return linear(jax.nn.silu(gate) * up, blk, "ffn_down", index, numerics)


def head(
    params: Params,
    hidden: jax.Array,  # float32 (M, D), normed
    numerics: Numerics,
) -> jax.Array:  # float32 (M, V)
    """Logits, from `output` or, in a model that ties them, from `token_embd`."""
    with jax.named_scope("head"):
        weights = params.get("output", params["token_embd"])
        return matmul(hidden.astype(numerics.dtype), weights, path_of(weights.qtype, numerics.path))


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
