"""A model's reply format, measured: its chat template renders a few conversations with known words in them, and what it
writes around these words is the format.

Where no shape fits, a template that shows tools gets the generic form, and one that does not has none.
Source of the idea: llama.cpp docs/autoparser.md.
"""

import dataclasses
import functools
import json
import os.path
import re
from collections.abc import Mapping
from typing import Any

from packlight.model.text.chat import ChatTemplateError, make_prompt
from packlight.model.text.replies.format import GENERIC, Messages, ReplyFormat, Shape
from packlight.model.text.specials import END_TEXTS

TOOL, TEXT, THOUGHT, ASKED, RESULT = "probe_tool", "Probe text", "Probe thought", "Probe question", "Probe result"
ARGUMENTS = {"probe_first": "probe value", "probe_second": 7}
ID, LONG_ID = "prob{}e9id", "call_prob{}e9id"  # of nine characters, and as OpenAI's look
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Does nothing.",
            "parameters": {
                "type": "object",
                "properties": {
                    "probe_first": {"type": "string", "description": "A text."},
                    "probe_second": {"type": "integer", "description": "A number."},
                },
                "required": ["probe_first", "probe_second"],
            },
        },
    }
]
USER = {"role": "user", "content": ASKED}
# Of templates that parse thinking, or ask for it, but do not write it.
THINKING_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
LONGEST = 100  # characters of a marker
_WORDS_GRANITE = "<|tool_call|> followed by a JSON list"


@functools.lru_cache(16)
def reply_format(template: str, bos_token: str = "", eos_token: str = "") -> ReplyFormat:
    """The format of a template's model; remembered by the template's text."""
    return _Probe(template, bos_token, eos_token).found()


class _Probe:
    def __init__(self, template: str, bos_token: str, eos_token: str):
        self.template = template
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._ends = (*END_TEXTS, *([eos_token] if eos_token else []))

    def found(self) -> ReplyFormat:
        told = self.render(USER, tools=TOOLS, answers=True) or ""
        thinking = self._thinking(told)
        as_text = self.render(USER, calling(1)) is None and self.render(USER, calling(1, as_text=True)) is not None
        calls = self._calls(told, thinking.think_close, as_text)
        if calls is None:
            calls = ReplyFormat() if TOOL not in told else GENERIC
            if _WORDS_GRANITE in self.template:
                calls = ReplyFormat(shape=Shape.LIST, section_open="<|tool_call|>", parallel=True)
        messages = dataclasses.replace(self._messages(calls), arguments_as_text=as_text)
        return dataclasses.replace(
            calls, think_open=thinking.think_open, think_close=thinking.think_close, messages=messages
        )

    def render(self, *messages: Mapping[str, Any], tools: Any = None, answers: bool = False) -> str | None:
        """The text of a conversation; None where the template refuses it. answers: up to where the model would."""
        tools = TOOLS if any("tool_calls" in message for message in messages) else tools
        try:
            return make_prompt(self.template, messages, answers, tools, **self._tokens).text
        except ChatTemplateError:
            return None

    def _thinking(self, told: str) -> ReplyFormat:
        """The format with what opens and closes thinking."""
        thought = {"reasoning_content": THOUGHT, "thinking": THOUGHT}
        spoken, called = {"role": "assistant", "content": TEXT} | thought, calling(1) | thought
        for message, after, tools in ((spoken, TEXT, None), (called, TOOL, TOOLS)):
            asked = told if tools else self.render(USER, answers=True) or ""
            said = self.render(USER, message) or ""
            turn = said[_turn(said, asked) :]
            opens, found, rest = turn.partition(THOUGHT)
            if not found or after not in rest:
                continue
            closes = re.match(r"\s*([^<>\[\]]*<[^<>]*>|\[[^\[\]]*\])\s*", rest.partition(after)[0])
            if closes is None:
                continue
            if pair := re.fullmatch(r"([<\[])/(.+)", closes[0].strip()):
                opens = next(iter(re.findall(re.escape(pair[1] + pair[2]) + r"\s*", opens)), pair[1] + pair[2])
            elif not opens.strip():  # the prompt has it already, or has empty thinking
                more = asked[len(os.path.commonprefix([said, asked])) :].strip()
                last = re.findall(r"<[^<>]*>[^<>\n]*\s*$", said.partition(THOUGHT)[0])
                opens = more if more and more != closes[0].strip() else "".join(last)
            if asked.partition(ASKED)[2].startswith(closes[0].strip()):  # it ends any message
                continue
            return ReplyFormat(think_open=opens, think_close=closes[0])
        for opens, closes in THINKING_TAGS:
            if closes in self.template:
                return ReplyFormat(think_open=opens, think_close=closes)
        return ReplyFormat()

    def _calls(self, told: str, think_close: str, as_text: bool) -> ReplyFormat | None:
        """The format with all that concerns calls; None where none is known that fits."""
        one = self.render(USER, calling(1, as_text=as_text))
        if one is None or TOOL not in one[one.find(ASKED) :]:
            return None
        if "<|channel|>" in one and "to=functions." + TOOL in one:
            return ReplyFormat(shape=Shape.CHANNELS, call_open="to=functions.")
        plain = self.render(USER, {"role": "assistant", "content": TEXT}) or ""
        closing = think_close.strip()

        def turn(text: str) -> str:
            text = text[_turn(text, told) :]
            before, found, after = text.partition(closing) if closing else ("", "", text)
            text = after if found and TOOL not in before else text
            return self._without_end(text, plain.rpartition(TEXT)[2])

        two = self.render(USER, calling(2, as_text=as_text))
        texts = [turn(one), *([] if two is None else [turn(two)])]
        for measure in (_json, _named, _tagged, _gemma):
            found = measure(*texts)
            if found is not None and _fits(found):
                break
        else:
            return None
        also = "<|python_tag|>" if found.bare and "<|python_tag|>" in self.template else ""
        return dataclasses.replace(found, also_open=also) if TOOL in told else None

    def _without_end(self, text: str, end: str) -> str:
        """A turn without what ends any turn."""
        text, end = text.rstrip(), end.rstrip()
        same = os.path.commonprefix([text[::-1], end[::-1]])[::-1]
        text = text.removesuffix(same[_first(same, "<[") :])
        while tail := next((each for each in self._ends if text.rstrip().endswith(each)), None):
            text = text.rstrip().removesuffix(tail)
        return text

    def _messages(self, format: ReplyFormat) -> Messages:  # noqa: A002  its name
        """What the template wants of messages, apart from the form of arguments."""
        told = {"role": "system", "content": TEXT}
        system = self.render(told, USER) or self.render(told, USER, tools=TOOLS)
        developer = self.render(told | {"role": "developer"}, USER)
        null = self.render(USER, calling(1) | {"content": None})
        result = {"role": "tool", "name": TOOL, "content": RESULT}
        long, short = (
            self.render(USER, calling(1, id=each), result | {"tool_call_id": each.format(0)}) for each in (LONG_ID, ID)
        )
        nameless = [{"type": "function", "function": {**TOOLS[0]["function"]}}]
        del nameless[0]["function"]["description"]
        key, both = "", None
        for each in ("reasoning_content", "thinking"):
            said = self.render(USER, calling(1) | {each: THOUGHT}, result | {"tool_call_id": ID.format(0)})
            said = said or self.render(USER, {"role": "assistant", "content": TEXT, each: THOUGHT})
            if said is not None and THOUGHT in said:
                key = each
                both = self.render(USER, calling(1) | {each: THOUGHT, "content": TEXT})
                break
        return Messages(
            null_content=null is not None and "None" not in null[null.find(ASKED) :],
            short_ids=long is None and short is not None,
            developer=developer is not None and TEXT in developer and "developer" in self.template,
            system=system is not None and TEXT in system,
            calls=not format.generic and TOOL in (self.render(USER, calling(1)) or TOOL).rpartition(ASKED)[2],
            results=RESULT in (short or long or ""),
            descriptions=bool(format.shape) and self.render(USER, tools=nameless) is None,
            reasoning=key,
            reasoning_with_content=both is not None or not key or format.shape is None,
        )


