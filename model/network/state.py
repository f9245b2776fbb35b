"""The cache, where the rows of a step lie in it, and what the plan decided. Knows no weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from packlight.model.spec.sharding import WHOLE, Split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What the model keeps of every slot, and how many positions of each slot are filled."""

    length: jax.Array  # int32 (B,)
    state: dict[str, Any]  # the name of each mixer -> its state, as `model.spec.parts` says it: KV, Columns


class Rows(NamedTuple):
    """Where the rows of x lie in the cache."""

    slot: jax.Array  # int32 (), first slot
    start: jax.Array  # int32 (B,), position of each row's first token
    end: jax.Array  # int32 (B,), one past each row's last real token: padding is behind it
    active: jax.Array  # bool (B,), rows that may write


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What the plan decided for the traced code. Static."""

    paths: Mapping[str, str]  # format -> kernel path of products with matrices of it (`compile.kernels.KernelPlan`)
    dtype: jnp.dtype  # activations are rounded to it before a product
    span: int  # S of the step: how many cached positions a query may look back at
    context: int  # tokens that a slot may hold
    split: Split = WHOLE  # how devices share the model
    kernel: str = "tiled"  # which kernel computes attention (`model.network.mixers.attention.attention`)
    native: bool = False  # whether a CPU's C++ kernels run, which other mixers may have too

    def in_float32(self) -> "Numerics":
        """The same but for activations, which stay float32: for a few numbers that weigh or choose much."""
        return dataclasses.replace(self, dtype=jnp.dtype(jnp.float32))
