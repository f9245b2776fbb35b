"""Generated ids to text while they come: whole characters only, and nothing that may yet prove to be a stop string.

Knows bytes, UTF-8 and stop strings. Knows no vocabulary and not when to end: the caller leaves the end token out.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from packlight.common.errors import ConfigError


class Pieces(Protocol):
    """What a stream asks of a tokenizer."""

    def piece(self, token_id: int, /) -> bytes:
        """The bytes of one token."""
        ...


class StopStrings:
    """Text up to a stop string, of which nothing is given out that may yet prove to be one."""

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        """Raises ConfigError for a stop string that is empty or no string."""
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(s, str) and s for s in self._stop):
            raise ConfigError(f"stop strings must be non-empty strings, not {list(self._stop)!r}")
        self._held = ""
        self.stopped = False

    def take(self, text: str, final: bool) -> str:
        """What became safe to show with this text; "" for good once `stopped`. final: no text follows this one."""
        if self.stopped:
            return ""
        held = self._held + text
        found = min((at for s in self._stop if (at := held.find(s)) >= 0), default=-1)
        # One that may be coming goes first if it starts before the one found: of "b" and "abc", "ab" cannot tell yet.
        open_end = len(held) if final else unfinished(held, self._stop)
        self.stopped = 0 <= found <= open_end
        end = found if self.stopped else open_end
        self._held = "" if self.stopped else held[end:]
        return held[:end]


class TextStream:
    """Text of a growing sequence of ids.

    What `feed` and `finish` returned, joined, is the pieces' bytes joined, decoded with U+FFFD for what is not UTF-8,
    and cut before the stop string that starts first in that text, however the bytes are spread over the ids.
    """

    def __init__(self, tokenizer: Pieces, stop: str | Sequence[str] = ()) -> None:
        """Raises ConfigError for a stop string that is empty or no string."""
        self._stop = StopStrings(stop)
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def feed(self, token_id: int) -> str:
        """The text that became safe to show with this id; "" for good once `stopped`."""
        return self._stop.take(self._decoder.decode(self._tokenizer.piece(token_id)), final=False)

    def finish(self) -> str:
        """What was held back, bytes of an unfinished character as U+FFFD; after it there is nothing left to return."""
        return self._stop.take(self._decoder.decode(b"", final=True), final=True)


def unfinished(text: str, wanted: Sequence[str]) -> int:
    """Where the longest end of `text` starts that is the beginning of one of these strings and not all of it."""
    longest = max((n for s in wanted for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
    return len(text) - longest
