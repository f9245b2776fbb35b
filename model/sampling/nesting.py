"""How deep the rules of a Lark grammar, and the references of a JSON schema, lie within each other.

llguidance reads both by functions that call themselves, in native code: some thousand levels overflow its stack, which
ends the process. So they are counted first, from above: what a walk meets that enters no rule twice.

Source: the Lark notation as llguidance has it (docs/syntax.md); JSON Schema 2020-12, "$ref".
"""

import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from packlight.common.errors import ConfigError
from packlight.model.sampling.rules import depth

DEEPEST = 1000  # levels; llguidance's own reading of five times as many overflows a stack
# What is no rule's name or bracket: texts, comments and regular expressions, which do not go over lines.
_OPAQUE = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')
_SCHEMA = re.compile(r"%json\s*(?=\{)")
_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_]\w*)[^:\n]*:", re.MULTILINE)
_NAME_OR_BRACKET = re.compile(r"[A-Za-z_]\w*|[(\[{)\]}]")


def check_lark(text: str) -> None:
    """Raises ConfigError for a grammar that is too deep, or a schema in it."""
    for schema in _SCHEMA.finditer(text):
        try:
            check_schema(json.JSONDecoder().raw_decode(text, schema.end())[0])
        except (ValueError, RecursionError):
            raise ConfigError("grammar: %json is followed by a JSON schema") from None
    plain = _OPAQUE.sub(" ", text)
    starts = list(_RULE.finditer(plain))
    ends = [*(rule.start() for rule in starts[1:]), len(plain)]
    levels: dict[str, int] = {}
    leads: dict[str, set[str]] = {}
    known = {rule[1] for rule in starts}
    for rule, end in zip(starts, ends, strict=True):
        tokens = _NAME_OR_BRACKET.findall(plain, rule.end(), end)
        levels[rule[1]] = levels.get(rule[1], 0) + 1 + _most_open(tokens)
        leads.setdefault(rule[1], set()).update(known.intersection(tokens))
    check_depth("grammar: its rules", levels, leads)


def check_schema(schema: Any, what: str = "json_schema: its references") -> None:
    """Raises ConfigError for a schema that is too deep."""
    levels: dict[str, int] = {}  # of each part, by its place in memory: many references may point to one
    leads: dict[str, set[str]] = {}
    todo, names = [schema], set[str]()
    while todo:
        part = todo.pop()
        if str(id(part)) in levels:
            continue
        found = {pointer: _at(schema, pointer) for pointer in {*_references(part)}}
        names |= {pointer for pointer, at in found.items() if at is None}
        parts = [each for each in found.values() if each is not None]
        levels[str(id(part))], leads[str(id(part))] = _levels(part), {str(id(each)) for each in parts}
        todo += parts
    levels[str(id(schema))] += len(names) * _levels(schema)  # each may lead anywhere
    check_depth(what, levels, leads)


def check_depth(what: str, levels: Mapping[str, int], leads: Mapping[str, set[str]]) -> None:
    """Raises ConfigError where rules are too deep; `rules.depth` has the arguments."""
    if depth(levels, leads) > DEEPEST:
        raise ConfigError(f"{what} are more than {DEEPEST:,} deep within each other")


def _most_open(tokens: list[str]) -> int:
    """Brackets that are open at once at most."""
    most = now = 0
    for token in tokens:
        now += (token in "([{") - (token in ")]}")
        most = max(most, now)
    return most


def _nodes(schema: Any) -> Iterator[tuple[Any, int]]:
    """Every value of a schema, with how many others it is in."""
    todo = [(schema, 1)]
    while todo:
        value, level = todo.pop()
        yield value, level
        if isinstance(value, dict | list):
            todo += [(each, level + 1) for each in (value.values() if isinstance(value, dict) else value)]


def _levels(schema: Any) -> int:
    return max(level for _, level in _nodes(schema))


def _references(schema: Any) -> Iterator[str]:
    for value, _ in _nodes(schema):
        if isinstance(value, dict) and isinstance(pointer := value.get("$ref"), str):
            yield pointer


def _at(schema: Any, pointer: str) -> Any:
    """What a reference points to; None where it is no path, but a name that may stand anywhere."""
    first, *keys = urllib.parse.unquote(pointer).split("/")
    if first != "#":
        return schema if pointer == "#" else None
    for key in keys:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isdecimal() and len(key) < 8 and int(key) < len(schema):
            schema = schema[int(key)]
        elif isinstance(schema, dict) and key in schema:
            schema = schema[key]
        else:
            return None
    return schema
