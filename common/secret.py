"""What only this user can have written: files of the user's own, and seals that take the user's secret to make.

The secret lies in the user's cache folder wherever the sealed files lie, so that a folder from someone else is not
trusted, even after it was unpacked in our name.
"""

import errno
import hmac
import os
import pathlib
import secrets
import stat

from packlight.common.files import cache_folder, open_regular, private_folder, whole_file

SECRET_BYTES = 32
SEAL_BYTES = 32


def seal(secret: bytes, content: bytes | memoryview) -> bytes:
    """HMAC-SHA256 of what is sealed."""
    return hmac.digest(secret, content, "sha256")


def user_secret() -> bytes:
    """This user's secret, made on first use. Raises OSError."""
    path = private_folder(cache_folder()) / "secret"
    if not path.exists():
        with whole_file(str(path), 0o600) as partial:
            pathlib.Path(partial).write_bytes(secrets.token_bytes(SECRET_BYTES))
    found = read_own(path, 0o077, SECRET_BYTES)  # of processes that came first together, the last one's
    if len(found) != SECRET_BYTES:
        raise OSError(errno.EINVAL, f"has {len(found)} bytes, not {SECRET_BYTES}; delete it", str(path))
    return found


def open_own(path: pathlib.Path, forbidden: int) -> tuple[int, os.stat_result]:
    """`open_regular` of a file that is ours, with none of the `forbidden` permissions. Raises OSError."""
    fd, status = open_regular(path)
    if status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & forbidden:
        return fd, status
    os.close(fd)
    raise PermissionError(errno.EPERM, "other users own it or have access to it", str(path))


def read_own(path: pathlib.Path, forbidden: int, most: int) -> bytes:
    """The content of an own file, of `most` bytes. Raises OSError."""
    fd, status = open_own(path, forbidden)
    with open(fd, "rb") as file:
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, more than {most:,}", str(path))
        return file.read(status.st_size)
