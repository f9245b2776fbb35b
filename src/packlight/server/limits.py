"""Every bound of the server that no request may cross, each with its default."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, and all clients together, may take."""

    head: int = 64 << 10  # bytes of a request line with its headers; 431 beyond
    headers: int = 100  # of a request; 431 beyond
    body: int = 16 << 20  # bytes; 413 beyond
    dropped: int = 64 << 20  # bytes of a refused body that are read, for clients that listen after it; cut beyond
    bodies: int = 256 << 20  # bytes of all bodies that are held at once; 503 beyond
    depth: int = 64  # brackets of JSON inside each other; 400 beyond
    head_seconds: float = 10.0  # from the first byte of a head, or from the connection, to the head's end; 408 beyond
    body_seconds: float = 60.0  # from the head's end to the body's; 408 beyond
    keep_alive_seconds: float = 75.0  # that a connection may say nothing between two requests
    sockets: int = 512  # connections at once; beyond, the one that is idle longest goes, or the new one gets a 503
    idle_seconds: float = 1.0  # that a connection has without a request before it may go in favour of a new one
    unread: int = 256 << 10  # bytes that a connection's reader has not taken; who writes waits beyond
    send_seconds: float = 60.0  # that a reader may take nothing at all; cut beyond
    drain_seconds: float = 30.0  # that running requests have to end in when the server is told to end
    queue_timeout: float = 600.0  # seconds that a request may wait for a slot; 503 beyond


def most_waiting(slots: int) -> int:
    """How many requests may wait for one of so many slots; 429 beyond."""
    return max(32, 4 * slots)


def most_waiting_tokens(context: int) -> int:
    """How many tokens the prompts that wait may have together; 429 beyond."""
    return 16 * context
