"""The native library that comes with a wheel of a platform: found, checked and loaded. Imports no jax.

It knows where the library lies, what it must have been made of and for which versions of XLA's FFI. What its functions
mean is `quant.kernels.native_ops`'s; building one here is `quant.kernels.native_build`'s.
"""

import ctypes
import hashlib
import importlib.util
import pathlib
import platform
import re
from typing import NamedTuple

from packlight.common.text import reason

FOLDER = pathlib.Path(__file__).parent / "prebuilt"  # only wheels of a platform have it
SUFFIXES = {"Linux": "so", "Darwin": "dylib", "Windows": "dll"}  # system -> how its libraries are called
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of the same machine


class Library(ctypes.CDLL):
    """The kernels in this process."""

    origin = "from the wheel"  # where the file comes from, in words
    note: str | None = None  # what the user should know of how it got here, or None


class Found(NamedTuple):
    """The library of the installed package, or why it is not used. Neither is there in a pure wheel."""

    library: Library | None = None
    digest: str = ""  # of the library's bytes, 32 hex digits
    problem: str | None = None


def file_name(system: str, machine: str, sources: str) -> str:
    """What a library for `platform.system()` and `platform.machine()` is called, made of sources with this digest."""
    machine = MACHINES.get(machine.lower(), machine.lower())
    return f"{system.lower()}-{machine}-{sources}.{SUFFIXES.get(system, 'so')}"


def sources_digest(folder: pathlib.Path) -> str:
    """Names the C++ sources in a folder by their names and contents, as 32 hex digits."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.cc"), *folder.glob("*.h")]):
        text = path.read_bytes().replace(b"\r\n", b"\n")  # as some checkouts have it
        digest.update(path.name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()[:32]


def include_folder() -> pathlib.Path:
    """Where jaxlib keeps the headers of XLA's FFI: `jax.ffi.include_dir()` without importing jax."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return pathlib.Path(spec.submodule_search_locations[0]) / "include"


def ffi_version() -> tuple[int, int]:
    """The version of XLA's FFI, major and minor, that the installed jaxlib has."""
    header = (include_folder() / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    assert major is not None
    assert minor is not None
    return int(major[1]), int(minor[1])


def load(sources: str) -> Found:
    """The library that came with the package, if it is made of `sources` and fits this machine and its jaxlib."""
    wanted = FOLDER / file_name(platform.system(), platform.machine(), sources)
    try:
        there = sorted(path.name for path in FOLDER.iterdir())
    except FileNotFoundError:
        return Found()
    except OSError as error:
        return _unfit(f"{FOLDER}: {reason(error)}")
    if wanted.name not in there:
        if not there:
            return Found()
        return _unfit(f"{FOLDER} has {', '.join(there)} and not {wanted.name}, which these sources want here")
    try:
        digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:32]
        library = Library(str(wanted))
        made_for = library.packlight_ffi_major(), library.packlight_ffi_minor()
    except (OSError, AttributeError) as error:
        return _unfit(f"{wanted}: {error}")
    here = ffi_version()
    if not fits(made_for, here):
        made, has = (".".join(map(str, version)) for version in (made_for, here))
        return _unfit(f"{wanted} is made for version {made} of XLA's FFI, and jaxlib has {has}")
    return Found(library, digest)


def _unfit(why: str) -> Found:
    return Found(problem=f"native kernels: {why}")


def fits(made_for: tuple[int, int], here: tuple[int, int]) -> bool:
    """Whether an XLA whose FFI has version `here` takes a library that was built for another.

    To be known beforehand: where XLA refuses a library, jax has no CPU at all.
    """
    return made_for[0] == here[0] and made_for[1] <= here[1]
