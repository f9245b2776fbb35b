"""The forward pass: `embed`, `layer`, `head`, and the loop over layers. Knows activations, not executables.

One function serves prefill (B = 1, T tokens of one slot) and decode (T = 1, the first B slots): x is (B, T, D), the
tokens of row b go to cache slot `slot + b` at `start[b] ..`, and each query sees the cache up to itself.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from model.config import CACHE_TILE, ModelConfig
from model.moe import moe
from model.params import Params
from model.rope import rotate, rotation
from model.stack import stacked_matmul
from quant.formats import path_of
from quant.matmul import matmul
from quant.qtensor import gather_rows


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
        q = _heads(linear(h, blk, "attn_q", index, numerics), cfg.head_count)
        k = _heads(linear(h, blk, "attn_k", index, numerics), cfg.head_count_kv)
        v = _heads(linear(h, blk, "attn_v", index, numerics), cfg.head_count_kv)
        q = rotate(q, *turn, cfg.architecture.rope_style)
        k = rotate(k, *turn, cfg.architecture.rope_style)
        cache = write_cache(cache, index, k, v, rows)
        mixed = attention(q, cache, index, rows, numerics.span)
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
    gate = linear(h, blk, "ffn_gate", index, numerics)
    up = linear(h, blk, "ffn_up", index, numerics)
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
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    y = stacked_matmul(flat, blk[name], index, numerics.path)
    bias = blk.get(f"{name}.bias")
    if bias is not None:
        y = y + bias[index][None, :]
    return y.reshape(*x.shape[:-1], y.shape[-1])


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
            return lax.dynamic_update_slice(buffer, block, at)

        return lax.fori_loop(0, new.shape[0], row, buffer)

    return dataclasses.replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def attention(
    q: jax.Array,  # float32 (B, T, H, C)
    cache: Cache,
    index: jax.Array,
    rows: Rows,
    span: int,
) -> jax.Array:  # float32 (B, T, H * C)
    """Causal grouped-query attention over the cache, one tile of cached positions at a time.

    The running softmax needs no copy of a layer's cache and no repeated heads, and the loop ends at the longest row:
    the cost grows with the tokens in use. A tile that is masked for some row leaves that row's sums bit for bit
    as they are, and what lies behind a row's end counts as 0 even if it is not finite, so neither neighbours nor
    padding nor what the slot held before can change a result.
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
        position = i * tile + jnp.arange(tile, dtype=jnp.int32)
        values = jnp.where((position[None, :] < rows.end[:, None])[:, None, :, None], values, 0)
        seen = position[None, None, :] <= last[:, :, None]
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        part = jnp.einsum("bkqs,bksc->bkqc", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new_top, total * shrink + weights.sum(-1), mixed * shrink[..., None] + part

    zeros = jnp.zeros((B, K, (H // K) * T), jnp.float32)
    lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)
    tiles = jnp.minimum((jnp.max(last) + tile) // tile, span // tile)
    _, total, mixed = lax.fori_loop(0, tiles, body, (lowest, zeros, jnp.zeros((*zeros.shape, C), jnp.float32)))
    out = mixed / total[..., None]
    return out.reshape(B, K, H // K, T, C).transpose(0, 3, 1, 2, 4).reshape(B, T, H * C)


def _heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * C) -> (B, T, heads, C)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
