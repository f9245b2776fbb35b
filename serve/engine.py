"""The engine: requests in slots, prefill and decode through the plan's executables. Knows ids, not text or terminals.

`submit` queues a request, `step` reads a chunk of one prompt and moves every running request by a token or a launch of
several, `cancel` retires one early: requests enter and leave while others decode, and a long prompt does not stop
them. Which slot a request takes, and what of its prompt it finds in the cache, `serve.slots` decides.
"""

import collections
import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from packlight.common.errors import ContextLengthError, NonFiniteLogitsError, PacklightError
from packlight.compile.aot import Executables
from packlight.compile.encode import EncodeArgs, EncodeResult
from packlight.compile.plan import Chunk, StepKey
from packlight.compile.steps import (
    Choice,
    CopyArgs,
    DecodeArgs,
    DecodeResult,
    HeadArgs,
    HeadResult,
    PrefillArgs,
    PrefillResult,
    ScoreArgs,
    ScoreResult,
    Steps,
    VerifyArgs,
    VerifyResult,
)
from packlight.model.network.state import Cache
from packlight.model.sampling.adjust import Adjustment, nothing, table_size
from packlight.model.sampling.chain import Picked, SlotSampling, slot_sampling
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.penalties import Steering
from packlight.model.spec.pooling import NONE, POOLED, check_generates
from packlight.model.spec.sharding import DATA
from packlight.model.weights.params import Params
from packlight.model.weights.placement import P
from packlight.serve.draft_model import DraftModel
from packlight.serve.prefix import WORTH_A_COPY, Held, Keep, common
from packlight.serve.saved import Saved
from packlight.serve.slots import Request, Seat, Slots, SlotsTakenError, SlotState
from packlight.serve.speculation import Drafter, Pace
from packlight.serve.told import Scored, States, Told


@dataclasses.dataclass(frozen=True)
class Event:
    """One token of one request.

    ended: None, "stop" (`token` ends the text), "length" (no room for another) or "error" (the token means nothing, the
    request is retired).
    """

    request: int
    token: int
    ended: str | None
    position: int  # of the token in its sequence
    time: float  # time.perf_counter(), when the host had the token
    logprob: float | None = None  # of the token, where the request asked for it
    top_logprobs: tuple[tuple[int, float], ...] = ()  # the most probable tokens, as many as it asked for
    kept: int = 0  # tokens of its prompt that were not read, as the cache had them
    failure: PacklightError | None = None  # why it ended by an error; None: the logits were NaN or infinite
    drafts: tuple[int, int] | None = None  # tokens so far that were guessed, and of them right, where any are guessed


class LostWeightsError(PacklightError):
    """Weights in a file cannot be read any more: it was cut short, or the disk fails."""


# said by native/stream.cc and native/expert_pool.cc
UNREADABLE = re.compile(r"layer \d+(, expert \d+)?: its weights cannot be read: [^\n]*")
BRIEF = 2  # tokens of a launch while a prompt waits for its turn
OLDEST_EVERY = 4  # chunks, of which one is the oldest prompt's, and the others that prompt's which is soonest read


