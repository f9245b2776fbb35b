"""Builds the native CPU kernels with the system's C++ compiler on first use and keeps the library. Imports no jax.

It knows sources, compilers and the cache folder; what the library's functions mean is `quant.kernels.native_ops`'s. The
library holds kernels for several instruction sets and picks one at run time, so one build serves every CPU of an
architecture.
"""

import concurrent.futures
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import numpy as np

from packlight.common.errors import PacklightError
from packlight.common.files import cache_folder, private_folder

SOURCES = pathlib.Path(__file__).parent / "native"
COMPILERS = ("c++", "g++", "clang++")
# No -march=native: functions that need AVX2 say so themselves. Contraction would fuse x * s + c on CPUs with FMA and
# round activations differently from their twin in jnp.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-pthread")
MESSAGE_LINES = 8  # of a compiler's complaint


class NativeBuildError(PacklightError):
    """The native kernels cannot be built here: no compiler, a failed compile, or no folder to keep them in."""


def library() -> tuple[pathlib.Path, str]:
    """The shared library's path and its digest; compiles it when this compiler has not built these sources before.

    Safe when processes come first at the same time: each builds in a folder of its own and the file appears whole.
    Raises NativeBuildError with the compiler's first lines.
    """
    compiler, version = _compiler()
    digest = _digest(version)
    folder = _cache_folder()
    path = folder / f"{digest}.so"
    if path.exists():
        if path.stat().st_uid != os.geteuid():
            raise NativeBuildError(f"native kernels: {path} belongs to another user")
        return path, digest
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as build:
            os.replace(_build(compiler, pathlib.Path(build)), path)
    except OSError as error:
        raise NativeBuildError(f"native kernels: {folder}: {error.strerror}") from None
    return path, digest


@functools.cache
def loaded() -> tuple[ctypes.CDLL, str]:
    """The library in this process, and its digest; one that cannot be loaded is built anew. Raises NativeBuildError."""
    path, digest = library()
    try:
        return ctypes.CDLL(str(path)), digest
    except OSError:  # damaged: empty after a power cut, or from another system that shares the folder
        path.unlink(missing_ok=True)
    path, digest = library()
    try:
        return ctypes.CDLL(str(path)), digest
    except OSError as error:
        raise NativeBuildError(f"native kernels: {error}") from None


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


def has_compiler() -> bool:
    """Whether a C++ compiler is found."""
    try:
        _compiler()
    except NativeBuildError:
        return False
    return True


def include_folder() -> pathlib.Path:
    """Where jaxlib keeps the headers of XLA's FFI: `jax.ffi.include_dir()` without importing jax."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return pathlib.Path(spec.submodule_search_locations[0]) / "include"


def _compiler() -> tuple[str, str]:
    """The C++ compiler and the first line of its version."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return path, _run([path, "--version"]).partition("\n")[0]
    where = f"CXX={named!r} is no program" if named else f"none of {', '.join(COMPILERS)} is on PATH"
    raise NativeBuildError(f"native kernels: no C++ compiler: {where}")


def _digest(version: str) -> str:
    """Names a build: sources, flags, compiler, machine and the FFI headers' version, as 32 hex digits."""
    facts = (*FLAGS, version, platform.system(), platform.machine(), importlib.metadata.version("jaxlib"))
    digest = hashlib.sha256("\0".join(facts).encode())
    for path in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")]):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _cache_folder() -> pathlib.Path:
    """packlight/native in the user's cache folder, ours alone: a library from it runs as us."""
    folder = cache_folder() / "native"
    try:
        return private_folder(folder)
    except OSError as error:
        raise NativeBuildError(f"native kernels: {folder}: {error.strerror}") from None


def _build(compiler: str, folder: pathlib.Path) -> pathlib.Path:
    """Compiles the sources side by side and links them; everything stays in `folder`."""

    def compiled(source: pathlib.Path) -> str:
        target = str(folder / f"{source.stem}.o")
        # -isystem: warnings are for our sources, not XLA's headers
        _run([compiler, *FLAGS, "-isystem", str(include_folder()), "-c", str(source), "-o", target])
        return target

    with concurrent.futures.ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cc"))))
    path = folder / "library.so"
    _run([compiler, "-shared", "-pthread", *objects, "-o", str(path)])
    return path


def _run(command: list[str]) -> str:
    """stdout of a compiler command. Raises NativeBuildError with the first lines it wrote when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise NativeBuildError(f"native kernels: {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()][:MESSAGE_LINES]
        shown = " | ".join(lines) or f"exit code {done.returncode}"
        raise NativeBuildError(f"native kernels: {command[0]} failed: {shown}")
    return done.stdout
