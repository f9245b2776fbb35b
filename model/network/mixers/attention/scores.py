"""What a family does to attention's scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params


class Scores(NamedTuple):
    """What a family does to scores besides the causal mask: None where it does nothing."""

    window: jax.Array | None = None  # int32 (), positions a query of this layer sees, itself included
    softcap: float = 0.0
    sinks: jax.Array | None = None  # float32 (H,), scores that take weight and give no value

    @property
    def plain(self) -> bool:
        """Whether scores are only causal."""
        return self.window is None and not self.softcap and self.sinks is None

    @classmethod
    def of(cls, cfg: ModelConfig, blk: Params, index: jax.Array) -> "Scores":
        """The scores of layer `index`."""
        if cfg.plain_attention:
            return PLAIN
        window = None
        if any(cfg.slides):
            every = np.where(cfg.slides, cfg.sliding_window, np.iinfo(np.int32).max)
            window = jnp.asarray(every, jnp.int32)[index]
        sinks = blk["attn_sinks"][index] if cfg.architecture.attention.sinks else None
        return cls(window, cfg.softcaps[0], sinks)


PLAIN = Scores()
