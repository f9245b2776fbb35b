"""`packlight quantize`: a smaller GGUF file from one of floats, tensor by tensor, in llama.cpp's mixes.

It chooses each tensor's format and quantizes; `model/gguf/writer.py` writes. A million weights are read and quantized
at a time, and memory holds the packed bytes of one tensor. The file appears whole or not at all.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np

from packlight.common.errors import ConfigError, GGUFError
from packlight.common.files import whole_file
from packlight.common.text import reason, shown, shown_path
from packlight.model.gguf.reader import GGUFFile, TensorInfo, open_gguf, read_part
from packlight.model.gguf.writer import byte_shape, write_like
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.mixes import VALUES, counted, fitting_format, is_quantized, mixed_format
from packlight.model.spec.weights import check
from packlight.quant.formats.table import FORMATS

FLOATS = ("F32", "F16", "BF16")
TYPES = ("Q4_0", "Q8_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "F16")
ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # as llama-quantize has them
CHUNK = 1 << 20  # weights quantized at a time


def quantize_file(
    path: str, kind: str, out: str, progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Any]:
    """Writes `out`, a file of type `kind` (one of TYPES or ALIASES), from the file of floats at `path`.

    progress: called with bytes of the source as they are done. Returns the path, bytes before and after, and weights,
    bytes and root-mean-square error of each format. Raises ConfigError for an unknown type and for `out` when it is
    there or cannot be written, GGUFError and UnsupportedError for a file that is no model of floats.
    """
    kind = ALIASES.get(kind, kind)
    if kind not in TYPES:
        raise ConfigError(f"type {kind!r} is unknown; there are: {', '.join((*TYPES, *ALIASES))}")
    file = open_gguf(path)
    formats = plan_formats(file, kind)
    if os.path.lexists(out):
        raise ConfigError(f"{shown_path(out)} is there already")
    each: dict[str, dict[str, Any]] = {}
    with _writing(out) as partial:
        packed = _all_packed(file, formats, each, progress)
        write_like(file, partial, formats, packed, gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for total in each.values():
        total["rms_error"] = (total["rms_error"] / total["weights"]) ** 0.5
    return {"path": out, "type": kind, "bytes_before": file.file_bytes, "bytes": os.path.getsize(out), "formats": each}


def plan_formats(file: GGUFFile, kind: str) -> dict[str, str]:
    """Tensor name -> the format it gets. Raises GGUFError for a tensor that is quantized already."""
    cfg = ModelConfig.from_gguf(file)
    check(file, cfg)
    formats = {}
    blocks = range(cfg.block_count + cfg.skipped_blocks)
    with_values = [at for at in blocks if any(f"blk.{at}.{name}.weight" in file.tensors for name in VALUES)]
    kv_heads = (cfg.kv_heads or (cfg.head_count_kv,))[0] or cfg.head_count  # llama.cpp looks at the first layer
    for info in file.tensors.values():
        if info.format.name not in FLOATS:
            raise GGUFError(
                f"{shown_path(info.path)}: tensor '{shown(info.name)}' is {info.format.name} already; quantize a file"
                f" of {', '.join(FLOATS)}, because rounding twice loses more"
            )
        base = info.name.removesuffix(".weight").split(".")[-1]
        layer = int(info.name.split(".")[1]) if info.name.startswith("blk.") else -1
        layer, layers = counted(base, layer, len(blocks), with_values)
        if is_quantized(info.name, info.shape):
            chosen = mixed_format(
                *(kind, base, layer),
                layers=layers,
                heads=cfg.head_count,
                kv_heads=kv_heads,
                tied="output.weight" not in file.tensors,
                experts=cfg.expert_count,
                falcon=cfg.architecture.name == "falcon",
            )
            formats[info.name] = fitting_format(chosen, base, info.shape[-1])
        else:
            formats[info.name] = info.format.name
    return formats


def _all_packed(
    file: GGUFFile, formats: dict[str, str], each: dict[str, dict[str, Any]], progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The bytes of each tensor in its format; adds weights, bytes and squared errors to `each` format's totals."""
    for info in file.tensors.values():
        name = formats[info.name]
        packed, error = _packed(info, name, progress)
        total = each.setdefault(name, {"weights": 0, "bytes": 0, "rms_error": 0.0})
        total["weights"] += math.prod(info.shape)
        total["bytes"] += packed.size
        total["rms_error"] += error
        yield packed


def _packed(info: TensorInfo, name: str, progress: Callable[[int], None]) -> tuple[np.ndarray, float]:
    """A tensor's bytes in format `name`, uint8, and the sum of its squared errors. Raises GGUFError."""
    fmt, width = FORMATS[name], info.shape[-1]
    rows, total = max(1, CHUNK // width), int(np.prod(info.shape[:-1], dtype=np.int64))
    packed = np.empty((total * (width // fmt.elements), fmt.bytes), np.uint8)
    squares = 0.0
    for row in range(0, total, rows):
        part = np.empty((min(rows, total - row), *info.blocks_shape[-2:]), np.uint8)
        read_part(info, row, 0, part)
        place = slice(row * width // fmt.elements, (row + len(part)) * width // fmt.elements)
        if name == info.format.name:
            packed[place] = part.reshape(-1, fmt.bytes)
        else:
            values = gguf.quants.dequantize(part.reshape(-1), gguf.GGMLQuantizationType[info.format.name])
            if not np.isfinite(values).all():
                raise GGUFError(f"{shown_path(info.path)}: tensor '{shown(info.name)}' holds NaN or infinity")
            packed[place], error = quantized(values.reshape(-1, fmt.elements), name)
            squares += error
        progress(part.nbytes)
    return packed.reshape(byte_shape(info, name)), squares


def quantized(values: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """float32 (n, elements) -> uint8 (n, bytes) in format `name`, and the sum of the squared errors.

    Raises UnsupportedError for a format that has no quantizer.
    """
    step = CHUNK // FORMATS[name].elements
    packed, squares = [], 0.0
    for at in range(0, len(values), step):
        some = values[at : at + step]
        padded = np.pad(some, ((0, step - len(some)), (0, 0)))  # one shape, so that a format compiles once
        blocks, error = _program(name)(padded)
        packed.append(np.asarray(blocks)[: len(some)])
        squares += float(error)
    return np.concatenate(packed), squares


@functools.cache
def _program(name: str) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """The jitted quantizer of a format with its error; jax is imported now."""
    import jax

    from packlight.quant.formats.quantize import quantizer

    pack, unpack = quantizer(name), FORMATS[name].unpack

    @jax.jit
    def program(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        blocks = pack(x)
        return blocks, ((unpack(blocks) - x) ** 2).sum()

    return program


@contextlib.contextmanager
def _writing(out: str) -> Iterator[str]:
    """The path of a file that takes the name `out` at the end, or goes away. Raises ConfigError."""
    try:
        with whole_file(out) as partial:
            yield partial
    except OSError as error:
        raise ConfigError(f"{shown_path(out)}: cannot write: {reason(error)}") from None
