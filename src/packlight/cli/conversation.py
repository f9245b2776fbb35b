"""`packlight chat`: a conversation at a terminal. It knows lines, commands and Ctrl-C; models are packlight's."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from packlight.cli.spelling import message
from packlight.cli.terminal import follow, from_stdin, restored_terminal, say, speed, write
from packlight.common.errors import PacklightError
from packlight.common.text import shown

if TYPE_CHECKING:
    from packlight import LLM

HELP = """/system TEXT  begin anew with this system message
/reset        begin anew
/help         this
a line that ends with \\ goes on; Ctrl-C stops an answer; Ctrl-D or /quit ends"""


def lines(read: Callable[[str], str]) -> Iterator[str]:
    """What the user enters, lines that end with a backslash joined, until the end of input. What is not UTF-8 is left
    out, and said. read: asks for a line, in which bytes that are not UTF-8 are lone surrogates.
    """
    number = 0
    while True:
        first = number + 1
        try:
            number, text = number + 1, read("> ")
            while text.endswith("\\"):
                number, text = number + 1, text[:-1] + "\n" + read("| ")
        except EOFError:
            return
        except KeyboardInterrupt:
            say("\nCtrl-D or /quit ends")
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            say(f"line {first} is not UTF-8 and is left out: {shown(text.encode(errors='surrogateescape'))}")
        else:
            yield text


def read_line(prompt: str) -> str:
    """A line from stdin, which ends with a newline and nothing else; the prompt is shown only to a person, who may edit
    the line. Raises EOFError at the end, StreamError.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.ExitStack() as editing:
            with contextlib.suppress(ImportError):  # arrow keys, earlier lines, pasted lines as one; not on Windows
                import readline

                readline.parse_and_bind("set convert-meta off")  # in a plain locale it takes UTF-8 for commands
                editing.enter_context(restored_terminal())
            return from_stdin(lambda: input(prompt))
    if sys.stdin.isatty():
        say(prompt, end="")
    line = from_stdin(sys.stdin.buffer.readline)
    if not line:
        raise EOFError
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


class Conversation:
    """Messages so far, and the model that answers. An answer that was stopped stays, as far as it came."""

    def __init__(self, llm: "LLM", template: str | None, system: str | None, sampling: dict[str, Any]):
        self._llm, self._template, self._sampling = llm, template, sampling
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.system = system
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def run(self, read: Callable[[str], str]) -> None:
        """Answers until the input ends."""
        for text in lines(read):
            command, _, rest = text.strip().partition(" ")
            match command:
                case "":
                    continue
                case "/quit":
                    return
                case "/help":
                    say(HELP)
                case "/reset":
                    self.begin(self.system)
                case "/system":
                    self.begin(rest.strip() or None)
                case _ if command.startswith("/"):
                    say(f"no command {command}; /help lists them")
                case _:
                    self.answer(text)

    def answer(self, text: str) -> None:
        """One turn: shows the answer as it comes and keeps both messages; a turn that fails is forgotten."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        stopped = False

        def show(piece: str) -> None:
            said.append(piece)
            write(piece)
            if stopped:
                raise KeyboardInterrupt

        def stop(*_: Any) -> None:  # only noted: an exception inside a step would lose the cache
            nonlocal stopped
            stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            prompt = self._llm.chat_prompt(self.messages, template=self._template)
            if stopped:
                raise KeyboardInterrupt
            completion = follow(self._llm.stream(prompt, **self._sampling), show)
            write("\n")
            say(speed(completion))
        except KeyboardInterrupt:
            write("\n")
            say("stopped")
        except PacklightError as error:
            self.messages.pop()
            say(f"error: {message(error)}")
            return
        finally:
            signal.signal(signal.SIGINT, before)
        self.messages.append({"role": "assistant", "content": "".join(said)})
