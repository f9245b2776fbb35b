"""How hidden states of a text become one vector: the ways that there are, and which one a file asks for. No jax."""

import reprlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from packlight.common.errors import ConfigError, UnsupportedError
from packlight.model.spec.config import ModelConfig

Pooling = Literal["mean", "cls", "last", "rank", "none"]
# Name -> float32 hidden states (T, D) to a vector (D,), of models whose texts run through a cache.
POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
}
NONE = len(POOLED)  # what stands for no pooling, where the number of one of them may stand
# The names that callers may give: those, what a reranker's head says, and no pooling, a vector for each token.
POOLINGS = (*POOLED, "rank", "none")
# The names of a file's numbers; 0 leaves it open. Source: llama.cpp's `llama_pooling_type`.
POOLING_TYPES = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


def pooling_of(model: ModelConfig, named: str | None) -> str:
    """The name in POOLINGS that a caller gave, or for None the one that the file asks for.

    Raises ConfigError for a name that is not in POOLINGS, and for "rank" of a model that is no reranker.
    """
    name = named if named is not None else POOLING_TYPES.get(model.pooling, str(model.pooling))
    whose = "" if named is not None else ", which the file asks for,"
    if name not in POOLINGS:
        raise ConfigError(f"pooling {reprlib.repr(name)}{whose} is unknown; there are: {', '.join(POOLINGS)}")
    if name == "rank" and not (model.encodes and model.ranks):
        raise ConfigError(f"pooling 'rank'{whose} needs the head of a reranker, which the file does not have")
    return name


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D), each scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def check_generates(model: ModelConfig) -> None:
    """Raises UnsupportedError for a model that predicts no tokens."""
    if not model.generates:
        name = model.architecture.name
        raise UnsupportedError(f"a {name} model is an encoder: it turns texts into vectors (embed) and generates none")
