"""Python's documentation as its reStructuredText sources say it: prose for reading, and entries to ask about.

An entry is one thing the documentation defines, with what it says of it first: a function, class or exception of the
standard library, a module, a word of the glossary, a question of the FAQ. Knows neither how it is asked for nor tokens.
"""

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator

FOLDERS = ("faq", "howto", "library", "reference", "tutorial")  # what is about Python, and says how things are now
CODE = ("function", "coroutinefunction", "decorator", "class", "exception", "method", "classmethod", "staticmethod")
BUILT_INS = ("stdtypes", "datastructures")  # pages with the methods of built-in types
LONGEST = 180  # characters of what is kept of an entry; it ends with a sentence

_DIRECTIVE = re.compile(r"^( *)\.\. ([\w-]+):: ?(.*)$")
_TITLE = re.compile(r"^(\S.*)\n([=\-*~^\"#+])\2{3,}$", re.MULTILINE)
_REFERENCE = re.compile(r":(?:func|meth|class|exc|mod|term|keyword):`[!~]?(?:[^`<]*<)?([\w.\- ]+?)(?:\(\))?>?`")
_HIDDEN = re.compile(r"\.\. (index|_[\w-]+|versionadded|sectionauthor|moduleauthor)\b|\.\. [^:]+$")
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.) +(?=[A-Z\"(])")


@dataclasses.dataclass(frozen=True)
class Entry:
    """`kind`: one of CODE, "module", "term" or "question"; `name`: in full, as one writes it in a program.

    `text`: its first paragraph as the source has it. `source`: the page it is on, by which it is held out.
    """

    kind: str
    name: str
    text: str
    source: str


def pages(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Source and text of each page under `folder`, in a fixed order; the source is a module's name without its parts.

    The pages end in `.rst`, as in Python's repository, or in `.rst.txt`, as in `_sources` of the built documentation.
    """
    found = [path for name in FOLDERS for path in sorted((folder / name).glob("*.rst*"))]
    for path in [*found, *sorted(folder.glob("glossary.rst*"))]:
        yield path.name.split(".")[0], path.read_text(encoding="utf-8")


def sections(text: str) -> list[str]:
    """A page cut before each of its titles."""
    starts = [0, *(match.start() for match in _TITLE.finditer(text)), len(text)]
    return [text[start:end] for start, end in zip(starts, starts[1:], strict=False)]


def entries(folder: pathlib.Path) -> list[Entry]:
    """What the pages under `folder` define, each name once, most often referred to first.

    Methods are those of the built-in types. What is never referred to is left out, except terms, questions and methods.
    """
    found: dict[str, Entry] = {}
    counts: collections.Counter[str] = collections.Counter()
    for source, text in pages(folder):
        for entry in _page(source, text):
            found.setdefault(entry.name, entry)
        module = re.search(r"^\.\. module:: (\S+)", text, re.MULTILINE)
        for name in _REFERENCE.findall(text):
            counts.update({name, f"{module[1]}.{name}"} if module else {name})
    always = ("term", "question", "method", "classmethod", "staticmethod")
    kept = [entry for entry in found.values() if entry.text and (entry.kind in always or counts[entry.name])]
    return sorted(kept, key=lambda entry: -counts[entry.name])


def summary(sentences: str) -> str:
    """The first sentences of a paragraph that fit LONGEST, or "" if not even one does."""
    kept = ""
    for sentence in _END.split(sentences):
        if len(kept) + len(sentence) >= LONGEST or sentence.endswith(":"):  # what is announced is not here
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def _page(source: str, text: str) -> Iterator[Entry]:
    """The entries of a page in their order."""
    lines = text.splitlines()
    if source == "glossary":
        yield from _terms(lines)
    for match in _TITLE.finditer(text):
        if match[1].endswith("?"):
            yield Entry("question", match[1], _first_paragraph(text[match.end() :].splitlines()), source)
    module, owner = "", ""
    for number, line in enumerate(lines):
        if not (match := _DIRECTIVE.match(line)):
            continue
        indent, directive, argument = len(match[1]), match[2], match[3].strip()
        if directive in ("module", "currentmodule"):
            module = "" if argument in ("None", "builtins") else argument
            if directive == "module" and (synopsis := _option(lines[number + 1 :], "synopsis")):
                yield Entry("module", argument, synopsis, source)
        if directive not in CODE:
            continue
        name = re.split(r"[(\s]", argument, maxsplit=1)[0]
        if directive == "class":
            owner = name
        if directive.endswith("method"):
            if module or source not in BUILT_INS:
                continue
            name = name if "." in name or not indent else f"{owner}.{name}"
        full = f"{module}.{name}" if module and not name.startswith(f"{module}.") else name
        yield Entry(directive, full, _first_paragraph(_after_arguments(lines[number + 1 :]), indent), source)


def _terms(lines: list[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines):
        if re.match(r" {3}[A-Za-z]", line) and not lines[number - 1].strip():
            yield Entry("term", line.strip(), _first_paragraph(lines[number + 1 :], 3), "glossary")


def _after_arguments(lines: list[str]) -> Iterable[str]:
    """The lines below a directive without further signatures and options, which stand right under it."""
    return itertools.dropwhile(str.strip, lines)


def _option(lines: Iterable[str], name: str) -> str:
    """The value of a directive's option, in the lines after it."""
    options = " ".join(line.strip() for line in itertools.takewhile(str.strip, lines))
    found = re.search(rf":{name}: *(.+?)(?= :\w+:( |$)|$)", options)
    return found[1] if found else ""


def _first_paragraph(lines: Iterable[str], indent: int = -1) -> str:
    """The first paragraph of the lines that are deeper than `indent`, or "" if a list or an example is first.

    Directives that show nothing here may stand before it.
    """
    paragraph: list[str] = []
    hidden = False
    for line in lines:
        stripped = line.strip()
        if stripped and len(line) - len(line.lstrip()) <= indent:
            break
        if not paragraph and stripped.startswith(".. "):
            if not _HIDDEN.match(stripped):
                break
            hidden = True
        elif not stripped:
            hidden = False
            if paragraph:
                break
        elif not hidden:
            paragraph.append(stripped)
    joined = " ".join(paragraph)
    return "" if joined.startswith(("* ", "- ", ">>>")) else joined
