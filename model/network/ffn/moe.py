"""Mixture of experts: routing, and products with packed experts of which only the chosen ones are computed.

Sources: Mixtral (2401.04088), DeepSeek-V3 (2412.19437); llama.cpp's `build_moe_ffn` for what is chosen and weighed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import summed, tensor_number
from packlight.model.network.ffn import dense
from packlight.model.network.ffn.dense import activate
from packlight.model.network.norms import dots, norm
from packlight.model.network.products import finished, linear
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.moe import MoePart, Routing
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_experts, stacked_matmul_many
from packlight.quant.kernels import native_experts, native_ops

# Of the chosen experts' scores, as far as it divides them: the least normal float16, as in llama.cpp.
LEAST_SUM = 2.0**-14
OPENING = ("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps")  # what a file may have of matrices that read x


def feed_forward(step: Step, part: MoePart, weights: Params, index: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    """h (B, T, D), x normed -> (B, T, D). index: of the layer among those that have the part.

    The router is multiplied in float32, so that no rounding changes the choice.
    """
    if "pre_ffw_norm_2" in weights:
        return _beside_dense(step, part, weights, index, h, x)
    y = _routed(step, weights, index, h, _router(step, weights, index, h))
    if part.shared is None:
        return y
    shared = dense.feed_forward(step, part.shared, weights, index, h)
    if "ffn_gate_inp_shexp" in weights:
        gate = weights["ffn_gate_inp_shexp"][index]
        shared = shared * jax.nn.sigmoid(dots(step.numerics.native, h, gate))
    return y + shared


def _beside_dense(
    step: Step, part: MoePart, weights: Params, index: jax.Array, h: jax.Array, x: jax.Array
) -> jax.Array:
    """Experts and a dense MLP, each with norms of its own, and a router with a third. Source: llama.cpp's `gemma4`."""
    assert part.shared is not None
    beside = norm(step, dense.feed_forward(step, part.shared, weights, index, h), weights, "post_ffw_norm_1", index)
    read = norm(step, x, weights, "ffn_gate_inp.scale", index) * jnp.float32(x.shape[-1] ** -0.5)
    router = _router(step, {"ffn_gate_inp": weights["ffn_gate_inp"]}, index, read)
    y = _routed(step, weights, index, norm(step, x, weights, "pre_ffw_norm_2", index), router)
    return beside + norm(step, y, weights, "post_ffw_norm_2", index)


def _router(step: Step, weights: Params, index: jax.Array, h: jax.Array) -> jax.Array:
    """Logits (B, T, E)."""
    return linear(h, weights, "ffn_gate_inp", index, step.numerics.in_float32())


def _routed(step: Step, weights: Params, index: jax.Array, h: jax.Array, router: jax.Array) -> jax.Array:
    """What the chosen experts give: (B, T, D), normed -> (B, T, D)."""
    numerics = step.numerics
    latent = "ffn_latent_down" in weights
    x = linear(h, weights, "ffn_latent_down", index, numerics) if latent else h
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    y = moe(
        step.cfg,
        flat,
        router.reshape(flat.shape[0], -1),
        weights,
        index,
        numerics.paths,
        numerics.split,
        numerics.native,
        functools.partial(_brought, step, index),
    )
    y = y.reshape(x.shape)
    return linear(y, weights, "ffn_latent_up", index, numerics) if latent else y


def _brought(step: Step, index: jax.Array, chosen: jax.Array) -> jax.Array:
    """The choice (M, X), once its experts are in memory. Where they are streamed, padding and idle rows choose none."""
    if step.stream is None:
        return chosen
    real = (step.positions < step.rows.end[:, None]) & step.rows.active[:, None]
    chosen = jnp.where(real.reshape(-1, 1), chosen, jnp.int32(step.cfg.expert_count))
    return native_ops.bring_experts(chosen, index, step.stream)


