"""The native CPU kernels' library: the wheel's, else one that a C++ compiler here builds on first use. Imports no jax.

It knows sources, compilers and the cache folder; what the library's functions mean is `quant.kernels.native_ops`'s. The
library holds kernels for several instruction sets and picks one at run time, so one build serves every CPU of an
architecture.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from packlight.common.cleanup import undone
from packlight.common.errors import PacklightError
from packlight.common.files import cache_folder, hold, private_folder, remove_abandoned, scratch_folder, whole_file
from packlight.common.progress import Advance, task
from packlight.common.text import reason, shown
from packlight.quant.kernels import prebuilt

SOURCES = pathlib.Path(__file__).parent / "native"
COMPILERS = ("c++", "g++", "clang++")
ISAS = ("best", "portable", "avx2", "avx512", "neon", "avx512bf16")  # native/isa.h
INSTRUCTIONS = ("", "portable", "avx2", "avx512-vnni", "neon", "avx512-vnni-bf16")  # what is said of each
# No -march=native: functions that need AVX2 say so themselves. Contraction would fuse x * s + c on CPUs with FMA and
# round activations differently from their twin in jnp.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-pthread")
# Zig's compiler makes code for this very CPU unless told otherwise.
ZIG_FLAGS = ("c++", "-mcpu=baseline")
MESSAGE_LINES = 8  # of a compiler's complaint
REMEMBERED = 24 * 60 * 60  # seconds that a compiler which failed is not tried again


class NativeBuildError(PacklightError):
    """The native kernels cannot be built here: no compiler, a failed compile, or no folder to keep them in."""


class _CompilerError(NativeBuildError):
    """A compiler ran to its end and says that it failed."""


class Running(NamedTuple):
    """The native kernels that run on this CPU."""

    instructions: str  # the instruction set that they use, as the library says
    origin: str  # where the library comes from, in words

    def __str__(self) -> str:
        return f"{self.instructions}, {self.origin}"


def library() -> tuple[pathlib.Path, str]:
    """The shared library's path and its digest; compiles it when this compiler has not built these sources before.

    Safe when processes come first at the same time: each builds in a folder of its own and the file appears whole. What
    killed builds left is removed. Raises NativeBuildError with the compiler's first lines, for a day without asking it
    again.
    """
    path, digest, _, _ = _library()
    return path, digest


@functools.cache
def packaged() -> prebuilt.Found:
    """The library that came with the installed package, or what keeps it from being used."""
    return prebuilt.load(prebuilt.sources_digest(SOURCES))


@functools.cache
def loaded() -> tuple[prebuilt.Library, str]:
    """The library in this process, and its digest: the package's own where it has one to use, else one built here.

    One that is damaged is built anew. One that was built here and cannot be loaded is not: the file beside it that
    says so holds for as long as the library is the same. Raises NativeBuildError.
    """
    if (found := packaged()).library is not None:
        return found.library, found.digest
    path, digest, built, version = _library()
    try:
        library = _opened(path)
        library.origin = f"built here by {version}"
        return library, digest
    except OSError as error:
        if not built and not _is_unloadable(path):  # empty after a power cut, or another system's in a shared folder
            path.unlink(missing_ok=True)
            return loaded.__wrapped__()
        with contextlib.suppress(OSError), whole_file(str(_verdict(path))) as partial:
            pathlib.Path(partial).write_text(_content_digest(path), encoding="ascii")
        why = f"was built and cannot be loaded ({_refusal(error, path)}); delete it to build it again"
        raise NativeBuildError(f"native kernels: {path} {why}") from None


def running() -> Running:
    """What runs as native kernels in this process. Raises NativeBuildError."""
    library, _ = loaded()
    return Running(INSTRUCTIONS[library.packlight_best()], library.origin)


def running_if_built() -> Running | None:
    """`running`, or None where that would build the library first or where it cannot be built."""
    try:
        if packaged().library is None and not ((path := own_build()) and path.exists()):
            return None
        return running()
    except (NativeBuildError, RuntimeError):  # no home folder
        return None


def own_build() -> pathlib.Path | None:
    """Where a library lies that is built here, if one is: None where the package's own runs or there is no compiler.

    Raises RuntimeError where there is no home folder.
    """
    try:
        return None if packaged().library else builds_folder() / f"{_digest(_compiler()[1])}.so"
    except NativeBuildError:
        return None


def builds_folder() -> pathlib.Path:
    """The folder of the libraries that are built here; it need not exist. Raises RuntimeError without a home folder."""
    return (cache_folder() / "native").expanduser()


def lanes() -> int:
    """Rows side by side in the layout that this CPU's kernels read fastest; 1 is ggml's. Raises NativeBuildError."""
    return loaded()[0].packlight_lanes()


def pack_into(blocks: np.ndarray, type_id: int, lanes: int, packed: np.ndarray) -> None:
    """`quant.layouts.pack` in C++: uint8 (out, N, bytes) into (ceil(out / lanes), N, lanes * bytes)."""
    out, n, size = blocks.shape
    assert packed.shape == (-(-out // lanes), n, lanes * size), (blocks.shape, packed.shape)
    assert blocks.flags.c_contiguous
    assert packed.flags.c_contiguous
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded()[0].packlight_pack(
        count(type_id), count(lanes), count(out), count(n), pointer(blocks.ctypes.data), pointer(packed.ctypes.data)
    )


def obstacle() -> str | None:
    """What keeps native kernels from running here, as far as it is known without building them; None where nothing."""
    if packaged().library is not None:
        return None
    try:
        compiler, version = _compiler()
        path = builds_folder() / f"{_digest(version)}.so"
    except NativeBuildError as error:
        return str(error)
    except RuntimeError:  # no home folder, of which the build will speak
        return None
    if path.exists():
        return f"native kernels: {path} cannot be loaded" if _is_unloadable(path) else None
    return _failure(path, compiler)


def set_grid(type_id: int, values: np.ndarray) -> None:
    """Hands a format's grid, int8 (entries, weights), to the library, which has none of its own.

    Raises NativeBuildError.
    """
    assert values.dtype == np.int8
    assert values.flags.c_contiguous
    loaded()[0].packlight_set_grid(ctypes.c_int64(type_id), ctypes.c_void_p(values.ctypes.data))


def is_likely() -> bool:
    """Whether there is a library, or a C++ compiler to build it with; nothing is built."""
    return obstacle() is None


def _library() -> tuple[pathlib.Path, str, bool, str]:
    """`library`, whether it was built now, and the version of its compiler."""
    compiler, version = _compiler()
    digest = _digest(version)
    folder = _cache_folder()
    remove_abandoned(str(folder))
    path = folder / f"{digest}.so"
    if path.exists():
        if path.stat().st_uid != os.geteuid():
            raise NativeBuildError(f"native kernels: {path} belongs to another user")
        return path, digest, False, version
    if said := _failure(path, compiler):
        raise NativeBuildError(said)
    failures = _failures(path)
    try:
        with scratch_folder(str(folder), "build") as build:
            os.replace(_build(compiler, version, pathlib.Path(build)), path)
        failures.unlink(missing_ok=True)
    except _CompilerError as error:
        said = f"{error}; it is tried again in a day, or when {failures} is deleted"
        with contextlib.suppress(OSError), whole_file(str(failures)) as partial:
            pathlib.Path(partial).write_text(json.dumps({"compiler": compiler, "said": said}), encoding="ascii")
        raise NativeBuildError(said) from None
    except OSError as error:
        raise NativeBuildError(f"native kernels: {folder}: {reason(error)}") from None
    return path, digest, True, version


def _failures(path: pathlib.Path) -> pathlib.Path:
    """The file that says how the last build of a library failed."""
    return path.with_suffix(".failed")


def _failure(path: pathlib.Path, compiler: tuple[str, ...]) -> str | None:
    """How this compiler failed to build the library at `path` less than a day ago, or None."""
    file = _failures(path)
    try:
        if not 0 <= time.time() - file.stat().st_mtime < REMEMBERED:
            return None
        kept = json.loads(file.read_text(encoding="ascii"))
        return str(kept["said"]) if kept["compiler"] == [*compiler] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _opened(path: pathlib.Path) -> prebuilt.Library:
    """The library at `path`, from a copy elsewhere where its own folder does not let it run. Raises OSError."""
    hold(str(path))
    try:
        return prebuilt.Library(str(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            library = _copied(path)
            library.note = f"native kernels: a copy of {path} runs, which cannot itself ({_refusal(error, path)})"
            return library
        raise


def _copied(path: pathlib.Path) -> prebuilt.Library:
    """The library from a copy in memory, or in the temporary folder of a system without such files. Raises OSError."""
    content = path.read_bytes()
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(path.name)  # stays open: the loader takes a second file of the same name for the first
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        return prebuilt.Library(f"/proc/self/fd/{fd}")
    with scratch_folder(tempfile.gettempdir(), "packlight-kernels") as folder:
        copy = pathlib.Path(folder, path.name)
        copy.write_bytes(content)
        return prebuilt.Library(str(copy))


def _refusal(error: OSError, path: pathlib.Path) -> str:
    """The loader's words, without the path that they begin with."""
    return shown(str(error).removeprefix(f"{path}: "), 200)


