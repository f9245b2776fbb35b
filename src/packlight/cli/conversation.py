"""`packlight chat`: a conversation. It knows commands, messages and what fits the context; models are packlight's."""

import bisect
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from packlight.cli.entering import Entry, History
from packlight.cli.spelling import message
from packlight.cli.terminal import follow, say, speed, streaming, write
from packlight.common.errors import ConfigError, PacklightError
from packlight.common.files import open_regular, whole_file
from packlight.common.text import near, reason, shown, shown_path
from packlight.model.text.chat import check

if TYPE_CHECKING:
    from packlight import LLM

Message = dict[str, Any]
COMMANDS = {  # -> what follows it, what it does
    "/system": ("TEXT", "begin anew with this system message, or without one"),
    "/clear": ("", "begin anew with the same system message"),
    "/regen": ("", "answer the last message again"),
    "/undo": ("", "take the last message and its answer back"),
    "/tokens": ("", "how much of the context the conversation takes"),
    "/save": ("FILE", "write the conversation as JSON, in OpenAI's form"),
    "/load": ("FILE", "go on with the conversation in such a file"),
    "/help": ("", "this; also /?"),
    "/exit": ("", "leave; also /bye, /quit, Ctrl-D, and Ctrl-C twice"),
}
ALIASES = {"/reset": "/clear", "/?": "/help", "/bye": "/exit", "/quit": "/exit"}
HELP = (
    "\n".join(f"{f'{name} {takes}':<14}{does}" for name, (takes, does) in COMMANDS.items())
    + '''
a pasted text is one message; a line that ends with \\ goes on, and so do lines between """ and """
Ctrl-C stops an answer; a space before / makes a message of a command'''
)
TO_THE_MODEL = "A space before it makes it a message"
RESERVED = 8  # one part of so many of the context is kept for an answer
FREED = 4  # one part of so many is free once turns have left it


def command_of(entry: Entry) -> tuple[str, str] | None:
    """The command that an entry is, and what follows it; None for a message.

    A line that merely begins with / is a message. Raises ConfigError for what only looks like a command.
    """
    word, _, rest = entry.text.partition(" ")
    name, rest = ALIASES.get(word.lower(), word.lower()), rest.strip()
    if entry.quoted or not name.startswith("/"):
        return None
    if name not in COMMANDS:
        meant = [each for each, (takes, _) in COMMANDS.items() if takes or not rest] + ([] if rest else [*ALIASES])
        if re.fullmatch("/[a-z]+", name) and (said := near(name, meant)):
            raise ConfigError(f"no command {word}{said} {TO_THE_MODEL}")
        return None
    takes = COMMANDS[name][0]
    if rest and not takes:
        raise ConfigError(f"{word} takes nothing behind it. {TO_THE_MODEL}")
    if takes == "FILE" and not rest:
        raise ConfigError(f"{word} wants a file: {word} FILE")
    return name, rest


def read_messages(path: str) -> list[Message]:
    """The conversation in a JSON file: a list of messages, or an object that has one. Raises ConfigError."""
    try:
        fd, _ = open_regular(path)
        with open(fd, encoding="utf-8") as file:
            told = json.load(file)
        messages: Any = told.get("messages") if isinstance(told, dict) else told
        check(messages)
        if wrong := [i for i, each in enumerate(messages) if not isinstance(each.get("content"), str | list | None)]:
            raise ConfigError(f"the content of message {wrong[0]} is no text")
        json.dumps(messages, ensure_ascii=False).encode()
    except UnicodeError:
        raise ConfigError(f"{shown_path(path)}: not UTF-8 text") from None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{shown_path(path)}: no conversation: {reason(error)}") from None
    return messages


def write_messages(path: str, messages: list[Message]) -> None:
    """Writes a conversation, in place of another if there is one. Raises ConfigError, also for a file that is none."""
    if os.path.exists(path):
        read_messages(path)
    try:
        with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(messages, file, ensure_ascii=False, indent=2)
            file.write("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown_path(path)}: {reason(error)}") from None


