"""What a layer does to each token by itself: dense, or a mixture of experts."""

import jax

from packlight.model.network.ffn import dense, moe
from packlight.model.network.state import Numerics
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params


def ffn(cfg: ModelConfig, h: jax.Array, blk: Params, index: jax.Array, numerics: Numerics) -> jax.Array:
    """The feed-forward part of layer `index`: normed inputs (B, T, D) -> (B, T, D)."""
    return (moe if cfg.expert_count else dense).feed_forward(cfg, h, blk, index, numerics)
