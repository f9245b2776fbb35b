"""What packlight shows at a terminal: the product on stdout, everything else on stderr, lines and bars; and Ctrl-C.

It loads nothing and decides nothing.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from packlight.common.files import partial_path

if TYPE_CHECKING:
    from packlight import Completion

EXIT_INTERRUPTED = 130
Result = TypeVar("Result")


def write(text: str) -> None:
    """Part of the command's product, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(report: dict[str, Any]) -> None:
    write(json.dumps(report, ensure_ascii=False) + "\n")


def reserve_stdout(keep: bool) -> None:
    """From here on only the product goes to stdout, and what libraries print there (Gloo does) goes to stderr.

    keep: false where another process writes the product.
    """
    sys.stdout.flush()
    product = os.dup(1) if keep else os.open(os.devnull, os.O_WRONLY)
    os.dup2(2, 1)
    sys.stdout = open(product, "w", encoding="utf-8", errors=sys.stdout.errors)  # noqa: SIM115  for the process's life


def say(text: str) -> None:
    """A line beside the product."""
    print(text, file=sys.stderr, flush=True)


def warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


class Bar:
    """One progress bar at a time on stderr, and only if that is a terminal."""

    def __init__(self):
        self._bar = None

    def __enter__(self) -> "Bar":
        return self

    def start(self, title: str, total: int, **style: Any) -> None:
        """Shows a bar at 0 in place of the one before."""
        from tqdm import tqdm

        self.__exit__()
        self._bar = tqdm(total=total, desc=title, leave=False, disable=None, file=sys.stderr, **style)

    def advance(self, amount: int) -> None:
        assert self._bar is not None
        self._bar.update(amount)

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()


def follow(stream: Generator[str, None, Result], each: Callable[[str], None]) -> Result:
    """Calls `each` with every piece of a text as it comes; returns what the stream does."""
    while True:
        try:
            each(next(stream))
        except StopIteration as end:
            return end.value


def speed(completion: "Completion") -> str:
    """The line after a text: how much, how fast, why it ended."""
    t = completion.timings
    first = f", first after {t['ttft_s']:.2f} s" if t["ttft_s"] is not None else ""
    rate = f", then {t['decode_tok_s']:.1f} tokens/s" if t["decode_tok_s"] is not None else ""
    counts = f"{len(completion.prompt_token_ids)} + {len(completion.token_ids)} tokens"
    return f"{counts}{first}{rate}; ended by {completion.finish_reason}"


def interrupted(*_) -> NoReturn:
    """Ctrl-C: exits at once, as a compilation under way in another thread would not stop for an exception."""
    os.write(2, b"\ninterrupted\n")  # not by sys.stderr, which may be in the middle of a write
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def unwound(path: str | None) -> Iterator[None]:
    """Ctrl-C inside also removes the unfinished file at `path`.

    It is no exception: jax swallows one in its callback for garbage collection, and crashes on one during its import.
    """

    def leave(*_) -> NoReturn:
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial_path(path))
        interrupted()

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupted)
