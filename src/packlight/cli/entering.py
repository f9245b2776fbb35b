"""What a user enters in a chat: lines from a terminal or a pipe, pasted texts, earlier entries. Knows no models and no
commands.

GNU readline hands over a pasted text of several lines as one, once it is told to. Other editors (libedit, with which
some builds of Python come) hand over its first line, and the others wait: what is there within a moment is one text.
"""

import contextlib
import json
import os
import pathlib
import select
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

from packlight.cli.terminal import from_stdin, restored_terminal, say
from packlight.common.files import private_folder, whole_file
from packlight.common.text import reason, shown, shown_path

QUOTES = '"""'
LEAVE = "Ctrl-C again, Ctrl-D or /exit leaves"
MOMENT_S = 0.02  # in which the rest of a pasted text comes
MOST_ENTRIES = 1000  # of earlier chats

try:
    import readline
except ImportError:  # Windows
    readline: ModuleType | None = None


class Entry(NamedTuple):
    """A text that was entered; quoted: between three quotation marks, where nothing is a command."""

    text: str
    quoted: bool = False


def entries(read: Callable[[str], str]) -> Iterator[Entry]:
    """What the user enters until the end of input, or until Ctrl-C comes twice where nothing is typed.

    A line that ends with a backslash goes on, and so does one that begins with three quotation marks, up to three more.
    What is not UTF-8, or has no end, is left out, and said. read: asks for a line, in which bytes that are not UTF-8
    are lone surrogates.
    """
    number, warned = 0, False

    def line(prompt: str) -> str:
        nonlocal number
        text = read(prompt)
        number += 1
        return text

    while True:
        first = number + 1
        try:
            text = line("> ")
        except EOFError:
            if sys.stdin.isatty():
                say("")
            return
        except KeyboardInterrupt:
            say("")
            if typed():
                continue
            if warned:
                return
            say(LEAVE)
            warned = True
            continue
        warned = False
        try:
            entry = _whole(text, line)
            entry.text.encode()
        except EOFError:
            say(f"line {first} goes on behind the end of the input, and is left out")
        except KeyboardInterrupt:
            say("")
        except UnicodeEncodeError as error:
            what = shown(error.object.encode(errors="surrogateescape"))
            say(f"line {first} is not UTF-8 and is left out: {what}")
        else:
            yield entry


def _whole(text: str, line: Callable[[str], str]) -> Entry:
    """What begins with this line, or is a pasted text, to its end."""
    whole = text.rstrip()
    if len(whole) >= 2 * len(QUOTES) and whole.startswith(QUOTES) and whole.endswith(QUOTES):
        return Entry(whole.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"), quoted=True)
    if text.startswith(QUOTES) and "\n" not in text:
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + line("| ")
        return Entry(text.rstrip().removesuffix(QUOTES).strip("\n"), quoted=True)
    while text.endswith("\\"):
        text = text[:-1] + "\n" + line("| ")
    return Entry(text)


def edits() -> bool:
    """Whether someone sits at a terminal, where lines can be edited."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def typed() -> str:
    """What of a line was typed when Ctrl-C came, as far as the editor knows."""
    return readline.get_line_buffer() if readline and edits() else ""


def read_line(prompt: str) -> str:
    """A line from stdin, which ends with a newline and nothing else; the prompt is shown only to a person, who may edit
    the line, or paste several as one. Raises EOFError at the end, StreamError.
    """
    if edits():
        with contextlib.ExitStack() as editing:
            if readline:
                readline.parse_and_bind("set convert-meta off")  # in a plain locale it takes UTF-8 for commands
                readline.parse_and_bind("set enable-bracketed-paste on")  # which Python turns off
                readline.set_auto_history(False)
                editing.enter_context(restored_terminal())
            text = from_stdin(lambda: input(prompt))
            while more_waits():
                text += "\n" + from_stdin(input)
        return text.rstrip("\r\n")  # a pasted text may have its last line's
    if sys.stdin.isatty():
        say(prompt, end="")
    line = from_stdin(sys.stdin.buffer.readline)
    if not line:
        raise EOFError
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


def more_waits() -> bool:
    """Whether a line follows at once, where the editor does not tell a pasted text from a typed one. Windows cannot be
    asked.
    """
    if os.name != "posix" or (readline and "libedit" not in (readline.__doc__ or "")):
        return False
    return bool(select.select([sys.stdin], [], [], MOMENT_S)[0])


def history_path(flag: str | None) -> pathlib.Path | None:
    """The file of earlier entries: the flag's or PACKLIGHT_HISTORY's, where "" stands for none, or the user's own."""
    given = os.environ.get("PACKLIGHT_HISTORY") if flag is None else flag
    if given is not None:
        return pathlib.Path(given) if given else None
    return pathlib.Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "packlight" / "chat_history"


class History:
    """Entries of this chat and of earlier ones, which the arrow keys bring back. Each is a line of JSON in a file that
    only its owner may read. Without a line editor there is none.
    """

    def __init__(self, path: pathlib.Path | None):
        self._path = path if readline and edits() else None
        with self._file_trouble():
            if self._path is not None:
                self._path = self._path.expanduser()
                self._show(self._path)

    def add(self, entry: Entry) -> None:
        text = f"{QUOTES}{entry.text}{QUOTES}" if entry.quoted else entry.text
        if not readline or not edits() or not text.strip():
            return
        readline.add_history(text)
        with self._file_trouble():
            if self._path is not None:
                if not self._path.parent.exists():
                    private_folder(self._path.parent)
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(json.dumps(text) + "\n")

    def _show(self, path: pathlib.Path) -> None:
        """Makes the file's entries known to the editor; the oldest leave the file once there are many."""
        assert readline
        if not path.exists():
            return
        lines = path.read_bytes().splitlines()
        for line in lines[-MOST_ENTRIES:]:
            with contextlib.suppress(ValueError):  # a line that was cut when the disk was full
                text = json.loads(line)
                if isinstance(text, str) and "\0" not in text:
                    readline.add_history(text)
        if len(lines) > 2 * MOST_ENTRIES:
            with whole_file(str(path), 0o600) as partial, open(partial, "wb") as file:
                file.write(b"\n".join(lines[-MOST_ENTRIES:]) + b"\n")

    @contextlib.contextmanager
    def _file_trouble(self) -> Iterator[None]:
        """What the file does not allow is said once, and the chat goes on without it."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            say(f"no history is kept: {shown_path(str(self._path))}: {reason(error)}")
            self._path = None
