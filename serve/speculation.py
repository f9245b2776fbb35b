"""Drafts of what follows a text, looked up in the text itself or asked of a draft model, and when they pay. Pure
arithmetic, imports no jax.

What repeats (an edit, a summary, code) is guessed from where its last tokens stood before. A step that verifies drafts
takes longer than one that decodes a token, and a draft model takes time too, so how many are tried, and whose, follows
from how many were right lately, and from what the steps took. None of it changes a text: drafts that are wrong are not
kept.

Source: prompt lookup decoding (Saxena 2023); speculative decoding (2211.17192), without its second distribution.
"""

import collections
import itertools
import statistics
from collections.abc import Callable, Sequence

import numpy as np

LOOKED_UP = (3, 2)  # tokens that a place must share with the end of the text, the more first
FIRST_RATE = 0.4  # of drafts that are right, where nothing is known
NEWEST = 0.2  # weight of the newest draft in the rate
REMEMBERED, KNOWN = 9, 3  # steps of a kind whose times are kept, and as many as must have run: a first one takes longer
GAIN = 1.02  # that drafts must promise
TRIED_EVERY = 32  # tokens, where drafts do not pay
RARELY = 1024  # tokens, at most so many between two tries of a draft model, which takes time for each
READ_SHARE, TRIED_SHARE = 1 / 4, 1 / 32  # of a text's steps, for a draft model's reading, where it pays and to try it


class Pace:
    """What steps with so many rows take, and drafts of a draft model, in tokens that are decoded without drafts."""

    def __init__(self, verified: Sequence[int], pass_rows: int, weight: float = 0.0):
        """verified, pass_rows: of the plan; until steps have run a few times, a row counts as it does there. weight:
        what a token of the draft model is taken to cost until some are known, its weights as a part of the model's.
        """
        self._verified, self._tries = verified, itertools.cycle(verified)
        self._seconds = {rows: collections.deque[float](maxlen=REMEMBERED) for rows in (1, *verified)}
        self._guessed = {rows: (rows + pass_rows) / (1 + pass_rows) for rows in verified}
        self._asked = {rows - 1: collections.deque[float](maxlen=REMEMBERED) for rows in verified}
        self._weight, self._pass_rows = weight, pass_rows

    def took(self, rows: int, seconds: float) -> None:
        """Notes what a step took, or the share of one of its tokens."""
        self._seconds[rows].append(seconds)

    def asked(self, drafts: int, seconds: float) -> None:
        """Notes what so many drafts of the draft model took; not what is no step's number of drafts."""
        if drafts in self._asked:
            self._asked[drafts].append(seconds)

    def cost(self, rows: int) -> float:
        """What a step takes."""
        return self._measured(self._seconds[rows], self._guessed[rows])

    def asking(self, drafts: int) -> float:
        """What so many drafts of the draft model take, of a text that it has read."""
        return self._measured(self._asked[drafts], drafts * self._weight)

    def reading(self, tokens: int) -> float:
        """What it takes the draft model to read so many tokens, by what a row counts in the plan."""
        return self._weight * tokens / (1 + self._pass_rows)

    def _measured(self, seconds: Sequence[float], guessed: float) -> float:
        one = self._seconds[1]
        if min(len(seconds), len(one)) < KNOWN:
            return guessed
        return statistics.median(seconds) / statistics.median(one)

    def gain(self, drafts: int, rate: float, asked: bool = False) -> float:
        """How many times as many tokens a step with so many drafts promises, where so many are right. asked: the draft
        model makes them.
        """
        rows = next(rows for rows in self._verified if rows > drafts)
        taken = self.cost(rows) + (self.asking(rows - 1) if asked else 0)
        return sum(rate**right for right in range(1 + drafts)) / taken

    def drafts(self, rate: float, asked: bool = False) -> int:
        """How many drafts promise the most tokens in a time where so many are right; 0 where none pay."""
        gains = ((self.gain(rows - 1, rate, asked), rows - 1) for rows in self._verified)
        gain, drafts = max(gains, key=lambda each: each[0], default=(0.0, 0))
        return drafts if gain > GAIN else 0

    def tried(self) -> int:
        """How many drafts to try where none seem to pay: as many as each step takes, by turns."""
        return next(self._tries) - 1


class Rate:
    """How many of a source's drafts were right lately, and how many more to take."""

    def __init__(self, asked: bool = False):
        """asked: the source is the draft model, of which tries become rare, as each takes its time."""
        self.value, self.asked = FIRST_RATE, asked
        self._since, self._every = 0, TRIED_EVERY

    def wanted(self, pace: Pace) -> tuple[int, bool]:
        """How many drafts to take, and whether they promise to pay; else they are a try, once in a while."""
        if paying := pace.drafts(self.value, self.asked):
            self._every = TRIED_EVERY
            return paying, True
        self._since += 1
        return (pace.tried() if self._since >= self._every else 0), False

    def verified(self, drafted: int, accepted: int) -> None:
        """Notes how many drafts were right, from the first on."""
        if self.asked and self._since >= self._every:
            self._every = min(RARELY, 2 * self._every)
        self._since = 0
        for right in [1.0] * accepted + [0.0] * (accepted < drafted):
            self.value += NEWEST * (right - self.value)


class Drafter:
    """The drafts of one text."""

    def __init__(self, context: int, predicted: Sequence[int] = (), model: Rate | None = None):
        """context: tokens that the text may have. predicted: those that are expected behind the prompt. model: the
        draft model's rate, which all texts share.
        """
        self._predicted, self._at = np.asarray(predicted, np.int32), 0  # up to where it has come true
        self._ids = np.empty(context, np.int32)
        self._count = 0
        self._looked_up, self._model = Rate(), model
        self._source = self._looked_up  # of the newest drafts
        self.drafted = self.accepted = 0

    def drafts(
        self,
        prompt: Sequence[int],
        tokens: Sequence[int],
        most: int,
        pace: Pace,
        ask: Callable[[int, float], list[int] | None] | None = None,
    ) -> list[int]:
        """What may follow a prompt and what was generated; [] where nothing is found, or drafts do not pay.

        most: drafts at most. ask: gives so many drafts of the draft model, if there is one; None while it has to read
        more of the text than it can afford, in the time of so many tokens.
        """
        self._extend(prompt, tokens)
        wanted = min(most, self._looked_up.wanted(pace)[0])
        found = (self._expected(len(tokens), wanted) or self._found(wanted)) if wanted > 0 else []
        self._source = self._looked_up
        return found if ask is None else self._asked(found, len(tokens), most, pace, ask)

    def _asked(
        self, found: list[int], generated: int, most: int, pace: Pace, ask: Callable[[int, float], list[int] | None]
    ) -> list[int]:
        """The draft model's drafts, where they promise more than those that were found, or else these."""
        assert self._model is not None
        wanted, pays = self._model.wanted(pace)
        wanted = min(wanted, most)
        looked_up = pace.gain(len(found), self._looked_up.value) if found else 0
        if wanted <= 0 or looked_up >= pace.gain(wanted, self._model.value, asked=True):
            return found
        guessed = ask(wanted, generated * (READ_SHARE if pays else TRIED_SHARE))
        if guessed is None:
            return found
        if not guessed:
            self._model.verified(1, 0)
            return found
        self._source = self._model
        return guessed

    def verified(self, drafted: int, accepted: int) -> None:
        """Notes how many of the newest drafts were right, from the first on."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        self._source.verified(drafted, accepted)

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
