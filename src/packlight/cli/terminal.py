"""What packlight shows at a terminal: the product on stdout, everything else on stderr, lines and bars; and how it ends
when one of the streams or a signal ends it.

It loads nothing and decides nothing.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from packlight.common.cleanup import undo_all, undone
from packlight.common.text import reason

if TYPE_CHECKING:
    from packlight import Completion

LAST_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
Result = TypeVar("Result")
Input = TypeVar("Input", str, bytes)


class StreamError(Exception):
    """The product cannot be written, or the input cannot be read: one line that names the stream."""


def open_streams() -> None:
    """Makes the three standard streams usable whatever state they are in, and UTF-8 whatever the locale is.

    A closed one becomes the null device: else the next file that is opened, a model or a product, takes its number and
    gets what others write there. One that does not wait is made to, as a text would be cut where its reader is slow.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if os.name == "posix":
            os.set_blocking(number, True)
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  for the process's life
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        stream.reconfigure(encoding="utf-8", errors=errors)  # pyright: ignore[reportAttributeAccessIssue]
    if "stdout" in closed:
        warn(["stdout is closed: what belongs there goes nowhere"])


def close_stderr() -> None:
    """Drops messages that could not be written: at its end the interpreter would fail on them, with exit code 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def write(text: str) -> None:
    """Part of the command's product, at once. Ends the process where the reader has left; raises StreamError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `packlight ... | head` ends quietly, as every program does
        undo_all()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        os._exit(128 + signal.SIGPIPE)  # where the caller has blocked the signal
    except OSError as error:
        _discard(sys.stdout)
        raise StreamError(f"stdout: {reason(error)}") from None


def _discard(stream: TextIO) -> None:
    """What is still in the stream's buffer, and all that follows, goes nowhere."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())


def from_stdin(read: Callable[[], Input]) -> Input:
    """What `read` reads there. Raises StreamError."""
    try:
        return read()
    except OSError as error:
        raise StreamError(f"stdin: {reason(error)}") from None


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


def say(text: str, end: str = "\n") -> None:
    """A line beside the product; lost where stderr does not take it."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


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
    kept = f", {completion.cached_tokens} kept" if completion.cached_tokens else ""
    return f"{counts}{kept}{first}{rate}; ended by {completion.finish_reason}"


@contextlib.contextmanager
def restored_terminal() -> Iterator[None]:
    """A signal that ends the process inside leaves the terminal as it is now, though a line is being edited there.

    Raises ImportError on Windows.
    """
    import termios

    before = termios.tcgetattr(0)

    def restore() -> None:
        termios.tcsetattr(0, termios.TCSANOW, before)
        os.write(1, b"\x1b[?2004l\r")  # pasted text comes without marks again

    with undone(restore):
        yield


def leave(number: int, *_: object) -> NoReturn:
    """Ctrl-C, SIGTERM, SIGHUP: exits at once, as a compilation under way in another thread stops for no exception.

    Unfinished files go first. It writes not by sys.stderr, which may be in the middle of a write.
    """
    undo_all()
    with contextlib.suppress(OSError):
        os.write(2, f"\n{LAST_WORDS[signal.Signals(number).name]}\n".encode())
    os._exit(128 + number)


def end_by_signals() -> None:
    """Lets the signals of LAST_WORDS end the process. One that the caller ignores, as nohup does, stays ignored."""
    for name in LAST_WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and (name == "SIGINT" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, leave)
