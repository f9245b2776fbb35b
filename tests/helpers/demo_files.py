"""A trained model in several formats, for goldens of ours: what was embedded when llama.cpp was last asked about it.

It stays when another model is embedded, so that the goldens do. It and its text are under the licences that
`demo/MODEL_CARD.md` names. Imports no jax.
"""

import pathlib

import gguf
import numpy as np
from ggufs import typed, write_gguf
from peer import SHARED

from packlight.model.gguf.reader import open_gguf
from packlight.quant.formats.table import format_named

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "goldens"
MODEL, TEXT = FOLDER / "trained-Q4_K_M.gguf", FOLDER / "trained.txt"  # the file, and text that it did not see
STORED = "Q4_K_M"  # the file's own formats
KINDS = (STORED, "F32", "Q8_0")


def write_demo(path: pathlib.Path, kind: str, *, twin: bool = False) -> pathlib.Path:
    """Writes the model with its matrices in the formats of `kind` to `path`, and returns the path.

    F32: they are unpacked by gguf-py. Q8_0: gguf-py quantizes those. twin: they are unpacked after that.
    """
    tensors = {}
    for tensor in gguf.GGUFReader(MODEL).tensors:
        data, qtype = tensor.data, tensor.tensor_type
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if len(shape) > 1 and (twin or kind != STORED):
            data, qtype = gguf.quants.dequantize(data, qtype), gguf.GGMLQuantizationType.F32
            if kind == "Q8_0":
                data, qtype = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
            if twin:
                data, qtype = gguf.quants.dequantize(data, qtype), gguf.GGMLQuantizationType.F32
        tensors[tensor.name] = (shape, format_named(qtype.name), np.ascontiguousarray(data).view(np.uint8))
    return write_gguf(path, {key: typed(value) for key, value in open_gguf(MODEL).metadata.items()}, tensors)


def trained_model(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The file of "demo/KIND", which is written into `folder`, or of "models/NAME", a fixture under ../shared."""
    kind, stem = name.split("/")
    return write_demo(folder / f"{stem}.gguf", stem) if kind == "demo" else SHARED / kind / f"{stem}.gguf"
