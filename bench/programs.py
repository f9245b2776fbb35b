"""The programs that are measured, one interface for all: packlight in this process, the peers in their own.

`start` brings a program to where a case's clock starts, `run` is one repetition and may be called again, `stop` frees
what `start` took. An idle program waits without using the processor.
"""

import os
import time
from typing import TYPE_CHECKING, Protocol

import packlight
from packlight.bench.cases import Case, Sample
from packlight.model.spec.pooling import pooling_of

if TYPE_CHECKING:
    from packlight.serve.engine import Event
    from packlight.serve.told import Told


class Program(Protocol):
    """name: as it stands in tables; pid: the process whose processor time is watched while others run."""

    name: str
    pid: int

    def can(self, case: Case) -> bool: ...
    def start(self, case: Case) -> None: ...
    def run(self) -> Sample: ...
    def stop(self) -> None: ...


class Packlight:
    """A loaded model, driven through its engine as generation drives it: greedy, sampled on the device."""

    def __init__(self, name: str, llm: packlight.LLM):
        self.name, self.llm, self.pid = name, llm, os.getpid()
        self._engine = llm.engine
        self._requests: list[int] = []

    def can(self, case: Case) -> bool:
        return case.context <= self.llm.plan.context

    def start(self, case: Case) -> None:
        self._case, self._prompts = case, case.prompts(self.llm.model.vocab_size)
        self._pooling = pooling_of(self.llm.model, None)
        if case.phase == "tg":
            self._requests = [self._submit(prompt, case.context - case.filled) for prompt in self._prompts]
            waiting = set(self._requests)
            while waiting:
                waiting -= {event.request for event in self._events()}

    def run(self) -> Sample:
        if self._case.phase == "emb":
            began = time.perf_counter()
            for key, numbers in self.llm.plan.text_groups([self._case.tokens] * self._case.batch):
                self._engine.encode(key, [self._prompts[number] for number in numbers], self._pooling)
            return Sample(time.perf_counter() - began)
        if self._case.phase == "pp":
            self._submit(self._prompts[0], 1)
            began = time.perf_counter()
            return Sample(self._step() - began)
        if all(self._engine.rewinds(request, 1) for request in self._requests):
            for request in self._requests:
                self._engine.rewind(request, 1)
        else:
            self.stop()
            self.start(self._case)
        each = self.llm.plan.tokens_per_launch
        times = [time.perf_counter()]
        times += [self._step() for _ in range(self._case.tokens // each)]
        return Sample(times[-1] - times[0], [(b - a) / each for a, b in zip(times, times[1:], strict=False)])

    def stop(self) -> None:
        for request in self._requests:
            self._engine.cancel(request)
        self._requests = []

    def _submit(self, prompt: list[int], max_tokens: int) -> int:
        greedy = packlight.SamplingConfig(temperature=0, seed=0, max_tokens=max_tokens)
        return self._engine.submit(prompt, greedy, past_end=True)

    def _step(self) -> float:
        """Steps of the engine until one gives tokens; returns when its last one was there."""
        while not (events := self._events()):
            pass
        return events[-1].time

    def _events(self) -> "list[Event | Told]":
        """What one step of the engine gives."""
        events = self._engine.step()
        if any(event.ended == "error" for event in events):
            raise packlight.NonFiniteLogitsError("the model's logits are NaN or infinite; its speed is not measured")
        return events
