"""Reading a checked file's tensors into their final host buffers, packed, one copy. Imports no jax.

Every tensor is read by position into its place in its stack's buffer, straight, or by way of the layout its kernel
reads and of the cuts that several devices share it by: then one buffer a device. The buffers are 64-byte aligned, so
that the CPU backend can use them where they are. Knows files and device numbers, not devices.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from packlight.common.errors import GGUFError
from packlight.common.text import shown_path
from packlight.model.gguf.reader import GGUFFile, TensorInfo, read_into, read_part, read_tensor
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Cut, Split, cut
from packlight.model.spec.weights import Axis, Weight, check, group_by_format, is_tied, layout_of
from packlight.quant.formats.scales import nonfinite_block
from packlight.quant.kernels import native_build
from packlight.quant.layouts import LANES, pack

READERS = 2  # tensors on their way at a time; each may need a second copy of its bytes, to lay rows side by side
ALIGNMENT = 64  # bytes; what XLA:CPU asks of a buffer it uses in place (GGUF aligns to 32)


@dataclasses.dataclass(frozen=True)
class HostWeight:
    """One declared weight of all layers: a float32 vector (per layer `(L, n)`), or packed blocks, one buffer a format.

    weight: with the shape that one device holds. axis: along which devices share it, or "". parts: number of a tensor
    device -> its buffers; one entry serves all devices where they hold the same. layouts: of each buffer. places: per
    layer, (buffer, index in it); empty for a weight that is not per layer.
    """

    weight: Weight
    axis: Axis
    parts: Mapping[int, list[np.ndarray]]
    qtypes: list[str]
    layouts: list[str]
    places: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class _Job:
    """One tensor to read, and where its parts go: (cut, blocks in the final layout) of each device."""

    info: TensorInfo
    layout: str
    parts: list[tuple[Cut, np.ndarray]]


def read_weights(
    file: GGUFFile,
    cfg: ModelConfig,
    progress: Callable[[int], None] = lambda nbytes: None,
    layout: str = "ggml",
    split: Split = WHOLE,
    devices: Collection[int] = (0,),
) -> list[HostWeight]:
    """Every weight of the model; `progress` is called with each tensor's bytes when it, or a run of vectors, is done.

    layout: what the kernels read, where a format has it; tensors are read and brought into it side by side.
    devices: numbers along the tensor axis of `split`, whose parts are read. Of a weight that is cut only they are.
    Raises GGUFError naming the tensor (and block) that does not fit, cannot be read or holds a non-finite scale.
    """
    weights, jobs = [], []
    used = check(file, cfg)
    tied = is_tied(used)
    for weight in used:
        infos = [file.tensors[name] for name in weight.tensors(cfg.block_count)]
        cuts = {device: cut(cfg, split, weight, device) for device in devices}
        if not next(iter(cuts.values())).axis:
            cuts = {0: Cut()}
        part = split.part(cfg, weight)
        if weight.is_vector:
            weights.append(_read_vectors(weight, part, infos, cuts))
            progress(sum(info.nbytes for info in infos))
        else:
            host, reads = _plan_matrices(part, infos, layout, tied, cuts)
            weights.append(host)
            jobs += reads
    pool = concurrent.futures.ThreadPoolExecutor(READERS)
    try:
        for job, _ in zip(jobs, pool.map(_read_blocks, jobs), strict=True):
            progress(job.info.nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return weights


def _read_vectors(weight: Weight, part: Weight, infos: list[TensorInfo], cuts: Mapping[int, Cut]) -> HostWeight:
    rows = np.stack([_vector(info).reshape(weight.shape) for info in infos])
    rows = rows if weight.per_layer else rows[0]
    parts = {}
    for device, share in cuts.items():
        axis = rows.ndim - len(weight.shape) if share.axis == "experts" else rows.ndim - 1
        parts[device] = [_taken(rows, axis, share) if share.axis else rows]
    return HostWeight(part, cuts[min(cuts)].axis, parts, ["F32"], ["ggml"], ())


def _taken(whole: np.ndarray, axis: int, share: Cut) -> np.ndarray:
    """A part along `axis`, zeros where it is padded."""
    out = np.zeros((*whole.shape[:axis], share.size, *whole.shape[axis + 1 :]), whole.dtype)
    for to, start, count in share.pieces:
        np.moveaxis(out, axis, 0)[to : to + count] = np.moveaxis(whole, axis, 0)[start : start + count]
    return out


def _plan_matrices(
    part: Weight, infos: list[TensorInfo], layout: str, tied: bool, cuts: Mapping[int, Cut]
) -> tuple[HostWeight, list[_Job]]:
    """Buffers for a weight's parts, and which tensor goes where in them."""
    qtypes = [info.format.name for info in infos]
    order, places = group_by_format(qtypes)
    kept = [layout_of(part, qtype, layout, tied) for qtype in order]
    shapes = [(qtypes.count(q), *part.blocks_shape(q, at)) for q, at in zip(order, kept, strict=True)]
    parts = {device: [_aligned(shape) for shape in shapes] for device in cuts}
    jobs = [
        _Job(info, kept[group], [(cuts[device], parts[device][group][index]) for device in cuts])
        for info, (group, index) in zip(infos, places, strict=True)
    ]
    axis = cuts[min(cuts)].axis
    if part.per_layer:
        return HostWeight(part, axis, parts, order, kept, places), jobs
    return HostWeight(part, axis, {d: [buffers[0][0]] for d, buffers in parts.items()}, order, kept, ()), jobs


