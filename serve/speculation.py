"""Drafts of what follows a text, looked up in the text itself, and when they pay. Pure arithmetic, imports no jax.

What repeats (an edit, a summary, code) is guessed from where its last tokens stood before. A step that verifies drafts
takes longer than one that decodes a token, so how many are tried follows from how many were right lately, and from what
the steps took. None of it changes a text: drafts that are wrong are not kept.

Source: prompt lookup decoding (Saxena 2023); speculative decoding (2211.17192), without its second distribution.
"""

import collections
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

LOOKED_UP = (3, 2)  # tokens that a place must share with the end of the text, the more first
FIRST_RATE = 0.4  # of drafts that are right, where nothing is known
NEWEST = 0.2  # weight of the newest draft in the rate
REMEMBERED, KNOWN = 9, 3  # steps of a kind whose times are kept, and as many as must have run: a first one takes longer
GAIN = 1.02  # that drafts must promise
TRIED_EVERY = 32  # tokens, where drafts do not pay


class Pace:
    """What steps with so many rows take, in tokens that are decoded without drafts."""

    def __init__(self, verified: Sequence[int], pass_rows: int):
        """verified, pass_rows: of the plan; until steps have run a few times, a row counts as it does there."""
        self._verified, self._tries = verified, itertools.cycle(verified)
        self._seconds = {rows: collections.deque[float](maxlen=REMEMBERED) for rows in (1, *verified)}
        self._guessed = {rows: (rows + pass_rows) / (1 + pass_rows) for rows in verified}

    def took(self, rows: int, seconds: float) -> None:
        """Notes what a step took, or the share of one of its tokens."""
        self._seconds[rows].append(seconds)

    def cost(self, rows: int) -> float:
        """What a step takes."""
        several, one = self._seconds[rows], self._seconds[1]
        if min(len(several), len(one)) < KNOWN:
            return self._guessed[rows]
        return statistics.median(several) / statistics.median(one)

    def drafts(self, rate: float) -> int:
        """How many drafts promise the most tokens in a time where so many are right; 0 where none pay."""
        best, most = 0, GAIN
        for rows in self._verified:
            gain = sum(rate**right for right in range(rows)) / self.cost(rows)
            if gain > most:
                best, most = rows - 1, gain
        return best

    def tried(self) -> int:
        """How many drafts to try where none seem to pay: as many as each step takes, by turns."""
        return next(self._tries) - 1


class Drafter:
    """The drafts of one text."""

    def __init__(self, context: int, predicted: Sequence[int] = ()):
        """context: tokens that the text may have. predicted: those that are expected behind the prompt."""
        self._predicted, self._at = np.asarray(predicted, np.int32), 0  # up to where it has come true
        self._ids = np.empty(context, np.int32)
        self._count = 0
        self._rate, self._since = FIRST_RATE, 0
        self.drafted = self.accepted = 0

    def drafts(self, prompt: Sequence[int], tokens: Sequence[int], most: int, pace: Pace) -> list[int]:
        """What may follow a prompt and what was generated; [] where nothing is found, or drafts do not pay.

        most: drafts at most.
        """
        self._extend(prompt, tokens)
        wanted = pace.drafts(self._rate)
        if not wanted:
            self._since += 1
            wanted = pace.tried() if self._since >= TRIED_EVERY else 0
        wanted = min(wanted, most)
        return (self._expected(len(tokens), wanted) or self._found(wanted)) if wanted > 0 else []

    def verified(self, drafted: int, accepted: int) -> None:
        """Notes how many drafts were right, from the first on."""
        self._since = 0
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        for right in [1.0] * accepted + [0.0] * (accepted < drafted):
            self._rate += NEWEST * (right - self._rate)

    def _extend(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Takes in what the text has more than before; all of one that went back."""
        if self._count > len(prompt) + len(tokens):
            self._count = 0
        behind = max(0, self._count - len(prompt))
        for new in (prompt[self._count :], tokens[behind:]):
            self._ids[self._count : self._count + len(new)] = new
            self._count += len(new)

    def _expected(self, generated: int, most: int) -> list[int]:
        """What follows in the prediction: at first its beginning, then behind the next place in it, or else the first,
        that ends as the text does.
        """
        if not len(self._predicted):
            return []
        if generated:
            end = self._ids[self._count - min(generated, LOOKED_UP[0]) : self._count]
            places = next((found for n in LOOKED_UP if len(found := _behind(self._predicted, end[-n:]))), None)
            if places is None:
                return []
            self._at = int(next((place for place in places if place > self._at), places[0]))
        return self._predicted[self._at : self._at + most].tolist()

    def _found(self, most: int) -> list[int]:
        """What followed the last place that the text's end has stood at before."""
        ids = self._ids[: self._count]
        for length in LOOKED_UP:
            if length < len(ids) and len(places := _behind(ids[:-1], ids[-length:])):
                return ids[places[-1] : places[-1] + most].tolist()
        return []


def _behind(ids: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The positions behind which `ids` has had all of `end`, ascending."""
    count = len(ids) - len(end) + 1  # of places where it may begin
    alike = np.ones(max(0, count), np.bool_)
    for at, token in enumerate(end):
        alike &= ids[at : at + len(alike)] == token
    return np.flatnonzero(alike) + len(end)
