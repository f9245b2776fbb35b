"""The scheduler: steps the engine for the runs under way and hands each its tokens. Knows runs and their order, no
device and no terminal; imports no jax.

Callers share the steps. Whoever waits for a run of its own moves all others too, and their callers find the tokens
there when they next look. Callers in several threads take turns, a step at a time.
"""

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from packlight.common.errors import PacklightError
from packlight.model.sampling.config import SamplingConfig
from packlight.serve.prefix import Keep
from packlight.serve.run import Completion, Run

if TYPE_CHECKING:
    from packlight.model.sampling.penalties import Steering
    from packlight.serve.engine import Engine, Event
    from packlight.serve.told import Told


class Moved(Protocol):
    """What the scheduler moves: a `Run`, or what stands for one that is booked elsewhere."""

    @property
    def prompt(self) -> list[int]: ...
    @property
    def sampling(self) -> SamplingConfig: ...
    @property
    def steering(self) -> "Steering": ...
    @property
    def keep(self) -> Keep: ...
    @property
    def salt(self) -> str: ...
    @property
    def states(self) -> bool: ...
    @property
    def predicted(self) -> Sequence[int]: ...
    @property
    def complete(self) -> bool: ...

    began: float

    def take(self, event: "Event | Told") -> None: ...


class Booked(Moved, Protocol):
    """What books its own news: a `Run` or a `Reading`."""

    failure: PacklightError | None

    def check(self) -> None: ...
    def fresh(self) -> str: ...


class Stream(Generator[str, None, Completion]):
    """The text of a run as it comes; its return value is the completion."""

    def __init__(self, run: Run, texts: Generator[str, None, Completion]):
        self._run, self._texts = run, texts

    def send(self, value: None) -> str:
        """The next piece. Raises StopIteration at the end."""
        return self._texts.send(value)

    def throw(self, *error: Any) -> str:
        """Raises an error where the generator is."""
        return self._texts.throw(*error)

    @property
    def so_far(self) -> Completion:
        """What there is of the completion; its `finish_reason` means nothing before the end."""
        return self._run.completion()


class Scheduler:
    """The runs under way on one engine."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self._runs: dict[int, Moved] = {}  # by the engine's number of the request
        self._lock, self._next = threading.Lock(), threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The engine for one thread alone. Who waits is next: whoever has just had a turn waits behind.

        Raises PacklightError once it is closed.
        """
        with self._next:
            self._lock.acquire()
        try:
            if self._closed:
                raise PacklightError("the model is closed")
            yield
        finally:
            self._lock.release()

    def waiting(self) -> set[int]:
        """The numbers of the runs that have no slot yet, in a turn of the caller."""
        return self._engine.waiting

    def close(self) -> None:
        """Ends the runs under way and gives the engine's memory back."""
        with contextlib.suppress(PacklightError), self.turn():  # closed before
            self._closed = True
            self._engine.close()

    def complete(self, runs: Sequence[Run]) -> list[Completion]:
        """Drives the runs to their ends, side by side as slots are free. Raises NonFiniteLogitsError when the logits of
        one are, PacklightError when they were lost in an interrupted step.
        """
        self.drive(runs)
        return [run.completion() for run in runs]

    def drive(self, runs: Sequence[Booked]) -> None:
        """The same for what has no completion."""
        for _ in self._follow(runs):
            pass

    def stream(self, run: Run) -> "Stream":
        """Yields the run's text as it becomes safe to show and returns its completion. The run begins at the first
        `next` and ends when the generator is closed. Raises as `complete` does.
        """

        def texts() -> Generator[str, None, Completion]:
            with contextlib.closing(self._follow([run])) as pieces:
                yield from pieces
            return run.completion()

        return Stream(run, texts())

    def begin(self, run: Moved) -> int:
        """Queues a run and returns the number to end it by, in a turn of the caller. Raises as `Engine.submit` does."""
        asked = {"keep": run.keep, "salt": run.salt, "states": run.states, "predicted": run.predicted}
        number = self._engine.submit(run.prompt, run.sampling, steering=run.steering, **asked)
        self._runs[number] = run
        run.began = time.perf_counter()
        return number

    def end(self, number: int) -> None:
        """Ends a run where it is, queued, running or complete, in a turn of the caller."""
        self._engine.cancel(number)
        self._runs.pop(number)

    def step(self, mine: Sequence[int]) -> None:
        """Moves the runs under way by one step of the engine, in a turn of the caller. Raises PacklightError when it
        has lost one of `mine`: an interrupted step loses all.
        """
        if not all(self._runs[number].complete or self._engine.holds(number) for number in mine):
            raise PacklightError("the generation was lost: the step it was in was interrupted")
        try:
            for event in self._engine.step():
                run = self._runs[event.request]
                if not run.complete:  # a launch may have gone on after a stop string
                    run.take(event)
                if run.complete:
                    self._engine.cancel(event.request)
        except BaseException:  # a run whose token was not taken would go on with a hole in its text
            for number in self._runs:
                self._engine.cancel(number)
            raise

    def _follow(self, runs: Sequence[Booked]) -> Generator[str, None, None]:
        """Steps until these runs are complete, yielding each piece of their text that becomes safe to show."""
        mine: list[int] = []
        try:
            for run in runs:
                if not run.complete:
                    with self.turn():
                        mine.append(self.begin(run))
            done = False
            while not done:
                with self.turn():
                    done = all(run.complete for run in runs)  # other callers may have driven them to their end
                    if not done:
                        self.step(mine)
                    texts = [text for run in runs if (text := run.fresh())]
                yield from texts
                for run in runs:
                    run.check()
        finally:
            with contextlib.suppress(PacklightError), self.turn():  # closed: there is nothing to cancel
                for number in mine:
                    self.end(number)
