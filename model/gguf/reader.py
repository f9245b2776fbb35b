"""A bounded GGUF reader: checks every length and offset against the file's size, reads packed tensors by position.

Our own, because PyPI's `gguf` trusts the file: 57 bytes that claim an array of 2^40 elements keep it busy for minutes.
It knows the container (header, metadata, tensor table, data section, split files) and nothing of models; it imports
neither jax nor gguf. No data is read at open. Every refusal is a GGUFError or UnsupportedError of one line.

    magic "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | tensor infos | padding | data section
    tensor info: string name | u32 n_dims | u64 dims[n_dims], fastest first | u32 type | u64 offset in the data section
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator

import numpy as np

from packlight.common.errors import GGUFError, MissingFileError, UnsupportedError
from packlight.common.files import open_regular
from packlight.common.text import near, reason, shown, shown_path
from packlight.model.gguf.header import UINT32, Header, Metadata, read_pairs
from packlight.quant.formats.table import BY_TYPE_ID, FORMATS, Format

MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME is 64 with the closing NUL
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

# Types that ggml has or had and that hold no weights we run. Source: `enum ggml_type` in ggml.h, removed ones too;
# block sizes from `type_traits` in ggml.c.
REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
REMOVED |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
NOT_WEIGHTS = {
    type_id: Format(name, type_id, elements, size, "")
    for name, type_id, elements, size in (
        ("Q8_1", 9, 32, 36),
        ("Q8_K", 15, 256, 292),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
    )
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: where its packed blocks lie. `shape` is numpy's order, (out, in): ggml's dims reversed."""

    name: str
    shape: tuple[int, ...]
    format: Format
    path: str  # of the part that holds it
    offset: int  # absolute position in that part
    nbytes: int

    @property
    def blocks_shape(self) -> tuple[int, ...]:
        """(..., out, n_blocks, block_bytes), the shape of `read_tensor`'s array."""
        return (*self.shape[:-1], self.shape[-1] // self.format.elements, self.format.bytes)


@dataclasses.dataclass(frozen=True, eq=False)
class GGUFFile:
    """An opened (and checked) file; a split one is shown as if it were whole, with the first part's metadata.

    `metadata` holds str, int, float, bool, list[str] and numpy arrays; see `Metadata` about strings that are not UTF-8.
    `tensors` is in file order. `file_bytes` counts all parts. `version` and `alignment` are the first part's.
    """

    path: str
    version: int
    alignment: int
    metadata: Metadata = dataclasses.field(repr=False)
    tensors: dict[str, TensorInfo] = dataclasses.field(repr=False)
    parts: tuple[str, ...]
    file_bytes: int


def open_gguf(path: str | os.PathLike[str], join: bool = True, weights_only: bool = True) -> GGUFFile:
    """Opens and checks the GGUF file at `path`, version 2 or 3; given the first part of a split file, all its parts.

    With `join=False` a part is opened alone, as the container that it is. With `weights_only=False` tensors of the
    types NOT_WEIGHTS are let pass, for a caller who lists them.
    Raises GGUFError naming file and key or tensor, UnsupportedError for a tensor type that packlight does not run.
    Source: the GGUF specification (ggml, docs/gguf.md); names and dimensions limited as in llama.cpp's `gguf.cpp`.
    """
    first = _open_part(os.fsdecode(path))
    file = _joined(first) if join else first
    if weights_only:
        check_types(file)
    return file


def check_types(file: GGUFFile) -> None:
    """Raises UnsupportedError, naming the first, when a tensor is of one of the types NOT_WEIGHTS."""
    for info in file.tensors.values():
        fmt = info.format
        if fmt.type_id in NOT_WEIGHTS:
            why = "which holds no weights packlight runs"
            raise _unsupported(info.path, info.name, fmt.name, fmt.type_id, why)


def _joined(first: GGUFFile) -> GGUFFile:
    """The whole of which `first` is the first part, or all there is."""
    count, number = _split_key(first, "split.count", 1), _split_key(first, "split.no", 0)
    if count <= 1 and number == 0:
        return first
    paths = _part_paths(first.path, count, number)
    parts = [first]
    tensors = dict(first.tensors)
    for i, part_path in enumerate(paths[1:], 1):
        part = _open_part(part_path, f"part {i + 1} of {count} of {shown(os.path.basename(first.path))}")
        if (_split_key(part, "split.no", 0), _split_key(part, "split.count", 1)) != (i, count):
            raise GGUFError(
                f"{shown_path(part_path)}: keys 'split.no', 'split.count' do not say part {i + 1} of {count}"
            )
        for name in tensors.keys() & part.tensors.keys():
            raise GGUFError(f"{shown_path(part_path)}: tensor '{shown(name)}' is in an earlier part too")
        tensors |= part.tensors
        parts.append(part)
    if (total := _split_key(first, "split.tensors.count", len(tensors))) != len(tensors):
        raise GGUFError(
            f"{shown_path(first.path)}: key 'split.tensors.count' says {total}; the parts hold {len(tensors)} tensors"
        )
    return dataclasses.replace(
        first, tensors=tensors, parts=tuple(paths), file_bytes=sum(part.file_bytes for part in parts)
    )


def read_into(info: TensorInfo, out: np.ndarray) -> None:
    """Reads the packed bytes of `info` into `out`, a writable contiguous uint8 array of exactly `info.nbytes` bytes.

    Raises GGUFError when the file is gone or shorter than it was at open.
    """
    if out.dtype != np.uint8 or out.nbytes != info.nbytes or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"{info.name}: out must be a writable contiguous uint8 array of {info.nbytes} bytes")
    with _reading(info) as read:
        read(0, out.reshape(-1))


