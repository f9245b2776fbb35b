"""What a process undoes when a signal ends it: unfinished files go, child processes end. Knows no signals.

A signal's handler calls `undo_all` and leaves; it raises no exception, because jax swallows one in its callback for
garbage collection and crashes on one during its import.
"""

import contextlib
from collections.abc import Callable, Iterator

_undos: dict[object, Callable[[], None]] = {}  # of everything that is under way in this process, oldest first


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """As long as this lasts, `undo_all` calls `undo`, which may raise OSError. The end of it calls nothing."""
    token = object()
    _undos[token] = undo
    try:
        yield
    finally:
        _undos.pop(token, None)


def undo_all() -> None:
    """Undoes what is under way, the newest first."""
    for token in reversed(list(_undos)):
        if undo := _undos.pop(token, None):
            with contextlib.suppress(OSError):
                undo()
