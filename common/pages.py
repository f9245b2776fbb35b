"""Memory given back to the system while it stays allocated: pages that read as zeros and cost nothing until written.

Source: madvise(2), MADV_DONTNEED of private anonymous memory, which is what C's allocator hands out.
"""

import ctypes
import functools
import mmap
import os
import sys

import numpy as np


def give_back(address: int, nbytes: int) -> None:
    """Turns the whole pages inside memory that is ours into zeros, which take no memory until they are written.

    What shares its pages with others stays as it is. Raises OSError where the system refuses (`refusal`).
    """
    page = mmap.PAGESIZE
    first, end = -(-address // page) * page, (address + nbytes) // page * page
    if first >= end:
        return
    # A huge page would become resident as a whole for one number written in it. Kernels without them refuse this.
    _madvise(first, end - first, mmap.MADV_NOHUGEPAGE)
    if error := _madvise(first, end - first, mmap.MADV_DONTNEED):
        raise OSError(error, os.strerror(error))


@functools.cache
def refusal() -> str | None:
    """Why `give_back` does not work here, found by trying it on memory that is allocated as XLA's is; None: it works.

    Memory that is locked or lies in reserved huge pages stays, and only Linux promises zeros.
    """
    if sys.platform != "linux":
        return f"{sys.platform} takes back no pages of allocated memory"
    trial = np.full(1 << 22, 1, np.uint8)  # large enough to be no piece of a page
    try:
        give_back(trial.ctypes.data, trial.nbytes)
    except (OSError, AttributeError) as error:  # the latter from a C library without madvise
        return f"the system takes back no pages: {error}"
    return "the system's pages given back are no zeros" if trial[mmap.PAGESIZE : -mmap.PAGESIZE].any() else None


def _madvise(address: int, nbytes: int, advice: int) -> int:
    """The error number, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_int(advice))
    return ctypes.get_errno() if failed else 0
