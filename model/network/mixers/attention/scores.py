"""What a family does to attention's scores."""

from typing import NamedTuple

import jax

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.weights.params import Params


class Scores(NamedTuple):
    """What a family does to scores besides the causal mask: None where it does nothing."""

    window: int | None = None  # positions a query sees, itself included
    softcap: float = 0.0
    sinks: jax.Array | None = None  # float32 (H,), scores that take weight and give no value
    chunked: bool = False  # of the window's positions a query sees those in its own chunk of as many

    @property
    def plain(self) -> bool:
        """Whether scores are only causal."""
        return self.window is None and not self.softcap and self.sinks is None

    @classmethod
    def of(cls, cfg: ModelConfig, part: AttentionPart, weights: Params, index: jax.Array) -> "Scores":
        """The scores of layer `index` of those that have the part."""
        sinks = weights["attn_sinks"][index] if cfg.architecture.attention.sinks else None
        return cls(part.window or None, cfg.softcaps[0], sinks, cfg.architecture.windows.chunked)

    def oldest(self, position: jax.Array) -> jax.Array:
        """The first position that a query at `position` sees through its window."""
        assert self.window is not None
        return position // self.window * self.window if self.chunked else position - self.window + 1


PLAIN = Scores()
