"""Mixture of experts: routing, and products with packed experts of which only the chosen ones are computed.

Source: Mixtral (2401.04088); llama.cpp's `build_moe_ffn` for softmax over all experts before the choice.
"""

import jax
import jax.numpy as jnp
from jax import lax

from model.config import ModelConfig
from model.params import Params
from model.stack import stacked_matmul, stacked_matmul_many


def route(router: jax.Array, used: int) -> tuple[jax.Array, jax.Array]:
    """Router logits (M, E) -> chosen experts int32 (M, X) and their weights (M, X), which sum to 1."""
    chosen, experts = lax.top_k(jax.nn.softmax(router, axis=-1), used)
    return experts, chosen / chosen.sum(-1, keepdims=True)


def moe(
    cfg: ModelConfig,
    x: jax.Array,  # (M, D), in the dtype of activations
    router: jax.Array,  # float32 (M, E)
    blk: Params,
    index: jax.Array,  # int32 (), the layer
    path: str,
) -> jax.Array:  # float32 (M, D)
    """Sum over each row's chosen experts of weight * SwiGLU_expert(row).

    The (row, expert) pairs are sorted by expert and cut into tiles of one expert each; a tile gathers its rows,
    runs them through that expert and adds the results back. Every expert is unpacked at most once more than
    its rows fill tiles, and one that nobody chose not at all.
    """
    M, D = x.shape
    experts, weights = route(router, cfg.expert_used_count)
    pairs = M * cfg.expert_used_count
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    counts = jnp.zeros(cfg.expert_count, jnp.int32).at[flat].add(jnp.int32(1))
    ends = jnp.cumsum(counts)
    rows = min(M, max(8, pairs // cfg.expert_count))
    tiles = (counts + rows - 1) // rows  # per expert
    tile_ends = jnp.cumsum(tiles)
    scaled = weights.reshape(-1)

    def body(tile, out):
        expert = jnp.searchsorted(tile_ends, tile, side="right").astype(jnp.int32)
        begin = ends[expert] - counts[expert] + (tile - (tile_ends[expert] - tiles[expert])) * rows
        at = begin + jnp.arange(rows, dtype=jnp.int32)
        pair = order[jnp.minimum(at, pairs - 1)]
        filled = at < ends[expert]
        row = pair // cfg.expert_used_count
        y = _expert(x[row], blk, index, expert, path)
        return out.at[row].add(jnp.where(filled[:, None], y * scaled[pair][:, None], 0))

    return lax.fori_loop(0, tile_ends[-1], body, jnp.zeros((M, D), jnp.float32))


def _expert(x: jax.Array, blk: Params, index: jax.Array, expert: jax.Array, path: str) -> jax.Array:
    """SwiGLU through one expert: (rows, D) -> (rows, D)."""
    gate, up = stacked_matmul_many(x, [blk["ffn_gate_exps"], blk["ffn_up_exps"]], index, path, (expert,))
    hidden = (jax.nn.silu(gate) * up).astype(x.dtype)
    return stacked_matmul(hidden, blk["ffn_down_exps"], index, path, (expert,))
