"""The feed-forward part that every token goes through. Source: llama.cpp's `build_ffn`."""

import jax
import jax.numpy as jnp

from packlight.model.network.collectives import summed, tensor_number
from packlight.model.network.norms import dots
from packlight.model.network.products import closing, linear, linears
from packlight.model.network.state import Numerics
from packlight.model.network.step import Step
from packlight.model.spec.parts.dense import DensePart
from packlight.model.weights.params import Params

OAI_ALPHA, OAI_LIMIT = 1.702, 7.0
TWENTIETH = 1.6448533535003662  # deviations above the mean, where the highest twentieth of normal numbers is


def feed_forward(
    step: Step, part: DensePart, weights: Params, index: jax.Array, h: jax.Array, _x: jax.Array | None = None
) -> jax.Array:
    """h (B, T, D), normed -> (B, T, D). index: of the layer among those that have the part."""
    family, numerics = step.cfg.architecture.ffn, step.numerics
    if family.fused:
        gate, up = jnp.split(linear(h, weights, part.up, index, numerics), 2, axis=-1)
    elif family.gated:
        gate, up = linears(h, weights, (part.gate, part.up), index, numerics)
    else:
        gate = up = linear(h, weights, part.up, index, numerics)
    gate = highest(gate, part, numerics) if part.sparse else gate
    if family.kind == "xielu":
        hidden = xielu(up, jnp.asarray(step.cfg.xielu, jnp.float32)[index])
    else:
        hidden = activate(family.kind, gate, up)
    return closing(step, hidden, weights, part.down, index, part.features)


def highest(gate: jax.Array, part: DensePart, numerics: Numerics) -> jax.Array:
    """How far each of a token's gates (B, T, F) is above the highest twentieth's bound, were they normal; or 0.

    Source: Gemma 3n's reference code.
    """
    split, here = numerics.split, gate.shape[-1]
    real = tensor_number(split) * here + jnp.arange(here, dtype=jnp.int32) < part.width  # a mesh pads
    mean = summed(dots(numerics.native, gate, real.astype(jnp.float32)), split) / jnp.float32(part.width)
    off = jnp.where(real[None, None, :], gate - mean, 0)
    deviation = jnp.sqrt(summed(dots(numerics.native, off, off), split) / jnp.float32(part.width - 1))
    return jax.nn.relu(gate - (mean + jnp.float32(TWENTIETH) * deviation))


def xielu(x: jax.Array, parameters: jax.Array) -> jax.Array:
    """xIELU with a layer's float32 (4,): alpha_n, alpha_p, beta and eps.

    Source: 2411.13010; llama.cpp's `ggml_xielu`, which takes alphas through softplus.
    """
    alpha_n, alpha_p, beta, eps = parameters
    positive, negative = jax.nn.softplus(alpha_p), beta + jax.nn.softplus(alpha_n)
    below = (jnp.expm1(jnp.minimum(x, eps)) - x) * negative
    return jnp.where(x > 0, positive * x * x, below) + beta * x


def activate(kind: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What goes into `ffn_down`, float32 (..., F), from the outputs of `ffn_gate` and `ffn_up`.

    "gelu" and "relu2" have no gate: they read `gate` alone.

    Sources: SwiGLU, GEGLU (2002.05202); GELU by its tanh approximation (1606.08415), which GGUF models are trained
    with; the square of a rectifier (2109.08668); gpt-oss's reference code for "swiglu_oai".
    """
    match kind:
        case "relu2":
            return jnp.square(jax.nn.relu(gate))
        case "swiglu":
            return jax.nn.silu(gate) * up
        case "geglu":
            return jax.nn.gelu(gate, approximate=True) * up
        case "gelu":
            return jax.nn.gelu(gate, approximate=True)
        case "swiglu_oai":
            gate = jnp.minimum(gate, jnp.float32(OAI_LIMIT))
            up = jnp.clip(up, jnp.float32(-OAI_LIMIT), jnp.float32(OAI_LIMIT))
            return gate * jax.nn.sigmoid(jnp.float32(OAI_ALPHA) * gate) * (up + jnp.float32(1))
        case _:
            raise ValueError(f"unknown feed-forward kind {kind!r}")
