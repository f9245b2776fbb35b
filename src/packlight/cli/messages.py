"""What is said beside the product, and to whom: stderr, in colour on a terminal, and a log file. Knows no commands.

A line's first word says its kind: `error:` reaches stderr always, as does what someone asked for in a chat, all others
only without `--quiet`.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from packlight.common.errors import ConfigError
from packlight.common.text import reason, shown_path

DIM, RED, YELLOW, PLAIN = "\x1b[2m", "\x1b[1;31m", "\x1b[33m", "\x1b[0m"
KINDS = {"error:": RED, "warning:": YELLOW}  # first words, each with its colour


@dataclasses.dataclass
class Messages:
    """Where the lines of one command go."""

    quiet: bool = False  # stderr gets errors and nothing else
    verbose: bool = False  # details are said too
    log: int | None = None  # descriptor of the log file
    held: list[tuple[str, str]] | None = None  # lines and their ends, said before the flags were known

    def say(self, text: str, end: str, asked: bool = False) -> None:
        if self.held is not None:
            self.held.append((text, end))
            return
        self.note(text)
        if asked or not self.quiet or text.startswith("error:"):
            with contextlib.suppress(OSError):
                print(_coloured(text), end=end, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """To the log file only, a line for each line of the text, with its time.

        Each is one write: a signal that ends the process leaves whole lines, and may itself write one.
        """
        if self.log is None:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(1000 * (now % 1)):03}"
        try:
            for line in text.splitlines():
                os.write(self.log, f"{stamp} {line}\n".encode(errors="backslashreplace"))
        except OSError as error:
            self.log = None
            self.say(f"warning: --log_file: {reason(error)}; nothing more is written there", "\n")

    def settle(self, quiet: bool, verbose: bool, log_file: str | None) -> None:
        """Takes the flags that say where lines go, and says what was held. Raises ConfigError for impossible ones."""
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose exclude each other")
        self.quiet, self.verbose = quiet, verbose
        if log_file is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)  # a pipe must have a reader
            try:
                self.log = os.open(log_file, flags, 0o666)
            except (OSError, ValueError) as error:
                raise ConfigError(f"--log_file={shown_path(log_file)}: {reason(error)}") from None
        self.release()

    def release(self) -> None:
        """Says what was held."""
        held, self.held = self.held or [], None
        for text, end in held:
            self.say(text, end)


current = Messages()  # of the command that runs


@contextlib.contextmanager
def of_a_command() -> Iterator[Messages]:
    """The messages of one command, held until `settle`."""
    global current
    before, current = current, Messages(held=[])
    try:
        yield current
    finally:
        if current.log is not None:
            os.close(current.log)
        current = before


def in_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours. Source: https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dimmed(text: str) -> str:
    return f"{DIM}{text}{PLAIN}"


def _coloured(text: str) -> str:
    if not text or not in_colour(sys.stderr):
        return text
    kind, space, rest = text.partition(" ")
    return f"{KINDS[kind]}{kind}{PLAIN}{space}{rest}" if kind in KINDS else dimmed(text)
