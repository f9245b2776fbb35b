"""Whether one expression matches the beginning of what another one matches. Knows expressions, and no grammar."""

import dataclasses
from collections.abc import Sequence

from packlight.model.sampling.rules import Alt, Chars, Node, Ranges, Ref, Repeat, Seq

MOST_PLACES = 2000  # characters of an expression, with its repetitions written out
MOST_DEPTH = 100  # nodes within each other
MOST_STATES = 5000


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """An expression as places, one for each character that it has. Source: Glushkov 1961."""

    ranges: tuple[Ranges, ...]  # the characters of each place
    first: frozenset[int]  # places that a text can begin at
    last: frozenset[int]  # places that a text can end at
    follow: tuple[frozenset[int], ...]  # places that can come behind each

    @property
    def single(self) -> bool:
        return len(self.ranges) == 1 and not self.follow[0]

    @classmethod
    def of(cls, node: Node, rules: dict[str, Node]) -> "Automaton | None":
        """That of a node without recursion, or None where it has too many places."""
        builder = _Builder(rules)
        try:
            _, first, last = builder.add(node, 0)
        except _TooLargeError:
            return None
        return cls(tuple(builder.ranges), frozenset(first), frozenset(last), tuple(map(frozenset, builder.follow)))


class _TooLargeError(Exception):
    """More places, or deeper, than is worth a look."""


Piece = tuple[bool, set[int], set[int]]  # whether it can be empty, where it can begin, where it can end


class _Builder:
    def __init__(self, rules: dict[str, Node]):
        self.rules = rules
        self.ranges: list[Ranges] = []
        self.follow: list[set[int]] = []

    def add(self, node: Node, depth: int) -> Piece:
        if depth > MOST_DEPTH or len(self.ranges) > MOST_PLACES:
            raise _TooLargeError
        match node:
            case Chars(ranges):
                self.ranges.append(ranges)
                self.follow.append(set())
                place = {len(self.ranges) - 1}
                return False, place, place
            case Ref(name):
                return self.add(self.rules[name], depth + 1)
            case Seq(items):
                out: Piece = True, set(), set()
                for item in items:
                    out = self.join(out, self.add(item, depth + 1))
                return out
            case Alt(options):
                each = [self.add(option, depth + 1) for option in options]
                return (
                    any(empty for empty, _, _ in each),
                    set().union(*(first for _, first, _ in each)),
                    set().union(*(last for _, _, last in each)),
                )
            case Repeat(item, least, most):
                return self.repeat(item, least, most, depth)
        raise _TooLargeError  # a token is no text

    def join(self, one: Piece, two: Piece) -> Piece:
        for place in one[2]:
            self.follow[place] |= two[1]
        return (
            one[0] and two[0],
            one[1] | two[1] if one[0] else one[1],
            two[2] | one[2] if two[0] else two[2],
        )

    def repeat(self, item: Node, least: int, most: int | None, depth: int) -> Piece:
        out: Piece = True, set(), set()
        for _ in range(least):
            out = self.join(out, self.add(item, depth + 1))
        if most is None:
            _, first, last = self.add(item, depth + 1)
            self.join((False, first, last), (False, first, last))
            return self.join(out, (True, first, last))
        rest: Piece = True, set(), set()  # up to so many more, each behind the one before
        ends: set[int] = set()
        for i in range(most - least):
            _, first, last = self.add(item, depth + 1)
            for place in ends:
                self.follow[place] |= first
            rest = True, rest[1] if i else first, rest[2] | last
            ends = last
        return self.join(out, rest)


def clashes(automata: Sequence[Automaton]) -> set[int] | None:
    """The expressions that match more than what one of them, or they themselves, match. None: too many to tell.

    Where it is empty, a reader that takes the longest match never takes too much.
    """
    found: set[int] = set()
    start = frozenset((which, place) for which, automaton in enumerate(automata) for place in automaton.first)
    todo, seen = [start], {start}
    while todo:
        for met in _met(automata, todo.pop()):
            ended = any(place in automata[which].last for which, place in met)
            going = {which for which, place in met if automata[which].follow[place]}
            if ended:
                found |= going
                if len(found) == len(automata):
                    return found
            following = frozenset((which, to) for which, place in met for to in automata[which].follow[place])
            if following and following not in seen:
                seen.add(following)
                todo.append(following)
                if len(seen) > MOST_STATES:
                    return None
    return found


def _met(automata: Sequence[Automaton], places: frozenset[tuple[int, int]]) -> set[frozenset[tuple[int, int]]]:
    """For each character that some of these places take: those that take it."""
    events: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    for which, place in places:
        for first, last in automata[which].ranges[place]:
            events.setdefault(first, ([], []))[0].append((which, place))
            events.setdefault(last + 1, ([], []))[1].append((which, place))
    active: set[tuple[int, int]] = set()
    out: set[frozenset[tuple[int, int]]] = set()
    for at in sorted(events):
        begin, end = events[at]
        active.difference_update(end)
        active.update(begin)
        if active:
            out.add(frozenset(active))
    return out
