"""Where the layers of a streamed model are: which stay in memory, and which pass through it. Imports no jax.

A file of weights (`weights.mapfile`) is brought and given back in units of a huge page. Tensors of all layers lie one
after the other, so that a layer is a run of units in each of them, and two layers share the unit in which they meet:
what counts is sets of units. Matrices that are small in all layers together, and what is outside layers, stay. Experts
of a mixture are cut by themselves (`weights.experts`).

The first layers stay, as many as the budget lets. The others are read in turn in every step, those that are needed next
ahead of it: that reads least, as whatever else might be kept is needed later than what comes first. What the budget
leaves is for experts, which a token needs a few of: those stay that were chosen last.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

from packlight.common.errors import Argument, MemoryLimitError
from packlight.common.text import megabytes
from packlight.model.weights.experts import Experts, cut_experts, has_experts
from packlight.model.weights.load import Buffer
from packlight.model.weights.mapfile import HUGE_PAGE, PAGE, Arrangement, Record, rounded_up

UNIT = HUGE_PAGE  # bytes


@dataclasses.dataclass(frozen=True)
class Cut:
    """A file of weights in units, from its first buffer on."""

    sizes: tuple[int, ...]  # bytes of each unit before a hole or the file's end, in whole pages
    layers: tuple[tuple[range, ...], ...]  # of each layer, its units
    outside: frozenset[int]  # units that hold something else too
    experts: Experts | None = None  # in units that are neither

    @classmethod
    def of(cls, buffers: Sequence[Buffer], layers: int, used: int = 0) -> "Cut":
        """How the buffers of a model with so many layers are cut, once they are arranged in a file.

        used: experts that a row chooses.
        """
        arranged = Arrangement.of(buffers)
        sizes = [0] * -(-arranged.nbytes // UNIT)
        found: list[list[range]] = [[] for _ in range(layers)]
        outside: set[int] = set()
        experts: list[tuple[Buffer, list[Record]]] = []
        records = iter(arranged.records)
        for buffer in buffers:
            of = list(itertools.islice(records, len(buffer.tensors)))
            first, end = of[0].offset, of[-1].offset + of[-1].nbytes
            for unit in _units(first, end):
                sizes[unit] = max(sizes[unit], min(UNIT, rounded_up(end, PAGE) - unit * UNIT))
            if of_experts := has_experts(buffer):
                experts.append((buffer, of))
            if end - first <= UNIT or not of[0].name.startswith("blk."):
                outside.update(_units(first, end))
                continue
            if of_experts:
                continue
            for record in of:
                layer = int(record.name.split(".")[1])
                found[layer].append(_units(record.offset, record.offset + record.nbytes))
        own = (tuple(run for units in layer for run in _without(units, outside)) for layer in found)
        return cls(tuple(sizes), tuple(own), frozenset(outside), cut_experts(experts, outside, used))

    def bytes(self, units: Iterable[int]) -> int:
        """What is read to bring some units."""
        return sum(self.sizes[unit] for unit in units)

    @functools.cached_property
    def sets(self) -> tuple[frozenset[int], ...]:
        """The units of each layer."""
        return tuple(frozenset(itertools.chain(*layer)) for layer in self.layers)

    def union(self, layers: Iterable[int]) -> frozenset[int]:
        """The units of some layers."""
        return frozenset().union(*(self.sets[layer] for layer in layers))


@dataclasses.dataclass(frozen=True)
class Residence:
    """Where a model's layers are while it runs. What is in memory counts in whole units, holes included."""

    cut: Cut
    kept: int  # layers that stay, the first ones
    ahead: int  # layers that are asked for before a step comes to them
    pool: int = 0  # bytes of experts that are in memory at most

    @property
    def layers(self) -> int:
        return len(self.cut.layers)

    @property
    def streamed(self) -> int:
        """Layers that are read in every step."""
        return self.layers - self.kept

    @property
    def ring(self) -> int:
        """Streamed layers that are in memory at a time."""
        return min(self.ahead + 1, self.streamed)

    @functools.cached_property
    def outside_bytes(self) -> int:
        """What is outside layers, or small, or where experts meet."""
        return UNIT * len(self.cut.outside) + (PAGE * self.cut.experts.shared if self.cut.experts else 0)

    @functools.cached_property
    def kept_bytes(self) -> int:
        return UNIT * len(self.cut.union(range(self.kept)))

    @functools.cached_property
    def ring_bytes(self) -> int:
        """The most that streamed layers take at a time."""
        kept = self.cut.union(range(self.kept))
        return UNIT * max((len(self.cut.union(each) - kept) for each in self._windows), default=0)

    @functools.cached_property
    def resident_bytes(self) -> int:
        """The most that is in memory at a time."""
        return self.outside_bytes + self.kept_bytes + self.ring_bytes + self.pool

    @functools.cached_property
    def step_bytes(self) -> int:
        """What each step reads of layers, behind the first one."""
        if self.ring == self.streamed:
            return 0
        kept, total = self.cut.union(range(self.kept)), 0
        for before, now in zip((self._windows[-1], *self._windows), self._windows, strict=False):
            total += self.cut.bytes(self.cut.union(now) - self.cut.union(set(now) & set(before)) - kept)
        return total

    @functools.cached_property
    def _windows(self) -> list[list[int]]:
        """For each streamed layer that a step comes to, those that are in memory then."""
        turn = [*range(self.kept, self.layers)] * 2
        return [turn[at : at + self.ring] for at in range(self.streamed)]

    def __str__(self) -> str:
        parts = [f"outside layers {megabytes(self.outside_bytes)}"]
        if self.kept:
            parts.append(f"layers 0-{self.kept - 1} {megabytes(self.kept_bytes)}")
        if self.streamed:
            parts.append(f"{self.ring} of the other {self.streamed} {megabytes(self.ring_bytes)}")
        read = f"{megabytes(self.step_bytes)} read a step"
        if (experts := self.cut.experts) is not None:
            count = min(len(experts.sizes), self.pool // max(experts.sizes))
            parts.append(f"{count} of {len(experts.sizes)} experts {megabytes(self.pool)}")
            read += f", and {megabytes(experts.token_bytes)} of other experts a token at most"
        return f"{', '.join(parts)}; {read}"


def plan_residence(
    cut: Cut, budget: int, ahead: int, whose: Sequence[str | Argument], rows: int = 1, beside: int = 0
) -> Residence:
    """The residence that keeps the most layers within `budget` bytes, of which `beside` are for something else, and
    with what is left the most experts.

    rows: that a step has at most; what they may choose of a layer's experts is in memory at once.
    Raises MemoryLimitError, which names the least budget, when even no layer is too many; it begins with `whose` budget
    it is.
    """
    experts = cut.experts
    pool = 0 if experts is None else experts.chosen_bytes(rows)

    def whole(kept: int) -> int:
        return beside + Residence(cut, kept, ahead, pool).resident_bytes

    too_many = bisect.bisect_left(range(len(cut.layers) + 1), True, key=lambda kept: whole(kept) > budget)
    if not too_many:
        least = whole(0)
        said = f"{least:,} bytes are the least, with {ahead} layers ahead"
        raise MemoryLimitError(*whose, f" {megabytes(max(0, budget))} for streamed weights; {said}")
    kept = too_many - 1
    most = 0 if experts is None else min(experts.bytes, pool + budget - whole(kept))
    return Residence(cut, kept, ahead, most)


def _units(first: int, end: int) -> range:
    """The units that bytes `first` to `end` lie in."""
    return range(first // UNIT, -(-end // UNIT))


def _without(units: range, others: set[int]) -> Iterable[range]:
    """The parts of a range without some numbers."""
    start = units.start
    for unit in (*sorted(others.intersection(units)), units.stop):
        if start < unit:
            yield range(start, unit)
        start = unit + 1
