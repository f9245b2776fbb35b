"""What packlight keeps on disk between runs: executables, mapped weights, native kernels, what killed processes left.
Imports no jax.

It lists them with what made each, tells which of them this installation never reads again, and removes them. What a
living process holds stays: a file that is being written, weights that are mapped, the kernels that run.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from packlight.common.errors import ConfigError
from packlight.common.files import is_held, is_unfinished
from packlight.common.room import EXECUTABLE, SEAL, WEIGHTS, remove_kept, used_at
from packlight.common.text import reason, shown_path
from packlight.compile.config import CompileConfig
from packlight.compile.origin import origin
from packlight.compile.store import made_by
from packlight.model.weights import mapped
from packlight.quant.kernels.native_build import builds_folder, own_build

FACTS = {"sources": "sources", "jax": "jax", "jaxlib": "jaxlib", "python": "Python", "cpu": "CPU"}


@dataclasses.dataclass(frozen=True)
class Kept:
    """One file, or folder of an unfinished build."""

    path: pathlib.Path
    kind: str  # executable, weights, kernels or unfinished
    bytes: int
    modified: float  # seconds since 1970; of executables and weights, when they were used last
    made_by: dict[str, str]  # empty where it does not say
    stale: str | None  # why this installation never reads it again, or None
    held: bool  # by a living process


def folders(config: CompileConfig) -> tuple[pathlib.Path, pathlib.Path]:
    """Where executables and weights lie under a config, and where native kernels under all. Raises ConfigError."""
    try:
        return config.store_dir.expanduser(), builds_folder()
    except RuntimeError as error:
        raise ConfigError(f"the cache folder: {error}") from None


def kept(config: CompileConfig) -> list[Kept]:
    """Everything that is kept under a config, the oldest first. Raises ConfigError for a folder that cannot be read."""
    where, library = folders(config), own_build()
    return sorted((each for folder in where for each in _in_folder(folder, library)), key=lambda each: each.modified)


def remove(files: Iterable[Kept]) -> list[Kept]:
    """Removes files unless a living process holds them; those that went. Raises ConfigError."""
    gone = []
    for each in files:
        try:
            if remove_kept(each.path):
                gone.append(each)
        except FileNotFoundError:
            continue  # another process was quicker
        except OSError as error:
            raise ConfigError(f"{shown_path(str(each.path))}: {reason(error)}") from None
    return gone


def _in_folder(folder: pathlib.Path, library: pathlib.Path | None) -> Iterator[Kept]:
    """What lies in a folder and is ours by its name. library: the kernels that this installation builds."""
    try:
        entries = [*os.scandir(folder)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{shown_path(str(folder))}: {reason(error)}") from None
    for entry in entries:
        path = pathlib.Path(entry.path)
        if entry.is_symlink():
            continue
        try:
            if is_unfinished(entry.name):
                yield _kept(path, "unfinished", {}, "its process was killed")
            elif path.suffix == EXECUTABLE:
                by = made_by(path) or {}
                yield _kept(path, "executable", by, _other(by))
            elif path.suffix == WEIGHTS:
                yield _kept(path, "weights", *mapped.told(path))
            elif path.suffix == SEAL and not path.with_suffix(WEIGHTS).exists():
                yield _kept(path, "weights", {}, "its weights are gone")
            elif folder == builds_folder() and path.suffix == ".failed":
                yield _kept(path, "kernels", {}, "a compiler failed")
            elif folder == builds_folder() and path.suffix in (".so", ".unloadable"):
                ours = library is not None and path.stem == library.stem
                yield _kept(path, "kernels", {}, None if ours else "another compiler, or other sources")
        except FileNotFoundError:
            continue  # renamed or removed meanwhile
        except OSError as error:
            raise ConfigError(f"{shown_path(str(path))}: {reason(error)}") from None


def _kept(path: pathlib.Path, kind: str, by: dict[str, str], stale: str | None) -> Kept:
    status = path.stat()
    size = sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else status.st_size
    return Kept(path, kind, size, used_at(path), by, stale, is_held(str(path)))


def _other(by: dict[str, str]) -> str | None:
    """In what an executable's origin differs from this installation, in words; None where in nothing."""
    if not by:
        return "an older packlight"
    here = origin(on_cpu=bool(by.get("cpu")))
    differ = [name for key, name in FACTS.items() if by.get(key) != here[key]]
    return f"other {', '.join(differ)}" if differ else None


def as_json(each: Kept) -> dict[str, Any]:
    """A file as plain data."""
    return dataclasses.asdict(each) | {"path": str(each.path)}
