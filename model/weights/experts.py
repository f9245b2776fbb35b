"""The experts of a mixture in a file of weights, each by itself: which pages of the file are its own. Imports no jax.

An expert is a run of bytes in each of its layer's `*_exps` tensors. A step reads those that its rows have chosen, and
`native/expert_pool.h` keeps the ones that were chosen last. Experts are cut into pages, as many have matrices of less
than the huge page in which layers are brought; what is a whole huge page of one expert is read as that. Pages in which
two experts meet stay, so that what is read for one is what it alone has.
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Sequence

from packlight.model.weights.load import Buffer
from packlight.model.weights.mapfile import HUGE_PAGE, PAGE, Record

NAMES = "_exps"  # how the names of their tensors end


@dataclasses.dataclass(frozen=True)
class Experts:
    """The experts of all layers. Those of a layer have the same size."""

    each: int  # experts of a layer
    used: int  # experts that a row chooses
    layers: tuple[int, ...]  # numbers of the layers that have some
    pages: tuple[tuple[range, ...], ...]  # of each expert of each of these layers, its own
    shared: int  # pages that none of them has alone

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each expert's own pages."""
        return tuple(PAGE * sum(map(len, runs)) for runs in self.pages)

    @functools.cached_property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes)

    def chosen_bytes(self, rows: int) -> int:
        """What the experts of one layer take that so many rows may choose."""
        return min(self.each, self.used * rows) * max(self.sizes)

    @functools.cached_property
    def token_bytes(self) -> int:
        """What a token reads at most, where none of its experts is there."""
        return self.used * sum(max(self.sizes[at : at + self.each]) for at in range(0, len(self.sizes), self.each))


def has_experts(buffer: Buffer) -> bool:
    """Whether a buffer holds matrices of experts: (layers, experts, ...)."""
    return all(name.startswith("blk.") and name.split(".")[2].endswith(NAMES) for name in buffer.tensors)


def cut_experts(
    buffers: Sequence[tuple[Buffer, Sequence[Record]]],  # those of experts, with where their tensors are
    taken: Collection[int],  # units of a huge page that hold something else too
    used: int,
) -> Experts | None:
    """How experts lie in a file; None where there are none, or too small ones. Buffers that are no larger than a huge
    page stay whole.
    """
    layers = sorted({_layer(record) for _, records in buffers for record in records})
    found: dict[tuple[int, int], list[range]] = {}
    shared = each = 0
    for buffer, records in buffers:
        each = buffer.shape[1]
        begin, end = records[0].offset, records[-1].offset + records[-1].nbytes
        if end - begin <= HUGE_PAGE:
            continue
        units = range(begin // HUGE_PAGE, -(-end // HUGE_PAGE))
        end = min([end, *(unit * HUGE_PAGE for unit in taken if unit in units)])
        own = 0
        for record in records:
            size = record.nbytes // each
            for number in range(each):
                run = _own(record.offset + number * size, size, end)
                found.setdefault((_layer(record), number), []).append(run)
                own += len(run)
        shared += -(-(end - begin) // PAGE) - own
    if not any(map(len, itertools.chain(*found.values()))):
        return None
    pages = (tuple(filter(len, found.get((layer, number), ()))) for layer in layers for number in range(each))
    return Experts(each, used, tuple(layers), tuple(pages), shared)


def _own(first: int, size: int, end: int) -> range:
    """The pages that `size` bytes from `first` on have alone, where other bytes are before them and up to `end`."""
    last = min(first + size, end)
    start = -(-first // PAGE)
    stop = -(-last // PAGE) if last == end else last // PAGE
    return range(start, max(start, stop))


def _layer(record: Record) -> int:
    return int(record.name.split(".")[1])
