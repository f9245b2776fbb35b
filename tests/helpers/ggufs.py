"""Small valid GGUF llama models for tests, written by gguf-py's writer from bench.synthetic's random blocks.

The writer is the independent one on purpose: what our reader reads here, our code did not lay out.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np
from gguf.gguf_writer import TensorInfo

from packlight.bench.shapes import Shape
from packlight.bench.synthetic import metadata, plan, tensor_chunks
from packlight.quant.formats.table import Format

_TYPES = {
    "u8": gguf.GGUFValueType.UINT8,
    "i8": gguf.GGUFValueType.INT8,
    "u16": gguf.GGUFValueType.UINT16,
    "i16": gguf.GGUFValueType.INT16,
    "u32": gguf.GGUFValueType.UINT32,
    "i32": gguf.GGUFValueType.INT32,
    "f32": gguf.GGUFValueType.FLOAT32,
    "bool": gguf.GGUFValueType.BOOL,
    "str": gguf.GGUFValueType.STRING,
    "u64": gguf.GGUFValueType.UINT64,
    "i64": gguf.GGUFValueType.INT64,
    "f64": gguf.GGUFValueType.FLOAT64,
}

ARRAYS = {"int32": "i32", "float32": "f32", "int8": "i8", "uint8": "u8"}  # dtype of an array -> type of its elements

# The shape of the model for tests of behaviour, which writes noise: what is compiled for one of them serves them all.
NOISE = {"layers": 1, "embed": 32, "context": 4096}


def write_llama(
    path: str | os.PathLike,
    *,
    layers: int = 2,
    embed: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 0,
    ffn: int = 0,
    vocab: int = 320,
    context: int = 128,
    rope_base: float = 10000.0,
    tied: bool = False,
    biases: bool = False,
    formats: Mapping[str, str] | None = None,
    alignment: int | None = None,
    extra: Mapping[str, Any] | None = None,
    omit: Iterable[str] = (),
    seed: int = 0,
    architecture: str = "llama",
) -> pathlib.Path:
    """Writes a random llama of this shape to `path` and returns the path; ffn 0 stands for 3 * embed.

    formats: matrix -> format name, looked up as "blk.1.ffn_down", then "ffn_down", then "default" (Q8_0). Row lengths
        (embed; heads * head_dim; ffn) must be multiples of the format's block: embed 256 takes every format.
    extra: further or replacing keys -> str, bool, int (u32), float (f32), list, or (type, value) such as ("u64", 5),
        ("[i32]", [1, 2]).
    architecture: what the file calls itself, its keys too, for families whose tensors are llama's.
    omit: tensors ("blk.0.attn_q.weight") and keys to leave out; a name that matches nothing raises KeyError.
    The model's bytes depend on the arguments alone. Weights spread by 1/sqrt(in), so logits by about 1.
    """
    shape = Shape(layers, embed, ffn or 3 * embed, heads, kv_heads, vocab, context, tied, rope_base, head_dim, biases)
    wanted = formats or {}

    def choose(base: str, layer: int) -> str:
        default = wanted.get("default", "Q8_0")
        return wanted.get(f"blk.{layer}.{base}", wanted.get(base, default))

    tensors = {t.name: t for t in plan(shape, choose)}
    pairs = metadata(shape, "test") | {key: typed(value) for key, value in (extra or {}).items()}
    pairs = {re.sub("^llama[.]", f"{architecture}.", key): value for key, value in pairs.items()}
    if architecture != "llama":
        pairs["general.architecture"] = ("str", architecture)
    for name in omit:
        del (tensors if name in tensors else pairs)[name]

    packed = {
        name: (tensor.shape, tensor.format, np.concatenate(list(tensor_chunks(tensor, seed))))
        for name, tensor in tensors.items()
    }
    return write_gguf(path, pairs, packed, alignment)


def write_gguf(
    path: str | os.PathLike,
    pairs: Mapping[str, tuple[str, Any]],
    tensors: Mapping[str, tuple[tuple[int, ...], Format, np.ndarray]],
    alignment: int | None = None,
) -> pathlib.Path:
    """Writes a file of these keys, as `typed` gives them, and tensors (shape, format, blocks); returns the path."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data = [{}]  # drops general.architecture, which the writer puts in by itself
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in pairs.items():
        element = _TYPES[kind.strip("[]")]
        if kind[0] == "[":
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=element)
        else:
            writer.add_key_value(key, value, element)
    for name, (shape, fmt, packed) in tensors.items():
        # add_tensor would do but for Q2_0, which gguf 0.19 has no name for
        info = TensorInfo(shape, fmt.type_id, packed.nbytes, packed)  # type: ignore[arg-type]
        writer.tensors[-1][name] = info
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pathlib.Path(path)


def typed(value: Any) -> tuple[str, Any]:
    """(type, value) of a key's plain value."""
    match value:
        case tuple():
            return value
        case np.ndarray():
            return f"[{ARRAYS[value.dtype.name]}]", value.tolist()
        case bool():
            return "bool", value
        case int():
            return "u32", value
        case float():
            return "f32", value
        case str():
            return "str", value
        case [first, *_]:
            return f"[{typed(first)[0]}]", list(value)
    raise TypeError(f"no GGUF type for {value!r}")