def _verdict(path: pathlib.Path) -> pathlib.Path:
    """The file that holds the digest of a library which cannot be loaded."""
    return path.with_suffix(".unloadable")


def _is_unloadable(path: pathlib.Path) -> bool:
    """Whether this very library was found to be so before."""
    try:
        return _verdict(path).read_text(encoding="ascii") == _content_digest(path)
    except (OSError, ValueError):
        return False


def _content_digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiler() -> tuple[tuple[str, ...], str]:
    """The command of the C++ compiler and its version: $CXX, one on PATH, or the package ziglang's."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return (path,), _run([path, "--version"], _Work()).partition("\n")[0]
    if named:
        raise NativeBuildError(f"native kernels: no C++ compiler: CXX={named!r} is no program")
    if spec := importlib.util.find_spec("ziglang"):
        (folder,) = spec.submodule_search_locations or ("",)
        zig = os.path.join(folder, "zig")
        return (zig, *ZIG_FLAGS), f"zig c++ {_run([zig, 'version'], _Work()).strip()}"
    where = f"none of {', '.join(COMPILERS)} is on PATH"
    raise NativeBuildError(f"native kernels: no C++ compiler: {where}; packlight[compiler] brings one")


def _digest(version: str) -> str:
    """Names a build: sources, flags, compiler, machine and the FFI headers' version, as 32 hex digits."""
    here = platform.system(), platform.machine(), importlib.metadata.version("jaxlib")
    facts = (*FLAGS, *ZIG_FLAGS, version, *here, prebuilt.sources_digest(SOURCES))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]


