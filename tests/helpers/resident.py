"""How much of an array's memory, and of this process's, the system really holds."""

import ctypes
import mmap
import pathlib
import re
from typing import Any

import jax
import numpy as np


def resident(array: Any) -> int:
    """Bytes of the pages of a numpy array, or of a jax array's parts on CPU devices, that are in memory.

    A page of zeros that was only read counts, though it takes no memory of its own.
    """
    if isinstance(array, np.ndarray):
        return _resident(array.ctypes.data, array.nbytes)
    parts = [shard.data for shard in array.addressable_shards]
    return sum(_resident(part.unsafe_buffer_pointer(), part.nbytes) for part in parts)


def resident_tree(tree: Any) -> int:
    return sum(map(resident, jax.tree.leaves(tree)))


def anonymous_memory() -> int:
    """Bytes of this process's memory that no file is behind."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


def _resident(address: int, nbytes: int) -> int:
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    length = address + nbytes - first
    pages = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    failed = mincore(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_void_p(pages.ctypes.data))
    assert not failed, ctypes.get_errno()
    return mmap.PAGESIZE * int((pages & 1).sum())
