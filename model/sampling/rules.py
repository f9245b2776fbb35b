"""Grammars as trees: rules by name, and what follows from them. Knows no notation and no matching."""

import dataclasses
from collections.abc import Iterator, Mapping

Ranges = tuple[tuple[int, int], ...]  # first and last code point of each, ascending, apart from each other


@dataclasses.dataclass(frozen=True, eq=False)
class Chars:
    """One character of these."""

    ranges: Ranges


@dataclasses.dataclass(frozen=True, eq=False)
class Seq:
    """One after the other; none is the empty text."""

    items: "tuple[Node, ...]"


@dataclasses.dataclass(frozen=True, eq=False)
class Alt:
    """One of them; none matches no text at all."""

    options: "tuple[Node, ...]"


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat:
    """An item so many times."""

    item: "Node"
    least: int
    most: int | None  # None: without end


@dataclasses.dataclass(frozen=True, eq=False)
class Ref:
    """What the rule of this name matches."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Token:
    """One token of the vocabulary, whatever its text; or any other one."""

    wanted: int | str  # its id, or its text with the angle brackets
    negated: bool
    line: int


Node = Chars | Seq | Alt | Repeat | Ref | Token
EMPTY = Seq(())


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Seq(items) | Alt(items):
            return items
        case Repeat(item, _, _):
            return (item,)
    return ()


def parts(node: Node) -> Iterator[Node]:
    """The node and all within it, each once, rules apart."""
    todo, seen = [node], {id(node)}
    while todo:
        each = todo.pop()
        yield each
        todo += [child for child in children(each) if id(child) not in seen]
        seen.update(map(id, children(each)))


def components(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components, each behind those that it leads to. Source: Tarjan 1972."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    held: set[str] = set()
    out: list[list[str]] = []
    for start in graph:
        todo = [] if start in index else [(start, iter(sorted(graph[start])))]
        while todo:
            name, followers = todo[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                stack.append(name)
                held.add(name)
            for follower in followers:
                if follower not in index:
                    todo.append((follower, iter(sorted(graph[follower]))))
                    break
                if follower in held:
                    low[name] = min(low[name], index[follower])
            else:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[name])
                if low[name] == index[name]:
                    loop = [stack.pop()]
                    while loop[-1] != name:
                        loop.append(stack.pop())
                    out.append(loop)
                    held.difference_update(loop)
    return out


def seq(*items: Node) -> Node:
    """One after the other, without the empty ones."""
    kept = tuple(item for item in items if not (isinstance(item, Seq) and not item.items))
    return kept[0] if len(kept) == 1 else Seq(kept)


def alt(options: list[Node]) -> Node:
    return options[0] if len(options) == 1 else Alt(tuple(options))


def references(node: Node) -> set[str]:
    return {part.name for part in parts(node) if isinstance(part, Ref)}


def holds(node: Node, known: set[str], single: bool) -> bool:
    """Whether a node is empty or can be (single=False), or whether it matches any text at all (single=True).

    Args:
        known: the rules of which that is so.
        single: what a character or a token counts for.
    """
    match node:
        case Ref(name):
            return name in known
        case Seq(items):
            return all(holds(item, known, single) for item in items)
        case Alt(options):
            return any(holds(option, known, single) for option in options)
        case Repeat(item, least, _):
            return not least or holds(item, known, single)
    return single


def closure(rules: dict[str, Node], order: list[list[str]], single: bool) -> set[str]:
    """The rules of which `holds` is true. The order is that of `components`."""
    known: set[str] = set()
    for loop in order:
        before = -1
        while before != len(known):
            before = len(known)
            known.update(name for name in loop if name not in known and holds(rules[name], known, single))
    return known


def depth(levels: Mapping[str, int], leads: Mapping[str, set[str]]) -> int:
    """The most levels within each other that a walk meets which enters no rule twice (or more).

    levels: of each rule itself. leads: the rules that it names.
    """
    deepest: dict[str, int] = {}
    for loop in components(leads):
        below = (deepest[name] for rule in loop for name in leads[rule] if name in deepest)
        most = max(below, default=0) + sum(levels[name] for name in loop)
        deepest.update(dict.fromkeys(loop, most))
    return max(deepest.values(), default=0)


def height(node: Node) -> int:
    """The most nodes within each other, the node itself among them."""
    return 1 + max(map(height, children(node)), default=0)


def without_tail_recursion(rules: dict[str, Node]) -> dict[str, Node]:
    """The same grammar with repetitions in place of rules that end with themselves or with each other.

    A rule `x ::= a x | b` becomes `a* b`, whatever `a` holds, and a set of such rules is solved one by one.
    Source: Arden's lemma, and Bekic's for an `x` within `a`.
    """
    out = dict(rules)
    split = {name: _ends(rule) for name, rule in rules.items()}
    graph = {name: {end for end in ends if end is not None} for name, ends in split.items()}
    for loop in components(graph):
        if len(loop) > 1 or loop[0] in graph[loop[0]]:
            _solve({name: _within(split[name], set(loop)) for name in loop}, out)
    return out


Ends = dict[str | None, list[Node]]  # a rule's name -> what can stand before it at the end; None: what has no such end


def _ends(node: Node) -> Ends:
    """The ways in which a node ends with a rule, and the others."""
    match node:
        case Ref(name):
            return {name: [EMPTY]}
        case Seq((*heads, last)):
            return {end: [seq(*heads, each) for each in nodes] for end, nodes in _ends(last).items()}
        case Alt(options):
            out: Ends = {}
            for option in options:
                for end, nodes in _ends(option).items():
                    out.setdefault(end, []).extend(nodes)
            return out
        case Repeat(item, 0, 1):
            out = _ends(item)
            out.setdefault(None, []).append(EMPTY)
            return out
    return {None: [node]}


def _within(ends: Ends, loop: set[str]) -> Ends:
    """The same with no other ends than these rules."""
    out: Ends = {}
    for end, nodes in ends.items():
        if end is None or end in loop:
            out.setdefault(end, []).extend(nodes)
        else:
            out.setdefault(None, []).extend(seq(node, Ref(end)) for node in nodes)
    return out


def _solve(equations: dict[str, Ends], rules: dict[str, Node]) -> None:
    """Puts the solution of these rules into `rules`. What is used more than once gets a rule of its own."""

    def shared(nodes: list[Node]) -> Node:
        node = alt(nodes)
        if not children(node):
            return node
        name = f"~{len(rules)}"  # no name of the notation's
        rules[name] = node
        return Ref(name)

    for name in list(equations):
        own = equations.pop(name)
        again = own.pop(name, [])
        head = Repeat(alt(again), 0, None) if again else EMPTY
        solved = {end: shared([seq(head, alt(nodes))]) for end, nodes in own.items()}
        for other in equations.values():
            if name in other:
                before = shared(other.pop(name))
                for end, node in solved.items():
                    other.setdefault(end, []).append(seq(before, node))
        rules[name] = alt([node if end is None else seq(node, Ref(end)) for end, node in solved.items()])
