"""Files that appear whole or not at all."""

import contextlib
import os
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