def _read_blocks(job: _Job) -> None:
    """Reads a tensor's parts into their places and refuses scales that are NaN or infinite."""
    info = job.info
    share, out = job.parts[0]
    if not share.axis:
        blocks = out if job.layout == "ggml" else np.empty(info.blocks_shape, np.uint8)
        read_into(info, blocks)
        _check_scales(info, blocks, 0, 0)
        _lay_out(info, blocks, job.layout, out)
        return
    elements = info.format.elements
    rows, width = int(np.prod(info.shape[:-1])), info.shape[-1] // elements
    per_piece = int(np.prod(info.shape[1:-1])) if share.axis == "experts" else 1
    in_blocks = share.axis == "inputs"
    needed = sorted({(p.start, p.length) for one, _ in job.parts for p in one.pieces})
    holds: list[tuple[int, int, np.ndarray]] = []  # first row or block, one past the last, bytes
    for start, end in _joined(needed):
        if in_blocks:
            first, count, at, length = 0, rows, start // elements, (end - start) // elements
        else:
            first, count, at, length = start * per_piece, (end - start) * per_piece, 0, width
        blocks = np.empty((count, length, info.format.bytes), np.uint8)
        read_part(info, first, at, blocks)
        _check_scales(info, blocks, first, at)
        holds.append((start, end, blocks))
    for one, out in job.parts:
        local = np.zeros(_ggml_shape(info, one), np.uint8)
        flat = local.reshape(-1, *local.shape[-2:])
        for to, start, count in one.pieces:
            begin, _, blocks = next(h for h in holds if h[0] <= start and start + count <= h[1])
            if in_blocks:
                to, start, count = to // elements, (start - begin) // elements, count // elements
                flat[:, to : to + count] = blocks[:, start : start + count]
            else:
                to, start, count = to * per_piece, (start - begin) * per_piece, count * per_piece
                flat[to : to + count] = blocks[start : start + count]
        _lay_out(info, local, job.layout, out)


def _joined(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted (start, count) -> (start, end) of what they cover, in as few runs as possible."""
    begin = end = None
    for start, count in ranges:
        if end is None or start > end:
            if begin is not None and end is not None:
                yield begin, end
            begin, end = start, start + count
        else:
            end = max(end, start + count)
    if begin is not None and end is not None:
        yield begin, end


def _ggml_shape(info: TensorInfo, share: Cut) -> tuple[int, ...]:
    """(..., out, N, block_bytes) of a part in ggml's layout."""
    *lead, out, blocks, size = info.blocks_shape
    match share.axis:
        case "experts":
            return (share.size, *lead[1:], out, blocks, size)
        case "rows":
            return (*lead, share.size, blocks, size)
        case _:
            return (*lead, out, share.size // info.format.elements, size)


def _check_scales(info: TensorInfo, blocks: np.ndarray, first_row: int, first_block: int) -> None:
    """Raises GGUFError naming the block, counted over the tensor, of a scale that is not finite."""
    bad = nonfinite_block(blocks.reshape(-1, info.format.bytes), info.format.name)
    if bad is not None:
        row, block = divmod(bad, blocks.shape[-2])
        at = (first_row + row) * info.blocks_shape[-2] + first_block + block
        raise GGUFError(
            f"{shown_path(info.path)}: tensor '{info.name}': block {at} has a scale that is NaN or infinite"
        )


def _lay_out(info: TensorInfo, blocks: np.ndarray, layout: str, out: np.ndarray) -> None:
    """Blocks (..., rows, N, block_bytes) into `out`, in its layout."""
    if layout == "ggml":
        if out is not blocks:
            out[...] = blocks
        return
    matrices = blocks.reshape(-1, *blocks.shape[-3:]), out.reshape(-1, *out.shape[-3:])
    for one, packed in zip(*matrices, strict=True):
        if layout in LANES:
            native_build.pack_into(one, info.format.type_id, LANES[layout], packed)
        else:
            packed[...] = pack(one, info.format.name, layout)


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
