"""Reading a checked file's tensors into their final host buffers, packed, one copy. Imports no jax.

Every tensor is read by position straight into its place in its stack's buffer, which is 64-byte aligned, so that
the CPU backend can use it where it is. Knows files and bytes, not devices.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from model.config import ModelConfig
from model.declaration import Weight, check, group_by_format
from model.ggufheader import shown_path
from model.reader import GGUFFile, TensorInfo, read_into, read_tensor
from quant.errors import GGUFError
from quant.scales import nonfinite_block

ALIGNMENT = 64  # bytes; what XLA:CPU asks of a buffer it uses in place (GGUF aligns to 32)


@dataclasses.dataclass(frozen=True)
class HostWeight:
    """One declared weight of all layers: a float32 vector (per layer `(L, n)`), or packed blocks, one buffer a format.

    places: per layer, (buffer, index in it); empty for a weight that is not per layer.
    """

    weight: Weight
    buffers: list[np.ndarray]
    qtypes: list[str]
    places: tuple[tuple[int, int], ...]


def read_weights(
    file: GGUFFile, cfg: ModelConfig, progress: Callable[[int], None] = lambda nbytes: None
) -> list[HostWeight]:
    """Every weight of the model; `progress` is called with the bytes read, once per tensor.

    Raises GGUFError naming the tensor (and block) that does not fit, cannot be read or holds a non-finite scale.
    """
    weights = []
    for weight in check(file, cfg):
        infos = [file.tensors[name] for name in weight.tensors(cfg.block_count)]
        weights.append(_read_vectors(weight, infos) if weight.is_vector else _read_matrices(weight, infos, progress))
        if weight.is_vector:
            progress(sum(info.nbytes for info in infos))
    return weights


def _read_vectors(weight: Weight, infos: list[TensorInfo]) -> HostWeight:
    rows = np.stack([_vector(info) for info in infos])
    return HostWeight(weight, [rows if weight.per_layer else rows[0]], ["F32"], ())


def _read_matrices(weight: Weight, infos: list[TensorInfo], progress: Callable[[int], None]) -> HostWeight:
    qtypes = [info.format.name for info in infos]
    order, places = group_by_format(qtypes)
    buffers = [_aligned((qtypes.count(q), *weight.blocks_shape(q))) for q in order]
    for info, (group, index) in zip(infos, places, strict=True):
        _read_blocks(info, buffers[group][index])
        progress(info.nbytes)
    if weight.per_layer:
        return HostWeight(weight, buffers, order, places)
    return HostWeight(weight, [buffers[0][0]], order, ())


def _read_blocks(info: TensorInfo, out: np.ndarray) -> None:
    """Reads a tensor's blocks into `out` and refuses scales that are NaN or infinite."""
    read_into(info, out)
    bad = nonfinite_block(out.reshape(-1, info.format.bytes), info.format.name)
    if bad is not None:
        raise GGUFError(
            f"{shown_path(info.path)}: tensor '{info.name}': block {bad} has a scale that is NaN or infinite"
        )


def _vector(info: TensorInfo) -> np.ndarray:
    """A norm, bias or frequency table as float32 (n,)."""
    raw = read_tensor(info).reshape(-1)
    match info.format.name:
        case "F32":
            values = raw.view(np.float32)
        case "F16":
            values = raw.view(np.float16).astype(np.float32)
        case _:  # BF16: the upper half of a float32
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(values).all():
        raise GGUFError(f"{shown_path(info.path)}: tensor '{info.name}' holds a value that is NaN or infinite")
    return values


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array whose address is a multiple of ALIGNMENT."""
    size = int(np.prod(shape))
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].reshape(shape)
