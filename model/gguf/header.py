"""The bytes of a GGUF header, read in bounds: numbers, strings and metadata values.

It knows the value types of GGUF and nothing of tensors. Nothing is allocated before the length it needs has been
compared with the file's size, arrays do not nest, and a header past the limits below is refused, so that a hostile file
costs little.
"""

import dataclasses
import os
import struct
from typing import Any, NoReturn

import numpy as np

from packlight.common.errors import GGUFError
from packlight.common.text import reason, shown, shown_path

# Far above any real file (the largest vocabularies: 262,144 tokens, 580,000 merges, 17 MB), and low enough for about
# a second.
MAX_HEADER_BYTES = 256 << 20
MAX_PAIRS = 1 << 16
MAX_STRINGS = 1 << 21
MAX_KEY_BYTES = (1 << 16) - 1  # the specification's

# GGUF value types by number, with the letter that both `struct` and numpy know. Source: the GGUF specification,
# `gguf_metadata_value_type`.
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
NUMBERS = {kind: np.dtype("<" + letter) for kind, letter in _LETTERS.items()}
_SCALARS = {kind: struct.Struct("<" + letter) for kind, letter in _LETTERS.items()}
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
_LENGTH = struct.Struct("<Q")
_FIRST_READ = 1 << 20


@dataclasses.dataclass(frozen=True)
class NotText:
    """A string value that is not UTF-8, or an array with such a string."""

    message: str  # says which string
    escaped: str | list[str]  # the value, a byte that is not UTF-8 as \\xHH


