"""Reading a checked file's tensors into their final host buffers, packed, one copy. Imports no jax.

Every tensor is read by position into its place in its stack's buffer, straight or by way of the layout its kernel
reads. The buffer is 64-byte aligned, so that the CPU backend can use it where it is. Knows files, not devices.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from model.config import ModelConfig
from model.declaration import Weight, check, group_by_format, is_tied, layout_of
from model.ggufheader import shown_path
from model.reader import GGUFFile, TensorInfo, read_into, read_tensor
from quant import native_build
from quant.errors import GGUFError
from quant.layouts import LANES
from quant.scales import nonfinite_block

READERS = 2  # tensors on their way at a time; each may need a second copy of its bytes, to lay rows side by side
ALIGNMENT = 64  # bytes; what XLA:CPU asks of a buffer it uses in place (GGUF aligns to 32)


@dataclasses.dataclass(frozen=True)
class HostWeight:
    """One declared weight of all layers: a float32 vector (per layer `(L, n)`), or packed blocks, one buffer a format.

    layouts: of each buffer. places: per layer, (buffer, index in it); empty for a weight that is not per layer.
    """

    weight: Weight
    buffers: list[np.ndarray]
    qtypes: list[str]
    layouts: list[str]
    places: tuple[tuple[int, int], ...]


def read_weights(
    file: GGUFFile,
    cfg: ModelConfig,
    progress: Callable[[int], None] = lambda nbytes: None,
    layout: str = "ggml",
) -> list[HostWeight]:
    """Every weight of the model; `progress` is called with the bytes read, once per tensor or run of vectors.

    layout: what the kernels read, where a format has it; tensors are read and brought into it side by side.
    Raises GGUFError naming the tensor (and block) that does not fit, cannot be read or holds a non-finite scale.
    """
    weights, jobs = [], []
    used = check(file, cfg)
    tied = is_tied(used)
    for weight in used:
        infos = [file.tensors[name] for name in weight.tensors(cfg.block_count)]
        if weight.is_vector:
            weights.append(_read_vectors(weight, infos))
            progress(sum(info.nbytes for info in infos))
        else:
            host, reads = _plan_matrices(weight, infos, layout, tied)
            weights.append(host)
            jobs += reads
    pool = concurrent.futures.ThreadPoolExecutor(READERS)
    try:
        for info, _ in zip(jobs, pool.map(lambda job: _read_blocks(*job), jobs), strict=True):
            progress(info[0].nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return weights


def _read_vectors(weight: Weight, infos: list[TensorInfo]) -> HostWeight:
    rows = np.stack([_vector(info).reshape(weight.shape) for info in infos])
    return HostWeight(weight, [rows if weight.per_layer else rows[0]], ["F32"], ["ggml"], ())


def _plan_matrices(
    weight: Weight, infos: list[TensorInfo], layout: str, tied: bool
) -> tuple[HostWeight, list[tuple[TensorInfo, np.ndarray, str]]]:
    """Buffers for a weight, and which tensor goes where in them."""
    qtypes = [info.format.name for info in infos]
    order, places = group_by_format(qtypes)
    kept = [layout_of(weight, qtype, layout, tied) for qtype in order]
    buffers = [_aligned((qtypes.count(q), *weight.blocks_shape(q, at))) for q, at in zip(order, kept, strict=True)]
    reads = [(info, buffers[g][index], kept[g]) for info, (g, index) in zip(infos, places, strict=True)]
    if weight.per_layer:
        return HostWeight(weight, buffers, order, kept, places), reads
    return HostWeight(weight, [buffers[0][0]], order, kept, ()), reads


def _read_blocks(info: TensorInfo, out: np.ndarray, layout: str) -> None:
    """Reads a tensor's blocks into `out` and refuses scales that are NaN or infinite."""
    blocks = out if layout == "ggml" else np.empty((*info.shape[:-1], out.shape[-2], info.format.bytes), np.uint8)
    read_into(info, blocks)
    bad = nonfinite_block(blocks.reshape(-1, info.format.bytes), info.format.name)
    if bad is not None:
        raise GGUFError(
            f"{shown_path(info.path)}: tensor '{info.name}': block {bad} has a scale that is NaN or infinite"
        )
    if layout != "ggml":
        matrices = blocks.reshape(-1, *blocks.shape[-3:]), out.reshape(-1, *out.shape[-3:])
        for one, packed in zip(*matrices, strict=True):
            native_build.pack_into(one, info.format.type_id, LANES[layout], packed)


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
