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
from packlight.model.sampling.grammar import WHITE_SPACE
from packlight.model.text.replies.format import ReplyFormat, Shape
from packlight.model.text.replies.reading import Markers, marks
from packlight.model.text.replies.values import properties_of, types_of

ANY = "/(.|\\n)*/"
BLANK = "/[ \\n]{0,4}/"
OBJECT = {"type": "object"}
# Of a text's schema, what says nothing that raw text could break.
FREE = {"type", "description", "title", "default", "examples", "format", "$comment"}


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

    Raises ConfigError naming a tool that is unknown, or that is strict and has a schema that cannot be enforced.
    """
    tools = [] if choice == "none" else tools
    named = [tool for tool in tools if tool["function"]["name"] == choice]
    if choice not in ("auto", "none", "required") and not named:
        raise ConfigError(f"tool_choice: there is no tool {shown(choice)!r}")
    if choice == "required" and not tools:
        raise ConfigError("tool_choice 'required' needs tools")
    if not tools and schema is None:
        return None
    several = parallel and form.parallel and not named
    writer = _Writer(form, tokenizer)
    if form.shape is Shape.CHANNELS:
        return writer.channels(named or tools, choice == "auto" or not tools, schema)
    return writer.reply(named or tools, choice == "auto", several, schema, thinking)


class _Writer:
    def __init__(self, form: ReplyFormat, tokenizer: Markers):
        self._form, self._tokenizer = form, tokenizer
        self._lines = [f"TEXT: {ANY}", f"BLANK: {BLANK}", "ID: /[a-zA-Z0-9]{9}/"]
        self._rules = 0

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

    def _grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._lines]) + "\n"

    def _rule(self, body: str, option: str = "") -> str:
        name = f"r{self._rules}"
        self._rules += 1
        self._lines.append(f"{name}{option}: {body}")
        return name

    def _marker(self, text: str) -> str:
        """A marker: its tokens, and what stands between them."""
        tokens = marks(self._tokenizer, text)
        pattern = "|".join(re.escape(spelled) for spelled in sorted(tokens, key=len, reverse=True))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return " ".join(f"<[{tokens[part]}]>" if part in tokens else json.dumps(part) for part in parts if part)

    def _upto(self, marker: str) -> str:
        """Any text, up to and with a marker."""
        parts = self._marker(marker).split(" ", 1)
        if parts[0].startswith("<["):
            return self._rule(f"TEXT {' '.join(parts)}")
        first, *rest = re.split(r" (?=<\[)", self._marker(marker), maxsplit=1)
        return self._rule(" ".join([self._rule(f"{ANY} {first}", "[lazy]"), *rest]))

    def _json(self, schema: Mapping[str, Any]) -> str:
        blank = {"x-guidance": {"whitespace_pattern": WHITE_SPACE}}
        return self._rule(f"%json {json.dumps({**schema, **blank})}")

    def _called(self, tools: Sequence[Mapping[str, Any]], several: bool) -> str:
        """Any text and then calls, which the first marker makes them."""
        calls, opens = self._calls(tools, several), self._marker(self._form.opens.lstrip())
        if opens.startswith("<["):
            return self._rule(f"TEXT {calls}")
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
                return self._rule(f"{json.dumps(name)} {self._gemma(_schema(tool), tool, number)}")
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

    def _arguments(self, tool: Mapping[str, Any], number: int) -> str:
        """A tool's arguments as JSON; any object where its schema cannot be enforced."""
        schema = _schema(tool)
        if problem := _problem(schema):
            _refuse(tool, number, problem)
            schema = OBJECT
        return self._json({**OBJECT, **schema})

    def _tags(self, tool: Mapping[str, Any], number: int) -> str:
        """A tool's arguments between tags, in the order of its schema."""
        form, schema, parts = self._form, _schema(tool), []
        if problem := _problem(schema):
            _refuse(tool, number, problem)
        for key, inner in properties_of(schema).items():
            value = self._tagged(key, inner, schema, tool, number)
            part = f"{self._marker(form.key_open)} {json.dumps(key)} {self._marker(form.value_open)} {value}"
            parts.append(part if key in schema.get("required", ()) else f"({part})?")
        return self._rule(" ".join(parts) or '""')

    def _tagged(
        self, key: str, inner: Mapping[str, Any], schema: Mapping[str, Any], tool: Mapping[str, Any], number: int
    ) -> str:
        """A value and the tag behind it."""
        close, types = self._form.value_close, types_of(inner)
        options = inner.get("enum")
        if options and types == {"string"}:
            return f"({' | '.join(map(json.dumps, options))}) {self._marker(close)}"
        if types and "string" not in types:
            known = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
            if not (problem := _problem({**inner, **known})):
                return f"{self._json({**inner, **known})} {self._marker(close)}"
            _refuse(tool, number, f"{key}: {problem}")
        elif not _any_text(inner):
            _refuse(tool, number, f"{key} is raw text in this model's calls, of which its schema says more")
        return self._upto(close)

    def _gemma(self, schema: Any, tool: Mapping[str, Any], number: int) -> str:
        """A value in Gemma 4's notation."""
        inner = schema if isinstance(schema, Mapping) else {}
        again = lambda part: self._gemma(part, tool, number)  # noqa: E731
        options = inner.get("enum")
        quote = self._marker(self._form.quote)
        if options and all(isinstance(option, str) for option in options):
            return f"({' | '.join(f'{quote} {json.dumps(option)} {quote}' for option in options)})"
        known = {"type", "properties", "required", "items", "additionalProperties"} | FREE
        if inner.keys() - known:
            _refuse(tool, number, f"{min(inner.keys() - known)} cannot be asked for in this model's calls")
        match inner.get("type"):
            case "string":
                return f"{quote} {self._upto(self._form.quote)}"
            case "integer":
                return "/-?(0|[1-9][0-9]{0,17})/"
            case "number":
                return r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/"
            case "boolean":
                return '("true" | "false")'
            case "null":
                return '"null"'
            case "array" if "items" in inner:
                item = again(inner["items"])
                return self._rule(f'"[" ({item} ("," {item})*)? "]"')
            case "object" if "properties" in inner:
                return self._members(inner, again)
            case "object":
                return self._anything("members")
        return self._anything("value")

    def _members(self, schema: Mapping[str, Any], value: Any) -> str:
        """The members of an object in the order of its schema, with commas between those that are there."""
        rest = {True: '""', False: '""'}  # what follows, by whether a member came before
        for key, inner in reversed([*schema["properties"].items()]):
            member = f"{json.dumps(key + ':')} {value(inner)}"
            found = {}
            for begun in (True, False):
                comma = '","' if begun else ""
                present = f"{comma} {member} {rest[True]}"
                optional = key not in schema.get("required", ())
                found[begun] = self._rule(f"{present} | {rest[begun]}" if optional else present)
            rest = found
        return self._rule(f'"{{" {rest[False]} "}}"')

    def _anything(self, kind: str) -> str:
        """Any value in Gemma 4's notation, or any "members" of an object."""
        if not any(line.startswith("value: ") for line in self._lines):
            quote = self._marker(self._form.quote)
            text = f"{quote} {self._upto(self._form.quote)}"
            number = r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/"
            self._lines += [
                'members: "{" (member ("," member)*)? "}"',
                'member: /[a-zA-Z_][a-zA-Z0-9_]{0,30}/ ":" value',
                f'value: {text} | {number} | "true" | "false" | "null" | "[" (value ("," value)*)? "]" | members',
            ]
        return kind


