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

from packlight.model.text.chat import ChatTemplateError, TemplateEndError, make_prompt
from packlight.model.text.replies.format import GENERIC, Messages, ReplyFormat, Shape
from packlight.model.text.replies.measure import ARGUMENTS, ID, TOOL, behind, measured, turn_at
from packlight.model.text.specials import END_TEXTS

TEXT, THOUGHT, ASKED, RESULT = "Probe text", "Probe thought", "Probe question", "Probe result"
LONG_ID = "call_prob{}e9id"  # as OpenAI's look
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
_WORDS_GRANITE = "<|tool_call|> followed by a JSON list"


@functools.lru_cache(16)
def reply_format(template: str, bos_token: str = "", eos_token: str = "") -> ReplyFormat:
    """The format of a template's model; remembered by the template's text.

    Raises TemplateEndError where a render does not end, or its process dies; nothing is remembered then.
    """
    return _Probe(template, bos_token, eos_token).found()


class _Probe:
    def __init__(self, template: str, bos_token: str, eos_token: str):
        self.template = template
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._ends = (*END_TEXTS, *([eos_token] if eos_token else []))

    def found(self) -> ReplyFormat:
        told = self.render(USER, tools=TOOLS, answers=True) or ""
        if not told and self.render(USER, answers=True) is None:  # it renders nothing
            return ReplyFormat()
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
        except TemplateEndError:
            raise
        except ChatTemplateError:
            return None

    def _thinking(self, told: str) -> ReplyFormat:
        """The format with what opens and closes thinking."""
        thought = {"reasoning_content": THOUGHT, "thinking": THOUGHT}
        spoken, called = {"role": "assistant", "content": TEXT} | thought, calling(1) | thought
        for message, after, tools in ((spoken, TEXT, None), (called, TOOL, TOOLS)):
            asked = told if tools else self.render(USER, answers=True) or ""
            said = self.render(USER, message) or ""
            turn = said[turn_at(said, asked) :]
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
            text = text[turn_at(text, told) :]
            before, found, after = text.partition(closing) if closing else ("", "", text)
            text = after if found and TOOL not in before else text
            return self._without_end(text, plain.rpartition(TEXT)[2])

        two = self.render(USER, calling(2, as_text=as_text))
        texts = [turn(one), *([] if two is None else [turn(two)])]
        found = measured(*texts)
        if found is None or TOOL not in told:
            return None
        also = "<|python_tag|>" if found.bare and "<|python_tag|>" in self.template else ""
        return dataclasses.replace(found, also_open=also)

    def _without_end(self, text: str, end: str) -> str:
        """A turn without what ends any turn."""
        text = behind(text, end)
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
