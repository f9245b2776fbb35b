"""The socket that a server listens on, and how many connections its process may have."""

import errno
import socket

from packlight.common.errors import ConfigError
from packlight.common.text import reason

BACKLOG = 512  # connections that the system holds before they are accepted
FILES = 128  # files that a process needs for anything but connections


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError naming the flag that is wrong."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port={port} is none of 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host={host}: {reason(error)}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)  # unless TCP is named, asyncio leaves Nagle's 40 ms delay on
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        flag = f"--port={port}" if error.errno in (errno.EADDRINUSE, errno.EACCES) else f"--host={host}"
        raise ConfigError(f"{flag}: {reason(error)}") from None
    listener.setblocking(False)
    return listener


def make_room(sockets: int) -> int:
    """How many connections this process may have of so many: its limit of open files is raised where it may be."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sockets
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < sockets + FILES:
        soft = sockets + FILES if hard == resource.RLIM_INFINITY else min(hard, sockets + FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return sockets if soft == resource.RLIM_INFINITY else max(1, min(sockets, soft - FILES))
