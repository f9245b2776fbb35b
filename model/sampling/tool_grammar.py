"""Grammars of replies in which an opened call of a tool is always valid, in llguidance's dialect of Lark, made from a
model's reply format. Text that calls nothing stays free.

A marker that is a token of the vocabulary is that token here, whatever its type, as it is for the parser of replies.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from packlight.common.errors import ConfigError
from packlight.common.text import shown
from packlight.model.sampling.argument_grammar import ANY, ArgumentWriter, problem_of
from packlight.model.text.replies.format import ReplyFormat, Shape
from packlight.model.text.replies.reading import Markers


def reply_grammar(
    form: ReplyFormat,
    tokenizer: Markers,
    tools: Sequence[Mapping[str, Any]] = (),
    choice: str = "auto",
    *,
    parallel: bool = True,
    schema: Mapping[str, Any] | None = None,
    thinking: bool = False,
) -> str | None:
    """The grammar that a request's tools and its JSON schema ask for, as `SamplingConfig.grammar` takes it; None where
    they ask for none.

    choice: "auto" and "none" leave it to the model, and to nobody; "required" makes the reply calls and nothing else;
    a tool's name makes it one call of that. parallel: whether there may be several calls. schema: of the content.
    thinking: the prompt ends inside of thinking. Where a model thinks it may do so first.

    Raises ConfigError naming a tool that is unknown, or that is strict and has a schema that cannot be enforced, and
    for a schema of the content that cannot be.
    """
    tools = [] if choice == "none" else tools
    picked = choice not in ("auto", "none", "required")
    named = [tool for tool in tools if picked and tool["function"]["name"] == choice]
    if picked and not named:
        raise ConfigError(f"tool_choice: there is no tool {shown(choice)!r}")
    if choice == "required" and not tools:
        raise ConfigError("tool_choice 'required' needs tools")
    if not tools and schema is None:
        return None
    if schema is not None and (problem := problem_of(schema)):
        raise ConfigError(f"json_schema: {problem}")
    several = parallel and form.parallel and not named
    writer = _Writer(form, tokenizer)
    try:
        if form.shape is Shape.CHANNELS:
            return writer.channels(named or tools, choice == "auto" or not tools, schema)
        return writer.reply(named or tools, choice == "auto", several, schema, thinking)
    except RecursionError:
        raise ConfigError("tools: a schema is nested too deeply") from None


class _Writer(ArgumentWriter):
    """Replies."""

    def reply(
        self,
        tools: Sequence[Mapping[str, Any]],
        free: bool,
        several: bool,
        schema: Mapping[str, Any] | None,
        thinking: bool,
    ) -> str:
        """free: the reply need not call."""
        form = self._form
        parts = []
        if form.think_close.strip():
            closed = self._upto(form.think_close.strip())
            if thinking:
                parts += [closed, "BLANK"]
            else:
                parts.append(self._rule(f"({self._marker(form.think_open.strip())} {closed} BLANK)?"))
        content = "TEXT" if schema is None else self._json(schema)
        if not tools:
            parts.append(content)
        elif not free:
            parts.append(self._calls(tools, several))
        elif schema is not None:
            parts.append(f"({self._calls(tools, several)} | {content})")
        elif form.generic:
            opens = form.opens.rstrip()
            begun = self._rule(f"/[ \\n]*/ {json.dumps(opens)}", "[lazy]")
            parts.append(f"({begun} {self._calls(tools, several, without=opens)} | TEXT)")
        elif form.bare:
            parts.append(f"({self._calls(tools, several, lazy=True)} | TEXT)")
        else:
            called = self._called(tools, several)
            parts.append(f"({called})* TEXT" if several else f"({called} | TEXT)")
        return self._grammar(" ".join(parts))

    def channels(self, tools: Sequence[Mapping[str, Any]], free: bool, schema: Mapping[str, Any] | None) -> str:
        """gpt-oss's messages: what it thinks, then an answer or one call."""
        form = [self._marker(text) for text in ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")]
        channel, message, _, start = form
        thought = self._rule(f'{channel} "analysis" {message} {self._upto("<|end|>")} {start} "assistant"')
        answers = []
        if free:
            content = "TEXT" if schema is None else self._json(schema)
            answers.append(f'{channel} "final" {message} {content}')
        constrain = self._marker("<|constrain|>")
        for number, tool in enumerate(tools):
            name = json.dumps(tool["function"]["name"])
            to = f'" to=functions." {name} {channel} "commentary" (" json" | " " {constrain} "json")?'
            other = f'{channel} "commentary to=functions." {name} " " {constrain} "json"'
            answers.append(f"({to} | {other}) {message} {self._arguments(tool, number)}")
        return self._grammar(f"({thought})* ({' | '.join(answers)})")

    def _called(self, tools: Sequence[Mapping[str, Any]], several: bool) -> str:
        """Any text and then calls, which the first marker makes them."""
        opens = self._marker(self._form.opens.lstrip())
        if opens.startswith("<["):
            return self._rule(f"TEXT {self._calls(tools, several)}")
        first = json.loads(re.split(r" (?=<\[)", opens, maxsplit=1)[0]).split()[0]
        begun = self._rule(f"{ANY} {json.dumps(first)}", "[lazy]")
        return self._rule(f"{begun} {self._calls(tools, several, without=first)}")

    def _calls(self, tools: Sequence[Mapping[str, Any]], several: bool, lazy: bool = False, without: str = "") -> str:
        """Calls in all that surrounds them. lazy: the beginning of one decides that it is one. without: text at the
        front that was there already.
        """
        form = self._form
        more = several and not lazy
        options = [self._call(tool, number, lazy) for number, tool in enumerate(tools)]
        call = self._rule(" | ".join(options))
        if form.shape is Shape.LIST:
            others = f'(", " {call})*' if more else ""
            call = self._rule(f'"[" {call} {others} "]"')
            more = False
        opens, closes = self._marker(form.call_open), self._marker(form.call_close)
        first = self._marker((form.section_open + form.call_open).lstrip().removeprefix(without))
        separator = self._marker(form.separator)
        again = f"({separator} {opens} {call} {closes})*" if more else ""
        return self._rule(f"{first} {call} {closes} {again} {self._marker(form.section_close)}")

    def _call(self, tool: Mapping[str, Any], number: int, lazy: bool) -> str:
        form, name = self._form, tool["function"]["name"]
        match form.shape:
            case Shape.NAMED:
                ids = f"{self._marker(form.id_open)} ID" if form.id_open else ""
                opens = self._marker(form.arguments_open)
                return self._rule(f"{json.dumps(name)} {ids} {opens} {self._arguments(tool, number)}")
            case Shape.TAGGED:
                return self._rule(f"{json.dumps(name)} {self._marker(form.arguments_open)} {self._tags(tool, number)}")
            case Shape.GEMMA:
                return self._rule(f"{json.dumps(name)} {self._gemma_object(tool, number)}")
        keys = json.dumps(form.name_key), json.dumps(form.arguments_key)
        ids = f'{json.dumps(f", {json.dumps(form.id_key)}: ")} "\\"" ID "\\""' if form.id_key else ""
        arguments = self._arguments(tool, number)
        if lazy:
            blank = r"/[ \n]*/"
            parts = ['"{"', json.dumps(keys[0]), '":"', json.dumps(json.dumps(name)), '","', json.dumps(keys[1]), '":"']
            head = self._rule(f" {blank} ".join(["", *parts]), "[lazy]")
            return self._rule(f'{head} BLANK {arguments} BLANK "}}"')
        head = json.dumps(f"{{{keys[0]}: {json.dumps(name)}, {keys[1]}: ")
        return self._rule(f'{head} {arguments} {ids} "}}"')