class Engine:
    """Runs requests over one cache. One caller at a time owns it.

    steady: whether a text's bits depend on its tokens alone, however it is cut (`KernelPlan.varying`). Where they do
    not, a prompt is read in the same chunks whatever runs beside it.
    lost: says what became of weights that a file was mapped to, if they are no longer what was loaded.
    draft_model: guesses what a text that is alone goes on with, for the steps that verify.
    """

    def __init__(
        self,
        steps: Steps,
        executables: Executables,
        params: Params,
        end_tokens: frozenset[int],
        steady: bool = False,
        lost: Callable[[], str | None] = lambda: None,
        draft_model: DraftModel | None = None,
    ):
        self.plan = steps.plan
        self.steps_run: collections.Counter[StepKey] = collections.Counter()  # how often each executable ran
        self._steps, self._executables, self._params = steps, executables, params
        self._vocab = steps.model.vocab_size
        self._table = table_size(self._vocab, self.plan.context)
        self._is_end = np.zeros(self._vocab, np.bool_)
        self._is_end[sorted(end_tokens)] = True
        self._placement = steps.placement
        self._cache = steps.empty_cache()
        self._steady, self._lost = steady, lost
        shape, budget = steps.cache_shape, steps.config.prefix_cache_bytes
        self.saved = Saved(self.plan, shape, budget, self._run) if self.plan.saves else None
        # whether a prompt is read but for its last token, so that others find its slot where they can go on
        back = shape.rewinds(self.plan.capacity, self.plan.capacity - 1)
        self._ends = self.saved.pool.stateful if self.saved is not None else self.plan.slots > 1 and not back
        self.reused: collections.Counter[str] = collections.Counter()  # tokens that a "slot", "copy" or "pool" had
        self._slots = Slots(self.plan, shape, self.saved and self.saved.pool)
        self._queue: collections.deque[Request] = collections.deque()
        self._ids, self._chunks = itertools.count(), itertools.count(1)
        self._unsteered: dict[int, Adjustment] = {}
        self._asked: dict[int, tuple[tuple[SamplingConfig | None, ...], SlotSampling]] = {}
        self._draft_model = draft_model
        self.pace = Pace(self.plan.verified, self.plan.pass_rows, draft_model.weight if draft_model is not None else 0)

    @property
    def cache_bytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self._cache))

    @property
    def slots(self) -> list[SlotState]:
        """What each slot does."""
        return self._slots.states()

    @property
    def idle(self) -> bool:
        return not self._queue and not any(self._slots.requests)

    @property
    def waiting(self) -> set[int]:
        """The requests that have no slot yet."""
        return {request.id for request in self._queue}

    def holds(self, request: int) -> bool:
        """Whether a request is queued or running."""
        return any(r is not None and r.id == request for r in (*self._queue, *self._slots.requests))

    def begun(self, ids: Sequence[int], salt: str) -> int:
        """How many tokens that a text begins with a slot has, of a request of the same salt."""
        held = map(self._slots.holds, range(self.plan.slots))
        return max((common(each.ids, ids) for each in held if each.salt == salt), default=0)

    def close(self) -> None:
        """Frees the memory of weights and cache. The engine is of no use afterwards."""
        for array in jax.tree.leaves((self._params, self._cache)):
            array.delete()
        if self.saved is not None:
            self.saved.pool.clear()

    def submit(
        self,
        prompt: list[int],
        sampling: SamplingConfig,
        past_end: bool = False,
        steering: Steering | None = None,
        keep: Keep = Keep.NOTHING,
        salt: str = "",
        states: bool = False,
        predicted: Sequence[int] = (),
    ) -> int:
        """Queues a prompt of token ids and returns the request's number.

        `sampling` has a seed, and `max_tokens` None (until the context is full) or at least 1; or 0, which ends the
        request when its prompt is read. past_end: an end token
        ends nothing, as a measurement of so many tokens needs it. steering: what changes its logits (default: what
        `sampling` says without knowing any text). keep: what of the prompt need not be read where the cache has it;
        all is read of one whose log-probabilities or states are wanted. salt: only requests of the same one share what
        the cache has. states: the prompt's hidden states are wanted (`States`), and no token. predicted: tokens
        that are expected to follow, from which drafts are taken first.
        Raises ContextLengthError when the prompt leaves no room for a token that is wanted.
        """
        room = self.plan.context - len(prompt)
        if room < (1 if sampling.answered else 0):
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; a context of {self.plan.context} leaves no room for an answer"
            )
        if not prompt or (states and sampling.answered):
            raise ValueError("a request needs at least one prompt token, and wants states or tokens")
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        steering = Steering(sampling) if steering is None else steering
        mu, keep = 2 * sampling.mirostat_tau, Keep.NOTHING if states or sampling.prompt_logprobs is not None else keep
        request = Request(next(self._ids), list(prompt), sampling, limit, past_end, steering, mu, keep, salt, states)
        if self.plan.verified and steering.constant and not sampling.mirostat:
            rate = self._draft_model.rate if self._draft_model is not None else None
            request.drafter = Drafter(self.plan.context, predicted, rate)
        self._queue.append(request)
        return request.id

    def cancel(self, request: int) -> None:
        """Retires a request, queued or running; its slot is free at once."""
        self._queue = collections.deque(r for r in self._queue if r.id != request)
        for slot, taken in list(self._slots.taken()):
            if taken.id == request:
                self._slots.leave(slot, taken.held)

    def rewind(self, request: int, tokens: int) -> None:
        """Takes a running request back to its first `tokens` generated tokens; the next step continues from there.

        Raises ValueError for a request that is not running or has no so many, and for 0; PacklightError where
        `rewinds` says no.
        """
        found = self._running(request, tokens)
        if not self.rewinds(request, tokens):
            raise PacklightError(
                f"request {request} cannot go back from {found.length} cached tokens to "
                f"{len(found.prompt) + tokens - 1}: layers of the model have forgotten what was before the later ones"
            )
        found.written = max(found.written, found.length)
        del found.tokens[tokens:]
        self._set_lengths()

    def _set_lengths(self) -> None:
        """Tells the device how many positions of each slot its request has."""
        length = np.array([r.length if r else 0 for r in self._slots.requests], np.int32)
        self._cache = dataclasses.replace(self._cache, length=self._placement.put(length, P(DATA), alias=False))

    def rewinds(self, request: int, tokens: int) -> bool:
        """Whether a running request can be taken back so far: sliding windows keep only so many positions, and a
        recurrence keeps its last state alone. Raises ValueError as `rewind` does.
        """
        found = self._running(request, tokens)
        written = max(found.written, found.length)
        shape = self._steps.cache_shape
        return tokens == len(found.tokens) or shape.rewinds(written, len(found.prompt) + tokens - 1)

    def _running(self, request: int, tokens: int) -> Request:
        """A running request that has generated so many tokens."""
        found = next((r for _, r in self._slots.taken() if r.id == request), None)
        if found is None or not 1 <= tokens <= len(found.tokens):
            raise ValueError(f"request {request} is not running or has not generated {tokens} tokens")
        return found

    def step(self) -> list[Event | Told]:
        """One chunk of a prompt that is to be read, with the log-probabilities or states of its tokens where they are
        wanted and the first token behind its end, and the next token of every request that was running, or the next few
        (`CompileConfig.tokens_per_launch`), in the order of their positions.

        One that is interrupted loses every request: the cache may be ahead of the tokens that were booked.
        """
        with self._whole_cache():
            try:
                self._seat()
                running = [(slot, request) for slot, request in self._slots.taken() if not request.reads]
                events = self._read(bool(running))
                return [*events, *self._follow(running)] if running else events
            except BaseException:
                self._lose()
                raise

    def logits(self, ids: list[int], first: int = 0) -> np.ndarray:
        """Logits after token `first` of `ids` and every later one, float32 (T - first, V), through the steps that serve
        generation, in a free slot. Raises as `hidden` does, and NonFiniteLogitsError.
        """
        hidden = self.hidden(ids)
        largest = self.plan.head_rows[-1]
        with self._readable():
            blocks = [self._head(hidden[at : at + largest]) for at in range(first, len(ids), largest)]
            return np.concatenate(blocks)

    def hidden(self, ids: list[int]) -> np.ndarray:
        """Normed hidden states after every token of `ids`, float32 (T, D), by the prefill steps, in a free slot.

        Raises ContextLengthError when they do not fit, PacklightError when every slot is taken, UnsupportedError of an
        encoder.
        """
        check_generates(self._steps.model)
        if self._slots.full:
            raise SlotsTakenError(f"a prompt needs a free slot; all {self.plan.slots} are generating")
        if len(ids) > self.plan.context:
            raise ContextLengthError(f"{len(ids)} tokens do not fit a context of {self.plan.context}")
        with self._whole_cache():
            slot = self._slots.free()
            self._park(slot)
            self._slots.spoil(slot)
            read = [(self._prefill(slot, ids, chunk), chunk.count) for chunk in self.plan.chunks(0, len(ids))]
            return np.concatenate([np.asarray(result.hidden)[:count] for result, count in read])

    def encode(self, key: StepKey, texts: Sequence[list[int]], pooling: str) -> list[np.ndarray]:
        """What an encode step makes of texts of token ids, which fit it: of each a vector, scores for the pooling
        "rank", hidden states (T, D) for "none". A text gets the numbers that it would get alone.
        """
        tokens, real = np.zeros((key.rows, key.length), np.int32), np.ones(key.rows, np.int32)
        for row, ids in enumerate(texts):
            real[row] = len(ids)
            tokens[row, : len(ids)] = ids
        kind = np.int32(list(POOLED).index(pooling) if pooling in POOLED else NONE)
        with self._readable():
            result: EncodeResult = self._run(key, None, EncodeArgs(tokens, real, kind))
            made = {"rank": result.scores, "none": result.hidden}.get(pooling, result.pooled)
            rows = np.asarray(made)[: len(texts)]
        return [row[: len(ids)] if pooling == "none" else row for row, ids in zip(rows, texts, strict=True)]

    def _run(self, key: StepKey, cache: Cache | None, args: NamedTuple) -> Any:
        self.steps_run[key] += 1
        return self._executables[key](self._params, cache, args)

    @contextlib.contextmanager
    def _whole_cache(self) -> Iterator[None]:
        """An interrupt between a step and its result loses the donated cache, and every request with it: start anew.

        So do weights that cannot be read.
        """
        try:
            with self._readable():
                yield
        except BaseException as error:
            if isinstance(error, LostWeightsError) or any(x.is_deleted() for x in jax.tree.leaves(self._cache)):
                self._cache = self._steps.empty_cache()
                self._lose()
            raise

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raises LostWeightsError where weights could not be read, of which what came of a step cannot be used."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of them, differs by how a step is called
            if said := UNREADABLE.search(str(error)):
                raise LostWeightsError(said[0]) from None
            raise
        if said := self._lost():
            raise LostWeightsError(said)

    def _lose(self) -> None:
        """Ends every request; no slot holds anything."""
        self._slots.forget()
        self._queue.clear()

    def _seat(self) -> None:
        """Gives free slots to the requests that have waited longest. One waits on while another one reads what it
        begins with: that is copied then.
        """
        for request in list(self._queue):
            if self._slots.full:
                return
            seat = self._slots.choose(request)
            if seat is None:
                continue
            self._queue.remove(request)
            if seat.source != seat.slot or seat.found or seat.kept < len(self._slots.holds(seat.slot).ids):
                self._park(seat.slot)
            self._slots.seat(request, seat)
            self._fetch(request, seat)
            request.to_read, but_last = len(request.prompt), len(request.prompt) - 1
            ends = request.keep is Keep.TOKENS and self._ends and but_last >= WORTH_A_COPY
            there = 0 < request.kept == but_last
            if self._steady and (there or ends) and (request.limit or not there):
                request.to_read = but_last  # a decode step reads the last token: its bits are the same
                self._set_lengths()

    def _fetch(self, request: Request, seat: Seat) -> None:
        """Brings to a request's slot what it begins with."""
        if seat.source != seat.slot:
            args = CopyArgs(np.int32(seat.source), np.int32(seat.slot), np.int32(seat.kept))
            self._cache = self._run(self.plan.copy_key, self._cache, args)
        if self.saved is not None and seat.found is not None:
            self._cache, whole = self.saved.load(self._cache, seat.slot, seat.found)
            if not whole:
                request.kept = request.read = request.written = 0
                return
        self.reused["pool" if seat.pooled else "copy" if seat.source != seat.slot else "slot"] += seat.kept

    def _park(self, slot: int) -> None:
        """Keeps what a free slot has of a text, as it is going to be written over."""
        if self.saved is not None:
            self.saved.park(self._cache, slot, self._slots.holds(slot))

    def _read(self, beside: bool) -> list[Event | Told]:
        """Reads a chunk of one prompt. beside: other requests wait for their next token."""
        reading = [(slot, request) for slot, request in self._slots.taken() if request.reads]
        if not reading:
            return []
        soonest = next(self._chunks) % OLDEST_EVERY > 0
        slot, request = min(reading, key=lambda at: (soonest and at[1].to_read - at[1].read, at[1].id))
        chunk, *_ = self.plan.chunks(request.read, request.to_read - request.read, beside and self._steady)
        result = self._prefill(slot, request.prompt, chunk)
        request.read, request.chunks = chunk.start + chunk.count, (*request.chunks, chunk)
        request.written = max(request.written, chunk.start + chunk.key.rows)
        if self.saved is not None and request.keep is Keep.TOKENS:
            read = Held(request.prompt[: request.read], request.written, salt=request.salt)
            self.saved.mark(self._cache, slot, read)
        told = self._tell(slot, request, chunk, result)
        if request.read < len(request.prompt) or any(each.ended for each in told):
            return [*told]
        choice = Choice(*self._arguments([request]), np.array([request.read], np.int32), self._is_end)
        head: HeadResult = self._run(self.plan.head_key(1), None, HeadArgs(result.last, choice))
        assert head.picked is not None
        return [*told, self._advance(slot, request, head.picked, (0,))]

    def _tell(self, slot: int, request: Request, chunk: Chunk, read: PrefillResult) -> list[Told]:
        """What is told of a chunk that was read; the request ends with its last one if no token is wanted."""
        last = request.limit == 0 and not request.reads
        if request.states:
            now, ended = time.perf_counter(), "length" if last else None
            told = States(request.id, np.asarray(read.hidden)[: chunk.count], ended, now)
        elif request.sampling.prompt_logprobs is not None:
            told = self._score(request, chunk, read, last)
        elif last:
            told = Scored.of(request.id, request.read, (), 0, last, request.kept)
        else:
            return []
        if told.ended:
            self._slots.leave(slot, Held() if told.ended == "error" or request.states else request.held)
        return [told]

    def _score(self, request: Request, chunk: Chunk, read: PrefillResult, last: bool) -> Scored:
        """What a chunk that was read says of the tokens behind its own. last: no token follows.

        Hidden states go to the score step by way of the host, in parts of its one size: they are D numbers a token,
        where logits are V.
        """
        key, hidden = self.plan.score_key, np.asarray(read.hidden)
        following = request.prompt[chunk.start + 1 : chunk.start + chunk.count + 1]  # none behind the last token
        results: list[ScoreResult] = []
        for at in range(0, len(following), key.rows):
            ids = following[at : at + key.rows]
            args = ScoreArgs(np.zeros((key.rows, hidden.shape[1]), np.float32), np.zeros(key.rows, np.int32))
            args.hidden[: len(ids)], args.next_ids[: len(ids)] = hidden[at : at + len(ids)], ids
            results.append(self._run(key, None, args))
        rows = itertools.chain.from_iterable(zip(*map(np.asarray, result), strict=True) for result in results)
        told = itertools.islice(rows, len(following))
        return Scored.of(request.id, chunk.start + 1, told, request.sampling.prompt_logprobs or 0, last)

    def _arguments(self, requests: list[Request | None]) -> tuple[Adjustment, SlotSampling]:
        """How a step is to adjust and sample, a row per request; made anew only where something changed."""
        rows = len(requests)
        who = tuple(r and r.sampling for r in requests)
        spec = P(DATA) if rows > 1 else P()
        known, sampling = self._asked.get(rows, ((), None))
        if sampling is None or known != who:
            sampling = self._placement.put(slot_sampling([r and r.sampling for r in requests]), spec)
            self._asked[rows] = who, sampling
        if any(r and r.sampling.mirostat for r in requests):
            sampling = sampling._replace(mirostat_mu=np.array([r.mu if r else 0 for r in requests], np.float32))
        if all(r is None or r.steering.idle for r in requests):
            if rows not in self._unsteered:
                self._unsteered[rows] = self._placement.put(nothing(rows, self._vocab, self._table), spec)
            return self._unsteered[rows], sampling
        adjustment = nothing(rows, self._vocab, self._table)
        for row, request in enumerate(requests):
            if request is not None:
                try:
                    request.steering.fill(Adjustment(*(x[row] for x in adjustment)), request.prompt, request.tokens)
                except PacklightError as error:  # of this request alone: the step goes on for the others
                    request.failure = error
        return adjustment, sampling

    def _prefill(self, slot: int, ids: list[int], chunk: Chunk) -> PrefillResult:
        """Runs a chunk of a prompt."""
        args = _chunk_args(chunk.key, slot, chunk.start, ids[chunk.start : chunk.start + chunk.count])
        result: PrefillResult = self._run(chunk.key, self._cache, args)
        self._cache = result.cache
        return result

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        """Logits (rows, V) of hidden states (rows, D), padded to a head step."""
        count = len(hidden)
        key = self.plan.head_key(count)
        padded = np.zeros((key.rows, hidden.shape[1]), np.float32)
        padded[:count] = hidden
        choice = Choice(*self._arguments([None]), np.zeros(1, np.int32), self._is_end) if key.rows == 1 else None
        result: HeadResult = self._run(key, None, HeadArgs(padded, choice))
        finite = result.finite if result.picked is None else result.picked.finite
        if not np.asarray(finite)[:count].all():
            raise NonFiniteLogitsError("the model's logits are NaN or infinite")
        return np.asarray(result.logits)[:count]

    def _follow(self, running: list[tuple[int, Request]]) -> list[Event]:
        """Moves these requests: one that is alone by drafts, where there are any that may be right."""
        if len(running) > 1 or not self.plan.verified:
            return self._decode(running)
        ((slot, request),) = running
        events = self._verify(slot, request)
        if events is None:
            began = time.perf_counter()
            events = self._decode(running)
            self.pace.took(1, (time.perf_counter() - began) / len(events))
        return events

    def _verify(self, slot: int, request: Request) -> list[Event] | None:
        """Moves a request by one token more than it has drafts that are right. None: it has none."""
        start, most = request.length, min(request.limit - len(request.tokens), self.plan.capacity - request.length)
        if request.drafter is None:
            return None
        ask = self._draft_model.asker(request, self.pace) if self._draft_model is not None else None
        drafts = request.drafter.drafts(request.prompt, request.tokens, most - 1, self.pace, ask)
        began = time.perf_counter()
        key = self.plan.verify_key(1 + len(drafts), start) if drafts else None
        if key is None:
            return None
        chunk = _chunk_args(key, slot, start, [request.newest, *drafts])
        args = VerifyArgs(chunk, *self._arguments([request]), self._is_end)
        result: VerifyResult = self._run(key, self._cache, args)
        self._cache = result.cache
        accepted = int(result.accepted)
        self.pace.took(key.rows, time.perf_counter() - began)
        request.drafter.verified(len(drafts), accepted)
        request.written = max(request.written, start + key.rows)
        return [
            self._advance(slot, request, result.picked, (at,))
            for at in range(accepted + 1)
            if self._slots.requests[slot] is request
        ]

    def _decode(self, running: list[tuple[int, Request]]) -> list[Event]:
        """Moves these requests by a launch: one token of those whose logits depend on what they wrote, and no more than
        BRIEF of any while a prompt waits.
        """
        waiting = bool(self._queue) or any(request.reads for _, request in self._slots.taken())
        at_most = min(self.plan.tokens_per_launch, BRIEF) if waiting else self.plan.tokens_per_launch
        wanted_of = {slot: min(at_most if r.steering.constant else 1, r.limit - len(r.tokens)) for slot, r in running}
        positions = max(r.length + wanted_of[slot] for slot, r in running)
        key, first = self.plan.decode_key([slot for slot, _ in running], positions)
        tokens, wanted = np.zeros(key.rows, np.int32), np.zeros(key.rows, np.int32)
        past_end = np.zeros(key.rows, np.bool_)
        requests: list[Request | None] = [None] * key.rows
        for slot, request in running:
            row = self.plan.row(slot, key, first)
            tokens[row], wanted[row], past_end[row] = request.newest, wanted_of[slot], request.past_end
            requests[row] = request
        asked = self._arguments(requests)
        args = DecodeArgs(np.int32(first), tokens, wanted, past_end, *asked, self._is_end)
        result: DecodeResult = self._run(key, self._cache, args)
        self._cache = result.cache
        return [
            self._advance(slot, request, result.picked, (self.plan.row(slot, key, first), at))
            for at in range(at_most)
            for slot, request in running
            if at < wanted_of[slot] and self._slots.requests[slot] is request
        ]

    def _advance(self, slot: int, request: Request, picked: Picked, index: tuple[int, ...]) -> Event:
        """Books a new token, at an index of what a step picked: the request keeps its slot, or ends."""
        position = len(request.prompt) + len(request.tokens)
        request.tokens.append(int(np.asarray(picked.ids)[index]))
        if request.sampling.mirostat:
            request.mu = float(np.asarray(picked.mirostat_mu)[index])
        if request.failure is not None or not np.asarray(picked.finite)[index]:
            ended = "error"
        elif np.asarray(picked.is_end)[index] and not request.past_end:
            ended = "stop"
        else:
            ended = "length" if len(request.tokens) >= request.limit else None
        if ended:
            self._slots.leave(slot, Held() if ended == "error" else request.held)
        now, failure = time.perf_counter(), request.failure
        drafts = request.drafter and (request.drafter.drafted, request.drafter.accepted)
        event = Event(request.id, request.tokens[-1], ended, position, now, None, (), request.kept, failure, drafts)
        count = request.sampling.logprobs
        if count is None:
            return event
        ids, values = np.asarray(picked.top_ids)[index][:count], np.asarray(picked.top_logprobs)[index][:count]
        return dataclasses.replace(
            event,
            logprob=float(np.asarray(picked.logprob)[index]),
            top_logprobs=tuple(zip(ids.tolist(), values.tolist(), strict=True)),
        )


def _chunk_args(key: StepKey, slot: int, start: int, ids: Sequence[int]) -> PrefillArgs:
    """Tokens of a slot from position `start` on, padded to the rows of a step."""
    tokens = np.zeros(key.rows, np.int32)
    tokens[: len(ids)] = ids
    return PrefillArgs(tokens, np.int32(slot), np.int32(start), np.int32(len(ids)))
