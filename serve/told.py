"""What a chunk of a prompt tells: `Scored` and `States`. Knows no model and no device; imports no jax."""

import dataclasses
import time
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scored:
    """Log-probabilities of tokens of one request's prompt, which follow each other.

    ended: None, "length" (the prompt is read, and no token is wanted) or "error" (the logits in front of `position`
    were NaN or infinite, the request is retired). Of a prompt that is read for the cache alone there is the end only.
    """

    request: int
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]  # of each the most probable tokens, as many as are wanted
    ended: str | None
    start: int  # position of the first of them, in the prompt; its first token has none, as nothing precedes it
    position: int  # behind the last of them
    time: float  # time.perf_counter(), when the host had them
    kept: int = 0  # tokens of the prompt that were not read, as the cache had them

    @classmethod
    def of(
        cls,
        request: int,
        start: int,
        rows: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],  # as a row of `ScoreResult` is
        wanted: int,  # of the most probable tokens
        last: bool,  # the prompt is read, and no token is wanted
        kept: int = 0,
    ) -> "Scored":
        """What score steps say of tokens from `start` on, up to the first whose logits are not finite."""
        logprobs, top, ended = [], [], "length" if last else None
        for logprob, values, ids, finite in rows:
            if not finite:
                ended = "error"
                break
            logprobs.append(float(logprob))
            top.append(tuple(zip(ids[:wanted].tolist(), values[:wanted].tolist(), strict=True)))
        end, now = start + len(logprobs), time.perf_counter()
        return cls(request, tuple(logprobs), tuple(top), ended, start, end, now, kept)


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states behind tokens of one request's prompt, which follow each other.

    ended: None, or "length" (the prompt is read).
    """

    request: int
    hidden: np.ndarray  # float32 (tokens, D), behind the last norm
    ended: str | None
    time: float  # time.perf_counter(), when the host had them


Told = Scored | States
