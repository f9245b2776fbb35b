"""jinja2's sandbox for chat templates, in which every text knows where it comes from (`model.text.provenance`).

What Hugging Face's renderer gives templates is given here: `raise_exception`, `strftime_now`, `tojson` without HTML
escapes, loop controls, a `generation` block. The texts are those of plain jinja2, to the letter: each is made by jinja2
or by str, and its kinds are worked out beside it. What returns a plain str has lost its origin and counts as data.

Source: transformers, utils/chat_template_utils.py.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from packlight.model.text.provenance import (
    DATA,
    DOCUMENTS,
    TEMPLATE,
    TOOLS,
    Text,
    as_text,
    blend,
    farthest,
    joined,
    kinds_of,
    mark,
    mark_message,
    of,
)

_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Safe(Text, Markup):  # pyright: ignore[reportIncompatibleMethodOverride]
    """What `safe` and `escape` make. Markup escapes what is joined to it, which hides what becomes of a character."""

    __slots__ = ()


def _as_markup(name: str) -> Callable[..., Any]:
    method = getattr(Markup, name)

    @functools.wraps(method)
    def change(self: Safe, *args: Any, **kwargs: Any) -> Any:
        return _known(method(Markup(str.__str__(self)), *args, **kwargs), self, args, kwargs)

    return change


for _name in (
    *("__add__", "__radd__", "__mul__", "__rmul__", "__mod__", "join", "split", "rsplit", "splitlines", "partition"),
    *("rpartition", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "replace", "upper", "lower"),
    *("capitalize", "title", "swapcase", "casefold", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"),
):
    setattr(Safe, _name, _as_markup(_name))


def _known(value: Any, *sources: Any) -> Any:
    """What a function of jinja2's made of these sources, with kinds where it is a plain str."""
    match value:
        case Text():
            return value
        case Markup():
            kind = farthest(*sources)
            return Safe(str.__str__(value), kind * len(value))
        case str():
            return blend(value, *sources)
        case list() | tuple() if any(type(item) is Markup for item in value):
            return type(value)(_known(item, *sources) for item in value)
        case _:
            return value


class _Compiler(CodeGenerator):
    """Compiles texts that stand in a template to texts that know it."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802  jinja2's names
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.written({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: N802
        self.write(self._output_const_repr([node.as_const(frame.eval_ctx)]))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.written({''.join(group)!r})"


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant said; it renders its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Formatter(SandboxedFormatter):
    """`str.format`, which notes its pieces with their kinds. A form of several kinds counts as the most distant."""

    def __init__(self, environment: Any, form: Text):
        super().__init__(environment)
        self._kind, self._depth = farthest(form), 0
        self.pieces: list[Text] = []

    def parse(self, format_string: str) -> Iterator[Any]:  # called again for the form inside a field's own form
        self._depth += 1
        for literal, *rest in super().parse(format_string):
            if self._depth == 1:
                self.pieces.append(of(literal, self._kind))
            yield literal, *rest
        self._depth -= 1

    def format_field(self, value: Any, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        if self._depth == 1:
            exact = isinstance(value, Text) and not format_spec
            self.pieces.append(value if exact else blend(text, value, of(format_spec, self._kind)))
        return text


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with the helpers."""

    code_generator_class = _Compiler
    concat = staticmethod(joined)  # pyright: ignore[reportAssignmentType]  jinja2 has "".join here

    def __init__(self, now: str | None):
        """now: ISO time that `strftime_now` gives; None is the time it is."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=as_text,
            optimized=False,  # folded constants would hold plain texts
        )
        self.now = now
        self._texts: dict[str, Text] = {}
        self.filters |= {name: _following(function) for name, function in FILTERS.items()} | _FILTERS

        def strftime_now(form: str) -> Text:
            time = datetime.datetime.fromisoformat(self.now) if self.now else datetime.datetime.now()
            return blend(time.strftime(form), form)

        self.globals |= {"raise_exception": _raise, "strftime_now": strftime_now}

    def written(self, text: str) -> Text:
        """A text that stands in the template."""
        if text not in self._texts:
            self._texts[text] = of(text, TEMPLATE)
        return self._texts[text]

    def wrap_str_format(self, value: Any) -> Any:
        form = getattr(value, "__self__", None)
        if isinstance(form, Safe):
            markup = Markup(str.__str__(form))
            wrapped = super().wrap_str_format(getattr(markup, value.__name__))
        else:
            wrapped = super().wrap_str_format(value)
        if wrapped is None or not isinstance(form, Text):
            return wrapped

        @functools.wraps(wrapped)
        def run(*args: Any, **kwargs: Any) -> Text:
            text = wrapped(*args, **kwargs)
            if isinstance(form, Safe):
                return _known(text, form, args, kwargs)
            fields = (args, kwargs) if value.__name__ == "format" else ((), args[0])
            formatter = _Formatter(self, form)
            formatter.vformat(form, *fields)
            found = joined(formatter.pieces)
            return found if str.__eq__(found, text) else blend(text, form, args, kwargs)

        return run


def told(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a template is told, with the origin of each text in it."""
    kinds = {"bos_token": TEMPLATE, "eos_token": TEMPLATE, "tools": TOOLS, "documents": DOCUMENTS}
    marked = {name: mark(value, kinds.get(name, DATA)) for name, value in variables.items()}
    return marked | {"messages": [mark_message(message) for message in variables["messages"]]}


