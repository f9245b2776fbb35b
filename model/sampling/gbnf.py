"""GBNF, llama.cpp's grammar notation, read into a tree. Knows the notation, and nothing of what matches it.

It reads as llama.cpp does: its names, its escapes, its ends of rules, the last definition of a rule. It refuses what
llama.cpp refuses, with the line, but for a repetition of what may be empty, `("" | "a")*`, which is clear. It also
refuses what has a meaning there that nobody can want: an empty class, a range from high to low, a character that no
text can hold. A bound above 2000 is kept here, where llama.cpp takes it for none.
Source: llama.cpp `src/llama-grammar.cpp` (`llama_grammar_parser`, `llama_grammar_detect_left_recursion`).
"""

import re
from typing import NoReturn

from packlight.common.errors import ConfigError
from packlight.model.sampling.rules import EMPTY, Alt, Chars, Node, Ranges, Ref, Repeat, Seq, Token, components

ROOT = "root"  # the rule that a text must match
ANY: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))  # what UTF-8 can hold; llama.cpp takes NUL for the end of a text
MOST_GROUPS = 50  # groups within each other
MOST_TIMES = 100_000  # in a repetition's braces
MOST_RULES = 2000  # that llama.cpp would make of a repetition, those of the repetitions within it times its own

_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", **{each: each for each in '\\"[]-'}}
_DIGITS = {"x": 2, "u": 4, "U": 8}  # of the escapes that give a code point
_NAME = re.compile(r"[A-Za-z0-9-]+")
_HEX = re.compile(r"[0-9A-Fa-f]*")
_INT = re.compile(r"[0-9]+")
_SPACE = {False: re.compile(r"(?:[ \t]|#[^\r\n]*)*"), True: re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")}
_TOKEN = re.compile(r"(!?)<(?:\[([0-9]+)\]>|([^>]*)>)")
# What a Lark grammar begins with: a directive, a comment in its own manner, or a name with a colon that is not GBNF's.
_LARK = re.compile(r"(?:\s|#[^\r\n]*+)*+(?:%|//|[?!]|_*[A-Za-z][\w-]*(?:\.-?[0-9]+|\[[^\]\n]*\])?\s*:(?!:?=))")


def is_gbnf(text: str) -> bool:
    """Whether a grammar is GBNF and not Lark."""
    return _LARK.match(text) is None


def fail(message: str, line: int | None = None) -> NoReturn:
    raise ConfigError(f"grammar: {'' if line is None else f'line {line}: '}{message}")


def read(text: str) -> dict[str, Node]:
    """The rules of a grammar by name. Raises ConfigError, naming the line, for what llama.cpp refuses too."""
    reader = _Reader(text)
    rules = reader.rules()
    for name, place in reader.references.items():
        if name not in rules:
            reader.at = place
            reader.fail(f"there is no rule {name!r}")
    if ROOT not in rules:
        fail(f"there is no rule {ROOT!r}, which says what a text must match")
    _check_left_recursion(rules)
    return rules


class _Reader:
    """A place in the text of a grammar, and what stands there."""

    def __init__(self, text: str):
        self.text, self.at, self.groups = text, 0, 0
        self.names: set[str] = set()
        self.made = 0  # rules that llama.cpp would have made up for groups and repetitions
        self.references: dict[str, int] = {}  # a rule's name -> where it is first asked for

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def fail(self, message: str) -> NoReturn:
        fail(message, self.line)

    def here(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def skip(self, count: int, newlines: bool) -> None:
        self.at += count
        self.take(_SPACE[newlines])

    def rules(self) -> dict[str, Node]:
        if "\0" in self.text:
            self.at = self.text.index("\0")
            self.fail("a NUL character ends a grammar for llama.cpp")
        rules: dict[str, Node] = {}
        self.skip(0, True)
        while self.here():
            name = self.take(_NAME) or self.unexpected("the name of a rule")
            self.names.add(name)
            self.skip(0, False)
            if self.here(3) != "::=":
                self.unexpected(f"'::=' behind the name {name!r}")
            self.skip(3, True)
            rules[name] = self.alternatives(False)
            if self.here() and self.here() not in "\r\n":
                self.unexpected("the end of the rule")
            self.skip(0, True)
        return rules

    def unexpected(self, wanted: str) -> NoReturn:
        found = repr(self.here()) if self.here() else "the end"
        names = "; names are letters, digits and '-'" if self.here() == "_" else ""
        self.fail(f"{found} where {wanted} should be{names}")

    def alternatives(self, nested: bool) -> Node:
        options = [self.sequence(nested)]
        while self.here() == "|":
            self.skip(1, True)
            options.append(self.sequence(nested))
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def sequence(self, nested: bool) -> Node:
        items: list[Node] = []
        repeatable = False  # whether there is an item that * may follow
        weight = 1  # rules of the last item
        while character := self.here():
            if character in "*+?{":
                if not repeatable:
                    self.fail(f"nothing stands before {character!r} that could be repeated")
                least, most = self.times(nested)
                weight *= self.weight(least, most)
                if weight > MOST_RULES:
                    self.fail(f"repetitions within each other that come to more than {MOST_RULES:,} rules")
                repeatable = most != 0
                item = items.pop()
                items += [Repeat(item, least, most)] if repeatable else []
                continue
            before = self.made + len(self.names)
            item = self.item(character)
            if item is None:
                break
            weight = self.made + len(self.names) - before if character == "(" else 1
            self.skip(0, nested)
            repeatable = item is not EMPTY
            items += [item] if repeatable else []
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def item(self, character: str) -> Node | None:
        """What stands here, or None where that is no item."""
        match character:
            case '"':
                return self.literal()
            case "[":
                return self.charset()
            case "<" | "!":
                return self.token()
            case ".":
                self.at += 1
                return Chars(ANY)
            case "(":
                return self.group()
            case _ if name := self.take(_NAME):
                self.references.setdefault(name, self.at)
                self.names.add(name)
                return Ref(name)
        return None

    def group(self) -> Node:
        self.groups += 1
        self.made += 1
        if self.groups > MOST_GROUPS:
            self.fail(f"more than {MOST_GROUPS} groups within each other")
        self.skip(1, True)
        found = self.alternatives(True)
        if self.here() != ")":
            self.unexpected("')'")
        self.at += 1
        self.groups -= 1
        return Seq((found,))  # which tells a group from what it holds

    def times(self, nested: bool) -> tuple[int, int | None]:
        """The least and the most of a repetition."""
        mark = self.here()
        self.skip(1, nested)
        if mark != "{":
            return int(mark == "+"), 1 if mark == "?" else None
        least = most = self.count()
        self.skip(0, nested)
        if self.here() == ",":
            self.skip(1, nested)
            most = self.count() if self.here() != "}" else None
            self.skip(0, nested)
        if self.here() != "}":
            self.unexpected("'}'")
        if most is not None and most < least:
            self.fail(f"{{{least},{most}}} says more at least than at most")
        self.skip(1, nested)
        return least, most

    def weight(self, least: int, most: int | None) -> int:
        """The rules that llama.cpp counts for a repetition, for which more than 2,000 times are without end."""
        ended = most if most is not None and most <= MOST_RULES else None
        self.made += 1 if ended is None else ended - least
        return ended or least or 1

    def count(self) -> int:
        digits = self.take(_INT) or self.unexpected("a number")
        if len(digits.lstrip("0")) > len(str(MOST_TIMES)) or int(digits) > MOST_TIMES:
            self.fail(f"{digits[:20]} repetitions, which are at most {MOST_TIMES:,}")
        return int(digits)

    def literal(self) -> Node:
        self.at += 1
        characters: list[Node] = []
        while self.here() != '"':
            point = self.character()
            self.check_whole(point)
            if not any(first <= point <= last for first, last in ANY):
                self.fail(f"no text holds {_shown(point)}")
            characters.append(Chars(((point, point),)))
        self.at += 1
        if not characters:
            return EMPTY
        return characters[0] if len(characters) == 1 else Seq(tuple(characters))

    def charset(self) -> Chars:
        self.at += 1
        negated = self.here() == "^"
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self.here() != "]":
            first = last = self.character()
            if self.here() == "-" and self.here(2) != "-]":
                self.at += 1
                last = self.character()
                if last < first:
                    self.fail(f"the range from {_shown(first)} to {_shown(last)} holds nothing")
            if not negated:
                self.check_whole(first)
                self.check_whole(last)
            ranges.append((first, last))
        self.at += 1
        found = complement(ranges) if negated else complement(complement(ranges))
        if not ranges or not found:
            self.fail("a class that no character is in")
        return Chars(found)

    def character(self) -> int:
        """The code point that stands here, as itself or as an escape."""
        character = self.here() or self.fail("the grammar ends within a literal or a class")
        self.at += 1
        if character != "\\":
            return ord(character)
        kind = self.here()
        self.at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind not in _DIGITS:
            self.fail(f"unknown escape '\\{kind}'")
        found = _HEX.match(self.here(_DIGITS[kind]))
        digits = "" if found is None else found[0]
        if len(digits) < _DIGITS[kind]:
            self.fail(f"'\\{kind}{digits}' needs {_DIGITS[kind]} hexadecimal digits")
        self.at += len(digits)
        return int(digits, 16)

    def check_whole(self, point: int) -> None:
        if 0xD800 <= point <= 0xDFFF:
            self.fail(f"{_shown(point)} is one half of a character in UTF-16: write \\U and 8 digits for the whole")

    def token(self) -> Token:
        line, found = self.line, _TOKEN.match(self.text, self.at)
        if found is None:
            self.fail(f"a token is <text> or <[id]>, not {self.here(20)!r}")
        self.at = found.end()
        negated, number, words = found.groups()
        return Token(int(number) if number else f"<{words}>", bool(negated), line)


def _shown(point: int) -> str:
    return f"U+{point:04X}"


def complement(ranges: list[tuple[int, int]] | Ranges) -> Ranges:
    """The characters of ANY that are in none of these ranges, which may overlap."""
    out: list[tuple[int, int]] = []
    for begin, end in ANY:
        for first, last in sorted(ranges):
            if begin <= end and first <= end and last >= begin:
                if first > begin:
                    out.append((begin, first - 1))
                begin = last + 1
        if begin <= end:
            out.append((begin, end))
    return tuple(out)


def _check_left_recursion(rules: dict[str, Node]) -> None:
    """Refuses a rule that can begin with itself, which llama.cpp refuses."""
    graph = {name: _begins(rule, rules)[0] for name, rule in rules.items()}
    for loop in components(graph):
        if len(loop) > 1 or loop[0] in graph[loop[0]]:
            fail(f"left recursion: the rule {min(loop)!r} can begin with itself")


def _begins(node: Node, rules: dict[str, Node]) -> tuple[set[str], bool]:
    """The rules that can stand first in a node, and whether llama.cpp takes it for one that may be empty.

    It takes a group or a rule for that when one of its alternatives has nothing in it.
    """
    match node:
        case Ref(name):
            return {name}, _bare(rules[name])
        case Seq((group,)):
            return _begins(group, rules)[0], _bare(group)
        case Seq(items):
            names: set[str] = set()
            for item in items:
                found, empty = _begins(item, rules)
                names |= found
                if not empty:
                    return names, False
            return names, True
        case Alt(options):
            return set().union(*(_begins(option, rules)[0] for option in options)), _bare(node)
        case Repeat(item, least, _):
            names, empty = _begins(item, rules)
            return names, empty or not least
    return set(), False


def _bare(node: Node) -> bool:
    options = node.options if isinstance(node, Alt) else (node,)
    return any(isinstance(option, Seq) and not option.items for option in options)
