"""Text that knows where each of its characters comes from, however a template cuts, joins and reformats it.

`Text` is a str with a kind for every character. Its methods give what str's give, as `Text` again. Where the origin of
single characters cannot be followed, all of them take the most distant kind of what went in; what is a plain str, so
that nothing is known of it, counts as data. Knows no tokens, no jinja2 and no files.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

# The kinds, as characters that sort by their distance from the template.
TEMPLATE = "0"  # the template wrote it, or the tokens that begin and end a text
WORD = "1"  # a role that is one plain word, or a number: it may stand inside what the template writes
TOOLS = "2"  # a tool's name, description or parameters
DOCUMENTS = "3"  # of a document
DATA = "4"  # of a message, or of unknown origin
_MOST_DISTANT_FIRST = (DATA, DOCUMENTS, TOOLS, WORD)

_PLAIN_WORD = re.compile(r"[\w.+-]*")
_CONVERSION = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<rest>[#0\- +]*(?:\d+)?(?:\.\d+)?[hlL]?[a-zA-Z%])")


class Text(str):
    """A str of which every character has a kind; without kinds, all of it is data."""

    __slots__ = ("_kinds",)
    _kinds: str

    def __new__(cls, text: str = "", kinds: str | None = None) -> Self:
        made = super().__new__(cls, text)
        made._kinds = DATA * len(text) if kinds is None else kinds
        return made

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> "Text":
        return type(self)(str.__getitem__(self, key), self._kinds[key])

    def __iter__(self) -> Iterator["Text"]:
        return map(type(self), str.__iter__(self), self._kinds)

    def __add__(self, other: Any) -> Any:
        text = str.__str__(self) + other  # with str's own errors, and those of what is undefined
        return Text(text, self._kinds + kinds_of(other)) if isinstance(other, str) else text

    def __radd__(self, other: Any) -> Any:
        text = other + str.__str__(self)
        return Text(text, kinds_of(other) + self._kinds) if isinstance(other, str) else text

    def __mul__(self, count: Any) -> "Text":
        return Text(str.__str__(self) * count, self._kinds * count)

    def __rmul__(self, count: Any) -> "Text":
        return self * count

    def __mod__(self, values: Any) -> "Text":
        return _exact(str.__mod__(self, values), lambda: _converted(self, values), self, values)

    def __rmod__(self, form: Any) -> Any:
        return blend(form % str.__str__(self), form, self) if isinstance(form, str) else NotImplemented

    def join(self, parts: Iterable[str]) -> "Text":
        parts = list(parts)
        return Text(str.join(self, parts), self._kinds.join([kinds_of(part) for part in parts]))

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        found, at = [], 0
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            found.append(self[at : at + len(line)])
            at += len(whole)
        return found

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, middle, after = self._located(str.partition(self, sep), 0)
        return before, middle, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, middle, after = self._located(str.rpartition(self, sep), 0)
        return before, middle, after

    def strip(self, chars: str | None = None) -> "Text":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "Text":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> "Text":
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str) -> "Text":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str) -> "Text":
        return self[: len(str.removesuffix(self, suffix))]

    def replace(self, old: str, new: str, count: Any = -1) -> "Text":
        text = str.replace(self, old, new, count)
        return _exact(text, lambda: Text(new, kinds_of(new)).join(self.split(old, count)), self, new)

    def _located(self, parts: Iterable[str], gap: int) -> list[str]:
        """`parts` of this text in their order, each at least `gap` characters behind the one before."""
        found, at = [], 0
        for part in parts:
            at = str.find(self, part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + gap
        return found


def kinds_of(text: str) -> str:
    """The kind of each character."""
    return text._kinds if isinstance(text, Text) else DATA * len(text)


def of(text: str, kind: str) -> Text:
    """A text of one kind."""
    return Text(text, kind * len(text))


def farthest(*values: Any) -> str:
    """The most distant kind in these values, however deep; data for what cannot be looked into."""
    kind = TEMPLATE
    for value in values:
        match value:
            case Text():
                own = kinds_of(value)
                kind = max(kind, next((k for k in _MOST_DISTANT_FIRST if k in own), TEMPLATE))
            case bool() | int() | float() | None:
                kind = max(kind, WORD)
            case Mapping():
                kind = max(kind, farthest(*value.keys(), *value.values()))
            case list() | tuple():
                kind = max(kind, farthest(*value))
            case _:
                return DATA
    return kind


def blend(text: str, *sources: Any) -> Text:
    """`text`, which was made of `sources` in a way that hides what became of each character."""
    kind = farthest(*sources)
    return of(text, DATA if kind == WORD and not _PLAIN_WORD.fullmatch(text) else kind)


def as_text(value: Any) -> Text:
    """What a template shows of a value."""
    return value if isinstance(value, Text) else blend(str(value), value)


def joined(values: Iterable[Any]) -> Text:
    """The values one behind the other."""
    texts = [value if isinstance(value, Text) else as_text(value) for value in values]
    return Text("".join(texts), "".join([text._kinds for text in texts]))


def mark(value: Any, kind: str) -> Any:
    """Plain data in which every str, a mapping's keys too, is a Text of this kind."""
    match value:
        case str():
            return of(value, kind)
        case dict():
            return {of(key, kind): mark(item, kind) for key, item in value.items()}
        case list():
            return [mark(item, kind) for item in value]
        case _:
            return value


def mark_message(message: Any) -> Any:
    """A message as data, but for a role that is one plain word."""
    marked = mark(message, DATA)
    if isinstance(marked, dict) and isinstance(role := marked.get("role"), Text) and _PLAIN_WORD.fullmatch(role):
        marked["role"] = of(role, WORD)
    return marked


def _exact(text: str, follow: Callable[[], Text], *sources: Any) -> Text:
    """`follow()`, which should be `text` with its kinds; a blend of the sources where it is another text."""
    try:
        followed = follow()
    except (LookupError, TypeError, ValueError):
        return blend(text, *sources)
    return followed if str.__eq__(followed, text) else blend(text, *sources)


def _converted(form: Text, values: Any) -> Text:
    """`form % values`, piece by piece. Raises LookupError or TypeError where the pieces are not that simple."""
    named = isinstance(values, Mapping)
    rest = iter(values if isinstance(values, tuple) else (values,))
    pieces, at = [], 0
    for found in _CONVERSION.finditer(form):
        pieces.append(form[at : found.start()])
        at = found.end()
        if found["rest"].endswith("%"):
            pieces.append(form[at - 1 : at])
            continue
        value = values[found["key"]] if named else next(rest, None)
        exact = found["rest"] == "s"
        pieces.append(as_text(value) if exact else blend(str.__mod__("%" + found["rest"], (value,)), form, value))
    return joined([*pieces, form[at:]])


def _cased(name: str) -> Callable[[Text], Text]:
    method = getattr(str, name)

    @functools.wraps(method)
    def change(self: Text) -> Text:
        text = method(self)
        return Text(text, self._kinds) if len(text) == len(self) else blend(text, self)

    return change


def _blended(name: str) -> Callable[..., Text]:
    method = getattr(str, name)

    @functools.wraps(method)
    def change(self: Text, *args: Any) -> Text:
        return blend(method(self, *args), self, args)

    return change


for _name in ("upper", "lower", "capitalize", "title", "swapcase", "casefold"):
    setattr(Text, _name, _cased(_name))
for _name in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate"):
    setattr(Text, _name, _blended(_name))
