"""One vector for each text out of the hidden states of its tokens, and what reads that vector. Knows no executables.

Source: llama.cpp's `build_pooling` and `build_dense_out`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.norms import norm
from packlight.model.network.products import single
from packlight.model.network.state import Numerics
from packlight.model.network.step import Step
from packlight.model.spec.pooling import NONE, POOLED
from packlight.model.weights.params import Params


def pooled(
    params: Params,
    hidden: jax.Array,  # float32 (B, T, D)
    real: jax.Array,  # int32 (B,), tokens of each text
    pooling: jax.Array,  # int32 (), a number of POOLED, or NONE
    numerics: Numerics,
) -> jax.Array:  # float32 (B, D), or as wide as the last dense layer's outputs
    """The vector of each text, behind the dense layers that the model has."""
    every = jnp.stack([_pool(kind, hidden, real) for kind in POOLED])
    chosen = jnp.minimum(pooling, len(POOLED) - 1)
    return _dense(params, lax.dynamic_index_in_dim(every, chosen, keepdims=False), numerics)


def unpooled(params: Params, hidden: jax.Array, pooling: jax.Array, numerics: Numerics) -> jax.Array:
    """Each token's vector behind the dense layers, as with `pooled`: (B, T, D) -> float32 (B, T, ...).

    Where a text's vector is asked for, no token goes through them.
    """
    if "dense_2" not in params:
        return hidden
    width = jax.eval_shape(lambda x: _dense(params, x, numerics), hidden[0]).shape[-1]

    def every() -> jax.Array:
        return _dense(params, hidden.reshape(-1, hidden.shape[-1]), numerics).reshape(*hidden.shape[:2], width)

    return lax.cond(pooling == NONE, every, lambda: jnp.zeros((*hidden.shape[:2], width), jnp.float32))


def _dense(params: Params, x: jax.Array, numerics: Numerics) -> jax.Array:
    for name in ("dense_2", "dense_3"):
        x = single(x, params, name, numerics) if name in params else x
    return x


def scores(step: Step, params: Params, hidden: jax.Array, real: jax.Array) -> jax.Array | None:
    """What a reranker's head says of each text, float32 (B, labels); None where the file has no head."""
    ranking, numerics = step.cfg.architecture.ranking, step.numerics
    if ranking is None or not ("cls" in params or "cls.output" in params):
        return None
    x = _pool(ranking.of, hidden, real)
    if "cls" in params:
        x = single(x, params, "cls", numerics)
        x = jnp.tanh(x) if ranking.pooler == "tanh" else jax.nn.gelu(x, approximate=True)
        x = norm(step, x, params, "cls.norm") if "cls.norm" in params else x
    x = single(x, params, "cls.output", numerics) if "cls.output" in params else x
    return jax.nn.softmax(x, axis=-1) if ranking.softmax else x


def _pool(kind: str, hidden: jax.Array, real: jax.Array) -> jax.Array:
    """(B, T, D) -> (B, D)."""
    match kind:
        case "cls":
            return hidden[:, 0]
        case "last":
            return jnp.take_along_axis(hidden, (real - 1)[:, None, None], axis=1)[:, 0]
        case "mean":
            mine = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None, :] < real[:, None]
            total = jnp.where(mine[..., None], hidden, 0).sum(1)
            return total / real[:, None].astype(jnp.float32)
        case _:
            raise ValueError(f"unknown pooling {kind!r}")
