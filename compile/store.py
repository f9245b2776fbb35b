"""Compiled executables on disk, one file each. Knows bytes and digests; what an executable computes is `compile.aot`'s.

An entry is a pickle, so the folder must be ours alone: it is created 0700, and a folder or entry that belongs to
someone else, or that others may write, is not used. Source of the format: `jax.experimental.serialize_executable`.

    b"packlight-aot-1\n" | sha256 of the rest (32 bytes) | entry digest (64 hex bytes) | pickle
"""

import hashlib
import os
import pathlib
import pickle
import stat
import tempfile
from typing import Any

MAGIC = b"packlight-aot-1\n"


class EntryError(Exception):
    """An entry exists but cannot be used: damaged, foreign or unreadable."""


class Store:
    """A folder of entries. `problem` says in one line why the folder cannot be used, or is None."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.problem = self._open()

    def _open(self) -> str | None:
        try:
            self.folder = self.folder.expanduser()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.stat()
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        except (RuntimeError, ValueError) as error:  # no home folder; a NUL in the path
            return f"{str(self.folder)!r}: {error}"
        if not stat.S_ISDIR(status.st_mode):
            return f"{self.folder}: not a folder"
        if status.st_uid != os.geteuid():
            return f"{self.folder}: belongs to another user"
        if status.st_mode & 0o022:
            return f"{self.folder}: other users may write to it"
        if not os.access(self.folder, os.W_OK | os.X_OK):
            return f"{self.folder}: not writable"
        return None

    def path(self, digest: str) -> pathlib.Path:
        return self.folder / f"{digest}.aot"

    def read(self, digest: str) -> Any | None:
        """The object stored under `digest`, or None when there is none. Raises EntryError for one not to be used."""
        path = self.path(digest)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    raise EntryError(f"{path.name}: other users own it or may write to it")
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EntryError(f"{path.name}: {error.strerror}") from None
        body = content[len(MAGIC) + 32 :]
        if not content.startswith(MAGIC) or hashlib.sha256(body).digest() != content[len(MAGIC) : len(MAGIC) + 32]:
            raise EntryError(f"{path.name}: damaged")
        if body[:64] != digest.encode():
            raise EntryError(f"{path.name}: holds another entry")
        return pickle.loads(body[64:])

    def write(self, digest: str, value: Any) -> None:
        """Stores `value` under `digest`, whole or not at all. Raises OSError."""
        body = digest.encode() + pickle.dumps(value)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
            try:
                file.write(MAGIC + hashlib.sha256(body).digest() + body)
                file.flush()
                os.replace(file.name, self.path(digest))
            except BaseException:
                os.unlink(file.name)
                raise