def route(
    router: jax.Array,
    used: int,
    routing: Routing,
    bias: jax.Array | None = None,
    native: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Router logits (M, E) -> chosen experts int32 (M, X) and their weights (M, X).

    bias: float32 (E,), added to the scores for the choice alone. Groups are chosen by the sum of their two best scores.
    native: in one call of a CPU's native kernels, with sums in one order.
    """
    if native:
        return native_experts.route(router, used, bias, least_sum=LEAST_SUM, **dataclasses.asdict(routing))
    if routing.scores == "chosen":
        chosen, experts = lax.top_k(router, used)
        return experts, jax.nn.softmax(chosen, axis=-1)
    scores = jax.nn.softmax(router, axis=-1) if routing.scores == "softmax" else jax.nn.sigmoid(router)
    by = scores if bias is None else scores + bias[None, :]
    if routing.groups > 1:
        by = _of_best_groups(by, routing)
    _, experts = lax.top_k(by, used)
    chosen = jnp.take_along_axis(scores, experts, axis=-1)
    if routing.normed:
        chosen = chosen / jnp.maximum(chosen.sum(-1, keepdims=True), LEAST_SUM)
    return experts, chosen if routing.scale == 1 else chosen * jnp.float32(routing.scale)


def _of_best_groups(scores: jax.Array, routing: Routing) -> jax.Array:
    """Scores (M, E), -inf outside each row's best groups. Source: DeepSeek-V3 (2412.19437)."""
    M, E = scores.shape
    grouped = scores.reshape(M, routing.groups, E // routing.groups)
    best_two = lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
    _, groups = lax.top_k(best_two, routing.groups_used)
    kept = (groups[:, :, None] == jnp.arange(routing.groups)[None, None, :]).any(1)
    return jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(M, E)


def moe(
    cfg: ModelConfig,
    x: jax.Array,  # (M, D), in the dtype of activations
    router: jax.Array,  # float32 (M, E)
    blk: Params,
    index: jax.Array,  # int32 (), the layer
    paths: Mapping[str, str],  # format -> kernel path
    split: Split = WHOLE,
    native: bool = False,  # whether a CPU's native kernels run, which know every format
    brought: Callable[[jax.Array], jax.Array] = lambda chosen: chosen,  # the choice (M, X), once it is in memory
) -> jax.Array:  # float32 (M, D)
    """Sum over each row's chosen experts of weight * expert(row), or of expert(weight * row) as the family has it; with
    a split, each device computes its own experts.

    The (row, expert) pairs are sorted by expert and cut into tiles of one expert each; a tile gathers its rows,
    runs them through that expert and adds the results back: those of a row in the order of its experts' numbers.
    Every expert is unpacked at most once more than its rows fill tiles, and one that nobody chose not at all. Native
    kernels do it all in one call.
    """
    M, D = x.shape
    bias, family = blk.get("exp_probs_b.bias"), cfg.architecture.ffn
    experts, weights = route(router, cfg.expert_used_count, cfg.routing, None if bias is None else bias[index], native)
    scales_input = family.experts is not None and family.experts.scales_input
    pairs = M * cfg.expert_used_count
    held = -(-cfg.expert_count // split.tensor)  # experts of this device; the last ones may be padding
    experts = experts - tensor_number(split) * held
    if native:
        return summed(_natively(cfg, x, brought(experts), weights, blk, index), split)
    flat = experts.reshape(-1)
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
        weight = scaled[pair][:, None]
        read = (x[row] * weight).astype(x.dtype) if scales_input else x[row]
        y = _expert(family.kind, read, blk, index, expert, paths)
        return out.at[row].add(jnp.where(filled[:, None], y if scales_input else y * weight, 0))

    return summed(lax.fori_loop(0, tile_ends[-1], body, jnp.zeros((M, D), jnp.float32)), split)


def _natively(
    cfg: ModelConfig, x: jax.Array, experts: jax.Array, weights: jax.Array, blk: Params, index: jax.Array
) -> jax.Array:
    """`moe` in one native call. experts: numbers among those that `blk` holds; others are left out."""
    family = cfg.architecture.ffn
    names = [name for name in (*OPENING, "ffn_down_exps") if name in blk]
    vectors = [(blk.get(f"{name}.scale"), blk.get(f"{name}.bias")) for name in names]
    scales_input = family.experts is not None and family.experts.scales_input
    return stacked_experts(
        x, experts, weights, [blk[name] for name in names], vectors, index, family.kind, scales_input
    )


def _expert(
    kind: str, x: jax.Array, blk: Params, index: jax.Array, expert: jax.Array, paths: Mapping[str, str]
) -> jax.Array:
    """One expert's feed-forward: (rows, D) -> (rows, D)."""

    def products(x: jax.Array, *names: str) -> list[jax.Array]:
        ys = stacked_matmul_many(x, [blk[name] for name in names], index, paths, (expert,))
        return [finished(y, blk, name, (index, expert)) for y, name in zip(ys, names, strict=True)]

    opened = products(x, *(name for name in OPENING if name in blk))
    if "ffn_gate_up_exps" in blk:
        gate, up = jnp.split(opened[0], 2, axis=-1)
    else:
        gate, up = opened[0], opened[-1]
    return products(activate(kind, gate, up).astype(x.dtype), "ffn_down_exps")[0]
