"""The disk that kept files may take in a folder: those that were used longest ago go first. Imports no jax."""

import contextlib
import errno
import pathlib
import shutil
import time
from typing import NamedTuple

from packlight.common.files import is_held, remove_unheld
from packlight.common.text import megabytes

EXECUTABLE, WEIGHTS, SEAL = ".aot", ".weights", ".seal"  # a seal lies beside the weights that it is for
STARTED = time.time()


class _File(NamedTuple):
    used: float  # seconds since 1970
    path: pathlib.Path
    nbytes: int


def used_at(path: pathlib.Path) -> float:
    """When a kept file was last used, in seconds since 1970. Raises OSError where it is gone."""
    seal = path.with_suffix(SEAL)
    return (seal if path.suffix == WEIGHTS and seal.exists() else path).stat().st_mtime


def remove_kept(path: pathlib.Path) -> bool:
    """Removes a kept file, and its seal, unless a living process holds it; whether it did. Raises OSError."""
    if not remove_unheld(str(path)):
        return False
    if path.suffix == WEIGHTS:
        path.with_suffix(SEAL).unlink(missing_ok=True)
    return True


def make_room(folder: pathlib.Path, nbytes: int, most_bytes: int) -> None:
    """Removes kept files until so many bytes more are no more than `most_bytes`, or none where that is no use.

    Executables that were used since this process began stay, and so do weights that a process has mapped. most_bytes: 0
    is no bound. Raises OSError where there is no room.
    """
    if most_bytes:
        files = _kept(folder)
        surplus = nbytes + sum(file.nbytes for file in files) - most_bytes
        going = []
        for file in sorted(files):
            if surplus > 0 and not _in_use(file):
                going.append(file)
                surplus -= file.nbytes
        if surplus > 0:
            most = f"config key 'cache_bytes' allows {megabytes(most_bytes)}"
            raise OSError(errno.EDQUOT, f"{megabytes(nbytes)} are needed, {most}")
        for file in going:
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                remove_kept(file.path)
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OSError(errno.ENOSPC, f"{megabytes(nbytes)} are needed, {megabytes(free)} are free")


def _in_use(file: _File) -> bool:
    return file.used >= STARTED if file.path.suffix == EXECUTABLE else is_held(str(file.path))


def _kept(folder: pathlib.Path) -> list[_File]:
    files = []
    for path in folder.iterdir():
        if path.suffix in (EXECUTABLE, WEIGHTS):
            with contextlib.suppress(FileNotFoundError):
                files.append(_File(used_at(path), path, path.stat().st_size))
    return files
