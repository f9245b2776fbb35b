"""What a request's history and wishes do to its logits: biases, penalties, DRY, and what a grammar allows.

The host finds the few tokens that change and writes them into the tables of `model.sampling.adjust`. Knows no device.

Source: llama.cpp `llama-sampler.cpp`, `llama_sampler_{logit_bias,penalties,dry}_apply`.
"""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from packlight.model.sampling.adjust import Adjustment
from packlight.model.sampling.config import SamplingConfig

LOG_FLOAT32_MAX = 88.7228391
LONGEST_TAIL = 20  # tokens of a sequence breaker after the first


class Constraint(Protocol):
    """What a grammar allows next; see `model.sampling.grammar`."""

    def allowed(self, generated: Sequence[int]) -> np.ndarray:
        """Bits of the tokens that may follow, uint32 (ceil(V / 32),)."""
        ...


class Steering:
    """The adjustments of one request. breakers: `sequence_breakers` of its DRY breakers, needed where DRY is on."""

    def __init__(
        self,
        config: SamplingConfig,
        end_ids: Sequence[int] = (),
        breakers: Mapping[int, Sequence[tuple[int, ...]]] | None = None,
        constraint: Constraint | None = None,
    ):
        self._config, self._breakers, self._constraint = config, breakers or {}, constraint
        self._bias = dict(config.logit_bias)
        if config.ignore_eos:
            self._bias |= dict.fromkeys(end_ids, -math.inf)

    @property
    def idle(self) -> bool:
        """Whether no logit ever changes."""
        return not self._bias and self.constant

    @property
    def constant(self) -> bool:
        """Whether logits change in the same way whatever is generated."""
        return not self._config.penalizes and self._constraint is None

    def fill(self, row: Adjustment, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Writes what holds after these tokens into a slot's row of a `nothing` adjustment, arrays (N,) and (W,)."""
        config = self._config
        penalties: dict[int, float] = {}
        counts: Mapping[int, int] = {}
        if config.penalizes:
            tokens = [*prompt, *generated]
            recent = _last(tokens, config.repeat_last_n)
            counts = collections.Counter(recent)
            penalties = {t: n * config.frequency_penalty + config.presence_penalty for t, n in counts.items()}
            if config.dries:
                window = _last(tokens, config.dry_penalty_last_n)
                for token, length in repetitions(window, config.dry_allowed_length, self._breakers).items():
                    penalties[token] = penalties.get(token, 0.0) + _dry(config, length)
        ids = sorted({*self._bias, *penalties})
        n = len(ids)
        row.ids[:n] = ids
        row.bias[:n] = [self._bias.get(t, 0.0) for t in ids]
        row.repeat[:n] = [config.repeat_penalty if t in counts else 1.0 for t in ids]
        row.minus[:n] = [penalties.get(t, 0.0) for t in ids]
        if self._constraint is not None:
            row.allowed[:] = self._constraint.allowed(generated)


def _last(tokens: list[int], n: int) -> list[int]:
    """The last n tokens; all for -1."""
    return tokens if n < 0 else tokens[len(tokens) - n :] if n < len(tokens) else tokens


def _dry(config: SamplingConfig, length: int) -> float:
    """What DRY takes from a token that extends a repetition of `length` tokens, kept within float32."""
    exponent = length - config.dry_allowed_length
    if config.dry_base > 1.000001:
        exponent = min(exponent, int(LOG_FLOAT32_MAX / math.log(config.dry_base)))
    return min(config.dry_multiplier * config.dry_base**exponent, float(np.finfo(np.float32).max))


def repetitions(
    tokens: Sequence[int], allowed: int, breakers: Mapping[int, Sequence[tuple[int, ...]]]
) -> dict[int, int]:
    """Token -> the longest sequence at the end of `tokens` that it followed before, where at least `allowed` long.

    No sequence reaches over a breaker: a token id that begins one -> the tokens that follow it, () for none.
    """
    n = len(tokens)
    if n <= allowed:
        return {}
    limit = _until_breaker(tokens, breakers)
    if limit < allowed:
        return {}
    longest: dict[int, int] = {}
    backwards = list(reversed(tokens))
    for distance, length in enumerate(_common_prefixes(backwards)):
        length = min(length, limit)
        if distance and length >= allowed:
            follower = backwards[distance - 1]
            longest[follower] = max(longest.get(follower, 0), length)
    return {t: length for t, length in longest.items() if () not in breakers.get(t, ())}


def _until_breaker(tokens: Sequence[int], breakers: Mapping[int, Sequence[tuple[int, ...]]]) -> int:
    """How many tokens follow the last breaker; all where there is none."""
    n = len(tokens)
    for after in range(n):
        tails = breakers.get(tokens[n - 1 - after], ())
        fitting = [len(tail) for tail in tails if len(tail) <= after and _follows(tokens, n - after, tail)]
        if fitting:
            return after - max(fitting)
    return n


def _follows(tokens: Sequence[int], at: int, tail: tuple[int, ...]) -> bool:
    return tuple(tokens[at : at + len(tail)]) == tail


def _common_prefixes(s: Sequence[int]) -> list[int]:
    """The Z-function: for each position, how long the sequence from there equals the beginning. Linear."""
    n = len(s)
    z = [0] * n
    left = right = 0  # s[left:right] equals the beginning, right as far as any was seen
    for i in range(1, n):
        if i < right:
            z[i] = min(right - i, z[i - left])
        while i + z[i] < n and s[z[i]] == s[i + z[i]]:
            z[i] += 1
        if i + z[i] > right:
            left, right = i, i + z[i]
    return z


def sequence_breakers(
    texts: Sequence[str], pieces: Sequence[bytes], encode: Callable[[str], list[int]]
) -> dict[int, list[tuple[int, ...]]]:
    """Token id -> tails: the tokens that must follow it to complete one of the texts; () where it holds one whole.

    pieces: the bytes of every token. encode: text -> ids, without special tokens.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        raw = text.encode()
        for token, piece in enumerate(pieces):
            if raw[:1] not in piece:
                continue
            tails = [()] if raw in piece else _tails(raw, piece, encode)
            for tail in tails:
                if tail not in found.setdefault(token, []):
                    found[token].append(tail)
    return {token: tails for token, tails in found.items() if tails}


def _tails(raw: bytes, piece: bytes, encode: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
    """For each way a piece ends in the beginning of a breaker, the tokens of its rest."""
    ends = [n for n in range(1, min(len(raw), len(piece) + 1)) if piece.endswith(raw[:n])]
    return [tuple(encode(raw[n:].decode(errors="replace"))[:LONGEST_TAIL]) for n in ends]
