"""Files that appear whole or not at all, files whose reading ends, folders that are the user's alone."""

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator


def partial_path(path: str) -> str:
    """Where `whole_file` of this process keeps what is to become `path`."""
    return f"{path}.{os.getpid()}.tmp"


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """The path of a file to write in place of `path`, whose name it takes at the end; it goes away when that fails."""
    partial = partial_path(path)
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


def cache_folder() -> pathlib.Path:
    """packlight/ in the user's cache folder; it may begin with `~` and need not exist."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "packlight"


def private_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder at `path`, made where it is not there, for files that run as the user who reads them.

    Raises OSError, whose strerror says why: it cannot be made, or someone else owns it or may write to it.
    """
    try:
        folder = path.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (RuntimeError, ValueError) as error:  # no home folder; a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "belongs to another user", str(folder))
    if status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "other users may write to it", str(folder))
    return folder
