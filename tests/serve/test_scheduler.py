"""The scheduler over an engine that only counts: who gets which token, who is cancelled, what an interrupt loses."""

import itertools
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ggufs import write_llama

from packlight.common.errors import NonFiniteLogitsError, PacklightError
from packlight.model.sampling.config import SamplingConfig
from packlight.model.text.tokenizer import Tokenizer
from packlight.serve.run import Run
from packlight.serve.scheduler import Scheduler
from packlight.serve.told import Scored

LETTERS = 259  # the first id behind the special tokens and the bytes


class Counting:
    """An engine that gives each request the tokens LETTERS, LETTERS + 1, ..., one a step, until its max_tokens."""

    def __init__(self):
        self.requests: dict[int, tuple[int, int]] = {}  # number -> tokens given, tokens wanted
        self.numbers = itertools.count()
        self.fail = False
        self.steps = 0

    @property
    def idle(self):
        return not self.requests

    def holds(self, number):
        return number in self.requests

    def submit(self, prompt, sampling, **asked):
        number = next(self.numbers)
        self.requests[number] = 0, sampling.max_tokens
        return number

    def cancel(self, number):
        self.requests.pop(number, None)

    def step(self):
        self.steps += 1
        events = []
        for number, (given, wanted) in list(self.requests.items()):
            if wanted == 0:  # its prompt is read
                events.append(Scored.of(number, 1, (), 0, last=True))
                self.cancel(number)
                continue
            ended = "error" if self.fail else "length" if given + 1 == wanted else None
            events.append(
                SimpleNamespace(
                    request=number,
                    token=LETTERS + given,
                    ended=ended,
                    position=given,
                    time=time.perf_counter(),
                    logprob=-1.0,
                    top_logprobs=(),
                    failure=None,
                    kept=0,
                    drafts=None,
                )
            )
            self.requests[number] = given + 1, wanted
            if ended:
                self.cancel(number)
        return events


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_gguf(write_llama(tmp_path_factory.mktemp("m") / "m.gguf", layers=1, embed=32))


@pytest.fixture
def engine() -> Any:
    return Counting()


@pytest.fixture
def run(tokenizer):
    steering: Any = None

    def make(tokens, shown=None, **sampling):
        return Run([5], SamplingConfig(max_tokens=tokens, **sampling), tokenizer, steering, shown=shown)

    return make


def test_runs_side_by_side_get_their_own_tokens(engine, run):
    completions = Scheduler(engine).complete([run(3), run(0), run(5)])
    assert [len(c.token_ids) for c in completions] == [3, 0, 5]
    assert all(c.token_ids == list(range(LETTERS, LETTERS + len(c.token_ids))) for c in completions)
    assert engine.steps == 5
    assert engine.idle


def test_a_run_shows_what_it_was_given_to_show_with(engine, run):
    class Numbers:
        def __init__(self):
            self.stopped, self.fed = False, 0

        def feed(self, token_id):
            self.fed += 1
            self.stopped = self.fed == 3
            return f"{token_id - LETTERS} "

        def finish(self):
            return "end"

    completions = Scheduler(engine).complete([run(2, Numbers()), run(9, Numbers())])
    assert [(c.text, c.finish_reason) for c in completions] == [("0 1 end", "length"), ("0 1 2 ", "stop")]


def test_a_caller_moves_the_runs_of_others(engine, run):
    scheduler = Scheduler(engine)
    first = run(4)
    stream = scheduler.stream(first)
    assert engine.idle  # it begins when it is read
    begun = next(stream)
    scheduler.complete([run(6)])
    assert first.complete
    steps = engine.steps
    assert begun + "".join(stream) == first.completion().text
    assert engine.steps == steps


def test_a_closed_stream_and_a_stop_string_end_their_requests(engine, run, tokenizer):
    scheduler = Scheduler(engine)
    stream = scheduler.stream(run(9))
    next(stream)
    stream.close()
    assert engine.idle
    stop = tokenizer.piece(LETTERS + 2).decode()
    (completion,) = scheduler.complete([run(9, stop=[stop])])
    assert completion.finish_reason == "stop"
    assert (engine.steps, engine.idle) == (1 + 3, True)


def test_a_run_that_fails_or_is_lost_says_so_and_leaves_nothing(engine, run):
    scheduler = Scheduler(engine)
    engine.fail = True
    with pytest.raises(NonFiniteLogitsError, match="at position 0"):
        scheduler.complete([run(3)])
    engine.fail = False
    stream = scheduler.stream(run(3))
    next(stream)
    engine.requests.clear()  # as an interrupted step does
    with pytest.raises(PacklightError, match="the generation was lost"):
        list(stream)
    assert len(scheduler.complete([run(2)])[0].token_ids) == 2


@pytest.mark.parametrize("where", ["the engine", "the booking"])
def test_an_interrupted_step_loses_all_runs_at_once(engine, run, monkeypatch, where):
    """Also where the engine has other work by the time that the caller of a lost one looks."""
    scheduler = Scheduler(engine)
    lost, later, mine = run(9), run(5), run(9)
    stream, other = scheduler.stream(lost), scheduler.stream(later)
    next(stream)

    def interrupted(*_):
        if where == "the engine":
            engine.requests.clear()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(*((engine, "step") if where == "the engine" else (mine, "take")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            scheduler.complete([mine])
    assert engine.idle
    text = next(other)
    with pytest.raises(PacklightError, match="the generation was lost"):
        next(stream)
    assert not later.complete
    assert text + "".join(other) == later.completion().text
    assert len(later.completion().token_ids) == 5
    assert engine.idle


def test_what_there_is_so_far_stays_as_it_was(engine, run):
    stream = Scheduler(engine).stream(run(4, logprobs=0))
    next(stream)
    so_far = stream.so_far
    list(stream)
    assert (so_far.token_ids, len(so_far.logprobs)) == ([LETTERS], 1)
    assert (len(stream.so_far.token_ids), len(stream.so_far.logprobs)) == (4, 4)


def test_threads_take_turns(engine, run):
    """Each gets its own tokens, no step begins within another, and none waits for the end of another's text."""
    inside, most, step = [], [], engine.step

    def watched():
        inside.append(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.001)
        events = step()
        inside.pop()
        return events

    engine.step = watched
    scheduler, texts, ended = Scheduler(engine), {}, []

    def follow(tokens):
        texts[tokens] = "".join(scheduler.stream(run(tokens)))
        ended.append(tokens)

    threads = [threading.Thread(target=follow, args=(tokens,)) for tokens in (60, 40, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert ended == [20, 40, 60]
    assert {tokens: text == scheduler.complete([run(tokens)])[0].text for tokens, text in texts.items()} == {
        20: True, 40: True, 60: True,
    }  # fmt: skip
    assert engine.idle
