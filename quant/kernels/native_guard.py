"""Mappings that outlive their files: `native/guard.cc` from Python. Imports no jax."""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable

import numpy as np

from packlight.quant.kernels import native_build


def guard(memory: mmap.mmap) -> Callable[[], bool]:
    """From now on a page of a mapping that cannot be read any more ends no process: it and all behind it become zeros.

    Returns what tells whether that has happened, which says nothing more once the mapping is gone. Raises
    NativeBuildError, OSError for too many mappings.
    """
    library, _ = native_build.loaded()
    library.packlight_guard.restype = ctypes.c_int64
    address = np.frombuffer(memory, np.uint8).ctypes.data
    number = library.packlight_guard(ctypes.c_void_p(address), ctypes.c_int64(len(memory)))
    if number < 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    weakref.finalize(memory, library.packlight_unguard, ctypes.c_int64(number))
    return lambda: bool(library.packlight_is_lost(ctypes.c_int64(number)))
