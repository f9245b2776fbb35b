"""Values of arguments as models write them, made JSON. Knows no streams."""

import json
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 64  # brackets inside each other; the server takes no deeper body
_WORDS = {"True": True, "False": False, "None": None}  # as templates that print values have taught
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_NAMES |= {type(None): "null"}
_BARE = re.compile(r"[^,\]}\s]+")


def loaded(text: str) -> Any:
    """A JSON text's value; None for what is none, or deeper than DEEPEST, which Python could read but not write."""
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return None if _too_deep(value) else value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        holding = [each for each in level if isinstance(each, dict | list)]
        if not holding:
            return False
        level = [item for each in holding for item in (each.values() if isinstance(each, dict) else each)]
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _written(value: Any) -> str:
    """The JSON of a value, in which everything is valid Unicode."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()


def object_text(text: str) -> str | None:
    """The text of a JSON object; of a JSON string that holds one, what it holds; None of anything else. Where it is
    JSON but for line ends inside of texts, they are escaped.
    """
    found = loaded(text)
    if isinstance(found, str):
        text, found = found, loaded(found)
    if not isinstance(found, dict):
        return None
    try:
        json.loads(text)
        return text
    except ValueError:
        return _written(found)


def properties_of(schema: Any) -> dict[str, Mapping[str, Any]]:
    """The schemas of an object's properties, each with a reference to the object's own definitions followed."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    found = {}
    for key, inner in properties.items():
        place = inner.get("$ref") if isinstance(inner, Mapping) else None
        match = re.fullmatch(r"#/(\$defs|definitions)/([^/]+)", place) if isinstance(place, str) else None
        known = schema.get(match[1]) if match else None
        given = known.get(match[2]) if match and isinstance(known, Mapping) else inner
        found[key] = given if isinstance(given, Mapping) else {}
    return found


def required_of(schema: Mapping[str, Any]) -> list[Any]:
    """The names of the properties that an object must have."""
    given = schema.get("required")
    return given if isinstance(given, list) else []


def options_of(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas of which a value must match one."""
    given = schema.get("anyOf") or schema.get("oneOf")
    return [part if isinstance(part, Mapping) else {} for part in given] if isinstance(given, list) else []


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows; none where it does not say."""
    given = schema.get("type")
    if given is not None:
        return {each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)}
    if options := options_of(schema):
        parts = [types_of(option) for option in options]
        return set().union(*parts) if all(parts) else set()
    known = schema.get("enum") if "enum" in schema else [schema["const"]] if "const" in schema else []
    return {_NAMES[type(value)] for value in known} if isinstance(known, list) else set()


def typed(text: str, types: set[str] | None) -> str:
    """The JSON of a value that stands without quotes: a text, unless its schema has another type that it is JSON of.

    Where the schema says nothing, JSON is what it is, and the rest is text.
    """
    bare = text.strip()
    try:
        value = _WORDS[bare] if bare in _WORDS else json.loads(bare, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    kinds = {_NAMES[type(value)]} | ({"number"} if type(value) is int else set())
    if types and "string" in types and not kinds & (types - {"string"}):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(value) if bare in _WORDS else bare


def gemma(text: str, quote: str) -> str | None:
    """The JSON of an object in Gemma 4's notation: keys without quotes, texts between `quote`. None of anything else.

    Source: the model's chat template, `format_argument`.
    """
    try:
        value, at = _gemma_value(text.strip(), 0, quote)
        return _written(value) if at == len(text.strip()) and isinstance(value, dict) else None
    except (ValueError, IndexError, RecursionError):
        return None


def _gemma_value(text: str, at: int, quote: str) -> tuple[Any, int]:
    if text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text[at] in "{[":
        closes, items = "}" if text[at] == "{" else "]", []
        at += 1
        while text[at] != closes:
            key = ""
            if closes == "}":
                if text.startswith(quote, at):
                    key, at = _gemma_value(text, at, quote)
                    at += text.startswith(":", at)
                else:
                    key, at = text[at : text.index(":", at)].strip(), text.index(":", at) + 1
            value, at = _gemma_value(text, at, quote)
            items.append((key, value))
            if text[at] == ",":
                at += 1
            elif text[at] != closes:
                raise ValueError
        return (dict(items) if closes == "}" else [value for _, value in items]), at + 1
    found = _BARE.match(text, at)
    if found is None:
        raise ValueError
    return _WORDS[found[0]] if found[0] in _WORDS else json.loads(found[0]), found.end()
