"""The feed-forward part that every token goes through. Source: llama.cpp's `build_ffn`."""

import jax
import jax.numpy as jnp

from packlight.model.network.products import closing, linear, linears
from packlight.model.network.state import Numerics
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params

OAI_ALPHA, OAI_LIMIT = 1.702, 7.0


def feed_forward(cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics) -> jax.Array:
    """(B, T, D), normed -> (B, T, D)."""
    kind = cfg.architecture.ffn.kind
    if cfg.architecture.ffn.fused:
        gate, up = jnp.split(linear(h, blk, "ffn_up", index, numerics), 2, axis=-1)
    elif kind == "gelu":
        gate = up = linear(h, blk, "ffn_up", index, numerics)
    else:
        gate, up = linears(h, blk, ("ffn_gate", "ffn_up"), index, numerics)
    return closing(cfg, activate(kind, gate, up), blk, "ffn_down", index, numerics)


def activate(kind: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What goes into `ffn_down`, float32 (..., F), from the outputs of `ffn_gate` and `ffn_up`.

    "gelu" has no gate: it reads `gate` alone.

    Sources: SwiGLU, GEGLU (2002.05202); GELU by its tanh approximation (1606.08415), which GGUF models are trained
    with; gpt-oss's reference code for "swiglu_oai".
    """
    match kind:
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
