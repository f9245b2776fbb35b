"""What packlight shows at a terminal: the product on stdout, everything else on stderr, lines and bars; and how it ends
when one of the streams or a signal ends it.

It loads nothing and decides nothing.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from packlight.cli import messages
from packlight.common.cleanup import undo_all, undone
from packlight.common.progress import Advance
from packlight.common.text import megabytes, printable, reason

if TYPE_CHECKING:
    from packlight import LLM, Completion

LAST_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
PATIENCE = 5.0  # seconds that a task may take before a line is said of it where no bar can be shown
MOST_ECHOED = 2000  # characters of a prompt
TICK = 0.25  # seconds after which a bar shows that time passes
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


def say(text: str, end: str = "\n", asked: bool = False) -> None:
    """A line beside the product; lost where stderr does not take it. asked: someone waits for it, --quiet or not."""
    messages.current.say(text, end, asked)


def detail(text: str) -> None:
    """A line that only --verbose shows."""
    if messages.current.verbose:
        say(text)


def warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


def echo(text: str) -> None:
    """A prompt before its answer, dimmed; of a long one its end. Only where the answer goes to a terminal."""
    if messages.current.quiet or not sys.stdout.isatty():
        return
    last = text if len(text) <= MOST_ECHOED else "..." + text[-MOST_ECHOED:]
    safe = printable(last, keep="\n\t")
    write(messages.dimmed(safe) if messages.in_colour(sys.stdout) else safe)


class Bar:
    """One progress bar at a time on stderr. Where that is no terminal, and in the log file, a task that takes longer
    than PATIENCE is a line now and then.
    """

    def __init__(self):
        self._bar: Any = None
        self._ticking, self._ended = threading.Thread(), threading.Event()
        self._title, self._unit, self._total, self._done = "", "", 0, 0
        self._began = self._told = 0.0

    def __enter__(self) -> "Bar":
        return self

    def start(self, title: str, total: int, unit: str = "it", initial: int = 0, **style: Any) -> None:
        """Shows a bar at `initial` in place of the one before."""
        self.__exit__()
        self._title, self._unit, self._total, self._done = title, unit, total, initial
        self._began = self._told = time.monotonic()
        if messages.current.quiet or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        style |= {"unit": unit, "initial": initial, "leave": False, "dynamic_ncols": True}
        self._bar, self._ended = tqdm(total=total, desc=title, file=sys.stderr, **style), threading.Event()
        self._ticking = threading.Thread(target=self._tick, args=(self._bar, self._ended), daemon=True)
        self._ticking.start()

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        if (now := time.monotonic()) - self._told > PATIENCE:
            self._told = now
            self._tell()

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._ended.set()
            self._ticking.join()  # it would draw the bar again
            self._bar.close()
            self._bar = None

    def _tell(self) -> None:
        """How far it is, as a line."""
        unit, scale = ("MB", 1e6) if self._unit == "B" else (f"{self._unit}s", 1)
        seconds = time.monotonic() - self._began
        line = f"{self._title}: {self._done / scale:,.0f} of {self._total / scale:,.0f} {unit} after {seconds:.0f} s"
        (say if self._bar is None else messages.current.note)(line)

    @staticmethod
    def _tick(bar: Any, ended: threading.Event) -> None:
        while not ended.wait(TICK):
            bar.refresh()


@contextlib.contextmanager
def show_task(title: str, total: int, unit: str, note: str) -> Iterator[Advance]:
    """A `common.progress.task` as a line and a bar."""
    say(note)
    with Bar() as bar:
        bar.start(title, total, unit, unit_scale=unit == "B")
        yield bar.advance


class DownloadBar(Bar):
    """A bar of bytes, as those who download want to make and move one."""

    def __init__(self, desc: str, total: int, initial: int, unit: str, unit_scale: bool):
        super().__init__()
        self.start(desc, total, unit=unit, unit_scale=unit_scale, initial=initial)

    def update(self, amount: int) -> None:
        self.advance(amount)


def follow(stream: Generator[str, None, Result], each: Callable[[str], None]) -> Result:
    """Calls `each` with every piece of a text as it comes; returns what the stream does."""
    while True:
        try:
            each(next(stream))
        except StopIteration as end:
            return end.value


def speed(completion: "Completion", ended: str | None = None) -> str:
    """The line after a text: how much, how fast, why it ended (by default, as the completion says)."""
    t = completion.timings
    first = f", first after {t['ttft_s']:.2f} s" if t["ttft_s"] is not None else ""
    rate = f", then {t['decode_tok_s']:.1f} tokens/s" if t["decode_tok_s"] is not None else ""
    counts = f"{len(completion.prompt_token_ids)} + {len(completion.token_ids)} tokens"
    kept = f", {completion.cached_tokens} kept" if completion.cached_tokens else ""
    drafts = f", {t['accepted']:.0f} of {t['drafted']:.0f} drafts right" if t.get("drafted") else ""
    return f"{counts}{kept}{first}{rate}{drafts}; ended by {ended or completion.finish_reason}"


def streaming(llm: "LLM") -> list[str]:
    """The lines on weights that are streamed from a disk, over all steps so far; none of others."""
    from packlight.model.weights.residence import Residence

    where, counts = llm.memory.residence, llm.streamed
    if counts is None or not isinstance(where, Residence):
        return []
    layers = f"streamed: {where.streamed} of {where.layers} layers, {megabytes(where.step_bytes)} a step"
    found = f"{counts.ready} ready, {counts.late} late, {counts.waited_ns / 1e9:.2f} s waited"
    lines = [f"{layers}; {found}; {megabytes(counts.bytes + counts.kept_bytes)} read"]
    if (experts := where.cut.experts) is not None:
        here = f"experts: {counts.experts} of {len(experts.sizes)} in memory"
        found = (
            f"{counts.experts_ready} ready, {counts.experts_read} read, {counts.experts_waited_ns / 1e9:.2f} s waited"
        )
        lines.append(f"{here}; {found}; {megabytes(counts.experts_bytes)} read")
    return lines


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


_reports: list[Callable[[str], str]] = []  # of what is under way


@contextlib.contextmanager
def reported(report: Callable[[str], str]) -> Iterator[None]:
    """As long as this lasts, a signal that ends the process has the line said that `report` makes of its name."""
    _reports.append(report)
    try:
        yield
    finally:
        _reports.pop()


def leave(number: int, *_: object) -> NoReturn:
    """Ctrl-C, SIGTERM, SIGHUP: exits at once, as a compilation under way in another thread stops for no exception.

    Unfinished files go first. It writes not by sys.stderr, which may be in the middle of a write.
    """
    undo_all()
    name = signal.Signals(number).name
    lines = [report("Ctrl-C" if name == "SIGINT" else name) for report in _reports] + [LAST_WORDS[name]]
    with contextlib.suppress(OSError, RuntimeError):
        messages.current.note("\n".join(lines))
    with contextlib.suppress(OSError):
        os.write(2, "".join(f"\n{line}" for line in (lines[-1:] if messages.current.quiet else lines)).encode() + b"\n")
    os._exit(128 + number)


def end_by_signals() -> None:
    """Lets the signals of LAST_WORDS end the process. One that the caller ignores, as nohup does, stays ignored."""
    for name in LAST_WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and (name == "SIGINT" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, leave)