def read_part(info: TensorInfo, row: int, block: int, out: np.ndarray) -> None:
    """Reads a rectangle of blocks into `out`, uint8 (rows, blocks, block_bytes): from `row`, counted over all leading
    axes, and `block` of a row on. No other byte of the file is read. Raises as `read_into` does.
    """
    width = info.blocks_shape[-2]
    rows, blocks, size = out.shape
    with _reading(info) as read:
        if blocks == width:
            read(row * width * size, out.reshape(-1))
            return
        for i in range(rows):
            read(((row + i) * width + block) * size, out[i].reshape(-1))


@contextlib.contextmanager
def _reading(info: TensorInfo) -> Iterator[Callable[[int, np.ndarray], None]]:
    """A function that fills a flat uint8 array from a byte of the tensor on. Raises GGUFError."""

    def read(at: int, out: np.ndarray) -> None:
        view, done = out.data, 0
        while done < out.nbytes:
            got = os.preadv(fd, [view[done:]], info.offset + at + done)  # Linux reads at most 2 GiB a call
            if got == 0:
                raise GGUFError(
                    f"{shown_path(info.path)}: tensor '{shown(info.name)}': the file was cut short after it was opened;"
                    f" {info.nbytes - at - done} bytes are missing"
                )
            done += got

    fd, _ = _open_file(info.path)
    try:
        yield read
    except OSError as e:
        raise GGUFError(f"{shown_path(info.path)}: tensor '{shown(info.name)}': cannot read: {reason(e)}") from None
    finally:
        os.close(fd)


def read_tensor(info: TensorInfo) -> np.ndarray:
    """The packed blocks of `info` as a new uint8 array (..., out, n_blocks, block_bytes)."""
    out = np.empty(info.blocks_shape, np.uint8)
    read_into(info, out)
    return out


def _open_file(path: str, what: str = "") -> tuple[int, int]:
    """(file descriptor, size) of a regular file; `what` says in errors which part of a whole it is."""
    described = f"{shown_path(path)}: {what + ': ' if what else ''}"
    try:
        fd, status = open_regular(path)
    except OSError as e:
        if isinstance(e, FileNotFoundError):
            raise MissingFileError(f"{described}cannot open: {reason(e)}{'' if what else _neighbour(path)}") from None
        raise GGUFError(f"{described}cannot open: {reason(e)}") from None
    except ValueError:  # a NUL or an unpaired surrogate in the path
        raise GGUFError(f"{described}not a possible file name") from None
    return fd, status.st_size


def _neighbour(path: str) -> str:
    """The end of a message about a file that is not there: the GGUF file beside it that was perhaps meant, or ""."""
    folder, name = os.path.split(path)
    try:
        beside = [os.path.splitext(each) for each in os.listdir(folder or ".")]
    except OSError:
        return ""
    stems = [stem for stem, extension in beside if extension.lower() == ".gguf"]
    return near(os.path.splitext(name)[0], stems, "{}.gguf")


def _open_part(path: str, what: str = "") -> GGUFFile:
    """One container, checked."""
    fd, size = _open_file(path, what)
    try:
        header = Header(fd, size, path)
        version, n_tensors, n_pairs = _read_start(header)
        metadata, kinds = read_pairs(header, n_pairs)
        alignment = _alignment(header, metadata, kinds)
        rows = _read_infos(header, n_tensors)
        start = _data_start(header.pos, alignment)
        tensors = {row[0]: _place(header, *row, start, alignment) for row in rows}
    finally:
        os.close(fd)
    _check_overlap(header, tensors)
    return GGUFFile(path, version, alignment, metadata, tensors, (path,), size)


def _read_start(header: Header) -> tuple[int, int, int]:
    """Version, number of tensors, number of key-value pairs."""
    if header.size == 0:
        header.fail("the file is empty")
    magic = header.take(min(4, header.size), "the header")
    if magic != b"GGUF":
        header.fail(f"not a GGUF file: it starts with {shown(repr(magic))}, not b'GGUF'")
    version = header.u32("the version")
    if version and version & 0xFFFF == 0:
        header.fail(
            "a big-endian GGUF file; packlight reads little-endian ones, gguf-py's gguf_convert_endian makes them"
        )
    if version not in (2, 3):
        header.fail(f"GGUF version {version}; packlight reads versions 2 and 3")
    return version, header.u64("the tensor count"), header.u64("the metadata count")


