"""The thread that owns the engine: runs in, tokens out, faults told to whom they befall. Over a scripted engine."""

import threading

import pytest
from fake_engine import fake_llm

from packlight import demo
from packlight.common.errors import PacklightError
from packlight.model.sampling.config import SamplingConfig
from packlight.serve import driver
from packlight.serve.driver import Bounds, Driver, QueueFullError
from packlight.serve.prefix import Keep


class Told:
    """A driver over a scripted engine, and what it told of each run."""

    def __init__(self, slots: int = 2, bounds: tuple[int, int] = (8, 1000)):
        self.llm = fake_llm(demo.MODEL, slots=slots)
        self.engine = self.llm.engine
        self.news = []
        self._changed = threading.Condition()
        self.driver = Driver(self.llm.scheduler, self._deliver, Bounds(slots, *bounds))
        self.driver.start()

    def _deliver(self, news):
        with self._changed:
            self.news += news
            self._changed.notify_all()

    def runs(self, count: int, prompt=(5, 6, 7), **sampling):
        return self.llm.runs([list(prompt)] * count, SamplingConfig(**sampling), 1, Keep.TOKENS)

    def wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.news), 10)

    def ended(self, tickets):
        self.wait(lambda news: all(any(n.ticket is t and (n.error or n.event.ended) for n in news) for t in tickets))

    def tokens(self, ticket):
        return [each.event.token for each in self.news if each.ticket is ticket and each.event]


@pytest.fixture
def told():
    made = Told()
    yield made
    made.driver.close()


def test_each_run_gets_its_tokens_and_no_others(told):
    tickets = told.driver.submit(told.runs(5))
    told.ended(tickets)
    script = [*told.engine.script([]), told.engine.end]
    assert [told.tokens(ticket) for ticket in tickets] == [script] * 5
    assert told.driver.waiting == 0
    assert told.engine.idle


def test_what_is_taken_back_ends_at_once_and_nobody_else_does(told):
    held = threading.Event()
    told.engine.before_step = lambda number: held.wait(5)
    kept, left, queued = told.driver.submit(told.runs(3, max_tokens=3))
    told.driver.cancel(left)
    told.driver.cancel(queued)
    held.set()
    told.ended([kept])
    assert len(told.tokens(kept)) == 3
    assert len(told.tokens(left)) < 3
    assert told.engine.idle


def test_the_queue_is_bounded_by_runs_and_by_tokens():
    told = Told(slots=1, bounds=(3, 20))
    held = threading.Event()
    told.engine.before_step = lambda number: held.wait(5)
    seated, *waiting = told.driver.submit(told.runs(4))  # one for the slot, three that may wait
    with pytest.raises(QueueFullError, match="wait already"):
        told.driver.submit(told.runs(1))
    held.set()
    told.ended([seated, *waiting])
    assert (told.driver.running, told.driver.waiting) == (0, 0)
    held.clear()
    told.driver.submit(told.runs(1) + told.runs(1, prompt=range(1, 16)))
    with pytest.raises(QueueFullError):
        told.driver.submit(told.runs(1))  # 3, 15 and 3 tokens
    held.set()
    told.driver.close()


def test_a_free_slot_is_no_queue():
    told = Told(slots=2, bounds=(0, 20))
    held = threading.Event()
    told.engine.before_step = lambda number: held.wait(5)
    every = [*told.driver.submit(told.runs(1)), *told.driver.submit(told.runs(1))]
    with pytest.raises(QueueFullError):
        told.driver.submit(told.runs(1))
    held.set()
    told.ended(every)
    told.driver.close()


def test_who_is_told_to_come_back_is_not_told_of_idle_hours(monkeypatch):
    told = Told()
    now = driver.time.perf_counter
    monkeypatch.setattr(driver.time, "perf_counter", lambda: now() + 8 * 3600)
    told.ended(told.driver.submit(told.runs(1)))
    assert told.driver.patience == 1
    told.driver.close()


def test_a_lone_request_is_accepted_however_large_it_is():
    told = Told(bounds=(1, 2))
    told.ended(told.driver.submit(told.runs(4)))
    told.driver.close()


def test_a_fault_of_a_step_is_told_to_all_and_the_next_request_is_right(told):
    def fails(number):
        if number == 2:
            raise RuntimeError("injected")

    told.engine.before_step = fails
    lost = told.driver.submit(told.runs(3))
    told.ended(lost)
    errors = [each for each in told.news if each.error is not None]
    assert {each.ticket for each in errors} == set(lost)
    assert str(errors[0].error) == "injected"
    assert told.driver.waiting == 0
    (after,) = told.driver.submit(told.runs(1))
    told.ended([after])
    assert told.tokens(after) == [*told.engine.script([]), told.engine.end]


def test_a_closed_model_says_so(told):
    told.llm.close()
    (ticket,) = told.driver.submit(told.runs(1))
    told.ended([ticket])
    assert isinstance(told.news[-1].error, PacklightError)
    assert "closed" in str(told.news[-1].error)


def test_other_callers_share_the_steps(told):
    tickets = told.driver.submit(told.runs(2))
    assert str(told.llm.generate([5, 6], max_tokens=40)) == "A scripted answer."
    told.ended(tickets)


def test_when_a_run_got_its_slot_is_known(told):
    held = threading.Event()
    told.engine.before_step = lambda number: held.wait(5) if number == 1 else None
    tickets = told.driver.submit(told.runs(3))
    held.set()
    told.ended(tickets)
    first, _, last = tickets
    assert first.submitted <= first.seated < last.seated