def calling(count: int, as_text: bool = False, id: str = ID) -> dict[str, Any]:  # noqa: A002  its name in messages
    """An assistant's message with calls."""
    arguments: Any = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    calls = [
        {"id": id.format(n), "type": "function", "function": {"name": TOOL, "arguments": arguments}}
        for n in range(count)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _turn(text: str, asked: str) -> int:
    """Where the assistant's turn starts: behind what a prompt has too, at no place inside a tag."""
    at = len(os.path.commonprefix([text, asked]))
    while 0 < at < len(asked) and text[at - 1] not in "\n>]":
        at -= 1
    return at


def _json(one: str, two: str = "") -> ReplyFormat | None:
    """The format of a turn with one call and of one with two, where a call's name stands in JSON."""
    spans = _values(one, dict | list)
    if not spans:
        return None
    value, start, end = spans[0]
    shape, call = (Shape.LIST, value[0]) if isinstance(value, list) else (Shape.JSON, value)
    if not isinstance(call, dict):
        return None
    named = next((key for key, item in call.items() if item == TOOL), None)
    given = next((key for key, item in call.items() if item in (ARGUMENTS, json.dumps(ARGUMENTS))), None)
    if named is None or given is None:
        return None
    ids = next((key for key, item in call.items() if item == ID.format(0)), "")
    if ids and [*call][-1] != ids:
        return None
    keys = {"name_key": named, "arguments_key": given, "id_key": ids, "shape": shape}
    if shape is Shape.LIST:
        several = any(len(found) == 2 for found, *_ in _values(two, list))
        return ReplyFormat(section_open=one[:start], section_close=one[end:], parallel=several, **keys)
    return _wrapped(one, (start, end), two, [(a, b) for _, a, b in _values(two, dict)], **keys)


def _values(text: str, kind: Any) -> list[tuple[Any, int, int]]:
    """The outermost JSON values of a text that hold the tool's name, and where they are."""
    found, at = [], 0
    while (start := re.compile(r"[{\[]").search(text, at)) is not None:
        at = start.start() + 1
        try:
            value, end = json.JSONDecoder().raw_decode(text, start.start())
        except ValueError:
            continue
        if isinstance(value, kind) and TOOL in text[start.start() : end]:
            found.append((value, start.start(), end))
            at = end
    return found


def _named(one: str, two: str = "") -> ReplyFormat | None:
    """As `_json`, where a name and then JSON stand there."""

    def spans(text: str) -> list[tuple[int, int]]:
        found = []
        for name in re.finditer(TOOL, text):
            brace = text.find("{", name.end())
            try:
                value, end = json.JSONDecoder().raw_decode(text, brace) if brace >= 0 else (None, 0)
            except ValueError:
                continue
            if value == ARGUMENTS:
                found.append((name.start(), end))
                betweens.add(re.sub(ID.format(r"\d"), ID.format(0), text[name.end() : brace]))
        return found

    betweens: set[str] = set()
    found, others = spans(one), spans(two)
    if len(betweens) != 1:
        return None
    ids, _, opens = betweens.pop().rpartition(ID.format(0))
    return _wrapped(one, found[0], two, others, shape=Shape.NAMED, id_open=ids, arguments_open=opens)


def _tagged(one: str, two: str = "") -> ReplyFormat | None:
    """As `_json`, where each argument stands between tags."""
    (first, value), (second, number) = ((key, str(item)) for key, item in ARGUMENTS.items())
    words = [TOOL, first, value, second, number]
    pattern = re.compile("(.+?)".join(map(re.escape, words)), re.DOTALL)
    found = pattern.search(one)
    if found is None:
        return None
    opens, value_open, between, again = found.groups()
    key_open = os.path.commonprefix([opens[::-1], between[::-1]])[::-1]
    key_open = key_open[key_open.rfind("<") :] if "<" in key_open else ""
    if not key_open or again != value_open:
        return None
    spans = [match.span() for match in pattern.finditer(two)]
    value_close = between.removesuffix(key_open)
    wrapped = _wrapped(one, found.span(), two, spans, shape=Shape.TAGGED)
    if wrapped is None or not wrapped.call_close.startswith(value_close.rstrip()):
        return None
    return dataclasses.replace(
        wrapped,
        call_close=wrapped.call_close.removeprefix(value_close.rstrip()).lstrip(),
        arguments_open=opens.removesuffix(key_open),
        key_open=key_open,
        value_open=value_open,
        value_close=value_close,
    )


def _gemma(one: str, two: str = "") -> ReplyFormat | None:
    """As `_json`, in Gemma 4's own notation of values."""
    text = re.escape(TOOL) + r"\{probe_first:(\S+?)probe value\1,probe_second:7\}"
    found = re.search(text, one)
    spans = [match.span() for match in re.finditer(text, two)]
    return _wrapped(one, found.span(), two, spans, shape=Shape.GEMMA, quote=found[1]) if found else None


def _wrapped(
    one: str, call: tuple[int, int], two: str, calls: list[tuple[int, int]], **fields: Any
) -> ReplyFormat | None:
    """The format with what stands before, between and behind calls; None where that parts them otherwise.

    call, calls: where they are in the turns.
    """
    if len(calls) != 2:
        return ReplyFormat(call_open=one[: call[0]], call_close=one[call[1] :], **fields)
    (start, end), (again, last) = calls
    before, between, behind = two[:start], two[end:again], two[last:]
    opens = os.path.commonprefix([before[::-1], between[::-1]])[::-1]
    if len(opens) < len(before.lstrip()):
        opens = opens[_first(opens, "<[") :]
    closes = os.path.commonprefix([behind, between])
    if len(closes) < len(behind.rstrip()):
        closes = closes[: max(closes.rfind(">"), closes.rfind("]")) + 1]
    separator = between.removeprefix(closes.rstrip()).removesuffix(opens.lstrip())
    if separator.strip():
        return None
    return ReplyFormat(
        section_open=before[: len(before) - len(opens)].lstrip(),
        call_open=opens.lstrip(),
        call_close=closes.rstrip(),
        section_close=behind[len(closes) :].rstrip(),
        separator=separator,
        parallel=True,
        **fields,
    )


def _fits(found: ReplyFormat) -> bool:
    """Whether a measured format is one: no word of ours is in it, and a call without a marker is JSON."""
    texts = [value for value in dataclasses.asdict(found).values() if isinstance(value, str)]
    strange = any(len(text) > LONGEST or re.search("(?i)prob", text) for text in texts)
    return not strange and (not found.bare or found.shape is Shape.JSON)


def _first(text: str, characters: str) -> int:
    """Where the first of these characters is; behind the text where none is."""
    return min((at for c in characters if (at := text.find(c)) >= 0), default=len(text))
