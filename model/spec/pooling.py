"""How hidden states of a text become one vector: the ways that there are, and which one a file asks for. No jax."""

import reprlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from packlight.common.errors import ConfigError, UnsupportedError
from packlight.model.spec.config import ModelConfig

Pooling = Literal["mean", "cls", "last", "rank", "none"]
# Name -> what is kept of a text, float32 (D,): of what was kept before, None at its beginning, and of the hidden states
# (T, D) of its next tokens. A sum goes on from where it was, so that no cut into chunks changes its order.
POOLED: dict[str, Callable[[np.ndarray | None, np.ndarray], np.ndarray]] = {
    "mean": lambda before, hidden: (hidden if before is None else np.concatenate([before[None], hidden])).sum(0),
    "cls": lambda before, hidden: hidden[0].copy() if before is None else before,
    "last": lambda before, hidden: hidden[-1].copy(),
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


def kept_of(pooling: str, before: np.ndarray | None, hidden: np.ndarray) -> np.ndarray:
    """What is kept of a text for a pooling, as POOLED says; for "none" its hidden states (T, D)."""
    if pooling in POOLED:
        return POOLED[pooling](before, hidden)
    return hidden if before is None else np.concatenate([before, hidden])


def pooled(pooling: str, kept: np.ndarray, tokens: int) -> np.ndarray:
    """What a pooling makes of what was kept of a text of so many tokens."""
    return kept / np.float32(tokens) if pooling == "mean" else kept


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D), each scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def check_generates(model: ModelConfig) -> None:
    """Raises UnsupportedError for a model that predicts no tokens."""
    if not model.generates:
        name = model.architecture.name
        raise UnsupportedError(f"a {name} model is an encoder: it turns texts into vectors (embed) and generates none")