def _alignment(header: Header, metadata: Metadata, kinds: dict[str, int]) -> int:
    if "general.alignment" not in metadata:
        return DEFAULT_ALIGNMENT
    if kinds["general.alignment"] != UINT32:
        header.fail(f"key 'general.alignment' has value type {kinds['general.alignment']}, not u32")
    alignment = metadata["general.alignment"]
    if alignment % 8 or alignment & (alignment - 1) or not alignment:
        header.fail(f"key 'general.alignment' is {alignment}, not a power of two of at least 8")
    return alignment


def _read_infos(header: Header, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
    """(name, dims fastest first, type number, offset in the data section) of each tensor."""
    # 33 bytes: an info with one dimension and a name of one byte
    if count > MAX_TENSORS or count * 33 > header.size - header.pos:
        header.fail(f"tensor count {count} is more than the file can hold or than the {MAX_TENSORS} allowed")
    rows, seen = [], set()
    for i in range(count):
        name = header.name(f"name of tensor {i}", MAX_NAME_BYTES)
        what = f"tensor '{shown(name)}'"
        if name in seen:
            header.fail(f"{what} appears twice")
        seen.add(name)
        n_dims = header.u32(f"{what}: number of dimensions")
        if not 1 <= n_dims <= MAX_DIMS:
            header.fail(f"{what} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
        dims = tuple(header.u64(f"{what}: dimensions") for _ in range(n_dims))
        rows.append((name, dims, header.u32(f"{what}: type"), header.u64(f"{what}: offset")))
    return rows


def _data_start(infos_end: int, alignment: int) -> int:
    """Where the data section starts: the tensor infos' end rounded up. Offsets in the infos are relative to it."""
    return -(-infos_end // alignment) * alignment


def _place(
    header: Header, name: str, dims: tuple[int, ...], type_id: int, offset: int, start: int, alignment: int
) -> TensorInfo:
    """The TensorInfo of one row of the table, its extent checked against the file."""
    what = f"tensor '{shown(name)}'"
    fmt = _format(header, name, type_id)
    elements = math.prod(dims)
    if not all(0 < d < 1 << 63 for d in dims) or elements >= 1 << 63:
        header.fail(f"{what} has the impossible dimensions {list(dims)}")
    if dims[0] % fmt.elements:
        header.fail(f"{what}: rows of {dims[0]} weights are not a multiple of {fmt.name}'s block of {fmt.elements}")
    if offset % alignment:
        header.fail(f"{what}: offset {offset} is not a multiple of the alignment {alignment}")
    nbytes = elements // fmt.elements * fmt.bytes
    if start + offset + nbytes > header.size:
        header.fail(
            f"{what}: {nbytes} bytes at {start + offset} run past the end of the file ({header.size} bytes);"
            " is it cut short?"
        )
    return TensorInfo(name, dims[::-1], fmt, header.path, start + offset, nbytes)


def _format(header: Header, name: str, type_id: int) -> Format:
    if found := BY_TYPE_ID.get(type_id) or NOT_WEIGHTS.get(type_id):
        return found
    if type_id in REMOVED:
        raise _unsupported(header.path, name, REMOVED[type_id], type_id, "which ggml has removed")
    return header.fail(f"tensor '{shown(name)}' is of the unknown type {type_id}")


def _unsupported(path: str, name: str, kind: str, type_id: int, why: str) -> UnsupportedError:
    what = f"{shown_path(path)}: tensor '{shown(name)}' is of type {kind} ({type_id})"
    return UnsupportedError(f"{what}, {why}; supported: {', '.join(FORMATS)}")


def _check_overlap(header: Header, tensors: dict[str, TensorInfo]) -> None:
    """Gaps and any order are fine, shared bytes are not."""
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            header.fail(f"tensor '{shown(after.name)}' overlaps tensor '{shown(before.name)}'")


def _split_key(part: GGUFFile, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise GGUFError(f"{shown_path(part.path)}: key '{key}' is not a count")
    return value


def _part_paths(path: str, count: int, number: int) -> list[str]:
    """The paths of all parts of the split file whose first part is `path`, as llama.cpp's gguf-split names them."""
    named = SPLIT_NAME.fullmatch(path)
    if number != 0:
        first = f"{named[1]}-00001-of-{named[3]}.gguf" if named else f"NAME-00001-of-{count:05d}.gguf"
        raise GGUFError(f"{shown_path(path)}: part {number + 1} of {count} of a split file; open {shown_path(first)}")
    if named is None or (int(named[2]), int(named[3])) != (1, count):
        raise GGUFError(
            f"{shown_path(path)}: the first of {count} parts must be named NAME-00001-of-{count:05d}.gguf,"
            " so that the others are found"
        )
    return [f"{named[1]}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
