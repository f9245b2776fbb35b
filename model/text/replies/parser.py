"""A reply taken apart while it comes: thinking, content, and calls of tools with their arguments. One machine reads
replies that are streamed and whole ones alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packlight.common.errors import ConfigError
from packlight.model.text.replies.calls import CallReader
from packlight.model.text.replies.deltas import Content, Delta, Reasoning, call_ids
from packlight.model.text.replies.format import ReplyFormat, Shape
from packlight.model.text.replies.reading import BrokenError, Markers, Reading
from packlight.model.text.streaming import StopStrings, unfinished

HARMONY = ("<|message|>", "<|start|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>")


class ReplyParser(CallReader):
    """One reply on its way. It feeds as a `TextStream` does: what it returns is content that became safe to show.

    The deltas, joined, are `reasoning`, `content` and `calls`, however the text is cut into tokens.
    """

    def __init__(
        self,
        format: ReplyFormat,  # noqa: A002  its name
        tokenizer: Markers,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool = False,
        stop: str | Sequence[str] = (),
        guarded: bool = False,
        id_of: Callable[[int], str] | None = None,
    ):
        """tools: what may be called, as requests have them; without them nothing is a call. thinking: the prompt ends
        inside of thinking. stop: stop strings of the content. guarded: a grammar keeps calls valid once they are open,
        so that arguments are given out as they come; without one a call is held back until it has proved to be one.

        Raises ConfigError for a stop string that is empty or no string, and for tools where the format has none.
        """
        if tools and format.shape is None:
            raise ConfigError("tools: the model's chat template has no place for them")
        super().__init__(format, tokenizer, tools, guarded, id_of or call_ids(None, ()))
        self._stop = StopStrings(stop)
        self._fresh: list[str] = []  # content that `feed` has not returned
        self._said = self._trimmed = False  # whether content came; whether white space in front of it is none of it
        self._thought = False  # whether this thought has begun
        self.reasoning = self.content = ""
        self._machine = self._channels() if format.shape is Shape.CHANNELS else self._reply(thinking)
        next(self._machine)

    @property
    def stopped(self) -> bool:
        """Whether the content has reached a stop string."""
        return self._stop.stopped

    def feed(self, token_id: int) -> str:
        """The content that became safe to show with this id; "" for good once `stopped`."""
        return self._advance(self._decoded(token_id))

    def finish(self) -> str:
        """The content that was held back; after it nothing follows."""
        if not self._ended:
            self._text += self._decoder.decode(b"", final=True)
            self._ended = True
            self._advance("")
            self._flush()
        fresh, self._fresh = "".join(self._fresh), []
        return fresh

    def taken(self) -> list[Delta]:
        """The deltas since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish_reason(self, reason: str) -> str:
        """Why the reply ended, of which the engine says `reason`: "tool_calls" where all calls are complete, and
        nothing cut the reply off.
        """
        done = bool(self.calls) and all(call.complete for call in self.calls)
        return "tool_calls" if done and reason == "stop" and not self.stopped else reason

    def _advance(self, text: str) -> str:
        if not self.stopped:
            self._text += text
            next(self._machine, None)
        if self._ended:
            return ""
        fresh, self._fresh = "".join(self._fresh), []
        return fresh

    # What the machine gives out.

    def _show(self, text: str, final: bool = False) -> None:
        """Gives content out, but for what may be a stop string."""
        if self._trimmed:
            text = text.lstrip()
        if text:
            self._said, self._trimmed = True, False
        shown = self._stop.take(self._plain(text), final)
        if shown:
            self.content += shown
            self._fresh.append(shown)
            self._deltas.append(Content(shown))

    def _flush(self) -> None:
        self._show("", final=True)

    def _think(self, text: str) -> None:
        """Gives thinking out; one thought after another behind an empty line."""
        text = self._plain(text if self._thought else text.lstrip())
        if text:
            text = text if self._thought or not self.reasoning else "\n\n" + text
            self._thought = True
            self.reasoning += text
            self._deltas.append(Reasoning(text))

    # What the machine reads.

    def _reply(self, thinking: bool) -> Reading:
        yield
        opens, closes = self._form.think_open.strip(), self._form.think_close.strip()
        while not self.stopped:
            if thinking:
                self._thought = False
                yield from self._until(closes)
                thinking, self._trimmed = False, True
            found = yield from self._content(opens if closes else "")
            if found is None:
                return
            thinking = found == opens != ""
            if thinking:
                self._at = self._text.index(found, self._at) + len(found)
            else:
                yield from self._attempt(found)

    def _content(self, thinking: str) -> Reading:
        """Gives content out up to a marker and the white space before it.

        It returns the marker, or "" where a call begins without one, or None at the end. A marker of thinking that the
        vocabulary spells as text counts at the beginning only.
        """
        form, calling = self._form, bool(self._schemas)
        bare = calling and (form.bare or form.generic)
        first = thinking if thinking and thinking[0] not in self._spelled else ""
        wanted = [thinking] if thinking and not first else []
        wanted += form.opens.split()[:1] if calling and not bare else []
        wanted += [form.also_open] if calling and form.also_open else []
        while True:
            self._text, self._at = self._text[self._at :], 0
            if not self._said and (first or bare):
                ahead = self._text.lstrip()
                if first and ahead.startswith(first):
                    return first
                if bare and ahead.startswith("{"):
                    return ""
                if not self._ended and (not ahead or first.startswith(ahead)):
                    yield
                    continue
            at, marker = min(((at, m) for m in wanted if (at := self._text.find(m)) >= 0), default=(-1, ""))
            end = at if at >= 0 else len(self._text) if self._ended else unfinished(self._text, wanted)
            if at >= 0 or (wanted and not self._ended):
                end = len(self._text[:end].rstrip())
            self._show(self._text[:end])
            self._at = end
            if self._ended and at < 0 or self.stopped:
                return None
            if at >= 0:
                return marker
            yield

    def _until(self, marker: str) -> Reading:
        """Thinking up to the marker that ends it, without the white space before that."""
        while True:
            self._text, self._at = self._text[self._at :], 0
            found = self._text.find(marker)
            end = len(self._text) if self._ended else unfinished(self._text, [marker])
            end = len(self._text[: found if found >= 0 else end].rstrip())
            self._think(self._text[:end])
            self._at = end if found < 0 else found + len(marker)
            if found >= 0 or self._ended:
                return
            yield

    def _attempt(self, marker: str) -> Reading:
        """Reads calls; what proves to be none is content."""
        start, before = self._at, len(self.calls)
        try:
            yield from self._section(marker)
            self._trimmed = True
        except BrokenError:
            if len(self.calls) == before:
                self._at = self._text.index(marker, start) + max(1, len(marker))
                self._show(self._text[start : self._at])
            elif self.calls[-1].complete:
                self._at = self._safe

    def _channels(self) -> Reading:
        """gpt-oss's messages: a header, which says channel and recipient, and a body.

        Source: OpenAI's harmony response format.
        """
        message, starts, channel, *ends = map(self._marked, HARMONY)
        yield
        while not self.stopped and (yield from self._peek()):
            start = self._at
            try:
                header = self._plain((yield from self._upto(message)))
            except BrokenError:  # the reply ended in a header, or has none
                text = self._text[start:]
                if channel not in text and not re.match(r"\s*(assistant|to=)", text.removeprefix(starts)):
                    self._show(text)
                return
            self._thought, begun = False, len(self.calls)
            recipient = re.search(r"to=(?:functions\.)?([\w.\-]+)", header)
            tell = self._think if "analysis" in header else self._show
            if recipient and self._schemas:
                body = self._at
                try:
                    yield from self._arguments(recipient[1])
                    tell = lambda _: None  # noqa: E731  what follows a call's JSON says nothing
                except BrokenError:
                    if len(self.calls) > begun:
                        return
                    self._at, tell = body, self._show
            yield from self._body(ends, tell)
            self._trimmed = True

    def _body(self, ends: Sequence[str], tell: Callable[[str], None]) -> Reading:
        """Tells a message's text as it comes, and goes behind its end."""
        while True:
            self._text, self._at = self._text[self._at :], 0
            at, end = min(((at, e) for e in ends if (at := self._text.find(e)) >= 0), default=(-1, ""))
            if at >= 0:
                tell(self._text[:at])
                self._at = at + len(end)
                return
            upto = len(self._text) if self._ended else unfinished(self._text, ends)
            tell(self._text[:upto])
            self._at = upto
            if self._ended or self.stopped:
                return
            yield
