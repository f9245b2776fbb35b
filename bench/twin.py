"""The unpacked twin of a GGUF file: the same model with every matrix in floats, to measure what packing costs or saves.

Written by gguf-py, unpacked by `packlight.unpack`, a tensor at a time.
"""

import os
from typing import Any

import gguf
import numpy as np

import packlight
from packlight.model.gguf.reader import GGUFFile, TensorInfo, read_tensor

CHUNK_WEIGHTS = 1 << 24  # unpacked by one call
OF_THE_FILE = ("general.alignment", "general.architecture", "split.")  # keys that describe the container, not the model
KINDS = {
    "bool": gguf.GGUFValueType.BOOL,
    "str": gguf.GGUFValueType.STRING,
    "float": gguf.GGUFValueType.FLOAT32,
    "int8": gguf.GGUFValueType.INT8,
    "uint8": gguf.GGUFValueType.UINT8,
    "int16": gguf.GGUFValueType.INT16,
    "uint16": gguf.GGUFValueType.UINT16,
    "int32": gguf.GGUFValueType.INT32,
    "uint32": gguf.GGUFValueType.UINT32,
    "int64": gguf.GGUFValueType.INT64,
    "uint64": gguf.GGUFValueType.UINT64,
    "float32": gguf.GGUFValueType.FLOAT32,
    "float64": gguf.GGUFValueType.FLOAT64,
}


def write_twin(file: GGUFFile, path: str | os.PathLike, qtype: str = "F32") -> str:
    """Writes `file` with every matrix as `qtype`, F32 or BF16, and every vector as F32 to `path`; returns the path."""
    kinds = {name: _kind(info, qtype) for name, info in file.tensors.items()}
    writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        if not key.startswith(OF_THE_FILE):
            _add(writer, key, value)
    for name, info in file.tensors.items():
        values, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        nbytes = int(np.prod(info.shape)) // values * size
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), nbytes, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, info in file.tensors.items():
        writer.write_tensor_data(gguf.quants.quantize(_values(info), kinds[name]))
    writer.close()
    return os.fspath(path)


def _kind(info: TensorInfo, qtype: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[qtype if len(info.shape) > 1 else "F32"]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A metadata value under the type that Python kept of it; integers take the smallest of u32, i32, u64, i64."""
    match value:
        case np.ndarray():
            if value.size:
                kind = KINDS[value.dtype.name]
                writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
        case list():
            if value:
                kind = KINDS[type(value[0]).__name__]
                writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kind)
        case bool() | str() | float():
            writer.add_key_value(key, value, KINDS[type(value).__name__])
        case _:
            kinds = ("uint32", "int32", "uint64", "int64")
            name = next(k for k in kinds if np.iinfo(k).min <= value <= np.iinfo(k).max)
            writer.add_key_value(key, value, KINDS[name])


def _values(info: TensorInfo) -> np.ndarray:
    """A tensor's weights, float32 in its shape."""
    rows = read_tensor(info).reshape(-1, info.shape[-1] // info.format.elements * info.format.bytes)
    step = max(1, CHUNK_WEIGHTS // info.shape[-1])
    parts = [packlight.unpack(rows[at : at + step], info.format.name) for at in range(0, len(rows), step)]
    return np.concatenate(parts).reshape(info.shape)
