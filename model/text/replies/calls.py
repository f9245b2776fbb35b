"""Calls of tools read from a reply, in each of the shapes."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packlight.model.text.replies import values
from packlight.model.text.replies.deltas import Call, CallArguments, CallBegun, Delta
from packlight.model.text.replies.format import ReplyFormat, Shape
from packlight.model.text.replies.reading import BrokenError, Markers, Reader, Reading
from packlight.model.text.streaming import unfinished

NAME = re.compile(r"[\w.\-]")  # a character of a tool's name
HEADS = ("type", "id")  # keys that may come before the name in a call that no marker announces


class CallReader(Reader):
    """A reader that knows a format's calls."""

    def __init__(
        self,
        format: ReplyFormat,  # noqa: A002  its name
        tokenizer: Markers,
        tools: Sequence[Mapping[str, Any]],
        guarded: bool,
        id_of: Callable[[int], str],
    ):
        super().__init__(tokenizer)
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self._guarded, self._id_of = guarded, id_of
        texts = {name: value for name, value in vars(format).items() if isinstance(value, str)}
        keys = ("name_key", "arguments_key", "id_key")
        marked = {name: self._marked(text) for name, text in texts.items() if name not in keys}
        self._form = dataclasses.replace(format, **marked)
        self._safe = 0  # behind the last complete call
        self._deltas: list[Delta] = []
        self.calls: list[Call] = []

    def _flush(self) -> None:
        """Gives content out that was held back: it does not go on behind a call."""

    def _begin(self, name: str) -> Call:
        self._flush()
        index = len(self.calls)
        self.calls.append(Call(self._id_of(index), name))
        self._deltas.append(CallBegun(index, self.calls[-1].id, name))
        return self.calls[-1]

    def _argue(self, text: str) -> None:
        """More of the last call's arguments."""
        if text := self._plain(text):
            self.calls[-1].arguments += text
            self._deltas.append(CallArguments(len(self.calls) - 1, text))

    def _call(self, name: str, arguments: str) -> None:
        """A whole call at once."""
        self._begin(name)
        self._argue(arguments)
        self._complete()

    def _complete(self) -> None:
        self.calls[-1].complete = True
        self._safe = self._at

    def _section(self, marker: str) -> Reading:
        """One call or several, from where they open."""
        form, count = self._form, 0
        yield from self._expect(marker if marker and marker == form.also_open else form.section_open)
        while not count or (form.section_open and (yield from self._comes((form.call_open.split() or ["{"])[0]))):
            yield from self._expect(form.call_open)
            match form.shape:
                case Shape.LIST:
                    yield from self._list()
                case Shape.NAMED:
                    yield from self._named()
                case Shape.TAGGED:
                    yield from self._tagged()
                case Shape.GEMMA:
                    yield from self._gemma()
                case _:
                    yield from self._object()
            yield from self._expect(form.call_close, closing=True)
            count += 1
        yield from self._expect(form.section_close, closing=True)

    def _text_value(self) -> Reading:
        found = values.loaded(self._plain((yield from self._value())))
        if not isinstance(found, str):
            raise BrokenError
        return found

    def _arguments(self, name: str) -> Reading:
        """Arguments that are JSON behind a name that is known."""
        yield from self._space()
        if self._guarded and (yield from self._peek()) == "{":
            self._begin(name)
            yield from self._value(self._argue)
            self._complete()
        else:
            self._call(name, values.object_text(self._plain((yield from self._value()))) or self._break())

    def _object(self) -> Reading:
        """A call that is a JSON object."""
        form, begun = self._form, False
        yield from self._expect("{")
        name = arguments = None
        while (yield from self._comes('"')):
            key = yield from self._text_value()
            yield from self._expect(":")
            if key == form.name_key and name is None:
                name = yield from self._text_value()
                if name not in self._schemas and (form.bare or form.generic):
                    raise BrokenError
            elif key == form.arguments_key and arguments is None and not begun:
                if name is None:
                    arguments = values.object_text(self._plain((yield from self._value()))) or self._break()
                else:
                    yield from self._arguments(name)
                    begun = True
            elif form.bare and name is None and key not in HEADS:
                raise BrokenError
            else:
                yield from self._value()
            if not (yield from self._comes(",")):
                break
            self._at += 1
        try:
            yield from self._expect("}")
        except BrokenError:
            if not begun:
                raise
            return
        self._safe = self._at
        if name is None:
            raise BrokenError
        if not begun:
            self._call(name, arguments or "{}")

    def _list(self) -> Reading:
        yield from self._expect("[")
        while (yield from self._comes("{")):
            yield from self._object()
            if not (yield from self._comes(",")):
                break
            self._at += 1
        yield from self._expect("]", closing=bool(self.calls))

    def _name(self) -> Reading:
        yield from self._space()
        start = self._at
        while (found := (yield from self._peek())) and NAME.match(found):
            self._at += 1
        return self._text[start : self._at] or self._break()

    def _named(self) -> Reading:
        """A call that is a name and JSON. Of models that write ids some leave them out."""
        form, name = self._form, (yield from self._name())
        if form.id_open and (yield from self._comes(form.id_open.strip())):
            yield from self._upto(form.arguments_open.strip())
        else:
            yield from self._expect(form.arguments_open)
        yield from self._arguments(name)

    def _tagged(self) -> Reading:
        """A call whose arguments stand between tags."""
        form, name = self._form, (yield from self._name())
        properties = values.properties_of(self._schemas.get(name))
        yield from self._expect(form.arguments_open)
        if self._guarded:
            self._begin(name)
        written: list[str] = []
        exactly = str if self._guarded else str.strip  # what no grammar keeps in form may have other white space
        while (yield from self._comes(form.key_open.split()[0])):
            yield from self._expect(form.key_open)
            key = self._plain((yield from self._upto(exactly(form.value_open))))
            types = values.types_of(properties.get(key, {}))
            front = f"{', ' if written else '{'}{json.dumps(key, ensure_ascii=False)}: "
            if self._guarded and types == {"string"}:
                self._argue(front + '"')
                yield from self._raw(form.value_close)
                self._argue('"')
                written.append("")
                continue
            if not self._guarded and form.value_open.endswith("\n") and (yield from self._peek()) == "\n":
                self._at += 1
            text = self._plain((yield from self._upto(exactly(form.value_close))))
            text = text.removesuffix("\n") if not self._guarded and form.value_close.startswith("\n") else text
            written.append(front + values.typed(text, types))
            if self._guarded:
                self._argue(written[-1])
        closes = form.call_close.split()
        if closes and not (yield from self._comes(closes[0])):
            raise BrokenError
        end = "}" if written else "{}"
        if self._guarded:
            self._argue(end)
            self._complete()
        else:
            self._call(name, "".join(written) + end)

    def _raw(self, marker: str) -> Reading:
        """A text without quotes, up to a marker, given out as JSON as it comes."""
        while True:
            found = self._text.find(marker, self._at)
            end = found if found >= 0 else self._at + unfinished(self._text[self._at :], [marker])
            self._argue(json.dumps(self._plain(self._text[self._at : end]), ensure_ascii=False)[1:-1])
            self._at = end + (len(marker) if found >= 0 else 0)
            if found >= 0:
                return
            if self._ended:
                raise BrokenError
            yield

    def _gemma(self) -> Reading:
        """A call in Gemma 4's notation."""
        name = yield from self._name()
        text = yield from self._upto(self._form.call_close)
        self._at -= len(self._form.call_close)
        self._call(name, values.gemma(self._plain(text), self._plain(self._form.quote)) or self._break())
