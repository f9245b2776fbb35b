"""Grammars as trees written in llguidance's dialect of Lark, with the same meaning. Knows no GBNF.

llguidance cuts a text into terminals before it parses, and a terminal takes all that it can: `[a-z]* "b"` of two
terminals never ends. So the whole grammar becomes one terminal where no rule needs itself. Elsewhere a terminal is one
character, or more only where no terminal of the grammar matches the beginning of what another one matches.
"""

import json
from collections.abc import Callable, Sequence

from packlight.model.sampling.prefixes import Automaton, clashes
from packlight.model.sampling.rules import (
    Alt,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Token,
    closure,
    components,
    holds,
    parts,
    references,
)

LONGEST_RUN = 8  # items of a sequence that are tried as one terminal
ROUNDS = 20  # of taking terminals apart, before each becomes one character
# Else a part of a text that is sure to come is allowed in one way of cutting it into tokens only.
OPTIONS = '%llguidance {"no_forcing": true}'
START = "start"  # Lark's name of the rule that a text must match


def write(rules: dict[str, Node], root: str, token: Callable[[Token], int]) -> str:
    """The grammar in Lark. `token` gives a token's id."""
    graph = {name: references(rule) for name, rule in rules.items()}
    order = components(graph)
    irregular: set[str] = set()
    for loop in order:
        name = loop[0]
        if len(loop) > 1 or name in graph[name] or graph[name] & irregular or _tokens(rules[name]):
            irregular.update(loop)
    nullable = closure(rules, order, single=False)
    known = _Known(rules, nullable, irregular)
    apart: set[str] = set()
    for _ in range(ROUNDS):
        writer = _Writer(known, token, apart)
        text = writer.grammar(root)
        found = None if root not in irregular else writer.clashing()
        if not found:
            return text
        apart |= found
    return _Writer(known, token, None).grammar(root)


def _tokens(node: Node) -> bool:
    return any(isinstance(part, Token) for part in parts(node))


class _Known:
    """What is known of a grammar's rules and nodes, whatever becomes of them."""

    def __init__(self, rules: dict[str, Node], nullable: set[str], irregular: set[str]):
        self.rules = rules
        self.nullable = nullable  # rules that match the empty text
        self.irregular = irregular  # rules that no regular expression can say
        self.numbers = {name: number for number, name in enumerate(rules)}
        self._automata: dict[tuple[int, ...], Automaton | None] = {}  # by the identities of nodes

    def automaton(self, run: tuple[Node, ...]) -> Automaton | None:
        """What these nodes match, where they can be a terminal by themselves."""
        key = tuple(map(id, run))
        if key not in self._automata:
            self._automata[key] = self._found(run)
        return self._automata[key]

    def _found(self, run: tuple[Node, ...]) -> Automaton | None:
        if all(holds(node, self.nullable, False) for node in run):
            return None
        if any(_tokens(node) or references(node) & self.irregular for node in run):
            return None
        found = Automaton.of(Seq(run), self.rules)
        return None if found is None or clashes([found]) != set() else found


