"""What an executable is made by: the sources, the versions and the CPU that it depends on. Imports no jax.

Executables of other origins are never loaded again by this installation: `packlight cache` tells by it what may go.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform

TRACED = ("quant", "model", "compile")  # the folders whose sources decide what is compiled


def origin(on_cpu: bool) -> dict[str, str]:
    """Names and versions of what makes executables here, and a digest of the CPU for those that run on it."""
    return {
        "packlight": importlib.metadata.version("packlight"),
        "sources": code_hash()[:16],
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": python_version(),
        "cpu": hashlib.sha256(host_features().encode()).hexdigest()[:16] if on_cpu else "",
    }


def python_version() -> str:
    """Python's version without its patch: an executable is a pickle, which any 3.12 reads that another 3.12 wrote."""
    return ".".join(platform.python_version_tuple()[:2])


@functools.cache
def host_features() -> str:
    """The CPU's architecture and, on Linux, its instruction sets: machine code is made for exactly these."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {flags.strip()}"


@functools.cache
def code_hash() -> str:
    """Digest of the sources that are traced: any change to them is another executable."""
    return sources_hash(pathlib.Path(__file__).resolve().parents[1])


def sources_hash(root: pathlib.Path) -> str:
    """Digest of every Python file under the traced folders of `root`, at any depth, with its path from there."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in TRACED for path in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