class Conversation:
    """Messages so far, and the model that answers. An answer that was stopped stays, as far as it came.

    drops: whether the oldest turns are read no longer when the context is full; else no further message is answered.
    """

    def __init__(self, llm: "LLM", template: str | None, system: str | None, sampling: dict[str, Any], drops: bool):
        self._llm, self._template, self._sampling, self._drops = llm, template, sampling, drops
        self._context = llm.plan.context
        self.begin([{"role": "system", "content": system}] if system else [])

    def begin(self, messages: list[Message]) -> None:
        """Goes on with these messages and none of the present ones."""
        is_head = [message["role"] in ("system", "developer") for message in messages]
        count = is_head.index(False) if False in is_head else len(messages)
        self._head, self._talk = messages[:count], messages[count:]
        self._unread = 0  # of the talk's oldest messages, for which the context has no room
        self._again = 0  # how often the last message was answered anew

    @property
    def messages(self) -> list[Message]:
        return [*self._head, *self._talk]

    def run(self, entered: Iterable[Entry], history: History) -> None:
        """Answers until the input ends."""
        for entry in entered:
            if not entry.text.strip():
                continue
            history.add(entry)
            try:
                command = command_of(entry)
                if command is None:
                    self._again = 0
                    self._answer([*self._talk, {"role": "user", "content": entry.text}])
                elif command[0] == "/exit":
                    return
                elif command[0] == "/regen":
                    self._again += 1
                    self._answer(self._talk[: self._last_turn("answer again") + 1])
                else:
                    say(self._obey(*command), asked=True)
            except PacklightError as error:
                say(f"error: {message(error)}")
            except KeyboardInterrupt:
                say("\nstopped")

    def _obey(self, command: str, rest: str) -> str:
        """Does what a command wants, and says what that was."""
        match command:
            case "/help":
                return HELP
            case "/system":
                self.begin([{"role": "system", "content": rest}] if rest else [])
                return "begun anew with this system message" if rest else "begun anew without a system message"
            case "/clear":
                self.begin(self._head)
                return "begun anew"
            case "/undo":
                at = self._last_turn("take back")
                said, self._talk, self._again = self._talk[at].get("content"), self._talk[:at], 0
                self._unread = 0 if self._unread >= at else self._unread
                return f"taken back: {shown(str(said), 50)}; messages left: {len(self.messages)}"
            case "/save":
                if not self.messages:
                    raise ConfigError("there is nothing to save")
                write_messages(os.path.expanduser(rest), self.messages)
                return f"saved to {shown_path(rest)}: {len(self.messages)} messages"
            case "/load":
                self.begin(read_messages(os.path.expanduser(rest)))
                open_end = self._talk and self._talk[-1]["role"] == "user"
                more = "; /regen answers the last one" if open_end else ""
                return f"loaded from {shown_path(rest)}: {len(self.messages)} messages{more}"
        return self._size()  # /tokens

    def _last_turn(self, what: str) -> int:
        """Where in the talk the user's last message is. Raises ConfigError."""
        found = [i for i, message in enumerate(self._talk) if message["role"] == "user"]
        if not found:
            raise ConfigError(f"there is no message to {what}")
        return found[-1]

    def _size(self) -> str:
        used = len(self._rendered(self._talk, self._unread)) if self.messages else 0
        unread = f", of which the oldest {self._unread} are read no longer" if self._unread else ""
        return f"{used:,} tokens of {self._context:,}; messages: {len(self.messages)}{unread}"

    def _rendered(self, talk: list[Message], unread: int) -> list[int]:
        return self._llm.chat_prompt([*self._head, *talk[unread:]], template=self._template)

    def _fitted(self, talk: list[Message]) -> tuple[list[int], int]:
        """The prompt of a talk, and how many of its oldest messages are left out of it.

        What is left out leaves a quarter of the context free, so that not every turn from there on leaves some out and,
        beginning otherwise than the last one, is read anew.
        """
        prompt = self._rendered(talk, self._unread)
        wanted = self._sampling["max_tokens"] or self._context
        reserved = min(wanted, self._context // RESERVED)
        begins = [i for i, message in enumerate(talk) if i > self._unread and message["role"] == "user"]
        if not self._drops or len(prompt) + reserved <= self._context or not begins:
            return prompt, self._unread
        fits = lambda at: len(self._rendered(talk, at)) + self._context // FREED <= self._context  # noqa: E731
        unread = begins[min(bisect.bisect_left(begins, True, key=fits), len(begins) - 1)]
        shorter = self._rendered(talk, unread)
        if len(shorter) >= self._context:  # the last message alone is too long
            return prompt, self._unread
        say(f"the context of {self._context:,} tokens is full: the oldest {unread} messages are read no longer")
        return shorter, unread

    def _answer(self, talk: list[Message]) -> None:
        """One turn: shows the answer to a talk's last message as it comes and keeps both. Where it fails, or is stopped
        before it says anything, all is as it was. Raises PacklightError.
        """
        said: list[str] = []
        stopped, unread, stream = False, self._unread, None

        def show(piece: str) -> None:
            if stopped and not said:
                raise KeyboardInterrupt
            said.append(piece)
            write(piece)
            if stopped:
                raise KeyboardInterrupt

        def stop(*_: Any) -> None:  # at first only noted: an exception inside a step loses the cache
            nonlocal stopped
            if stopped:
                raise KeyboardInterrupt
            stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            prompt, unread = self._fitted(talk)
            if stopped:
                raise KeyboardInterrupt
            with contextlib.closing(self._llm.stream(prompt, reuse_prefix=True, **self._seeded())) as stream:
                completion = follow(stream, show)
            write("\n")
            say(speed(completion))
            for line in streaming(self._llm):
                say(line)
            if completion.finish_reason == "length":
                full = len(prompt) + len(completion.token_ids) >= self._context
                limit = f"the context of {self._context:,} tokens is full" if full else "that is all of --max_tokens"
                say(f"the answer is cut off: {limit}")
        except KeyboardInterrupt:
            write("\n")
            if stream is None or not said:
                say("stopped before it said anything: the conversation is as it was")
                return
            say(speed(stream.so_far, "Ctrl-C"))
        except PacklightError:
            if said:
                write("\n")
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        self._talk, self._unread = [*talk, {"role": "assistant", "content": "".join(said)}], unread

    def _seeded(self) -> dict[str, Any]:
        """The sampling; an answer that is wanted again draws otherwise."""
        seed = self._sampling["seed"]
        return self._sampling | {"seed": None if seed is None else (seed + self._again) % 2**32}
