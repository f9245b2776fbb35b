"""A second embedding, of which each layer adds its own part to its output. Knows no executables.

Source: Gemma 3n's reference code; llama.cpp's `gemma4` graph.
"""

import jax
import jax.numpy as jnp

from packlight.model.network.collectives import gathered, look_up, own_part
from packlight.model.network.ffn.dense import activate
from packlight.model.network.norms import norm
from packlight.model.network.products import closing, linear
from packlight.model.network.step import Step
from packlight.model.spec.parts.perlayer import PerLayerPart
from packlight.model.weights.params import Params
from packlight.quant.matmul import matmul


def inputs(step: Step, params: Params, tokens: jax.Array, x: jax.Array) -> jax.Array:
    """What each layer reads of the tokens themselves: int32 (B, T), embeddings (B, T, D) -> float32 (L, B, T, P).

    A row of the second embedding, and as much made of the first.
    """
    cfg, numerics, weights = step.cfg, step.numerics, params["per_layer_model_proj"]
    P, shape = cfg.per_layer_length, (*tokens.shape, cfg.block_count, cfg.per_layer_length)
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    made = gathered(matmul(flat, weights, numerics.paths[weights.qtype]), cfg.block_count * P, numerics.split)
    made = norm(step, made.reshape(shape) * jnp.float32(x.shape[-1] ** -0.5), params, "per_layer_proj_norm")
    rows = look_up(params["per_layer_token_embd"], tokens, numerics.split).reshape(shape)
    return jnp.moveaxis((made + rows * jnp.float32(P**0.5)) * jnp.float32(0.5**0.5), 2, 0)


def added(
    step: Step,
    part: PerLayerPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part: all
    x: jax.Array,  # float32 (B, T, D)
) -> jax.Array:  # float32 (B, T, D)
    """What a layer adds to its output x: its part of the second embedding, as far as a gate lets it through."""
    assert step.inputs is not None
    split, read = step.numerics.split, step.inputs[index]
    if split.tensor > 1:
        read = own_part(read, split.branch(part.features).kept, split)
    gate = linear(x, weights, "inp_gate", index, step.numerics)
    y = closing(step, activate("geglu", gate, read), weights, "proj", index, part.features)
    return norm(step, y, weights, "post_norm", index)
