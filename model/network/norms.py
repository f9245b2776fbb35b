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
    """Normalizes the last axis with the weights `name` (of layer `index`), and adds the norm's biases if it has any.

    "rms": x / rms(x) * w. "layer": (x - mean) / deviation * w. split: of devices that hold equal parts of the axis.
    Sources: 1910.07467, 1607.06450.
    """

    def along(name: str) -> jax.Array:
        vector = weights[name] if index is None else weights[name][index]
        return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)

    if cfg.architecture.norms.kind == "layer":
        x = x - summed(jnp.mean(x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
    y = unweighted_norm(cfg, x, split) * along(name)
    return y + along(f"{name}.bias") if f"{name}.bias" in weights else y


def unweighted_norm(cfg: ModelConfig, x: jax.Array, split: Split = WHOLE) -> jax.Array:
    """x / rms(x), along the last axis."""
    square = summed(jnp.mean(x * x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
    return x * lax.rsqrt(square + jnp.float32(cfg.norm_epsilon))


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), or x where cap is 0. Source: Gemma 2 (2408.00118)."""
    return jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap)) if cap else x
