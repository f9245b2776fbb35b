"""The forward pass: `embed`, `layer`, `head`, and the loop over layers. Knows activations, not executables.

One function serves prefill (B = 1, T tokens of one slot) and decode (T = 1, the first B slots): x is (B, T, D), the
tokens of row b go to cache slot `slot + b` at `start[b] ..`, and each query sees the cache up to itself.
"""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import gathered, summed, tensor_number
from packlight.model.network.ffn import ffn
from packlight.model.network.mixers.attention import mix
from packlight.model.network.norms import norm, softcap
from packlight.model.network.rope import Turns, rope_divisors
from packlight.model.network.state import Cache, Numerics, Rows
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import gather_rows


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
    norms = cfg.architecture.norms

    def add(x, y, post):
        y = norm(cfg, y, blk, post, index) if norms.after else y
        return x + (y if cfg.residual_scale == 1 else y * jnp.float32(cfg.residual_scale))

    with jax.named_scope("attention"):
        h = norm(cfg, x, blk, "attn_norm", index) if norms.before else x
        mixed, cache = mix(cfg, blk, index, h, cache, rows, turns, numerics)
        x = add(x, mixed, "post_attention_norm")
    with jax.named_scope("ffn"):
        h = norm(cfg, x, blk, norms.before_ffn, index) if norms.before else x
        return add(x, ffn(cfg, h, blk, index, numerics), "post_ffw_norm"), cache


def head(
    cfg: ModelConfig,
    params: Params,
    hidden: jax.Array,  # float32 (M, D), normed
    numerics: Numerics,
) -> jax.Array:  # float32 (M, V)
    """Logits, from `output` or, in a model that ties them, from `token_embd`."""
    with jax.named_scope("head"):
        weights = params.get("output", params["token_embd"])
        logits = matmul(hidden.astype(numerics.dtype), weights, numerics.paths[weights.qtype])
        logits = gathered(logits, cfg.vocab_size, numerics.split)
        if cfg.logit_scale != 1:
            logits = logits / jnp.float32(cfg.logit_scale)
        return softcap(logits, cfg.softcaps[1])
