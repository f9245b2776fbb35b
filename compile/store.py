"""Compiled executables on disk, one file each. Knows bytes and digests; what an executable computes is `compile.aot`'s.

An entry is a pickle around machine code, so to read it is to run it. What is read must have been written by this user:
folder and entry are ours alone, and the entry bears a seal (`common.secret`), so that a folder of entries from someone
else is compiled again, not run. Source of the format: `jax.experimental.serialize_executable`.

    b"packlight-aot-2\n" | HMAC-SHA256 of the rest (32 bytes) | entry digest (64 hex bytes) | pickle
        | what made it, as JSON | its length in 4 bytes, the least first | b"MADE"
"""

import contextlib
import errno
import hmac
import json
import os
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

from packlight.common.files import open_regular, private_folder, remove_abandoned, whole_file
from packlight.common.room import EXECUTABLE, make_room
from packlight.common.secret import SEAL_BYTES, read_own, seal, user_secret
from packlight.common.text import reason, shown_path

MAGIC = b"packlight-aot-2\n"
MADE, MOST_TOLD = b"MADE", 1 << 12  # the mark behind what is told of an entry, and the bytes that may be read of it
MAX_BYTES = 1 << 28  # of an entry; the largest seen, a prefill step for a GPU, has 29 MB


class EntryError(Exception):
    """An entry exists but cannot be used: damaged, foreign or unreadable."""


class Store:
    """A folder of entries. `problem` says in one line why the folder cannot be used, or is None."""

    def __init__(self, folder: pathlib.Path, most_bytes: int = 0):
        """most_bytes: that the kept files of the folder may take together, as in `common.room.make_room`."""
        self.folder, self.problem, self._most_bytes, self._secret = folder, None, most_bytes, b""
        try:
            self.folder = private_folder(folder)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self.folder))
            self._secret = user_secret()
            remove_abandoned(str(self.folder))
        except OSError as error:
            self.problem = f"{shown_path(str(error.filename or folder))}: {reason(error)}"

    def path(self, digest: str) -> pathlib.Path:
        return self.folder / f"{digest}{EXECUTABLE}"

    def read(self, digest: str) -> Any | None:
        """The object stored under `digest`, or None when there is none. Raises EntryError for one not to be used."""
        path = self.path(digest)
        try:
            content = read_own(path, 0o022, MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EntryError(f"{path.name}: {reason(error)}") from None
        start = len(MAGIC) + SEAL_BYTES
        body = memoryview(content)[start:]
        if not hmac.compare_digest(content[:start], MAGIC + seal(self._secret, body)):
            raise EntryError(f"{path.name}: not written by this user, or damaged")
        if body[:64] != digest.encode():
            raise EntryError(f"{path.name}: holds another entry")
        with contextlib.suppress(OSError):
            os.utime(path)  # which says when it was used
        return pickle.loads(body[64:])

    def write(self, digest: str, value: Any, made_by: Mapping[str, str] | None = None) -> None:
        """Stores `value` under `digest`, whole or not at all. Raises OSError; ValueError for what is too large.

        made_by: names and versions, for `made_by` to find.
        """
        told = b"" if made_by is None else json.dumps(made_by).encode()
        end = told + len(told).to_bytes(4, "little") + MADE if told else b""
        body = digest.encode() + pickle.dumps(value) + end  # a pickle says itself where it ends
        whole = len(MAGIC) + SEAL_BYTES + len(body)
        if whole > MAX_BYTES:
            raise ValueError(f"an executable of {len(body):,} bytes is too large")
        make_room(self.folder, whole, self._most_bytes)
        with whole_file(str(self.path(digest)), 0o600) as partial:
            pathlib.Path(partial).write_bytes(MAGIC + seal(self._secret, body) + body)


def made_by(path: pathlib.Path) -> dict[str, str] | None:
    """What an entry says of what made it; None where it says nothing. The seal is not checked. Raises OSError."""
    fd, status = open_regular(path)
    with open(fd, "rb") as file:
        file.seek(max(0, status.st_size - MOST_TOLD))
        tail = file.read(MOST_TOLD)
    length = int.from_bytes(tail[-len(MADE) - 4 : -len(MADE)], "little")
    if not tail.endswith(MADE) or not 0 < length <= len(tail) - len(MADE) - 4:
        return None
    try:
        told = json.loads(tail[-len(MADE) - 4 - length : -len(MADE) - 4])
    except (ValueError, RecursionError):
        return None
    return {str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else None
