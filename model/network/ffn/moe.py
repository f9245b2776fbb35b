"""Mixture of experts: routing, and products with packed experts of which only the chosen ones are computed.

Source: Mixtral (2401.04088); llama.cpp's `build_moe_ffn` for softmax over all experts before the choice.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import summed, tensor_number
from packlight.model.network.ffn.dense import activate
from packlight.model.network.products import linear
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.moe import MoePart
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_matmul, stacked_matmul_many

LEAST_SUM = (
    2.0**-14
)  # of the chosen experts' scores, as far as it divides them: the least normal float16, as in llama.cpp


def feed_forward(step: Step, part: MoePart, weights: Params, index: jax.Array, h: jax.Array) -> jax.Array:
    """(B, T, D), normed -> (B, T, D). index: of the layer among those that have the part.

    The router is multiplied in float32, so that no rounding changes the choice.
    """
    numerics = step.numerics
    router = linear(h, weights, "ffn_gate_inp", index, dataclasses.replace(numerics, dtype=jnp.dtype(jnp.float32)))
    flat = h.reshape(-1, h.shape[-1]).astype(numerics.dtype)
    y = moe(step.cfg, flat, router.reshape(flat.shape[0], -1), weights, index, numerics.paths, numerics.split)
    return y.reshape(h.shape)


def route(router: jax.Array, used: int, kind: str, bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Router logits (M, E) -> chosen experts int32 (M, X) and their weights (M, X), which sum to 1.

    kind: softmax over the "chosen" experts alone, or "softmax" over all or "sigmoid" of each, of which the chosen ones
    take their share. bias: float32 (E,), added for the choice alone.
    """
    if kind == "chosen":
        chosen, experts = lax.top_k(router, used)
        return experts, jax.nn.softmax(chosen, axis=-1)
    scores = jax.nn.softmax(router, axis=-1) if kind == "softmax" else jax.nn.sigmoid(router)
    if bias is None:
        chosen, experts = lax.top_k(scores, used)
    else:
        _, experts = lax.top_k(scores + bias[None, :], used)
        chosen = jnp.take_along_axis(scores, experts, axis=-1)
    return experts, chosen / jnp.maximum(chosen.sum(-1, keepdims=True), LEAST_SUM)


def moe(
    cfg: ModelConfig,
    x: jax.Array,  # (M, D), in the dtype of activations
    router: jax.Array,  # float32 (M, E)
    blk: Params,
    index: jax.Array,  # int32 (), the layer
    paths: Mapping[str, str],  # format -> kernel path
    split: Split = WHOLE,
) -> jax.Array:  # float32 (M, D)
    """Sum over each row's chosen experts of weight * expert(row); with a split, each device computes its own experts.

    The (row, expert) pairs are sorted by expert and cut into tiles of one expert each; a tile gathers its rows,
    runs them through that expert and adds the results back. Every expert is unpacked at most once more than
    its rows fill tiles, and one that nobody chose not at all.
    """
    M, D = x.shape
    bias = blk.get("exp_probs_b.bias")
    experts, weights = route(router, cfg.expert_used_count, cfg.routing, None if bias is None else bias[index])
    pairs = M * cfg.expert_used_count
    held = -(-cfg.expert_count // split.tensor)  # experts of this device; the last ones may be padding
    flat = experts.reshape(-1) - tensor_number(split) * held
    flat = jnp.where((flat >= 0) & (flat < held), flat, held)  # behind all others, and in no tile
    order = jnp.argsort(flat, stable=True)
    counts = jnp.zeros(held, jnp.int32).at[flat].add(jnp.int32(1), mode="drop")
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
        y = _expert(cfg.architecture.ffn.kind, x[row], blk, index, expert, paths)
        return out.at[row].add(jnp.where(filled[:, None], y * scaled[pair][:, None], 0))

    return summed(lax.fori_loop(0, tile_ends[-1], body, jnp.zeros((M, D), jnp.float32)), split)


def _expert(
    kind: str, x: jax.Array, blk: Params, index: jax.Array, expert: jax.Array, paths: Mapping[str, str]
) -> jax.Array:
    """One expert's feed-forward: (rows, D) -> (rows, D)."""

    def biased(y: jax.Array, name: str) -> jax.Array:
        bias = blk.get(f"{name}.bias")  # (L, E, out)
        return y if bias is None else y + bias[index, expert][None, :]

    gate, up = stacked_matmul_many(x, [blk["ffn_gate_exps"], blk["ffn_up_exps"]], index, paths, (expert,))
    gate, up = biased(gate, "ffn_gate_exps"), biased(up, "ffn_up_exps")
    hidden = activate(kind, gate, up).astype(x.dtype)
    return biased(stacked_matmul(hidden, blk["ffn_down_exps"], index, paths, (expert,)), "ffn_down_exps")
