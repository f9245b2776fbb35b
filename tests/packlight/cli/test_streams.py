"""Standard streams in every state: closed, full, without a reader, the wrong way round; lines that are not UTF-8."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from ggufs import write_llama
from running import COMMAND, ELSEWHERE, succeed

from packlight.cli import entering
from packlight.cli.inputs import texts_of
from packlight.cli.terminal import StreamError

FULL = "error: stdout: No space left on device\n"
CLOSED = "warning: stdout is closed: what belongs there goes nowhere\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "stdout", "stderr"),
    [
        ("--help >/dev/full", 2, "", FULL),
        ("--help >&-", 0, "", CLOSED),
        ("--help <&- >&- 2>&-", 0, "", ""),
        ("--help >/dev/full 2>/dev/full", 2, "", ""),
        ("--help 1</dev/null", 2, "", "error: stdout: Bad file descriptor\n"),
        ("martian 2>/dev/full", 2, "", ""),
        ("martian 2>&-", 2, "", ""),
        ("--model=m 0>/dev/null", 2, "", "error: stdin: Bad file descriptor\n"),
    ],
)
def test_a_stream_that_cannot_be_used(line, code, stdout, stderr):
    command, *redirections = line.split(" ")
    script = f"exec {' '.join([*COMMAND, command])} {' '.join(redirections)}"
    done = subprocess.run(["sh", "-c", script], cwd=ELSEWHERE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


def test_messages_without_a_reader_cost_no_more_than_the_messages():
    ours, theirs = os.pipe()
    os.close(ours)
    script = f"exec {' '.join(COMMAND)} --help >&-"  # which says that stdout is closed
    done = subprocess.run(["sh", "-c", script], stderr=theirs, cwd=ELSEWHERE, check=False)
    os.close(theirs)
    assert done.returncode == 0


def test_the_number_of_a_closed_stream_goes_to_no_other_file(tmp_path):
    """Else what a library writes to descriptor 2 lands in the next file that is opened."""
    code = f"""
import os, sys
from packlight.cli.terminal import open_streams
open_streams()
with open({str(tmp_path / "product")!r}, "w") as file:
    os.write(1, b"x"), os.write(2, b"y"), print("z", file=sys.stderr, flush=True)
    file.write(f"{{file.fileno() > 2}} {{os.read(0, 9)}} {{[os.get_inheritable(n) for n in range(3)]}}")
"""
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=True)
    assert (tmp_path / "product").read_text() == "True b'' [True, True, True]"


def test_a_pipe_that_does_not_wait_gets_all_of_a_text(tmp_path):
    """The pipe holds 64 KB; a reader that comes late gets what is beyond too."""
    model = write_llama(tmp_path / "m.gguf", layers=1, embed=32, vocab=270, extra={f"k{i}": i for i in range(9000)})
    want = succeed("inspect", f"--model={model}", "--verbose").stdout.encode()
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    line = [*COMMAND, "inspect", f"--model={model}", "--verbose"]
    process = subprocess.Popen(line, stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    with open(ours, "rb") as file:
        assert file.read().partition(b"\n\n")[2] == want.partition(b"\n\n")[2]  # before it stands the free memory
    assert process.wait() == 0
    assert len(want) > 1 << 17


def entered(monkeypatch: pytest.MonkeyPatch, typed: bytes) -> list[str]:
    """The messages that a chat gets out of these bytes, in a locale of one byte a letter."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="latin-1"))
    return [entry.text for entry in entering.entries(entering.read_line)]


@pytest.mark.parametrize(
    ("typed", "messages", "left_out"),
    [
        ("café\nzwei".encode(), ["café", "zwei"], []),
        ("a\N{LINE SEPARATOR}b\r\nc\rd\x0b\n".encode(), ["a\N{LINE SEPARATOR}b", "c\rd\x0b"], []),
        (b"one\\\ntwo\nthree\\", ["one\ntwo"], ["line 3 goes on behind the end of the input, and is left out"]),
        (b'"""\na\n\n b\\\n"""\n"""c""" \n"""d', ["a\n\n b\\", "c"], ["line 7 goes on"]),
        (b"a\ncaf\xe9\x1b\nb\n", ["a", "b"], [r"line 2 is not UTF-8 and is left out: caf\xe9\x1b"]),
        (b"a\\\ncaf\xe9\nb\n\xff", ["b"], ["line 1 is", "line 4 is"]),
        (b"\xed\xa0\x80\n\xef\xbf\xbd\n", ["\ufffd"], ["line 1 is"]),
        (b"", [], []),
    ],
)
def test_a_line_that_is_not_utf_8_costs_itself(monkeypatch, capsys, typed, messages, left_out):
    assert entered(monkeypatch, typed) == messages
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(left_out)
    assert all(line.startswith(words) for line, words in zip(said, left_out, strict=True))


def test_input_that_cannot_be_read_is_said(monkeypatch, tmp_path):
    class Broken(io.BytesIO):
        def readline(self, *_):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Broken()))
    with pytest.raises(StreamError, match="stdin: Input/output error"):
        entering.read_line("> ")


@pytest.mark.parametrize(
    ("text", "texts", "said"),
    [
        ("a\N{LINE SEPARATOR}b\nc\x0bd\x0ce\ng\x85h\ni\x1cj\r\n", ["a\u2028b", "c\x0bd\x0ce", "g\x85h", "i\x1cj"], ""),
        ("\na\n \t\n\r\nb", ["a", "b"], "blank lines get no vector: 1, 3, 4\n"),
        ("a\rb\n\N{LINE SEPARATOR}\n", ["a\rb", "\u2028"], ""),
        (10 * "\n" + "a", ["a"], "blank lines get no vector: 1, 2, 3, 4, 5, 6, 7, 8, ...\n"),
        ("\n \n", [], ""),
        ("", [], ""),
    ],
)
def test_a_text_ends_with_a_newline_and_nothing_else(capsys, text, texts, said):
    assert texts_of(text, "get no vector") == texts
    assert capsys.readouterr().err == said


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_a_signal_leaves_the_terminal_as_it_was():
    """While a line is edited, with echo and line mode off."""
    import termios

    code = """
from packlight.cli.entering import read_line
from packlight.cli.terminal import end_by_signals, open_streams
open_streams()
end_by_signals()
read_line("> ")
"""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    seen = b""
    while b"> " not in seen:
        seen += os.read(ours, 1000)
    assert termios.tcgetattr(theirs) != before
    while process.poll() is None:  # Python hears of one only when it comes while the system waits for a key
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert process.returncode == 143
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    seen += os.read(ours, 1000)
    os.close(ours)
    assert seen.endswith(b"\nterminated\r\n")


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    """nohup's promise."""
    ready = tmp_path / "ready"
    code = f"""
import pathlib, sys
from packlight.cli.terminal import end_by_signals
end_by_signals()
pathlib.Path({str(ready)!r}).touch()
sys.stdin.read()
"""
    script = 'trap \'\' HUP; exec "$0" -c "$1"'
    process = subprocess.Popen(["sh", "-c", script, sys.executable, code], stdin=subprocess.PIPE)
    while not pathlib.Path(ready).exists():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0