class _Writer:
    """One attempt at a grammar's text."""

    def __init__(self, known: _Known, token: Callable[[Token], int], apart: set[str] | None):
        """`apart` are expressions that are no terminals; None: only characters are."""
        self.known, self.rules, self.token, self.apart = known, known.rules, token, apart
        self.lines = [OPTIONS]
        self.named: set[str] = set()
        self.waiting: list[tuple[str, str]] = []  # names and their rules, which are not yet written
        self.terminals: dict[str, tuple[str, Automaton]] = {}  # expression -> its name, and what it matches

    def grammar(self, root: str) -> str:
        self.lines.append(f"{START}: {self.rule(root) if root in self.known.irregular else self.regular(root)}")
        while self.waiting:
            name, rule = self.waiting.pop()
            body = self.parsed(self.rules[rule]) if name[0] == "r" else expression(self.rules[rule], self.regular)
            self.lines.append(f"{name}: {body}")
        terminals = [f"{name}: {text}" for text, (name, _) in self.terminals.items()]
        return "\n".join([*self.lines, *terminals]) + "\n"

    def rule(self, rule: str) -> str:
        return self._name("r", rule)

    def regular(self, rule: str) -> str:
        return self._name("E", rule)

    def _name(self, kind: str, rule: str) -> str:
        name = f"{kind}{self.known.numbers[rule]}"
        if name not in self.named:
            self.named.add(name)
            self.waiting.append((name, rule))
        return name

    def parsed(self, node: Node) -> str:
        """A node as a part of a rule."""
        if name := self.terminal((node,)):
            return name
        match node:
            case Ref(name):
                return self.rule(name)
            case Seq(items):
                return " ".join(self.runs(items)) or '""'
            case Alt(options):
                return f"({' | '.join(map(self.parsed, options))})"
            case Repeat(item, least, most):
                return f"({self.parsed(item)}){_times(least, most)}"
            case Token():
                return f"<[{self.token(node)}]>"
        raise AssertionError("a character is a terminal")

    def runs(self, items: Sequence[Node]) -> list[str]:
        """A sequence, with as much as can be in one terminal."""
        out, at = [], 0
        longest = 1 if all(isinstance(item, Chars) for item in items) else LONGEST_RUN  # a literal: whole, or letters
        while at < len(items):
            for end in range(min(len(items), at + longest), at + 1, -1):
                if name := self.terminal(tuple(items[at:end])):
                    out.append(name)
                    at = end
                    break
            else:
                out.append(self.parsed(items[at]))
                at += 1
        return out

    def terminal(self, run: tuple[Node, ...]) -> str | None:
        """The name of the terminal that these nodes are, or None where they are none."""
        single = len(run) == 1 and isinstance(run[0], Chars)
        if not single and self.apart is None:
            return None
        automaton = self.known.automaton(run)
        if automaton is None:
            return None
        text = expression(Seq(run), self.regular)
        if not single and text in (self.apart or ()):
            return None
        if text not in self.terminals:
            self.terminals[text] = f"T{len(self.terminals)}", automaton
        return self.terminals[text][0]

    def clashing(self) -> set[str]:
        """The expressions that cannot be terminals beside the others; none where all can."""
        found = clashes([automaton for _, automaton in self.terminals.values()])
        return {
            text
            for number, (text, (_, automaton)) in enumerate(self.terminals.items())
            if (found is None or number in found) and not automaton.single
        }


def expression(node: Node, name: Callable[[str], str]) -> str:
    """A node as a terminal's definition. `name` gives what a rule in it is called there."""
    match node:
        case Chars(ranges):
            return f"/[{''.join(_range(*each) for each in ranges)}]/"
        case Ref(rule):
            return name(rule)
        case Seq(items):
            return " ".join(_joined(items, name)) or '""'
        case Alt(options):
            return f"({' | '.join(expression(option, name) for option in options)})"
        case Repeat(item, least, most):
            return f"({expression(item, name)}){_times(least, most)}"
    raise AssertionError("a token is no text")


def _joined(items: Sequence[Node], name: Callable[[str], str]) -> list[str]:
    """What follows each other, with neighbouring letters in one string."""
    out: list[str] = []
    letters = ""
    for item in items:
        letter = _letter(item)
        if letters and not letter:
            out.append(json.dumps(letters))
            letters = ""
        letters += letter
        out += [] if letter else [expression(item, name)]
    return [*out, json.dumps(letters)] if letters else out


def _letter(node: Node) -> str:
    match node:
        case Chars(((first, last),)) if first == last:
            return chr(first)
    return ""


def _range(first: int, last: int) -> str:
    return rf"\u{{{first:X}}}" + (rf"-\u{{{last:X}}}" if first != last else "")


def _times(least: int, most: int | None) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return known.get((least, most)) or f"{{{least},{'' if most is None else most}}}"
