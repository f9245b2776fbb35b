"""How hidden states of a text become one vector: the ways that there are, and which one a file asks for. No jax."""

import reprlib
from collections.abc import Callable

import numpy as np

from packlight.common.errors import ConfigError
from packlight.model.spec.config import ModelConfig

# Name -> float32 hidden states (T, D) to a vector (D,).
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda hidden: hidden.mean(0),
    "last": lambda hidden: hidden[-1],
}
# The names of a file's numbers; 0 leaves it open. Source: llama.cpp's `llama_pooling_type`.
POOLING_TYPES = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


def pooling_of(model: ModelConfig, named: str | None) -> str:
    """The name in POOLINGS that a caller gave, or for None the one that the file asks for.

    Raises ConfigError for a name that is not in POOLINGS.
    """
    name = named if named is not None else POOLING_TYPES.get(model.pooling, str(model.pooling))
    if name not in POOLINGS:
        whose = "" if named is not None else ", which the file asks for,"
        raise ConfigError(f"pooling {reprlib.repr(name)}{whose} is unknown; there are: {', '.join(POOLINGS)}")
    return name
