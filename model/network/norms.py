"""What keeps activations within bounds: norms, and the soft cap of scores and logits."""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import summed
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params


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
    if cfg.architecture.norms.kind == "rms":
        square = summed(jnp.mean(x * x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
        return x * lax.rsqrt(square + epsilon) * along(weights[name])
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x * along(weights[name]) + along(weights[f"{name}.bias"])


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), or x where cap is 0. Source: Gemma 2 (2408.00118)."""
    return jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap)) if cap else x
