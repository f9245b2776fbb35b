"""What is entered at a terminal: pasted texts, Ctrl-C and Ctrl-D, the history of earlier chats."""

import builtins
import json
import os
import pathlib
import select
import stat
import subprocess
import sys
import termios
import time

import pytest
from running import ELSEWHERE

from packlight.cli import entering
from packlight.cli.entering import MOST_ENTRIES, Entry, History, history_path

ENTER = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # what is typed there reaches this session, as signals too
from packlight.cli.entering import *
from packlight.cli.terminal import open_streams
open_streams()
signal.signal(signal.SIGINT, signal.default_int_handler)
history = History(history_path(None))
for entry in entries(read_line):
    history.add(entry)
    print(f"<{entry.text!r}>", flush=True)
print("left", flush=True)
"""


class Terminal:
    """A process that enters at a terminal of 24 lines of 80."""

    def __init__(self, **environment):
        self.keys, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        environment = os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null", "NO_COLOR": "1"} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTER],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=ELSEWHERE,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""
        self.until(b"> ")

    def until(self, words):
        """What is shown up to these words; what follows is for the next call."""
        while words not in self.shown:
            assert select.select([self.keys], [], [], 60)[0], self.shown
            self.shown += os.read(self.keys, 4096)
        seen, _, self.shown = self.shown.partition(words)
        return seen + words

    def type(self, keys, words):
        """What is shown after these keys, until the words are.

        They are typed when it sleeps: Python notices no Ctrl-C between a prompt and the wait for a key.
        """
        while pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.001)
        os.write(self.keys, keys)
        return self.until(words)

    def leave(self):
        """By Ctrl-D, once there is a prompt: before, it would be the system's."""
        self.until(b"> ")
        self.type(b"\x04", b"left")
        self.end()

    def end(self):
        assert self.process.wait(timeout=60) == 0
        os.close(self.keys)


def test_a_pasted_text_is_one_message():
    """Between the marks that a terminal puts around it; it may be edited, and is sent by Enter."""
    terminal = Terminal()
    terminal.type(b"\x1b[200~one\n\ttwo \xf0\x9f\x98\x80\n\nthree\n\x1b[201~", b"three")
    shown = terminal.type(b"\r", b">\r\n")
    assert "<'one\\n\\ttwo 😀\\n\\nthree'>".encode() in shown
    terminal.until(b"> ")
    shown = terminal.type(b"\x1b[200~/clear\nfour\x1b[201~!\r", b">\r\n")
    assert b"<'/clear\\nfour!'>" in shown
    terminal.leave()


def test_leaving():
    """Ctrl-D ends the line; Ctrl-C drops what is typed, says how to leave where nothing is, then leaves."""
    terminal = Terminal()
    terminal.type(b"abc", b"abc")
    assert b"Ctrl-C again" not in terminal.type(b"\x03", b"> ")
    terminal.type(b"\x03", b"Ctrl-C again, Ctrl-D or /exit leaves\r\n")
    terminal.until(b"> ")
    terminal.type(b"hm\r", b"<'hm'>\r\n")
    terminal.until(b"> ")
    terminal.type(b"\x03", b"Ctrl-C again")
    terminal.until(b"> ")
    terminal.type(b"\x03", b"left")
    terminal.end()
    terminal = Terminal()
    assert b"\nleft" in terminal.type(b"\x04", b"left")
    terminal.end()


def test_entries_come_back_in_the_next_chat(tmp_path):
    """Whole, from a file for its owner alone."""
    terminal = Terminal(XDG_STATE_HOME=str(tmp_path))
    terminal.type(b"\x1b[200~one\ntwo\x1b[201~\r", b"<'one\\ntwo'>\r\n")
    terminal.until(b"> ")
    terminal.type(b'"""/clear\r', b"| ")
    terminal.type(b'three"""\r', b"three'>\r\n")
    terminal.leave()
    file = tmp_path / "packlight" / "chat_history"
    assert [*map(json.loads, file.read_text().splitlines())] == ["one\ntwo", '"""/clear\nthree"""']
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    terminal = Terminal(XDG_STATE_HOME=str(tmp_path))
    terminal.type(b"\x1b[A", b"three")
    terminal.type(b"\x1b[A", b"wo")  # the t is on the screen
    assert b"<'one\\ntwo!'>" in terminal.type(b"!\r", b">\r\n")
    terminal.until(b"> ")
    terminal.type(b"\x1b[A\x1b[A", b"hree")  # as it was entered: between quotation marks, which are no part of it
    assert b"<'/clear\\nthree'>" in terminal.type(b"\r", b">\r\n")
    terminal.leave()


def test_lines_that_come_together_are_one_message_without_gnu_readline(monkeypatch):
    """libedit gives the first line of a pasted text; the others are there."""
    ours, theirs = os.pipe()
    with open(ours) as stdin:

        def line(prompt=""):
            text = b""
            while not text.endswith(b"\n"):
                text += os.read(ours, 1)
            return text[:-1].decode()

        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(entering, "edits", lambda: True)
        monkeypatch.setattr(entering, "readline", None)
        monkeypatch.setattr(builtins, "input", line)
        os.write(theirs, b"one\ntwo\n\nthree\n")
        assert entering.read_line("> ") == "one\ntwo\n\nthree"
        os.write(theirs, b"four\n")
        assert entering.read_line("> ") == "four"
        os.close(theirs)


@pytest.fixture
def editing(monkeypatch):
    """As at a terminal; what the editor was told of."""
    known = []
    monkeypatch.setattr(entering, "edits", lambda: True)
    monkeypatch.setattr(entering.readline, "add_history", known.append)
    return known


def test_a_history_that_cannot_be_kept_costs_one_line(editing, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for path, why in (
        (tmp_path / "file" / "history", "Not a directory"),
        (tmp_path, "Is a directory"),
    ):
        history = History(path)
        history.add(Entry("one"))
        history.add(Entry("two"))
        assert capsys.readouterr().err == f"no history is kept: {path}: {why}\n"
    assert editing == ["one", "two"] * 2  # for this chat there is one


def test_a_history_keeps_the_newest_entries(editing, tmp_path):
    """Lines that are no entries are passed over; there is never more than twice what is kept."""
    path = tmp_path / "history"
    path.write_text("".join(f"{json.dumps(str(i))}\n" for i in range(2 * MOST_ENTRIES + 1)) + '"cut o\n5\n"a\\u0000"\n')
    History(path)
    assert editing == [str(i) for i in range(MOST_ENTRIES + 4, 2 * MOST_ENTRIES + 1)]
    assert len(path.read_text().splitlines()) == MOST_ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_the_history_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.delenv("PACKLIGHT_HISTORY", raising=False)
    assert str(history_path(None)) == "/state/packlight/chat_history"
    assert str(history_path("x")) == "x"
    assert history_path("") is None
    monkeypatch.setenv("PACKLIGHT_HISTORY", "")
    assert history_path(None) is None
    assert str(history_path("x")) == "x"
    monkeypatch.setenv("PACKLIGHT_HISTORY", "/y")
    assert str(history_path(None)) == "/y"


def test_without_a_terminal_nothing_is_kept(tmp_path):
    History(tmp_path / "history").add(Entry("one"))
    assert not (tmp_path / "history").exists()
