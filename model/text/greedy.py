"""RWKV's encoding as llama.cpp does it: at each place the longest token that the text has there.

Knows tokens, whose bytes are written with escapes. Knows no special token and no GGUF file.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_rwkv_session.
"""

import functools
from collections.abc import Mapping

from packlight.common.errors import GGUFError
from packlight.model.text.lookup import Lookup

_ESCAPES = {ord("t"): ord("\t"), ord("n"): ord("\n"), ord("r"): ord("\r")}


def piece(token: str) -> bytes:
    """The bytes a token stands for: `\\t`, `\\n`, `\\r`, `\\x0a`, and any other character behind a backslash itself."""
    raw, out, at = token.encode(), bytearray(), 0
    while at < len(raw):
        if raw[at] != ord("\\"):
            out.append(raw[at])
            at += 1
        elif raw[at + 1 : at + 2] != b"x":
            out.extend(_ESCAPES.get(byte, byte) for byte in raw[at + 1 : at + 2])
            at += 2
        else:
            digits = raw[at + 2 : at + 4]
            if len(digits) == 2:
                out.append((16 * _digit(digits[0]) + _digit(digits[1])) & 0xFF)
            at += 4
    return bytes(out)


def _digit(byte: int) -> int:
    """A digit of a byte in hexadecimal: llama.cpp reads small letters only, and makes 17 of "A"."""
    return byte - (ord("a") - 10 if byte >= ord("a") else ord("0"))


class Greedy:
    """Plain text to ids. Tokens are read by the first `encode`, for the sake of a fast start."""

    def __init__(self, vocab: Mapping[str, int], unknown: int | None) -> None:
        """`vocab`: token -> id; `unknown`: the id of a byte with which no token begins."""
        self._vocab, self._unknown = vocab, unknown

    @functools.cached_property
    def _ids(self) -> Lookup:
        return Lookup.of({piece(token): i for token, i in self._vocab.items()})

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands.

        Raises GGUFError for a byte that is no token, where tokens begin with it (llama.cpp then never returns) or the
        vocabulary has no unknown one.
        """
        raw, ids, at = text.encode(), [], 0
        while at < len(raw):
            found = self._ids.longest(raw, at)
            if found is None and (self._unknown is None or raw[at] in self._ids.lengths):
                raise GGUFError(f"key 'tokenizer.ggml.tokens' has no token for the byte 0x{raw[at]:02X}")
            token, length = found or (self._unknown, 1)
            ids.append(token)
            at += length
        return ids
