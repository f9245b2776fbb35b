"""The thread that owns the engine while a server runs: runs come in by a queue, and what became of them goes out once a
step. Knows tokens, no text and no sockets; imports no jax.

Nothing but the engine's steps is done here. Whoever is told of a token books it, so text is made and sent while the
next step runs. A text that ends by a stop string is taken back by `cancel`, a step later at most.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from packlight.common.errors import PacklightError
from packlight.serve.scheduler import Booked, Scheduler

if TYPE_CHECKING:
    from packlight.serve.engine import Event
    from packlight.serve.told import Told

SMOOTHING = 0.2  # share of the newest gap in the mean of the gaps between two runs' ends
MOST_PATIENCE = 60  # seconds that a refused client is asked to wait at most


class QueueFullError(PacklightError):
    """As many runs wait for a slot as may wait."""


class Bounds(NamedTuple):
    """What may wait for a slot."""

    slots: int  # that there are: as many runs do not wait
    runs: int
    tokens: int  # of their prompts


class Ticket:
    """A run on its way through the thread."""

    def __init__(self, run: Booked, told: "list[News]"):
        self.run, self._told = run, told
        self.prompt, self.sampling, self.steering = run.prompt, run.sampling, run.steering
        self.keep, self.salt, self.states, self.predicted = run.keep, run.salt, run.states, run.predicted
        self.began = self.submitted = time.perf_counter()
        self.seated: float | None = None  # time.perf_counter() when it was found to have a slot
        self.number: int | None = None  # the engine's
        self.complete = False

    def take(self, event: "Event | Told") -> None:
        """Notes it for the news of this step."""
        self.complete = bool(event.ended)
        self._told.append(News(self, event, None))


class News(NamedTuple):
    """What became of a run in a step: a token, what is told of its prompt, or its end by an error."""

    ticket: Ticket
    event: "Event | Told | None"
    error: BaseException | None


class Driver:
    """The thread, from `start` to `close`."""

    def __init__(self, scheduler: Scheduler, deliver: Callable[[list[News]], None], bounds: Bounds):
        """deliver: called on the thread with the news of a step; it hands them on and returns at once."""
        self._scheduler, self._deliver, self._bounds = scheduler, deliver, bounds
        self._orders: queue.SimpleQueue[tuple[bool, Ticket] | None] = queue.SimpleQueue()
        self._news: list[News] = []
        self._under_way: list[Ticket] = []
        self._lock = threading.Lock()  # of what is counted below
        self._accepted: set[Ticket] = set()  # and not ended
        self._busy_since, self._gap = time.perf_counter(), 0.0  # since the last end, or since there was nothing to do
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread behind the step that it is in; runs under way are lost."""
        self._orders.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Runs without a slot."""
        with self._lock:
            return sum(ticket.seated is None for ticket in self._accepted)

    @property
    def running(self) -> int:
        """Runs in slots."""
        with self._lock:
            return sum(ticket.seated is not None for ticket in self._accepted)

    @property
    def patience(self) -> int:
        """Seconds after which a place in the queue is likely to be free: the mean time between two ends."""
        return min(MOST_PATIENCE, max(1, math.ceil(self._gap)))

    @property
    def full(self) -> bool:
        """Whether not one run more would be accepted, however short."""
        with self._lock:
            return len(self._accepted) >= self._bounds.slots + self._bounds.runs

    def submit(self, runs: Sequence[Booked]) -> list[Ticket]:
        """Queues runs together and returns their tickets, of which `deliver` tells from now on; from any thread.

        Raises QueueFullError where no slot is free and these are too many beside those that wait. However many they
        are, they are accepted where nothing waits, unless nothing may.
        """
        tokens = sum(len(run.prompt) for run in runs)
        with self._lock:
            taken, bounds = len(self._accepted), self._bounds
            others = sum(len(ticket.prompt) for ticket in self._accepted if ticket.seated is None)
            many = taken + len(runs) > bounds.slots + bounds.runs or others + tokens > bounds.tokens
            if many and (taken > bounds.slots or (taken == bounds.slots and not bounds.runs)):
                raise QueueFullError(f"{taken - bounds.slots} requests of {others:,} tokens wait already")
            if not taken:
                self._busy_since = time.perf_counter()
            tickets = [Ticket(run, self._news) for run in runs]
            self._accepted.update(tickets)
        for ticket in tickets:
            ticket.run.began = ticket.submitted
            self._orders.put((True, ticket))
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Takes a run back, queued, running or complete, before the next step; from any thread."""
        self._orders.put((False, ticket))

    def _work(self) -> None:
        while True:
            orders = self._taken_orders()
            try:
                with self._scheduler.turn():
                    self._obey([order for order in orders if order is not None])
                    if self._under_way:
                        self._scheduler.step([ticket.number for ticket in self._under_way if ticket.number is not None])
                    self._settle()
            except BaseException as error:  # whatever it is, those who wait are told, and the next step is sound
                self._lose(error, [ticket for begins, ticket in filter(None, orders) if begins])
            if self._news:
                news = list(self._news)
                self._news.clear()
                self._deliver(news)
            if None in orders:
                return

    def _taken_orders(self) -> "list[tuple[bool, Ticket] | None]":
        """What has been ordered since; where nothing is under way, it waits for an order."""
        orders = [] if self._under_way else [self._orders.get()]
        while True:
            try:
                orders.append(self._orders.get_nowait())
            except queue.Empty:
                return orders

    def _obey(self, orders: list[tuple[bool, Ticket]]) -> None:
        for begins, ticket in orders:
            if not begins:
                self._end(ticket)
                continue
            try:
                ticket.number = self._scheduler.begin(ticket)
                self._under_way.append(ticket)
            except PacklightError as error:
                self._forget(ticket)
                self._news.append(News(ticket, None, error))

    def _settle(self) -> None:
        """Ends what is complete, and notes who has a slot."""
        waiting = self._scheduler.waiting()
        now = time.perf_counter()
        for ticket in list(self._under_way):
            if ticket.seated is None and ticket.number not in waiting:
                ticket.seated = now
            if ticket.complete:
                self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        self._forget(ticket)
        if ticket in self._under_way:
            self._under_way.remove(ticket)
            assert ticket.number is not None
            self._scheduler.end(ticket.number)
            now = time.perf_counter()
            self._gap += SMOOTHING * (now - self._busy_since - self._gap)
            self._busy_since = now

    def _forget(self, ticket: Ticket) -> None:
        """Counts a run no longer."""
        with self._lock:
            self._accepted.discard(ticket)

    def _lose(self, error: BaseException, ordered: list[Ticket]) -> None:
        """Tells all that are under way, or were about to be, of an error that ended the step."""
        lost = [*self._under_way, *(ticket for ticket in ordered if ticket.number is None)]
        self._under_way = []
        with contextlib.suppress(PacklightError), self._scheduler.turn():  # closed: there is nothing to end
            for ticket in lost:
                if ticket.number is not None:
                    self._scheduler.end(ticket.number)
        for ticket in lost:
            self._forget(ticket)
            self._news.append(News(ticket, None, error))
