"""Reads a checked file's tensors into their final host buffers, packed, with one copy. Imports no jax.

Every tensor is read by position into its place in its stack's buffer. If its kernel reads another layout, or several
devices share it, it goes by way of a second buffer; each device then has buffers of its own. They are 64-byte aligned,
so that the CPU backend can use them where they are. Knows files and device numbers, not devices.
"""

import bisect
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from packlight.common.errors import GGUFError
from packlight.common.text import shown_path
from packlight.model.gguf.reader import GGUFFile, TensorInfo, read_into, read_part, read_tensor
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Cut, Split, cut
from packlight.model.spec.weight import Axis, Weight
from packlight.model.spec.weights import check, group_by_format
from packlight.quant.formats.scales import nonfinite_block
from packlight.quant.kernels import native_build
from packlight.quant.layouts import LANES, pack

READERS = 2  # tensors on their way at a time; each may need a second copy of its bytes, to lay rows side by side
GGML: Mapping[str, str] = {}  # layouts: every tensor is in ggml's own
ALIGNMENT = 64  # bytes; what XLA:CPU asks of a buffer it uses in place (GGUF aligns to 32)


@dataclasses.dataclass(frozen=True)
class HostWeight:
    """One declared weight of all layers: a float32 vector, or packed blocks with one buffer for each format."""

    weight: Weight  # with the shape that one device holds
    axis: Axis  # along which devices share it; "": each of them holds all of it
    parts: Mapping[int, list[np.ndarray]]  # tensor device's number -> its buffers; only 0 where all hold the same
    qtypes: list[str]  # of each buffer
    layouts: list[str]  # of each buffer
    places: tuple[tuple[int, int], ...]  # per layer, (buffer, index in it); () for a weight that is not per layer


class Rectangle(NamedTuple):
    """Some of a tensor's packed blocks."""

    rows: range  # counted over all leading axes
    blocks: range  # of each of these rows

    def view(self, array: np.ndarray) -> np.ndarray:
        """These blocks of `array`, uint8 (rows, blocks, block_bytes)."""
        return array[self.rows.start : self.rows.stop, self.blocks.start : self.blocks.stop]


class Move(NamedTuple):
    """Blocks that go from what was read to where a device keeps them."""

    read: int  # the number of the read that has them
    source: Rectangle  # in what was read
    target: Rectangle  # in the device's part


Shape = tuple[int, ...]
Places = Mapping[int, np.ndarray]  # tensor device's number -> its place for a tensor, in the layout its kernel reads


class Job(NamedTuple):
    """One tensor to read."""

    info: TensorInfo
    places: Places  # where it belongs
    read: Callable[[Places], None]  # reads it into such places; refuses scales that are NaN or infinite


class Buffer(NamedTuple):
    """One weight's matrices of a format, one after the other, on a device that holds all of them."""

    shape: Shape  # (matrices, ...)
    tensors: list[str]  # their names


class _Grouped(NamedTuple):
    """One weight's tensors by format."""

    qtypes: list[str]  # of each buffer
    layouts: list[str]  # of each buffer
    shapes: list[Shape]  # of each buffer
    places: tuple[tuple[int, int], ...]  # per tensor, (buffer, index in it)


def read_weights(
    file: GGUFFile,
    cfg: ModelConfig,
    progress: Callable[[int], None] = lambda nbytes: None,
    layouts: Mapping[str, str] = GGML,
    split: Split = WHOLE,
    devices: Collection[int] = (0,),
) -> list[HostWeight]:
    """Every weight of the model. When a matrix or a vector of all layers is read, `progress` is called with its bytes.

    layouts: of the tensors that are not kept in ggml's (`compile.kernels.KernelPlan`).
    devices: numbers along the tensor axis of `split`. Of a weight that is cut, only these devices' parts are read.
    Raises GGUFError naming the tensor (and block) that does not fit, cannot be read or holds a non-finite scale.
    """
    weights, jobs = plan_weights(file, cfg, progress, layouts, split, devices)
    run_jobs(jobs, lambda job: job.read(job.places), progress)
    return weights


def plan_weights(
    file: GGUFFile,
    cfg: ModelConfig,
    progress: Callable[[int], None] = lambda nbytes: None,
    layouts: Mapping[str, str] = GGML,
    split: Split = WHOLE,
    devices: Collection[int] = (0,),
    allocate: Callable[[Shape], np.ndarray] | None = None,
) -> tuple[list[HostWeight], list[Job]]:
    """What `read_weights` gives, of which only the vectors are read, and the jobs that fill the matrices' buffers.

    allocate: makes each buffer, uint8, in the order of `matrix_buffers`; None: in memory of the process.
    """
    weights, jobs = [], []
    for weight in check(file, cfg):
        infos = _infos(file, weight)
        cuts = {device: cut(split, weight, device) for device in devices}
        if not next(iter(cuts.values())).axis:
            cuts = {0: Cut()}
        part = split.part(weight)
        if weight.is_vector:
            weights.append(_read_vectors(file, weight, part, cuts))
            progress(sum(info.nbytes for info in infos))
        else:
            host, reads = _plan_matrices(part, infos, layouts, cuts, allocate or _allocate)
            weights.append(host)
            jobs += reads
    return weights, jobs


