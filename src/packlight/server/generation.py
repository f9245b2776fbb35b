"""Runs under way, on the event loop: what the engine's thread tells of tokens becomes text here, and wakes whoever
waits.

Knows no HTTP. All of it runs on the loop's thread but `Desk.deliver`, which hands the news of a step over.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from packlight.common.errors import NonFiniteLogitsError, PacklightError
from packlight.serve.driver import Bounds, Driver, News, QueueFullError, Ticket
from packlight.serve.scheduler import Booked, Scheduler
from packlight.serve.told import Told
from packlight.server.errors import ApiError, api_error


class Answers:
    """The runs of one request, from `Desk.submit` to `close`."""

    def __init__(self, desk: "Desk", runs: Sequence[Booked], tickets: Sequence[Ticket]):
        self._desk, self.runs, self.tickets = desk, runs, tickets
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._complete = 0
        self.first_token: float | None = None  # time.perf_counter()
        self.patience: asyncio.TimerHandle | None = None  # until a slot is free
        self.left = False  # the client has gone

    @property
    def failed(self) -> bool:
        return self._error is not None

    @property
    def done(self) -> bool:
        return self._complete == len(self.runs)

    async def changed(self, seconds: float | None = None) -> bool:
        """Whether there is news, or the client leaves, before the seconds pass. Raises as `check` does.

        No task is made for it: it is waited for once a token.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            self.check()  # it came just now
            return False
        self._changed.clear()
        self.check()
        return True

    async def all(self) -> None:
        """Waits for the ends of all runs, or until the client leaves. Raises as `check` does."""
        while not self.done and not self.left:
            await self.changed()
        self.check()

    def leave(self) -> None:
        """Wakes whoever waits: the client has gone."""
        self.left = True
        self._changed.set()

    def check(self) -> None:
        """Raises ApiError where a run has failed."""
        if self._error is not None:
            raise api_error(self._error)
        try:
            for run in self.runs:
                run.check()
        except PacklightError as error:
            raise api_error(error) from None

    @property
    def queued(self) -> float:
        """Seconds that the first run waited for a slot, or has waited so far."""
        now = time.perf_counter()
        return min(((ticket.seated or now) - ticket.submitted for ticket in self.tickets), default=0.0)

    def close(self) -> None:
        """Takes back what is not complete."""
        self._desk.forget(self)

    def book(self, news: News) -> None:
        """Books a token, or an error."""
        run = news.ticket.run
        self._changed.set()
        if news.error is not None:
            self._error = news.error
        if news.event is None or run.complete:
            return
        if not isinstance(news.event, Told):
            self.first_token = self.first_token or news.event.time
        run.take(news.event)
        if run.complete:
            self._complete += 1
            if not news.event.ended:  # by a stop string, of which the engine knows nothing
                self._desk.driver.cancel(news.ticket)

    def fail(self, error: Exception) -> None:
        """Ends the wait of whoever waits with an error."""
        self._error = error
        self._changed.set()


class Desk:
    """Hands runs to the engine's thread, and its news to their requests."""

    def __init__(
        self,
        scheduler: Scheduler,
        bounds: Bounds,
        queue_timeout: float,
        observe_gap: Callable[[float], None] = lambda seconds: None,
        report: Callable[[BaseException], None] = lambda error: None,
    ):
        """observe_gap: told of the time between two tokens of a text. report: told of errors that are nobody's fault
        but ours, once each.
        """
        self.driver = Driver(scheduler, self.deliver, bounds)
        self._queue_timeout, self._observe_gap, self._report = queue_timeout, observe_gap, report
        self._of: dict[Ticket, Answers] = {}
        self._newest: dict[Ticket, float] = {}  # time of each one's newest token
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begins, on the loop that is to be told."""
        self._loop = asyncio.get_running_loop()
        self.driver.start()

    def submit(self, runs: Sequence[Booked]) -> Answers:
        """Queues runs. Raises ApiError where too many wait."""
        assert self._loop is not None
        runs_to_come = [run for run in runs if not run.complete]
        try:
            tickets = self.driver.submit(runs_to_come)
        except QueueFullError as error:
            raise self.full(str(error)) from None
        answers = Answers(self, runs_to_come, tickets)
        self._of |= dict.fromkeys(tickets, answers)
        if tickets:
            answers.patience = self._loop.call_later(self._queue_timeout, self._check_seated, answers)
        return answers

    def check_room(self) -> None:
        """Raises ApiError where not one request more may wait, before anything is made of it."""
        if self.driver.full:
            raise self.full(f"{self.driver.waiting} requests wait already")

    def full(self, said: str) -> ApiError:
        """How a request is told that too many wait."""
        return ApiError(429, f"{said}; try again", code="queue_full", retry_after=self.driver.patience)

    def forget(self, answers: Answers) -> None:
        if answers.patience is not None:
            answers.patience.cancel()  # it holds all that was said until then
        for ticket in answers.tickets:
            self._of.pop(ticket, None)
            self._newest.pop(ticket, None)
            if not ticket.complete:
                self.driver.cancel(ticket)

    def deliver(self, news: list[News]) -> None:
        """The news of a step, from the engine's thread."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._book, news)

    def _book(self, news: list[News]) -> None:
        for error in {id(each.error): each.error for each in news if each.error is not None}.values():
            self._report(error)
        for each in news:
            answers = self._of.get(each.ticket)
            if answers is None or answers.failed:
                continue
            try:
                answers.book(each)
            except Exception as error:  # its own fault: the news of others is still told
                self._report(error)
                answers.fail(error)
                self.driver.cancel(each.ticket)
                continue
            if isinstance(each.ticket.run.failure, NonFiniteLogitsError):
                self._report(each.ticket.run.failure)
            if each.event is not None and not isinstance(each.event, Told):
                before = self._newest.get(each.ticket)
                self._newest[each.ticket] = each.event.time
                if before is not None:
                    self._observe_gap(each.event.time - before)

    def _check_seated(self, answers: Answers) -> None:
        """Ends a request of which nothing has had a slot by now."""
        if all(ticket.seated is None and ticket in self._of for ticket in answers.tickets):
            said = f"no slot became free within {self._queue_timeout:g} s"
            answers.fail(ApiError(503, said, code="queue_timeout", retry_after=self.driver.patience))
