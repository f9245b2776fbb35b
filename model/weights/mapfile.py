"""A file of matrices as kernels read them, to be mapped: its format, written whole and checked. Imports no jax.

Buffers begin where a page does, those that are larger than a huge page where one of these does. XLA:CPU then uses them
where they are. What lies between them is a hole. It knows tensors by name, and not when a file is trusted
(`weights.mapped`).

    b"packlight-map-1\\n" | length of the JSON in 8 bytes, the least first | SHA-256 of the JSON | JSON | buffers

The JSON has the fields of `Header`.
"""

import dataclasses
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from packlight.common.text import shown
from packlight.model.weights.load import Buffer, Job, Shape, run_jobs

MAGIC = b"packlight-map-1\n"
START = len(MAGIC) + 8 + 32  # of the JSON
MAX_HEADER = 1 << 24  # bytes; 65,536 tensors with names of 63 bytes take 8 MB
PAGE, HUGE_PAGE = 1 << 12, 1 << 21
CHUNK = 1 << 24  # bytes that are read at a time to check them


class DamagedError(Exception):
    """The file is there and is not what it should be: why, in words that name the tensor where it is one."""


class Record(NamedTuple):
    """One tensor in the file."""

    name: str
    offset: int  # from the first buffer
    nbytes: int
    crc32: str = "0" * 8  # hex digits


class Part(NamedTuple):
    """One file that the tensors were read from, as it was then."""

    path: str
    device: int
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: str) -> "Part":
        """Raises OSError."""
        status = os.stat(path)
        return cls(os.path.abspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    alignment: int  # of the first buffer
    nbytes: int  # from the first buffer to the end
    made_by: Mapping[str, str]  # names and versions
    source: tuple[Part, ...]
    tensors: tuple[Record, ...]

    def packed(self) -> bytes:
        """The file's beginning. Its length does not depend on the checksums of tensors."""
        text = json.dumps(dataclasses.asdict(self)).encode()
        return MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text

    def first(self) -> int:
        """Where the first buffer is in the file."""
        return rounded_up(len(self.packed()), self.alignment)

    def whole(self) -> int:
        """Bytes of the file."""
        return self.first() + self.nbytes


class Arrangement(NamedTuple):
    """Where buffers lie, from the first one on."""

    offsets: list[int]
    nbytes: int  # to the end of the last
    alignment: int  # of the first
    records: tuple[Record, ...]  # of their tensors, without checksums

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> "Arrangement":
        offsets, records, end, largest = [], [], 0, PAGE
        for shape, tensors in buffers:
            size = math.prod(shape)
            alignment = HUGE_PAGE if size > HUGE_PAGE else PAGE
            at, each, largest = rounded_up(end, alignment), size // len(tensors), max(largest, alignment)
            offsets.append(at)
            records += [Record(name, at + number * each, each) for number, name in enumerate(tensors)]
            end = at + size
        return cls(offsets, end, largest, tuple(records))

    def slices(self, memory: np.ndarray) -> Callable[[Shape], np.ndarray]:
        """Hands out the buffers in order, each by its shape. memory: uint8 (nbytes,), from the first buffer on."""
        left = iter(self.offsets)

        def allocate(shape: Shape) -> np.ndarray:
            at = next(left)
            return memory[at : at + math.prod(shape)].reshape(shape)

        return allocate


def write(fd: int, header: Header, jobs: list[Job], progress: Callable[[int], None]) -> Header:
    """Fills an empty file, makes sure that it is on the disk, and returns its header, with the checksums of tensors.

    Of the jobs' places only the shapes count: a tensor is in memory while it is on its way, and no longer. Raises
    OSError, and GGUFError as the jobs do.
    """
    records, first = {record.name: record for record in header.tensors}, header.first()

    def move(job: Job) -> None:
        blocks = np.empty(job.places[0].shape, np.uint8)
        job.read({0: blocks})
        record = records[job.info.name]
        assert blocks.nbytes == record.nbytes, record
        _write_at(fd, blocks.reshape(-1), first + record.offset)
        records[record.name] = record._replace(crc32=f"{zlib.crc32(blocks.data):08x}")

    run_jobs(jobs, move, progress)
    os.ftruncate(fd, header.whole())
    summed = dataclasses.replace(header, tensors=tuple(records.values()))
    _write_at(fd, np.frombuffer(summed.packed(), np.uint8), 0)
    os.fsync(fd)
    return summed


def read_header(fd: int, size: int) -> Header:
    """The header of an open file of `size` bytes, which it must have. Raises DamagedError, OSError."""
    start = os.pread(fd, START, 0)
    length = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")
    if len(start) < START or not start.startswith(MAGIC) or length > MAX_HEADER:
        raise DamagedError("its header is damaged")
    text = os.pread(fd, length, START)
    if hashlib.sha256(text).digest() != start[-32:]:
        raise DamagedError("its header is damaged")
    header = _parsed(text)
    if header is None or header.packed() != start + text:
        raise DamagedError("its header is none")
    whole = header.whole()
    if size != whole:
        raise DamagedError(f"it has {size:,} bytes, not {whole:,}")
    return header


def check_tensors(fd: int, header: Header, progress: Callable[[int], None]) -> None:
    """Reads all tensors and compares their checksums. Raises DamagedError naming the first that differs, OSError."""
    first = header.first()
    chunk = np.empty(CHUNK, np.uint8)
    for record in header.tensors:
        crc = 0
        for piece in _pieces(fd, first + record.offset, record.nbytes, chunk):
            crc = zlib.crc32(piece.data, crc)
        if f"{crc:08x}" != record.crc32:
            raise DamagedError(f"tensor '{shown(record.name)}' is damaged")
        progress(record.nbytes)


def _parsed(text: bytes) -> Header | None:
    """The header in a JSON text, if it is one."""
    try:
        found: dict[str, Any] = json.loads(text)
        found["source"] = tuple(Part(*part) for part in found["source"])
        found["tensors"] = tuple(Record(*record) for record in found["tensors"])
        header = Header(**found)
        numbers = (header.alignment, header.nbytes, *(n for _, at, size, _ in header.tensors for n in (at, size)))
        sound = all(isinstance(n, int) and n >= 0 for n in numbers) and header.alignment
        sound = sound and isinstance(header.made_by, dict) and all(isinstance(part.path, str) for part in header.source)
        return header if sound else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _pieces(fd: int, at: int, nbytes: int, chunk: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of a file from `at` on, in pieces that `chunk` holds."""
    end = at + nbytes
    while at < end:
        got = os.preadv(fd, [chunk[: min(CHUNK, end - at)].data], at)
        if got == 0:
            raise DamagedError("it was cut short")
        yield chunk[:got]
        at += got


def _write_at(fd: int, content: np.ndarray, at: int) -> None:
    """Writes all of a flat array; the system may take less at a time."""
    done = 0
    while done < content.nbytes:
        done += os.pwrite(fd, content[done:].data, at + done)


def rounded_up(count: int, unit: int) -> int:
    """The least multiple of a unit that is no smaller."""
    return -(-count // unit) * unit
