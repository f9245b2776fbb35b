"""The draft model: a small model beside the one that runs, which guesses what that one will pick. Knows ids, not text.

It has an engine of its own with one slot. Drafts are asked of that engine as a request that begins as the last one did:
the slot goes back to where both are equal, and only what is new is read.
"""

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from packlight.model.sampling.config import SamplingConfig
from packlight.serve.prefix import Keep, common
from packlight.serve.slots import Request
from packlight.serve.speculation import Pace, Rate
from packlight.serve.told import Scored, States, Told

if TYPE_CHECKING:
    from packlight.serve.engine import Engine, Event

AT_ONCE = 32  # tokens that are read before drafts are made; of more, a chunk is read beside each step


class DraftModel:
    """Drafts of one text at a time."""

    weight: float  # how large its weights are, as a part of those of the model that verifies
    rate: Rate  # how many of its drafts were right lately, of whatever text

    def __init__(self, engine: "Engine", weight: float, vocab_size: int, others: int):
        """vocab_size, others: tokens of this model and of the one that verifies; those that both have are the same."""
        self.weight, self.rate = weight, Rate(asked=True)
        self._engine, self._vocab_size, self._larger = engine, min(vocab_size, others), others > vocab_size
        self._reading, self._text, self._salt = -1, list[int](), ""  # a request that only reads, its tokens and salt

    def asker(self, request: Request, pace: Pace) -> Callable[[int, float], list[int] | None]:
        """What `Drafter.drafts` asks for drafts of a text. pace: is told what they took."""

        def ask(wanted: int, affordable: float) -> list[int] | None:
            ids = [*request.prompt, *request.tokens]
            if not self._has_read(ids, request.salt, affordable, pace):
                return None
            began = time.perf_counter()
            drafts = self._guess(request, ids, wanted)
            pace.asked(len(drafts), time.perf_counter() - began)
            return drafts

        return ask

    def _has_read(self, ids: list[int], salt: str, affordable: float, pace: Pace) -> bool:
        """Whether few tokens are left to read of a text. If not, it reads a chunk, unless it cannot, or all of them
        would take longer than so many tokens of the other model.
        """
        engine = self._engine
        if len(ids) >= engine.plan.context or (self._larger and max(ids) >= self._vocab_size):
            return False
        if self._salt != salt or common(self._text, ids) < len(self._text):  # of another text
            engine.cancel(self._reading)
        if not engine.holds(self._reading):
            behind = len(ids) - engine.begun(ids, salt)
            if behind <= AT_ONCE:
                return True
            if pace.reading(behind) > affordable:
                return False
            self._text, self._salt = ids[:-1], salt
            only_read = SamplingConfig(temperature=0, seed=0, max_tokens=0)
            self._reading = engine.submit(self._text, only_read, keep=Keep.TOKENS, salt=salt)
        engine.step()
        return False

    def _guess(self, request: Request, ids: list[int], wanted: int) -> list[int]:
        """So many drafts, each the most probable token behind the last; fewer behind one that ends the text or that the
        other model does not have, or where logits are not finite.
        """
        engine, greedy = self._engine, SamplingConfig(temperature=0, seed=0, max_tokens=wanted)
        steering = None if self._larger else request.steering  # whose biases may be of tokens that it lacks
        number = engine.submit(ids, greedy, request.past_end, steering, Keep.TOKENS, request.salt)
        events: list[Event | Told] = []
        while engine.holds(number):
            events += engine.step()
        news = (event for event in events if not isinstance(event, Scored | States))
        picked = (event.token for event in news if event.ended != "error")
        return [*itertools.takewhile(lambda token: token < self._vocab_size, picked)]
