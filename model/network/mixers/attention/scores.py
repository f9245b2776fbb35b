"""What a family does to attention's scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.model.network.collectives import tensor_number
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params


class Scores(NamedTuple):
    """What a family does to scores besides the causal mask: None where it does nothing."""

    window: int | None = None  # positions a query sees, itself included
    softcap: float = 0.0
    sinks: jax.Array | None = None  # float32 (H,), scores that take weight and give no value
    chunked: bool = False  # of the window's positions a query sees those in its own chunk of as many
    alibi: jax.Array | None = None  # float32 (H,), what a score loses for each position between query and key

    @classmethod
    def of(
        cls, cfg: ModelConfig, part: AttentionPart, weights: Params, index: jax.Array, split: Split = WHOLE
    ) -> "Scores":
        """The scores of layer `index` of those that have the part, of a device's own heads."""
        family = cfg.architecture
        sinks = weights["attn_sinks"][index] if family.attention.sinks else None
        alibi = None
        if family.attention.alibi:
            own, slopes = split.local_heads(part.heads), jnp.asarray(_slopes(part.heads, family.attention.alibi))
            first = tensor_number(split) * own if split.heads else jnp.int32(0)
            alibi = lax.dynamic_slice_in_dim(slopes, first, own)
        return cls(part.window or None, cfg.softcaps[0], sinks, family.windows.chunked, alibi)

    def oldest(self, position: jax.Array) -> jax.Array:
        """The first position that a query at `position` sees through its window."""
        assert self.window is not None
        return position // self.window * self.window if self.chunked else position - self.window + 1


def _slopes(heads: int, most: float) -> np.ndarray:
    """ALiBi's slopes: 2^-(most / n), its square and so on for the first n heads, n a power of two; for those behind
    them every second one of what 2n heads would have. Source: 2108.12409; llama.cpp's `soft_max_ext`.
    """
    n = 1 << (heads.bit_length() - 1)
    exponents = [*(h + 1 for h in range(n)), *((2 * h + 1) / 2 for h in range(heads - n))]
    return np.exp2(-most / n * np.array(exponents)).astype(np.float32)


PLAIN = Scores()
