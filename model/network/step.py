"""`Step`: what every part of a layer reads and none changes."""

import dataclasses

import jax
import jax.numpy as jnp

from packlight.model.network.rope import Turns, rope_divisors
from packlight.model.network.state import Numerics, Rows
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass over the tokens of some rows."""

    cfg: ModelConfig
    numerics: Numerics
    rows: Rows
    positions: jax.Array  # int32 (B, T), of the tokens
    turns: Turns
    stream: jax.Array | None = None  # int32 (), the stream that brings layers; None: all of them are in memory
    inputs: jax.Array | None = None  # float32 (L, B, T, P), what each layer reads of the tokens themselves

    @classmethod
    def of(cls, cfg: ModelConfig, numerics: Numerics, params: Params, rows: Rows, tokens: int) -> "Step":
        """The step that runs `tokens` tokens of each row."""
        positions = rows.start[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
        turns = Turns(cfg, positions, rope_divisors(cfg, params, numerics.context))
        return cls(cfg, numerics, rows, positions, turns, params.get("stream"))
