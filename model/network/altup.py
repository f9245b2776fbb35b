"""Several streams of hidden states, of which a layer runs on the first and the others follow. Knows no executables.

Sources: AltUp (2301.13310), LAuReL (2411.07501), Gemma 3n's reference code; llama.cpp's `gemma3n` graph.
"""

import jax
import jax.numpy as jnp

from packlight.model.network.norms import dots, norm
from packlight.model.network.products import linear
from packlight.model.network.step import Step
from packlight.model.spec.parts.altup import STREAMS
from packlight.model.weights.params import Params
from packlight.quant.division import over
from packlight.quant.matmul import matmul


def begin(step: Step, params: Params, x: jax.Array) -> jax.Array:
    """The streams: embeddings (B, T, D), and projections as large as they are -> (STREAMS, B, T, D)."""
    others = [_as_large(step, _projected(step, params, "altup_proj", number, x), x) for number in range(STREAMS - 1)]
    return jnp.stack([x, *others])


def end(step: Step, params: Params, streams: jax.Array) -> jax.Array:
    """The mean of the streams, projected back and made as large as the first: (B, T, D)."""
    first = streams[0]
    others = [_projected(step, params, "altup_unembd_proj", number, x) for number, x in enumerate(streams[1:])]
    return sum((_as_large(step, x, first) for x in others), first) * jnp.float32(1 / STREAMS)


def _projected(step: Step, params: Params, name: str, number: int, x: jax.Array) -> jax.Array:
    weights, numerics = params[name], step.numerics
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    return matmul(flat, weights, numerics.paths[weights.qtype], (number,)).reshape(x.shape)


def _as_large(step: Step, x: jax.Array, like: jax.Array) -> jax.Array:
    """x, made as long as `like` along the last axis."""
    length, wanted = (jnp.sqrt(dots(step.numerics.native, each, each)) for each in (x, like))
    return over(x * wanted, length)


def predict(step: Step, weights: Params, index: jax.Array, streams: jax.Array) -> jax.Array:
    """What the streams (STREAMS, B, T, D) would be behind the layer, by the first: each, and a mixture of all."""
    mixing = _linear(step, weights, "altup_predict_coef", index, _modalities(step, weights, index, streams[0]))
    mixing = mixing.reshape(*mixing.shape[:-1], STREAMS, STREAMS)  # [b, t, to, from]
    mixed = [sum(mixing[:, :, to, of, None] * streams[of] for of in range(STREAMS)) for to in range(STREAMS)]
    return streams + jnp.stack(mixed)


def correct(step: Step, weights: Params, index: jax.Array, predicted: jax.Array, y: jax.Array) -> jax.Array:
    """The streams behind a layer that made y (B, T, D) of the first one that was predicted."""
    shares = _linear(step, weights, "altup_correct_coef", index, _modalities(step, weights, index, y)) + 1
    new = y - predicted[0]
    return predicted + jnp.stack([new * shares[..., to, None] for to in range(STREAMS)])


def _modalities(step: Step, weights: Params, index: jax.Array, x: jax.Array) -> jax.Array:
    """What predictions and corrections depend on: (B, T, D) -> (B, T, STREAMS)."""
    h = norm(step, x, weights, "altup_router_norm", index) * jnp.float32(1 / x.shape[-1])
    return jnp.tanh(_linear(step, weights, "altup_router", index, h))


def _linear(step: Step, weights: Params, name: str, index: jax.Array, x: jax.Array) -> jax.Array:
    """In float32, whatever other activations are: a few numbers weigh all streams."""
    return linear(x, weights, name, index, step.numerics.in_float32())


def laurel(step: Step, weights: Params, index: jax.Array, h: jax.Array) -> jax.Array:
    """What goes beside attention: normed h (B, T, D), and what a narrow way makes of it."""
    narrow = linear(h, weights, "laurel_l", index, step.numerics)
    made = linear(narrow, weights, "laurel_r", index, step.numerics)
    return h + norm(step, made, weights, "laurel_post_norm", index)
