"""Weights that a file is mapped to instead of memory of the process: made at the first start, true at every other.

Imports no jax. The system reads pages of the file when they are touched, and takes them back when it needs room. All
processes that map it share them. `weights.mapfile` is the file's format. Beside DIGEST.weights lies DIGEST.seal, which
takes the user's secret to make: it says that the file, as it is now by the system's own times, has been written here or
checked. Where it does not, all checksums are compared before a weight is used.

Nothing here ends a start: what keeps weights from being mapped becomes a line, and the caller reads them.
"""

import contextlib
import errno
import functools
import hashlib
import hmac
import importlib.metadata
import json
import mmap
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from packlight.common.files import hold_open, open_regular, private_folder, remove_unheld, whole_file
from packlight.common.mounts import remote_type
from packlight.common.progress import task
from packlight.common.room import SEAL, WEIGHTS, make_room
from packlight.common.secret import SEAL_BYTES, open_own, read_own, seal, user_secret
from packlight.common.text import megabytes, reason, shown, shown_path
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.load import HostWeight, Shape, matrix_buffers, plan_weights
from packlight.model.weights.mapfile import (
    MAGIC,
    PAGE,
    Arrangement,
    DamagedError,
    Header,
    Part,
    check_tensors,
    read_header,
    write,
)
from packlight.model.weights.residence import UNIT, Residence
from packlight.quant.kernels import native_build
from packlight.quant.kernels.native_guard import guard
from packlight.quant.kernels.native_stream import Pool, Stream

FOREIGN = 0o022  # permissions that let other users write
QUANT = pathlib.Path(__file__).resolve().parents[2] / "quant"
# The sources that decide how a tensor's bytes are laid out.
LAYING_OUT = (
    QUANT / "layouts.py",
    *(QUANT / "kernels" / "native" / name for name in ("pack.cc", "weights.h")),
    *(pathlib.Path(__file__).with_name(name) for name in ("load.py", "mapfile.py")),
)


class Mapped(NamedTuple):
    """What came of mapping the weights."""

    weights: list[HostWeight] | None  # None: they are not mapped, as the last line says
    warnings: tuple[str, ...] = ()  # lines that a user should see
    stream: Stream | None = None  # what brings the layers, where they are streamed
    lost: Callable[[], str | None] = lambda: None  # says that the file can no longer be read, if so


def map_weights(
    file: GGUFFile,
    cfg: ModelConfig,
    progress: Callable[[int], None],
    layouts: Mapping[str, str],
    folder: pathlib.Path,
    most_bytes: int = 0,
    residence: Residence | None = None,
) -> Mapped:
    """The weights as `read_weights` gives them, the matrices in read-only memory that a file in `folder` is mapped to.

    The file is made where there is none, or none that is right.
    most_bytes: that the kept files of the folder may take together, for which those that were used longest ago go; 0 is
        no bound.
    residence: which layers stay in memory, where the others are streamed; None leaves it to the system.
    Raises GGUFError as `read_weights` does, UnsupportedError where the system cannot stream.
    """
    warnings: list[str] = []
    try:
        native_build.loaded()  # without it a file that is cut short would end the process
    except native_build.NativeBuildError as error:
        why = str(error).partition("\n")[0]
        return Mapped(None, (f"weights are read into memory, not mapped: {why}",))
    try:
        kept = _Kept(file, cfg, layouts, _usable(folder), user_secret(), residence)
        try:
            return kept.opened(progress)
        except FileNotFoundError:
            pass
        except DamagedError as error:
            warnings.append(f"{shown_path(str(kept.path))}: {error}; it is made anew")
        kept.make(most_bytes)
        return kept.opened(progress)._replace(warnings=tuple(warnings))
    except (OSError, DamagedError) as error:
        where = getattr(error, "filename", None) or folder
        why = f"{shown_path(str(where))}: {reason(error)}"
        return Mapped(None, (*warnings, f"weights are read into memory, not mapped: {why}"))


def _usable(folder: pathlib.Path) -> pathlib.Path:
    """The folder for files that are mapped. Raises OSError."""
    folder = private_folder(folder)
    if remote := remote_type(folder):
        raise OSError(errno.ENOTSUP, f"on a file system of type {remote}, where others can change what is mapped")
    return folder