def _raise(message: str) -> None:
    raise TemplateError(message)


def _following(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's whose result knows that it comes from the arguments."""
    hidden = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or a context

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        return found if isinstance(found, Text) else _known(found, args[hidden:], kwargs)

    return run


@functools.wraps(FILTERS["join"])
def _join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
    return FILTERS["join"](eval_ctx, value, d if isinstance(d, Text) else of(str(d), TEMPLATE), attribute)


def _title(value: Any) -> Text:
    text = FILTERS["title"](value)
    same = isinstance(value, Text) and len(value) == len(text)
    return Text(text, kinds_of(value)) if same else blend(text, value)


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
    """jinja2's joins the lines with plain texts of its own."""
    if not isinstance(value, Text) or isinstance(value, Safe):
        return _known(FILTERS["indent"](value, width, first, blank), value, width)
    text = FILTERS["indent"](str.__str__(value), width, first, blank)
    if not kinds_of(value).strip(farthest(value)):  # of one kind, and perhaps of a hundred thousand lines
        return of(text, farthest(value))
    margin = width if isinstance(width, Text) else of(" " * width, TEMPLATE)
    newline = of("\n", TEMPLATE)
    lines = (value + newline).splitlines()
    begun = [line if i == 0 or not (line or blank) else margin + line for i, line in enumerate(lines)]
    found = newline.join([margin + begun[0] if first else begun[0], *begun[1:]])
    return found if str.__eq__(found, text) else blend(text, value, width)


def _safe(value: Any) -> Safe:
    text = as_text(value)
    return Safe(str.__str__(text), kinds_of(text))


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> Text:
    """JSON's own signs are the template's, strings keep their kind, and numbers are data."""
    options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    text = json.dumps(value, ensure_ascii=ensure_ascii, **options)
    inside = list(_strings(value, sort_keys))
    found = list(_JSON_STRING.finditer(text))
    if len(inside) != len(found) or separators is not None:
        return blend(text, value, separators)
    kinds, at = [], 0
    for match, string in zip(found, inside, strict=True):
        own = kinds_of(string) if len(match[1]) == len(string) else farthest(string) * len(match[1])
        kinds += [_between(text[at : match.start(1)]), own]
        at = match.end(1)
    return Text(text, "".join([*kinds, _between(text[at:])]))


def _between(text: str) -> str:
    """The kinds of JSON between two strings."""
    return "".join(TEMPLATE if character in '"[]{},: \n\r\t' else DATA for character in text)


def _strings(value: Any, sort_keys: bool) -> Iterator[Text]:
    """The strings of a value in the order in which JSON writes them."""
    match value:
        case str():
            yield as_text(value)
        case Mapping():
            for key, item in sorted(value.items()) if sort_keys else value.items():
                yield as_text(key)
                yield from _strings(item, sort_keys)
        case list() | tuple():
            for item in value:
                yield from _strings(item, sort_keys)


_FILTERS = {"join": _join, "title": _title, "indent": _indent, "safe": _safe, "tojson": _tojson}
