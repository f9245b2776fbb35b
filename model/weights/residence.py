"""Where the layers of a streamed model are: which stay in memory, and which pass through it. Imports no jax.

A file of weights (`weights.mapfile`) is brought and given back in units of a huge page. Tensors of all layers lie one
after the other, so that a layer is a run of units in each of them, and two layers share the unit in which they meet:
what counts is sets of units. Matrices that are small in all layers together, and what is outside layers, stay.

The first layers stay, as many as the budget lets. The others are read in turn in every step, those that are needed next
ahead of it: that reads least, as whatever else might be kept is needed later than what comes first.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

from packlight.common.errors import Argument, MemoryLimitError
from packlight.common.text import megabytes
from packlight.model.weights.load import Buffer
from packlight.model.weights.mapfile import HUGE_PAGE, PAGE, Arrangement, rounded_up

UNIT = HUGE_PAGE  # bytes


@dataclasses.dataclass(frozen=True)
class Cut:
    """A file of weights in units, from its first buffer on."""

    sizes: tuple[int, ...]  # bytes of each unit before a hole or the file's end, in whole pages
    layers: tuple[tuple[range, ...], ...]  # of each layer, its units
    outside: frozenset[int]  # units that hold something else too

    @classmethod
    def of(cls, buffers: Sequence[Buffer], layers: int) -> "Cut":
        """How the buffers of a model with so many layers are cut, once they are arranged in a file."""
        arranged = Arrangement.of(buffers)
        sizes = [0] * -(-arranged.nbytes // UNIT)
        found: list[list[range]] = [[] for _ in range(layers)]
        outside: set[int] = set()
        records = iter(arranged.records)
        for buffer in buffers:
            of = list(itertools.islice(records, len(buffer.tensors)))
            first, end = of[0].offset, of[-1].offset + of[-1].nbytes
            for unit in _units(first, end):
                sizes[unit] = max(sizes[unit], min(UNIT, rounded_up(end, PAGE) - unit * UNIT))
            if end - first <= UNIT or not of[0].name.startswith("blk."):
                outside.update(_units(first, end))
                continue
            for record in of:
                layer = int(record.name.split(".")[1])
                found[layer].append(_units(record.offset, record.offset + record.nbytes))
        own = (tuple(run for units in layer for run in _without(units, outside)) for layer in found)
        return cls(tuple(sizes), tuple(own), frozenset(outside))

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
        """What is outside layers, or small."""
        return UNIT * len(self.cut.outside)

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
        return self.outside_bytes + self.kept_bytes + self.ring_bytes

    @functools.cached_property
    def step_bytes(self) -> int:
        """What each step reads, behind the first one."""
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
        return f"{', '.join(parts)}; {megabytes(self.step_bytes)} read a step"


def plan_residence(cut: Cut, budget: int, ahead: int, whose: Sequence[str | Argument]) -> Residence:
    """The residence that keeps the most layers within `budget` bytes. Raises MemoryLimitError, which names the least
    budget, when even none of them is too many; it begins with `whose` budget it is.
    """
    counts = range(len(cut.layers) + 1)
    too_many = bisect.bisect_left(counts, True, key=lambda kept: Residence(cut, kept, ahead).resident_bytes > budget)
    if not too_many:
        least = Residence(cut, 0, ahead).resident_bytes
        said = f"{least:,} bytes are the least, with {ahead} layers ahead"
        raise MemoryLimitError(*whose, f" {megabytes(max(0, budget))} for streamed weights; {said}")
    return Residence(cut, too_many - 1, ahead)


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