def _any_text(schema: Mapping[str, Any]) -> bool:
    """Whether any text without quotes is a value that the schema allows, as `typed` reads it."""
    simple = types_of(schema) <= {"string", "null", "boolean", "integer", "number"}
    parts = schema.get("anyOf") or schema.get("oneOf") or [schema]
    plain = all(isinstance(part, Mapping) and part.keys() <= FREE for part in parts)
    return "string" in types_of(schema) and simple and plain and schema.keys() <= FREE | {"anyOf", "oneOf"}


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments."""
    found = tool["function"].get("parameters")
    return found if isinstance(found, Mapping) and found else OBJECT


def _refuse(tool: Mapping[str, Any], number: int, problem: str) -> None:
    """Raises ConfigError where the tool is strict; others do without what cannot be enforced."""
    if tool["function"].get("strict"):
        raise ConfigError(f"tools[{number}] ({shown(tool['function']['name'])}) is strict, but {problem}")


def _problem(schema: Mapping[str, Any]) -> str:
    """Why a schema cannot be enforced; "" where it can. Raises ConfigError where llguidance is not installed."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError("tools need the extra 'grammar' here: pip install 'packlight[grammar]'") from None
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return " ".join(str(error).split())
    problems = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return (
        " ".join(" ".join(map(str, problems[1])).partition("<state>")[0].split()) if problems[0] or problems[1] else ""
    )
