"""ggml's values of random blocks of every format, as digests: how `format_goldens.json` is made.

By ggml in llama-cpp-python 0.3.36 (llama.cpp b1-0c1e570); decoding is exact, so that every build gives the same.
"""

import ctypes
import hashlib
import json
import pathlib

import numpy as np
from blocks import clean_blocks
from peer import ggml

from packlight.quant.formats.table import FORMATS

COUNT = 128  # blocks of each format


class Traits(ctypes.Structure):
    """ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def digest(values: np.ndarray) -> str:
    """32 hex digits over the bits of float32 values."""
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:32]


def make() -> None:
    lib = ggml()
    lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    out = {}
    for name, fmt in FORMATS.items():
        traits, blocks = lib.ggml_get_type_traits(fmt.type_id).contents, clean_blocks(name, COUNT)
        assert (traits.blck_size, traits.type_size) == (fmt.elements, fmt.bytes), name
        values = np.empty((COUNT, fmt.elements), np.float32)
        if name == "F32":
            values[:] = blocks.view(np.float32)
        else:
            traits.to_float(blocks.ctypes.data, values.ctypes.data, values.size)
        out[name] = digest(values)
    text = json.dumps(out, indent=1) + "\n"
    pathlib.Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