class _Kept:
    """The file of one model's weights in one layout, which need not be there."""

    def __init__(
        self,
        file: GGUFFile,
        cfg: ModelConfig,
        layouts: Mapping[str, str],
        folder: pathlib.Path,
        secret: bytes,
        residence: Residence | None,
    ):
        """Raises OSError where the model's own file is gone."""
        self.file, self.cfg, self.layouts, self.secret = file, cfg, layouts, secret
        self.residence = residence
        self.source = tuple(map(Part.of, file.parts))
        self.arrangement = Arrangement.of(matrix_buffers(file, cfg, layouts))
        self.path = folder / f"{self._digest()}{WEIGHTS}"
        self.seal = self.path.with_suffix(SEAL)

    def _digest(self) -> str:
        """Names the file by everything that its content follows from: 64 hex digits."""
        facts = {
            "format": MAGIC.decode(),
            "source": [part[1:] for part in self.source],
            "tensors": [
                (info.name, info.shape, info.format.name, self.file.parts.index(info.path), info.offset)
                for info in self.file.tensors.values()
            ],
            "layouts": sorted(self.layouts.items()),
            "code": laying_out_hash(),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def opened(self, progress: Callable[[int], None]) -> Mapped:
        """The weights, mapped, and their stream. The file is held as long as any of them is.

        Raises FileNotFoundError where there is no file, DamagedError where it is not to be used, OSError.
        """
        try:
            fd, status = open_own(self.path, FOREIGN)
        except PermissionError as error:
            raise DamagedError(reason(error)) from None
        try:
            hold_open(fd)  # the mapping has a copy of the descriptor
            header = read_header(fd, status.st_size)
            if [record[:3] for record in header.tensors] != [record[:3] for record in self.arrangement.records]:
                raise DamagedError("it holds other tensors")
            self._check(fd, header)
            mapping = _map(fd, status.st_size)
            lost = self._watch(mapping)
            memory = np.frombuffer(mapping, np.uint8)[header.first() :]
            stream = None if self.residence is None else open_stream(fd, memory, header.first(), self.residence)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.utime(self.seal)  # which says when the file was used
        allocate = self.arrangement.slices(memory)
        weights, jobs = plan_weights(self.file, self.cfg, progress, self.layouts, allocate=allocate)
        progress(sum(job.info.nbytes for job in jobs))
        return Mapped(weights, stream=stream, lost=lost)

    def _watch(self, mapping: mmap.mmap) -> Callable[[], str | None]:
        """Says from now on whether a page of the mapping could not be read."""
        is_lost = guard(mapping)
        said = f"{shown_path(str(self.path))}: weights in use cannot be read: the file was cut short, or its disk fails"
        return lambda: said if is_lost() else None

    def _check(self, fd: int, header: Header) -> None:
        """Compares checksums unless the file is sealed as it is; then seals it. Raises DamagedError, OSError."""
        sealed = self._sealed(fd, header)
        with contextlib.suppress(OSError):
            if hmac.compare_digest(read_own(self.seal, FOREIGN, SEAL_BYTES), sealed):
                return
        note = f"checking {megabytes(header.whole())} of weights in {shown_path(str(self.path))}, which was touched"
        with task("weights", sum(record.nbytes for record in header.tensors), "B", note) as advance:
            check_tensors(fd, header, advance)
        self._put_seal(sealed)

    def _sealed(self, fd: int, header: Header) -> bytes:
        """The seal of an open file: of its header, and of what any change to the file changes."""
        status = os.fstat(fd)
        times = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return seal(self.secret, header.packed() + repr(times).encode())

    def _put_seal(self, sealed: bytes) -> None:
        """Without it the next start checks the file again."""
        with contextlib.suppress(OSError), whole_file(str(self.seal), 0o600) as partial:
            pathlib.Path(partial).write_bytes(sealed)

    def make(self, most_bytes: int) -> None:
        """Writes the file, whole or not at all, and its seal. Raises OSError that says why it cannot, GGUFError."""
        name = f"{self.cfg.architecture.name} {shown(self.cfg.name, 100)}"
        made_by = {"packlight": importlib.metadata.version("packlight"), "layouts": laying_out_hash(), "model": name}
        arranged = self.arrangement
        header = Header(arranged.alignment, arranged.nbytes, made_by, self.source, arranged.records)
        whole = header.whole()
        with contextlib.suppress(FileNotFoundError):
            remove_unheld(str(self.path))  # what is there cannot be used
        make_room(self.path.parent, whole, most_bytes)
        _, jobs = plan_weights(self.file, self.cfg, layouts=self.layouts, allocate=_shaped)
        note = f"writing {megabytes(whole)} of weights to {shown_path(str(self.path.parent))}, once for this file"
        with contextlib.ExitStack() as stack:
            advance = stack.enter_context(task("weights", sum(job.info.nbytes for job in jobs), "B", note))
            with whole_file(str(self.path), 0o600) as partial:
                fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                header = write(fd, header, jobs, advance)
                if tuple(map(Part.of, self.file.parts)) != self.source:
                    raise OSError(errno.EBUSY, "changed while it was read", self.file.path)
            self._put_seal(self._sealed(fd, header))  # only now: its name has changed the file's times


def open_stream(fd: int, memory: np.ndarray, offset: int, residence: Residence) -> Stream:
    """What brings layers and experts of an open file whose buffers are mapped to `memory`, from `offset` in the file
    on. Raises UnsupportedError where the system cannot stream.
    """
    cut, pool = residence.cut, None
    if (experts := cut.experts) is not None:
        pool = Pool(experts.each, experts.layers, experts.pages, PAGE, residence.pool)
    return Stream(fd, memory, offset, UNIT, cut.sizes, cut.layers, residence.kept, residence.ahead, pool)


def _shaped(shape: Shape) -> np.ndarray:
    """An array that takes no memory."""
    return np.broadcast_to(np.zeros((), np.uint8), shape)


def _map(fd: int, size: int) -> mmap.mmap:
    """The bytes of a file, which cannot be written. Raises DamagedError where it is shorter, OSError."""
    try:
        memory = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    except ValueError:
        raise DamagedError("it was cut short") from None
    with contextlib.suppress(OSError, AttributeError):  # systems, and kernels, without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def told(path: pathlib.Path) -> tuple[dict[str, str], str | None]:
    """What made a file of weights, and why it is never used again, or None. Nothing is checked. Raises OSError."""
    fd, status = open_regular(path)
    try:
        header = read_header(fd, status.st_size)
    except DamagedError as error:
        return {}, str(error)
    finally:
        os.close(fd)
    return {str(name): str(value) for name, value in header.made_by.items()}, _stale(header)


def _stale(header: Header) -> str | None:
    for part in header.source:
        try:
            now = Part.of(part.path)
        except (OSError, ValueError):
            return f"{shown_path(part.path)} is gone"
        if now != part:
            return f"{shown_path(part.path)} has changed"
    return None if header.made_by.get("layouts") == laying_out_hash() else "another packlight"


@functools.cache
def laying_out_hash() -> str:
    """Digest of the sources that lay weights out: 16 hex digits."""
    digest = hashlib.sha256()
    for path in LAYING_OUT:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