def run_jobs(jobs: list[Job], run: Callable[[Job], None], progress: Callable[[int], None]) -> None:
    """Calls `run` with each job, READERS at a time, and `progress` with the bytes of each that is done."""
    pool = concurrent.futures.ThreadPoolExecutor(READERS)
    try:
        for job, _ in zip(jobs, pool.map(run, jobs), strict=True):
            progress(job.info.nbytes)
    finally:
        pool.shutdown(cancel_futures=True)


def matrix_buffers(file: GGUFFile, cfg: ModelConfig, layouts: Mapping[str, str] = GGML) -> list[Buffer]:
    """The buffers of all matrices on a single device. Raises GGUFError as `read_weights` does; nothing is read."""
    buffers = []
    for weight in check(file, cfg):
        if not weight.is_vector:
            infos = _infos(file, weight)
            grouped = _group(WHOLE.part(weight), infos, layouts)
            tensors: list[list[str]] = [[] for _ in grouped.shapes]
            for info, (group, _) in zip(infos, grouped.places, strict=True):
                tensors[group].append(info.name)
            buffers += map(Buffer, grouped.shapes, tensors)
    return buffers


def _infos(file: GGUFFile, weight: Weight) -> list[TensorInfo]:
    return [file.tensors[name] for name in weight.tensors if name in file.tensors]


def _group(part: Weight, infos: list[TensorInfo], layouts: Mapping[str, str]) -> _Grouped:
    qtypes = [info.format.name for info in infos]
    order, places = group_by_format(qtypes)
    kept = [layouts.get(infos[qtypes.index(qtype)].name, "ggml") for qtype in order]
    shapes = [(qtypes.count(q), *part.blocks_shape(q, at)) for q, at in zip(order, kept, strict=True)]
    return _Grouped(order, kept, shapes, places)


def _read_vectors(file: GGUFFile, weight: Weight, part: Weight, cuts: Mapping[int, Cut]) -> HostWeight:
    def one(name: str) -> np.ndarray:
        if name not in file.tensors:
            return np.full(weight.shape, weight.fill, np.float32)
        return _read_vector(file.tensors[name]).reshape(weight.shape)

    values = np.stack([one(name) for name in weight.tensors])
    values = values if weight.per_layer else values[0]
    lead = values.ndim - len(weight.shape)
    parts = {
        device: [_take_part(values, lead + weight.position(share.axis), share) if share.axis else values]
        for device, share in cuts.items()
    }
    return HostWeight(part, cuts[min(cuts)].axis, parts, ["F32"], ["ggml"], ())


def _take_part(values: np.ndarray, axis: int, share: Cut) -> np.ndarray:
    """A part along `axis`, zeros where it is padded."""
    out = np.zeros((*values.shape[:axis], share.size, *values.shape[axis + 1 :]), values.dtype)
    for to, start, count in share.pieces:
        np.moveaxis(out, axis, 0)[to : to + count] = np.moveaxis(values, axis, 0)[start : start + count]
    return out


def _plan_matrices(
    part: Weight,
    infos: list[TensorInfo],
    layouts: Mapping[str, str],
    cuts: Mapping[int, Cut],
    allocate: Callable[[Shape], np.ndarray],
) -> tuple[HostWeight, list[Job]]:
    """Buffers for a weight's parts, and the jobs that fill them."""
    order, kept, shapes, places = _group(part, infos, layouts)
    parts = {device: [allocate(shape) for shape in shapes] for device in cuts}
    jobs = [
        _plan_job(part, info, kept[group], cuts, {device: parts[device][group][index] for device in cuts})
        for info, (group, index) in zip(infos, places, strict=True)
    ]
    axis = cuts[min(cuts)].axis
    if part.per_layer:
        return HostWeight(part, axis, parts, order, kept, places), jobs
    return HostWeight(part, axis, {d: [buffers[0][0]] for d, buffers in parts.items()}, order, kept, ()), jobs


