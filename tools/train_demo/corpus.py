"""The text the demo model learns from: English prose out of Python's own documentation.

Four kinds of it, all under Python's licence: the documentation's pages, the language reference in
`pydoc_data.topics`, the docstrings and block comments of the standard library, read from its sources without importing
them, and the docstrings of the modules that are built into the interpreter. Code, tables, signatures and markup are
taken out, so that what remains reads as sentences. Knows nothing of tokens.
"""

import ast
import dataclasses
import hashlib
import importlib
import inspect
import pathlib
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Iterator
from pydoc_data.topics import topics

from tools.train_demo.documentation import pages, sections

# No prose of the library's own: tests, an application, what a user installed, tables, and the topics themselves.
SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "encodings", "pydoc_data", "__phello__"}
HELD_OUT_SHARE = 20  # one source in so many is held out
LEAST_LETTERS = 0.82  # of a paragraph's characters, letters and spaces; less is code or a table

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": "...", "\u00a0": " "})
_MARKUP = (
    (re.compile(r":[a-z:]+:`[~!]?([^`<]+?)( <[^`]+>)?`"), r'"\1"'),  # :func:`open`
    (re.compile(r"``([^`]+)``"), r'"\1"'),
    (re.compile(r"`([^`'\n]+)[`']"), r'"\1"'),  # `name`, and the older `name'
    (re.compile(r"(?<![\w*])\*\*([^*\s][^*]*)\*\*(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*?)\*(?![\w*])"), r"\1"),
    (re.compile(r" \(see( section)? [A-Z][^()]*\)"), ""),  # a reference to another section
    (re.compile(r" +-- +"), " - "),
)
_BULLET = re.compile(r"(?:[*+-]|\d+[.)]) +(?=\S)")
_CODE = re.compile(
    r">>>|::=|\+--|\|| = |\w\(\)\.|\.\. |__main__|^(def|class|import|from \w+ import|for \w+ in|if \w+:)\b"
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One topic, docstring or comment as prose; `source`: the topic or the module it comes from."""

    source: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether its source is one that training never sees: a module goes as a whole, its docstrings resemble."""
        return held_out(self.source)


def held_out(source: str) -> bool:
    """Whether a topic or module of this name is one that training never sees."""
    return hashlib.sha256(source.encode()).digest()[0] % HELD_OUT_SHARE == 0


def documents(documentation: pathlib.Path) -> list[Document]:
    """All documents of this Python and of the documentation in a folder, in a fixed order.

    A paragraph that came before is left out.
    """
    seen: set[str] = set()
    found = []
    for source, text in _sources(documentation):
        fresh = [paragraph for paragraph in prose(text) if paragraph.lower() not in seen]
        seen |= {paragraph.lower() for paragraph in fresh}
        if sum(map(len, fresh)) >= 40:
            found.append(Document(source, "\n\n".join(fresh)))
    return found


def prose(text: str) -> list[str]:
    """The paragraphs of a documentation text that are sentences, each on one line and free of markup."""
    kept: list[tuple[str, bool]] = []
    for lines in _paragraphs(text):
        bullet = _BULLET.match(lines[0])
        words = " ".join(line.strip() for line in lines)[bullet.end() if bullet else 0 :]
        if bullet is None:  # what announced code or a table that is gone announces nothing; a list stays announced
            kept = _without_announcement(kept)
        if cleaned := _sentences(words, first=not kept):
            kept.append((f"* {cleaned}" if bullet else cleaned, bullet is not None))
    return [paragraph for paragraph, _ in _without_announcement(kept)]


def plain(text: str) -> str:
    """A paragraph without its markup, on one line."""
    text = text.translate(_PLAIN)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text.replace("\\*", "*").replace("\\", "")).strip()


def _sources(documentation: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Name and text of everything there is to read: the documentation, topics, then module by module."""
    for source, page in pages(documentation):
        for section in sections(page):
            yield source, section
    yield from sorted(topics.items())
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED.isdisjoint(place.parts):
            for text in _docstrings_and_comments(path):
                yield place.with_suffix("").parts[0], text
    for name in sorted(sys.builtin_module_names):
        for text in _built_in_docstrings(importlib.import_module(name)):
            yield name, text


def _docstrings_and_comments(path: pathlib.Path) -> Iterator[str]:
    try:
        source = path.read_bytes().decode()
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates, and what is written for another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for block in re.findall(r"(?:^[ \t]*#.*\n){2,}", source, re.MULTILINE):
        yield re.sub(r"^[ \t]*#+ ?", "", block, flags=re.MULTILINE)


def _built_in_docstrings(module: types.ModuleType) -> Iterator[str]:
    """Of a module written in C, whose text is in no file that Python installs."""
    for owner in (module, *(value for _, value in sorted(vars(module).items()) if isinstance(value, type))):
        for _, value in sorted(vars(owner).items()):
            if isinstance(doc := getattr(value, "__doc__", None), str) and not isinstance(value, str | int | float):
                yield doc


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Runs of lines between blank lines, bullets and changes of indentation."""
    lines: list[str] = []
    for line in [*inspect.cleandoc(textwrap.dedent(text).translate(_PLAIN)).splitlines(), ""]:
        stripped = line.strip()
        blank = not stripped or set(stripped) <= set("*=-~^#_+ ")  # underlines too
        if lines and (blank or _BULLET.match(stripped)):
            yield lines
            lines = []
        if blank:
            continue
        lines.append(stripped)


def _sentences(words: str, first: bool) -> str:
    """A paragraph without its markup, or "" if it is no prose."""
    words = plain(words)
    if first and re.fullmatch(r"[A-Z][a-z]+( \S+){2,}[\w)\"]", words):
        words += "."  # the summary line of a docstring, whose full stop many leave out
    if _CODE.search(words) or not words.isascii() or len(words.split()) < 4:
        return ""
    if not re.match(r"[A-Z\"(](?!ee section)", words) or not re.search(r"[.:!?][\")]?$", words):
        return ""
    letters = sum(character.isalpha() or character == " " for character in words)
    return words if letters >= LEAST_LETTERS * len(words) else ""


def _without_announcement(kept: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Paragraphs whose last one no longer ends in a sentence with a colon."""
    if not kept or not kept[-1][0].endswith(":"):
        return kept
    (*before, (last, bullet)) = kept
    whole = re.match(r"(.*[.!?][\")]?) [^.!?]*:$", last)
    return [*before, (whole[1], bullet)] if whole else before


def split(found: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """The documents to learn from and those held out."""
    learn, held_out = [], []
    for document in found:
        (held_out if document.held_out else learn).append(document)
    return learn, held_out
