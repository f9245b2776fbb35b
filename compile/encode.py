"""The step that turns whole texts into vectors, without a cache. What lowers it is `compile.steps`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from packlight.model.network.collectives import rows_of_all
from packlight.model.network.forward import hidden_states
from packlight.model.network.pooling import pooled, scores, unpooled
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params


class EncodeArgs(NamedTuple):
    """B whole texts, which the data groups share."""

    tokens: Any  # int32 (B, T), padded
    real: Any  # int32 (B,), tokens of each text, at least 1
    pooling: Any  # int32 (), a number of `model.spec.pooling.POOLED`, or NONE


class EncodeResult(NamedTuple):
    """What texts become."""

    pooled: jax.Array  # float32 (B, D), or as wide as the last dense layer's outputs
    scores: jax.Array | None  # float32 (B, labels), of a reranker
    hidden: jax.Array  # float32 (B, T, D), of each token; of a model with dense layers behind these, where asked for


def encode(cfg: ModelConfig, numerics: Numerics, params: Params, _cache: None, args: EncodeArgs) -> EncodeResult:
    """Runs whole texts, of which nothing is kept, and makes a vector of each."""
    tokens, real = args.tokens, args.real
    rows = Rows(jnp.int32(0), jnp.zeros_like(real), real, real > 0)
    step = Step.of(cfg, numerics, params, rows, tokens.shape[1])
    hidden, _ = hidden_states(step, params, tokens, {})
    vectors = rows_of_all(pooled(params, hidden, real, args.pooling, numerics), numerics.split)
    ranked = scores(step, params, hidden, real)
    ranked = None if ranked is None else rows_of_all(ranked, numerics.split)
    return EncodeResult(vectors, ranked, unpooled(params, hidden, args.pooling, numerics))