def _plan_job(part: Weight, info: TensorInfo, layout: str, cuts: Mapping[int, Cut], places: Places) -> Job:
    """How to read one tensor into each device's place for it. Every byte that is needed is read once."""
    axis = cuts[min(cuts)].axis
    if not axis:
        return Job(info, places, functools.partial(_read_whole, info, layout))
    runs = _merge((p.start, p.start + p.length) for share in cuts.values() for p in share.pieces)
    starts = [start for start, _ in runs]
    reads = [_rectangle(info, axis, start, end - start) for start, end in runs]
    shape, moves = part.blocks_shape(info.format.name), {device: [] for device in cuts}
    for device, share in cuts.items():
        for to, start, length in share.pieces:
            read = bisect.bisect_right(starts, start) - 1
            source = _rectangle(info, axis, start - starts[read], length)
            moves[device].append(Move(read, source, _rectangle(info, axis, to, length)))
    return Job(info, places, functools.partial(_read_parts, info, layout, reads, shape, moves))


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What (start, end) pairs cover, sorted, in as few pairs as possible."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _rectangle(info: TensorInfo, axis: Axis, start: int, length: int) -> Rectangle:
    """The blocks of `length` rows, inputs or experts from number `start` on, in a tensor or in a device's part."""
    *lead, width, _ = info.blocks_shape
    match axis:
        case "inputs":
            elements = info.format.elements
            return Rectangle(range(math.prod(lead)), range(start // elements, (start + length) // elements))
        case "experts":
            each = math.prod(lead[1:])
            return Rectangle(range(start * each, (start + length) * each), range(width))
        case _:
            assert len(lead) == 1, f"{info.name}: rows of each expert are not cut"
            return Rectangle(range(start, start + length), range(width))


def _read_whole(info: TensorInfo, layout: str, places: Places) -> None:
    """Reads a tensor into its place and refuses scales that are NaN or infinite."""
    out = places[0]
    blocks = out if layout == "ggml" else np.empty(info.blocks_shape, np.uint8)
    read_into(info, blocks)
    _check_scales(info, blocks, 0, 0)
    if layout != "ggml":
        _pack_into(info, blocks, layout, out)


def _read_parts(
    info: TensorInfo,
    layout: str,
    reads: list[Rectangle],
    shape: Shape,
    moves: Mapping[int, list[Move]],
    places: Places,
) -> None:
    """Reads what a tensor's parts need into their places and refuses scales that are NaN or infinite.

    shape: of a part, (..., out, N, block_bytes), in ggml's layout. moves: of each device.
    """
    held = [_read_rectangle(info, each) for each in reads]
    for device, out in places.items():
        blocks = out if layout == "ggml" else np.empty(shape, np.uint8)
        blocks[...] = 0  # what no move fills is padding
        rows = blocks.reshape(-1, *blocks.shape[-2:])
        for move in moves[device]:
            move.target.view(rows)[...] = move.source.view(held[move.read])
        if layout != "ggml":
            _pack_into(info, blocks, layout, out)


def _read_rectangle(info: TensorInfo, rectangle: Rectangle) -> np.ndarray:
    """uint8 (rows, blocks, block_bytes), its scales checked."""
    rows, blocks = rectangle
    out = np.empty((len(rows), len(blocks), info.format.bytes), np.uint8)
    read_part(info, rows.start, blocks.start, out)
    _check_scales(info, out, rows.start, blocks.start)
    return out


def _check_scales(info: TensorInfo, blocks: np.ndarray, first_row: int, first_block: int) -> None:
    """Raises GGUFError naming the block, counted over the tensor, of a scale that is not finite."""
    bad = nonfinite_block(blocks.reshape(-1, info.format.bytes), info.format.name)
    if bad is not None:
        row, block = divmod(bad, blocks.shape[-2])
        at = (first_row + row) * info.blocks_shape[-2] + first_block + block
        raise GGUFError(
            f"{shown_path(info.path)}: tensor '{info.name}': block {at} has a scale that is NaN or infinite"
        )


def _pack_into(info: TensorInfo, blocks: np.ndarray, layout: str, out: np.ndarray) -> None:
    """Brings blocks (..., rows, N, block_bytes) into `layout`, in `out`."""
    matrices = blocks.reshape(-1, *blocks.shape[-3:]), out.reshape(-1, *out.shape[-3:])
    for one, packed in zip(*matrices, strict=True):
        if layout in LANES:
            native_build.pack_into(one, info.format.type_id, LANES[layout], packed)
        else:
            pack(one, info.format.name, layout, packed)


def _read_vector(info: TensorInfo) -> np.ndarray:
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


def _allocate(shape: Shape) -> np.ndarray:
    """An uninitialised uint8 array whose address is a multiple of ALIGNMENT."""
    size = int(np.prod(shape))
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].reshape(shape)
