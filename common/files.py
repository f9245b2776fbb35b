"""Files that appear whole or not at all, files whose reading ends, folders that are the user's alone."""

import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Iterator

from packlight.common.cleanup import undone

_UNFINISHED = re.compile(r"(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)  # the name that is to come, or the scratch folder's own


@contextlib.contextmanager
def whole_file(path: str, mode: int = 0o666) -> Iterator[str]:
    """The path of an empty file to write in place of `path`, whose name it takes at the end.

    It goes away when that fails, also when a signal ends the process. What a killed process left of `path` goes first.
    mode: the file's permissions, less the umask. Raises OSError.
    """
    remove_abandoned(os.path.dirname(path), os.path.basename(path))

    def make(partial: str) -> None:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))

    with _claimed(path, make, os.unlink) as partial:
        yield partial
        os.replace(partial, path)


@contextlib.contextmanager
def scratch_folder(parent: str, name: str) -> Iterator[str]:
    """A new folder of the user alone, gone at the end as a `whole_file` is; name: what it is for. Raises OSError."""
    remove_abandoned(parent, name)
    with _claimed(os.path.join(parent, name), lambda folder: os.mkdir(folder, 0o700), _remove_tree) as folder:
        yield folder


def remove_abandoned(folder: str, name: str | None = None) -> None:
    """Removes the unfinished files and scratch folders that killed processes left in a folder; only those for `name`.

    A living process holds a lock on each of its own. The system takes the lock from a dead one, so that neither its
    number, which another may have by now, nor the age of the file has to be judged.
    """
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            unfinished = _UNFINISHED.fullmatch(entry.name)
            if unfinished and name in (None, unfinished[1]) and not entry.is_symlink():
                with contextlib.suppress(OSError):
                    remove_unheld(entry.path)


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of a `whole_file` or a `scratch_folder` before its end."""
    return _UNFINISHED.fullmatch(name) is not None


def hold(path: str) -> None:
    """As long as this process lives, `remove_unheld` leaves the file at `path`. Nothing where there are no locks."""
    _locked(path, wait=False, shared=True)


def hold_open(fd: int) -> None:
    """As long as this descriptor, or a copy of it, is open, `remove_unheld` leaves its file; as `hold`."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # not on Windows

        fcntl.flock(fd, fcntl.LOCK_SH)  # others hold it alone for a moment only


def is_held(path: str) -> bool:
    """Whether a living process holds the file or folder at `path`, which other users' are taken to be."""
    lock = _locked(path, wait=False)
    if lock is not None:
        os.close(lock)
    return lock is None


def remove_unheld(path: str) -> bool:
    """Removes this user's file or folder at `path` unless a living process holds it; whether it did. Raises OSError."""
    lock = _locked(path, wait=False)
    if lock is None:
        return False
    try:
        if os.stat(path).st_uid != os.geteuid():
            return False
        _remove_tree(path) if os.path.isdir(path) else os.unlink(path)
        return True
    finally:
        os.close(lock)


@contextlib.contextmanager
def _claimed(path: str, make: Callable[[str], None], remove: Callable[[str], None]) -> Iterator[str]:
    """The path of what `make` made beside `path`, locked; it is removed at the end, unless it was renamed."""
    lock, there = None, False
    while not there:
        partial = f"{path}.{os.urandom(4).hex()}.tmp"
        with undone(functools.partial(remove, partial)):
            make(partial)
            lock = _locked(partial, wait=True)
            there = os.path.exists(partial)  # else it seemed abandoned before it was locked
            try:
                if there:
                    yield partial
            finally:
                with contextlib.suppress(OSError):
                    remove(partial)
                if lock is not None:
                    os.close(lock)


def _locked(path: str, wait: bool, shared: bool = False) -> int | None:
    """A descriptor that holds the lock of a file or folder; None where another holds it or there are no locks.

    shared: beside others that share it.
    """
    try:
        import fcntl  # not on Windows

        mode = os.O_RDONLY if shared or os.path.isdir(path) else os.O_RDWR
        fd = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove_tree(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


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