class Metadata(dict[str, Any]):
    """The key-value pairs in file order: str, int, float, bool, list[str], numpy arrays.

    A string that is not UTF-8 does not spoil the file for those who never use it (a chat template, say): `[key]` and
    `get(key)` of it raise GGUFError naming file and key, while `items()` shows a `NotText`. A key that only describes
    the model ("general.name") gives its text with the bytes escaped.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, NotText):
            if key.startswith("general.") and key != "general.architecture":
                return value.escaped
            raise GGUFError(value.message)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401, it would call itself


class Header:
    """A cursor over the start of a file: `pos` moves forward, every read is checked against the file's `size` first."""

    def __init__(self, fd: int, size: int, path: str):
        self.fd, self.size, self.path = fd, size, path
        self.buf, self.pos, self.strings = b"", 0, 0

    def fail(self, message: str) -> NoReturn:
        raise GGUFError(f"{shown_path(self.path)}: {message}")

    def need(self, count: int, what: str) -> int:
        """Makes `count` bytes at the cursor available and moves past them; returns where they start in `buf`."""
        start, end = self.pos, self.pos + count
        if end > len(self.buf):
            self._fill(end, what)
        self.pos = end
        return start

    def _fill(self, end: int, what: str) -> None:
        if end > self.size:
            self.fail(f"{what} runs past the end of the file ({end} > {self.size} bytes)")
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} lies beyond {MAX_HEADER_BYTES >> 20} MiB; no header is that long")
        # Doubling keeps the copies linear; the header's length is not known before it is parsed.
        target = min(self.size, MAX_HEADER_BYTES, max(end, 2 * len(self.buf), _FIRST_READ))
        pieces = [self.buf]
        have = len(self.buf)
        while have < target:
            try:
                piece = os.pread(self.fd, target - have, have)
            except OSError as e:
                self.fail(f"cannot read: {reason(e)}")
            if not piece:
                self.fail(f"the file shrank to {have} bytes while it was read")
            pieces.append(piece)
            have += len(piece)
        self.buf = b"".join(pieces)

    def take(self, count: int, what: str) -> bytes:
        start = self.need(count, what)
        return self.buf[start : start + count]

    def number(self, kind: int, what: str) -> int | float:
        return _SCALARS[kind].unpack(self.take(_SCALARS[kind].size, what))[0]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def raw_string(self, what: str, limit: int | None = None) -> bytes:
        """A length and that many bytes; more than `limit` are refused before they are read."""
        length = self.u64(f"length of {what}")
        if limit is not None and length > limit and self.pos + length <= self.size:
            self.fail(f"{what} has {length} bytes, more than the {limit} allowed")
        return self.take(length, what)

    def name(self, what: str, limit: int) -> str:
        """A key or a tensor's name: 1 to `limit` bytes of UTF-8 without NUL."""
        raw = self.raw_string(what, limit)
        if not raw:
            self.fail(f"{what} is empty")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} '{shown(raw)}' is not UTF-8")
        if "\0" in text:
            self.fail(f"{what} '{shown(text)}' holds a NUL")
        return text

    def value(self, kind: int, what: str) -> Any:
        """One metadata value of type number `kind`."""
        if kind in NUMBERS:
            return self.number(kind, what)
        if kind == BOOL:
            return bool(self._bools(1, what)[0])
        if kind == STRING:
            raw = self.raw_string(what)
            return self._texts([raw], what, "")[0]
        if kind == ARRAY:
            return self._array(what)
        return self.fail(f"{what} has the unknown value type {kind}")

    def _array(self, what: str) -> Any:
        kind, count = self.u32(what), self.u64(what)
        if kind in NUMBERS:
            self._room(count, NUMBERS[kind].itemsize, what)
            at = self.need(count * NUMBERS[kind].itemsize, what)
            # a copy, so that one small array does not keep the whole header alive
            return np.frombuffer(self.buf, NUMBERS[kind], count, at).copy()
        if kind == BOOL:
            self._room(count, 1, what)
            return self._bools(count, what)
        if kind == STRING:
            return self._strings(count, what)
        if kind == ARRAY:
            self.fail(f"{what} is an array of arrays, which no model uses")
        return self.fail(f"{what} is an array of the unknown value type {kind}")

    def _room(self, count: int, size: int, what: str) -> None:
        if count * size > self.size - self.pos:
            self.fail(f"{what} says {count} elements; the file has {self.size - self.pos} bytes left")

    def _bools(self, count: int, what: str) -> np.ndarray:
        at = self.need(count, what)
        values = np.frombuffer(self.buf, np.uint8, count, at)
        if (values > 1).any():
            self.fail(f"{what} is a bool of value {values.max()}, neither 0 nor 1")
        return values.astype(bool)

    def _strings(self, count: int, what: str) -> "list[str] | NotText":
        """`count` strings: the hot loop of an open (a 128k vocabulary has 408,000), hence the local names."""
        self._room(count, 8, what)
        self.strings += count
        if self.strings > MAX_STRINGS:
            self.fail(f"{what} brings the metadata to {self.strings} strings, more than the {MAX_STRINGS} allowed")
        out: list[bytes] = []
        append, length_at = out.append, _LENGTH.unpack_from
        buf, pos, have = self.buf, self.pos, len(self.buf)
        for _ in range(count):
            if pos + 8 <= have:
                start = pos + 8
                end = start + length_at(buf, pos)[0]
                if end <= have:
                    append(buf[start:end])
                    pos = end
                    continue
            self.pos = pos
            append(self.raw_string(f"string {len(out)} of {what}"))
            buf, pos, have = self.buf, self.pos, len(self.buf)
        self.pos = pos
        return self._texts(out, what, "string {} of ")

    def _texts(self, raws: list[bytes], what: str, prefix: str) -> Any:
        """`raws` decoded as [str, ...]; for the first that is not UTF-8 a NotText (for a lone value: [NotText])."""
        try:
            return [raw.decode() for raw in raws]
        except UnicodeDecodeError:
            pass
        escaped = [raw.decode("utf-8", "backslashreplace") for raw in raws]
        i = next(i for i, raw in enumerate(raws) if escaped[i].encode() != raw)
        message = f"{shown_path(self.path)}: {prefix.format(i)}{what} is not UTF-8: '{shown(raws[i])}'"
        return NotText(message, escaped) if prefix else [NotText(message, escaped[0])]


def read_pairs(header: Header, count: int) -> tuple[Metadata, dict[str, int]]:
    """`count` key-value pairs at the cursor, and the value type number of each key."""
    # 14 bytes: the key's length, one byte of key, the type, one byte of value
    if count > MAX_PAIRS or count * 14 > header.size - header.pos:
        header.fail(f"metadata count {count} is more than the file can hold or than the {MAX_PAIRS} allowed")
    pairs, kinds = Metadata(), {}
    for i in range(count):
        key = header.name(f"name of key {i}", MAX_KEY_BYTES)
        what = f"key '{shown(key)}'"
        if key in pairs:
            header.fail(f"{what} appears twice")
        kinds[key] = header.u32(f"type of {what}")
        pairs[key] = header.value(kinds[key], what)
    return pairs, kinds
