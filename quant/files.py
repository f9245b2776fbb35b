"""Files that appear whole or not at all, and files whose reading ends."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """The path of a file to write in place of `path`, whose name it takes at the end; it goes away when that fails."""
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def open_regular(path: str | os.PathLike) -> tuple[int, os.stat_result]:
    """A descriptor and the status of the regular file at `path`.

    Raises OSError, also for what is no regular file: a pipe may never have a writer, a device never ends. Raises
    ValueError for what cannot be a path.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status
    os.close(fd)
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
    raise OSError(errno.EINVAL, f"{kind}, not a regular file", os.fspath(path))
