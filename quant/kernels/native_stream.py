"""Streams of layers and experts: `native/stream.h` as a Python object. Imports no jax.

`native_ops.advance` is the call by which a step says which layer it has come to, `native_ops.bring_experts` the one by
which it says which experts its rows have chosen.
"""

import ctypes
import itertools
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from packlight.common.errors import UnsupportedError
from packlight.quant.kernels import native_build, prebuilt


class StreamCounts(NamedTuple):
    """What has happened since a stream was opened: `StreamCounts` in native/stream.h."""

    ready: int  # layers that were there when a step came to them
    late: int  # layers that a step had to wait for
    waited_ns: int  # for those, and for layers that stay when they are first wanted
    reads: int  # layers that were asked for
    bytes: int  # of their units that no other layer had there
    kept_bytes: int  # the same of the layers that stay
    reading_ns: int  # of the thread, in both
    experts: int  # experts that are in memory now
    experts_ready: int  # chosen ones that were there
    experts_read: int  # chosen ones that a step had to read
    experts_bytes: int  # of those
    experts_waited_ns: int  # for those


class Pool(NamedTuple):
    """Experts that are brought when they are chosen, and given back when others need the room."""

    each: int  # experts of a layer
    layers: Sequence[int]  # numbers of the layers that have some, for messages
    pages: Sequence[Sequence[range]]  # of each expert of each of these layers, what no other has
    page: int  # bytes
    budget: int  # bytes of them that are in memory at most, but for those that a step has chosen


class Stream:
    """Layers of a mapped file that are brought into memory ahead of a step and given back behind it, by one thread."""

    def __init__(
        self,
        fd: int,
        memory: np.ndarray,  # uint8 (bytes,), mapped to the file from `offset` on
        offset: int,
        unit: int,  # bytes that are brought and given back as one
        unit_bytes: Sequence[int],  # of each unit, before a hole or the file's end
        layers: Sequence[Sequence[range]],  # of each layer, its units
        kept: int,  # how many layers, the first ones, stay
        ahead: int,  # how many of the others are asked for before a step comes to them
        pool: Pool | None = None,  # experts, which are none of the units
    ):
        """The file's descriptor may be closed afterwards. Raises NativeBuildError, UnsupportedError where the system
        cannot stream.
        """
        library, _ = native_build.loaded()
        count = ctypes.c_int64
        library.packlight_stream_open.restype = count
        counts, runs = _flat(layers)
        sizes = np.array(unit_bytes, np.int64)
        mapped = memory.nbytes + -(memory.ctypes.data + memory.nbytes) % 4096  # whole pages are mapped
        self.number: int = library.packlight_stream_open(
            count(fd),
            ctypes.c_void_p(memory.ctypes.data),
            *map(count, (offset, unit, len(sizes), mapped)),
            ctypes.c_void_p(sizes.ctypes.data),
            count(len(counts)),
            ctypes.c_void_p(counts.ctypes.data),
            ctypes.c_void_p(runs.ctypes.data),
            *map(count, (kept, ahead)),
        )
        if not self.number:
            raise UnsupportedError("layers are streamed on Linux only")
        if pool is not None:
            numbers, (counts, spans) = np.array(pool.layers, np.int64), _flat(pool.pages)
            spans *= pool.page
            library.packlight_stream_add_experts(
                *map(count, (self.number, pool.each, len(numbers))),
                *(ctypes.c_void_p(array.ctypes.data) for array in (numbers, counts, spans)),
                count(pool.budget),
            )
        # The memory stays as long as the thread may read it, at the process's end too.
        self._end = weakref.finalize(self, _forget, library, self.number, memory)

    def counts(self) -> StreamCounts:
        """What has happened so far; zeros after `close`."""
        found = np.zeros(len(StreamCounts._fields), np.int64)
        library, _ = native_build.loaded()
        library.packlight_stream_counts(ctypes.c_int64(self.number), ctypes.c_void_p(found.ctypes.data))
        return StreamCounts(*found.tolist())

    def close(self) -> None:
        """Ends the thread. A step that names the stream fails from now on; to close it again does nothing."""
        self._end()


def _flat(runs: Sequence[Sequence[range]]) -> tuple[np.ndarray, np.ndarray]:
    """How many runs there are of each, int64 (n,), and the start and length of all, (sum, 2)."""
    counts = np.array([len(each) for each in runs], np.int64)
    return counts, np.array([(run.start, len(run)) for run in itertools.chain(*runs)], np.int64).reshape(-1, 2)


def _forget(library: prebuilt.Library, number: int, _memory: np.ndarray) -> None:
    library.packlight_stream_forget(ctypes.c_int64(number))
