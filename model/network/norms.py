"""What keeps activations within bounds: norms, and the soft cap of scores and logits.

With a CPU's native kernels every sum over a row has one order, so that its bits do not depend on how many rows a step
has. Elsewhere XLA chooses the order by the shape.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import summed
from packlight.model.network.step import Step
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.quant.kernels import native_rows


def norm(
    step: Step, x: jax.Array, weights: Params, name: str, index: jax.Array | None = None, split: Split = WHOLE
) -> jax.Array:
    """Normalizes the last axis with the weights `name` (of layer `index`), and adds the norm's biases if it has any.

    "rms": x / rms(x) * w. "layer": (x - mean) / deviation * w. split: of devices that hold equal parts of the axis.
    Sources: 1910.07467, 1607.06450.
    """
    centered = step.cfg.architecture.norms.kind == "layer"
    if step.numerics.native and split.tensor == 1:

        def of_layers(name: str) -> jax.Array | None:
            vectors = weights.get(name)
            layers = 1 if index is None or vectors is None else vectors.shape[0]
            return None if vectors is None else vectors.reshape(layers, -1, x.shape[-1])

        return _native(step, x, of_layers(name), of_layers(f"{name}.bias"), index, centered=centered)

    def along(name: str) -> jax.Array:
        vector = weights[name] if index is None else weights[name][index]
        return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)

    if centered:
        x = x - summed(jnp.mean(x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
    y = unweighted_norm(step, x, split) * along(name)
    return y + along(f"{name}.bias") if f"{name}.bias" in weights else y


def unweighted_norm(step: Step, x: jax.Array, split: Split = WHOLE) -> jax.Array:
    """x / rms(x), along the last axis."""
    if step.numerics.native and split.tensor == 1:
        return _native(step, x)
    square = summed(jnp.mean(x * x, axis=-1, keepdims=True), split) / jnp.float32(split.tensor)
    return x * lax.rsqrt(square + jnp.float32(step.cfg.norm_epsilon))


def unit(step: Step, x: jax.Array) -> jax.Array:
    """x / |x|, along the last axis."""
    if step.numerics.native:
        return _native(step, x, divisor=1)
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + jnp.float32(step.cfg.norm_epsilon))


def _native(
    step: Step,
    x: jax.Array,
    weights: jax.Array | None = None,
    biases: jax.Array | None = None,
    index: jax.Array | None = None,
    **how: Any,
) -> jax.Array:
    """`native_rows.norm` of the last axis."""
    flat, at = x.reshape(-1, x.shape[-1]), jnp.int32(0) if index is None else index
    return native_rows.norm(flat, weights, biases, at, epsilon=step.cfg.norm_epsilon, **how).reshape(x.shape)


def dots(native: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    """The sums over the last axis of a * b, which has a's shape or is a vector: (..., W) -> (..., 1).

    native: whether a CPU's native kernels run (`Numerics.native`).
    """
    if not native:
        return (a * b.reshape((1,) * (a.ndim - b.ndim) + b.shape)).sum(-1, keepdims=True)
    width = a.shape[-1]
    return native_rows.dots(a.reshape(-1, width), b.reshape(-1, width)).reshape(*a.shape[:-1], 1)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), or x where cap is 0. Source: Gemma 2 (2408.00118)."""
    return jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap)) if cap else x
