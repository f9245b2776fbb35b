"""What takes long tells how far it is, and whoever shows that listens. Knows no terminal."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Advance = Callable[[int], None]  # so much more is done
Show = Callable[[str, int, str, str], AbstractContextManager[Advance]]  # takes what `task` takes


@contextlib.contextmanager
def _unseen(_title: str, _total: int, _unit: str, _note: str) -> Iterator[Advance]:
    yield lambda _: None


_show: contextvars.ContextVar[Show] = contextvars.ContextVar("show", default=_unseen)


@contextlib.contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """As long as this lasts, `show` is told of every task that begins in this thread."""
    before = _show.set(show)
    try:
        yield
    finally:
        _show.reset(before)


def task(title: str, total: int, unit: str, note: str) -> AbstractContextManager[Advance]:
    """A task of `total` units, for as long as the context lasts; what it gives is called with each amount that is done.

    note: a line that says what is done and why it takes long.
    """
    return _show.get()(title, total, unit, note)