def _cache_folder() -> pathlib.Path:
    """packlight/native in the user's cache folder, ours alone: a library from it runs as us."""
    folder = cache_folder() / "native"
    try:
        return private_folder(folder)
    except OSError as error:
        raise NativeBuildError(f"native kernels: {folder}: {reason(error)}") from None


def _build(compiler: tuple[str, ...], version: str, folder: pathlib.Path) -> pathlib.Path:
    """Compiles the sources side by side and links them; everything stays in `folder`."""

    work, sources = _Work(), sorted(SOURCES.glob("*.cc"))

    def compiled(source: pathlib.Path) -> str:
        target = str(folder / f"{source.stem}.o")
        # -isystem: warnings are for our sources, not XLA's headers
        include = ("-isystem", str(prebuilt.include_folder()))
        _run([*compiler, *FLAGS, *include, "-c", str(source), "-o", target], work)
        return target

    path = folder / "library.so"
    note = f"building the native kernels with {version}, once on this machine"
    with (
        undone(work.end),
        task("native kernels", len(sources) + 1, "file", note) as advance,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        try:
            objects = _results([pool.submit(compiled, source) for source in sources], advance)
            link = [*compiler, "-shared", "-pthread", *objects, "-o", str(path)]
            _results([pool.submit(_run, link, work)], advance)
        except BaseException:  # an error or Ctrl-C: those that wait do not begin, those that run end
            work.end()
            raise
    return path


def _results(futures: Sequence[concurrent.futures.Future[str]], advance: Advance) -> list[str]:
    """What they return, in order; raises what the first raises. advance: called with the number of those that ended.

    It wakes ten times a second, because Python does not see a signal that comes just before it begins to wait.
    """
    waiting = set(futures)
    while waiting:
        ended, waiting = concurrent.futures.wait(waiting, timeout=0.1)
        for future in ended:
            future.result()
        if ended:
            advance(len(ended))
    return [future.result() for future in futures]


class _Work:
    """The compilers of a build, which end together.

    They are started by other threads than the one that handles signals: `end` waits for one that is being started.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def start(self, command: list[str]) -> "subprocess.Popen[str]":
        """Starts a program in a group of its own, so that those which it starts end with it. Raises OSError."""
        stdin, pipe = subprocess.DEVNULL, subprocess.PIPE
        with self._lock:
            if self._ended:
                raise NativeBuildError("native kernels: the build was ended")
            process = subprocess.Popen(
                command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, errors="replace", process_group=0
            )
            self._running.add(process)
        return process

    def finished(self, process: "subprocess.Popen[str]") -> None:
        _end(process)
        self._running.discard(process)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in tuple(self._running):
                _end(process)


def _run(command: list[str], work: _Work) -> str:
    """stdout of a compiler command, a part of some work.

    Raises NativeBuildError with the first lines it wrote when it fails.
    """
    try:
        process = work.start(command)
    except OSError as error:
        raise NativeBuildError(f"native kernels: {command[0]}: {reason(error)}") from None
    try:
        out, errors = process.communicate()
    finally:
        work.finished(process)
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()][:MESSAGE_LINES]
        said = " | ".join(lines) or f"exit code {process.returncode}"
        error = _CompilerError if process.returncode > 0 else NativeBuildError  # or it was killed
        raise error(f"native kernels: {command[0]} failed: {said}")
    return out


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends a compiler and the programs that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
