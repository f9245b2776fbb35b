"""Arguments of calls in llguidance's dialect of Lark: as JSON, between tags, and in Gemma 4's notation."""

import json
import re
from collections.abc import Mapping
from typing import Any

from packlight.common.errors import ConfigError
from packlight.common.text import shown
from packlight.model.sampling.grammar import WHITE_SPACE
from packlight.model.sampling.nesting import check_schema
from packlight.model.text.replies.format import ReplyFormat
from packlight.model.text.replies.reading import Markers, marks
from packlight.model.text.replies.values import options_of, properties_of, required_of, types_of

ANY = "/(.|\\n)*/"
BLANK = "/[ \\n]{0,4}/"
OBJECT = {"type": "object"}
# Of a text's schema, what says nothing that raw text could break.
FREE = {"type", "description", "title", "default", "examples", "format", "$comment"}


class ArgumentWriter:
    """A grammar on its way: its rules by number, and the markers of a format."""

    def __init__(self, form: ReplyFormat, tokenizer: Markers):
        self._form, self._tokenizer = form, tokenizer
        self._lines = [f"TEXT: {ANY}", f"BLANK: {BLANK}", "ID: /[a-zA-Z0-9]{9}/"]
        self._rules = 0

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

    def _arguments(self, tool: Mapping[str, Any], number: int) -> str:
        """A tool's arguments as JSON; any object where its schema cannot be enforced."""
        schema = _schema(tool, number)
        if problem := problem_of(schema):
            _refuse(tool, number, problem)
            schema = OBJECT
        return self._json(schema)

    def _tags(self, tool: Mapping[str, Any], number: int) -> str:
        """A tool's arguments between tags, in the order of its schema."""
        form, schema, parts = self._form, _schema(tool, number), []
        if problem := problem_of(schema):
            _refuse(tool, number, problem)
        for key, inner in properties_of(schema).items():
            value = self._tagged(key, inner, schema, tool, number)
            part = f"{self._marker(form.key_open)} {json.dumps(key)} {self._marker(form.value_open)} {value}"
            parts.append(part if key in required_of(schema) else f"({part})?")
        return self._rule(" ".join(parts) or '""')

    def _tagged(
        self, key: str, inner: Mapping[str, Any], schema: Mapping[str, Any], tool: Mapping[str, Any], number: int
    ) -> str:
        """A value and the tag behind it."""
        close, types = self._form.value_close, types_of(inner)
        if options := _words(inner):
            return f"({' | '.join(map(json.dumps, options))}) {self._marker(close)}"
        if types and "string" not in types:
            known = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
            if not (problem := problem_of({**inner, **known})):
                return f"{self._json({**inner, **known})} {self._marker(close)}"
            _refuse(tool, number, f"{key}: {problem}")
        elif not _any_text(inner):
            _refuse(tool, number, f"{key} is raw text in this model's calls, of which its schema says more")
        return self._upto(close)

    def _gemma_object(self, tool: Mapping[str, Any], number: int) -> str:
        """A tool's arguments in Gemma 4's notation."""
        return self._gemma(_schema(tool, number), tool, number)

    def _gemma(self, schema: Any, tool: Mapping[str, Any], number: int) -> str:
        """A value in Gemma 4's notation."""
        inner = schema if isinstance(schema, Mapping) else {}
        again = lambda part: self._gemma(part, tool, number)  # noqa: E731
        quote = self._marker(self._form.quote)
        if options := _words(inner):
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
            case "object" if properties_of(inner):
                return self._members(inner, again)
            case "object":
                return self._anything("members")
        return self._anything("value")

    def _members(self, schema: Mapping[str, Any], value: Any) -> str:
        """The members of an object in the order of its schema, with commas between those that are there."""
        rest = {True: '""', False: '""'}  # what follows, by whether a member came before
        for key, inner in reversed([*properties_of(schema).items()]):
            member = f"{json.dumps(key + ':')} {value(inner)}"
            found = {}
            for begun in (True, False):
                comma = '","' if begun else ""
                present = f"{comma} {member} {rest[True]}"
                optional = key not in required_of(schema)
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
    plain = all(part.keys() <= FREE for part in options_of(schema) or [schema])
    return "string" in types_of(schema) and simple and plain and schema.keys() <= FREE | {"anyOf", "oneOf"}


def _words(schema: Mapping[str, Any]) -> list[str]:
    """The texts that a value must be one of; none where it may be others."""
    given = schema.get("enum")
    return given if isinstance(given, list) and all(isinstance(option, str) for option in given) else []


def _schema(tool: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    found = tool["function"].get("parameters") or OBJECT
    if not isinstance(found, Mapping) or (types_of(found) and "object" not in types_of(found)):
        _refuse(tool, number, "its parameters are no object")
        return OBJECT
    return {**found, **OBJECT}


def _refuse(tool: Mapping[str, Any], number: int, problem: str) -> None:
    """Raises ConfigError where the tool is strict; others do without what cannot be enforced."""
    if tool["function"].get("strict"):
        raise ConfigError(f"tools[{number}] ({shown(tool['function']['name'])}) is strict, but {problem}")


def problem_of(schema: Mapping[str, Any]) -> str:
    """Why a schema cannot be enforced; "" where it can. Raises ConfigError where llguidance is not installed, and for a
    schema that is too deep.
    """
    check_schema(schema, "tools: references of their parameters")
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "required calls and JSON schemas need the extra 'grammar': pip install 'packlight[grammar]'"
        ) from None
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return " ".join(str(error).split())
    problems = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return (
        " ".join(" ".join(map(str, problems[1])).partition("<state>")[0].split()) if problems[0] or problems[1] else ""
    )
