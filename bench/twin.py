"""The unpacked twin of a GGUF file: the same model with every matrix in floats, to measure what packing costs or saves.

Unpacked by `packlight.unpack`, a tensor at a time.
"""

import os

import gguf
import numpy as np

import packlight
from packlight.model.gguf.reader import GGUFFile, TensorInfo, read_tensor
from packlight.model.gguf.writer import byte_shape, write_like

CHUNK_WEIGHTS = 1 << 24  # unpacked by one call


def write_twin(file: GGUFFile, path: str | os.PathLike, qtype: str = "F32") -> str:
    """Writes `file` with every matrix as `qtype`, F32 or BF16, and every vector as F32 to `path`; returns the path."""
    kinds = {name: qtype if len(info.shape) > 1 else "F32" for name, info in file.tensors.items()}
    write_like(file, os.fspath(path), kinds, (_floats(info, kinds[name]) for name, info in file.tensors.items()))
    return os.fspath(path)


def _floats(info: TensorInfo, kind: str) -> np.ndarray:
    """A tensor's bytes as floats of this kind."""
    floats = gguf.quants.quantize(_values(info), gguf.GGMLQuantizationType[kind])
    return floats.view(np.uint8).reshape(byte_shape(info, kind))


def _values(info: TensorInfo) -> np.ndarray:
    """A tensor's weights, float32 in its shape."""
    rows = read_tensor(info).reshape(-1, info.shape[-1] // info.format.elements * info.format.bytes)
    step = max(1, CHUNK_WEIGHTS // info.shape[-1])
    parts = [packlight.unpack(rows[at : at + step], info.format.name) for at in range(0, len(rows), step)]
    return np.concatenate(parts).reshape(info.shape)
