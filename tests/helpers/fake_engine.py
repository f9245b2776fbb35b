"""A model whose answers are scripted, so that a server's tests need no jax: real tokenizer, template and scheduler."""

import time
from collections.abc import Callable

import numpy as np

from packlight.llm import LLM
from packlight.prepared import Prepared, prepare
from packlight.serve.scheduler import Scheduler
from packlight.serve.slots import SlotState
from packlight.serve.told import Scored, States


class FakeEvent:
    """A token, as `serve.engine.Event` has it; that module imports jax."""

    def __init__(self, request, token, ended, position, kept, logprob=None, top_logprobs=()):
        self.request, self.token, self.ended, self.position = request, token, ended, position
        self.time, self.kept = time.perf_counter(), kept
        self.logprob, self.top_logprobs, self.failure = logprob, top_logprobs, None
        self.drafts = None


class FakeRequest:
    def __init__(self, number, prompt, sampling, limit, script, states):
        self.number, self.prompt, self.sampling, self.limit, self.script = number, prompt, sampling, limit, script
        self.given, self.states = 0, states
        self.to_tell = states or limit == 0 or sampling.prompt_logprobs is not None


class FakeEngine:
    """Gives each request the tokens of its script, one a step, as many at a time as there are slots.

    before_step: called with the number of each step; it may sleep or raise.
    """

    def __init__(self, plan, script: Callable[[list[int]], list[int]], end: int, vocab: int, width: int):
        self.plan, self.script, self.end, self.vocab, self.width = plan, script, end, vocab, width
        self.queue: list[FakeRequest] = []
        self.running: list[FakeRequest] = []
        self.before_step: Callable[[int], None] = lambda number: None
        self.steps = self.numbers = 0
        self.failing: set[int] = set()  # requests whose logits are NaN
        self.seen: list[FakeRequest] = []
        self.salts: list[str] = []

    @property
    def idle(self):
        return not self.queue and not self.running

    @property
    def slots(self):
        every = [SlotState("running", len(each.prompt) + each.given, each.number) for each in self.running]
        return every + [SlotState("empty", 0, None)] * (self.plan.slots - len(every))

    @property
    def waiting(self):
        return {each.number for each in self.queue}

    def holds(self, number):
        return any(each.number == number for each in (*self.queue, *self.running))

    def submit(self, prompt, sampling, past_end=False, steering=None, keep=None, salt="", states=False, predicted=()):
        room = self.plan.context - len(prompt)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        script = [*self.script(prompt), self.end]
        self.queue.append(FakeRequest(self.numbers, prompt, sampling, limit, script, states))
        self.seen.append(self.queue[-1])
        self.salts.append(salt)
        self.numbers += 1
        return self.numbers - 1

    def cancel(self, number):
        self.queue = [each for each in self.queue if each.number != number]
        self.running = [each for each in self.running if each.number != number]

    def step(self):
        self.steps += 1
        try:
            self.before_step(self.steps)
        except BaseException:
            self.queue, self.running = [], []
            raise
        while self.queue and len(self.running) < self.plan.slots:
            self.running.append(self.queue.pop(0))
        told = [self._tell(each) for each in self.running if each.to_tell]
        events = [*told, *(self._next(each) for each in self.running if each.limit)]
        ended = {event.request for event in events if event.ended}
        self.running = [each for each in self.running if each.number not in ended]
        return events

    def _tell(self, request):
        """Each token of a prompt is as probable as exp(-1), but the best one has exp(-1/2)."""
        request.to_tell = False
        if request.states:
            return States(request.number, self.hidden(request.prompt), "length", time.perf_counter())
        wanted = request.sampling.prompt_logprobs
        count = 0 if wanted is None else len(request.prompt) - 1
        top = tuple(((token, -0.5), (0, -1.5))[:wanted] for token in request.prompt[1:])
        ended = "length" if request.limit == 0 else None
        return Scored(request.number, (-1.0,) * count, top[:count], ended, 1, count + 1, time.perf_counter())

    def _next(self, request):
        token = request.script[min(request.given, len(request.script) - 1)]
        request.given += 1
        ended = "stop" if token == self.end else "length" if request.given >= request.limit else None
        ended = "error" if request.number in self.failing else ended
        position = len(request.prompt) + request.given - 1
        if request.sampling.logprobs is None:
            return FakeEvent(request.number, token, ended, position, 0)
        top = [(token, -0.5), ((token + 1) % self.vocab, -1.5)][: request.sampling.logprobs]
        return FakeEvent(request.number, token, ended, position, 0, -0.5, tuple(top))

    def hidden(self, ids):
        rng = np.random.default_rng(sum(ids))
        return rng.standard_normal((len(ids), self.width)).astype(np.float32)

    def close(self):
        pass


class FakeLLM(LLM):
    """`LLM` over a scripted engine."""

    def __init__(self, prepared: Prepared, answer: str = "A scripted answer."):
        self.file, self.model, self.tokenizer = prepared.file, prepared.model, prepared.tokenizer
        self.config, self.plan, self.prompts = prepared.config, prepared.plan, prepared.prompts
        self.weights_bytes, self._kernels = prepared.weights_bytes, prepared.kernels
        said = self.tokenizer.encode(answer, add_special=False)
        end = min(self.tokenizer.eog_ids)
        vocab, width = self.model.vocab_size, self.model.embedding_length
        self.engine = FakeEngine(self.plan, lambda prompt: said, end, vocab, width)
        self.scheduler = Scheduler(self.engine)

    @property
    def varying(self):
        return ()


def fake_llm(path, answer: str = "A scripted answer.", slots: int = 2, context: int = 256) -> FakeLLM:
    return FakeLLM(prepare(path, context=context, slots=slots), answer)
