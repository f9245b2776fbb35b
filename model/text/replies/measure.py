"""What a template writes around a call, measured: turns in which the call's words are known give a reply format.

Knows no templates; `probe` has them render the turns.
"""

import dataclasses
import json
import os.path
import re
from typing import Any

from packlight.model.text.replies.format import ReplyFormat, Shape

TOOL = "probe_tool"
ARGUMENTS = {"probe_first": "probe value", "probe_second": 7}
ID = "prob{}e9id"  # of nine characters
LONGEST = 100  # characters of a marker


def measured(one: str, two: str = "") -> ReplyFormat | None:
    """The format of a turn with one call and of one with two; None where no shape fits."""
    for measure in (_json, _named, _tagged, _gemma):
        found = measure(one, two)
        if found is not None and _fits(found):
            return found
    return None


def behind(text: str, end: str) -> str:
    """A turn without the end that it shares with another."""
    text, end = text.rstrip(), end.rstrip()
    same = os.path.commonprefix([text[::-1], end[::-1]])[::-1]
    return text.removesuffix(same[_first(same, "<[") :])


def turn_at(text: str, asked: str) -> int:
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
    before, between, after = two[:start], two[end:again], two[last:]
    opens = os.path.commonprefix([before[::-1], between[::-1]])[::-1]
    if len(opens) < len(before.lstrip()):
        opens = opens[_first(opens, "<[") :]
    closes = os.path.commonprefix([after, between])
    if len(closes) < len(after.rstrip()):
        closes = closes[: max(closes.rfind(">"), closes.rfind("]")) + 1]
    separator = between.removeprefix(closes.rstrip()).removesuffix(opens.lstrip())
    if separator.strip():
        return None
    return ReplyFormat(
        section_open=before[: len(before) - len(opens)].lstrip(),
        call_open=opens.lstrip(),
        call_close=closes.rstrip(),
        section_close=after[len(closes) :].rstrip(),
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
