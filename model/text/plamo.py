"""PLaMo 2's encoding as llama.cpp does it: of all ways to cut a text into tokens that with the highest sum of scores,
in whole ten-thousandths; a character that no token has is spelled in bytes.

Knows tokens and scores. Knows no special token and no GGUF file.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_plamo2.
"""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from packlight.common.errors import GGUFError
from packlight.model.text.bpe import byte_token
from packlight.model.text.lookup import Lookup

_SCALE = 1e4
_UNKNOWN = -10_000_000  # of a character in bytes
_INVALID = -20_000_000  # tokens that score no more than this are never taken
_BYTE_ORDER_MARK = "\ufeff"


def piece(token: str) -> bytes:
    """The bytes a normal token stands for."""
    return token.encode()


class Plamo:
    """Plain text to ids. What it looks tokens up in is built by the first `encode`, for the sake of a fast start."""

    def __init__(self, vocab: Mapping[str, int], scores: np.ndarray, is_byte: np.ndarray) -> None:
        """`vocab`: token -> id, in the order of the ids; `scores` (V,) float32, `is_byte` (V,) bool of its tokens.

        Raises GGUFError for a byte that is no token.
        """
        for token in map(byte_token, range(256)):
            if not vocab.get(token) or not is_byte[vocab[token]]:  # llama.cpp takes an id 0 for none
                raise GGUFError(f"key 'tokenizer.ggml.tokens' has no byte token '{token}'")
        self._vocab, self._scores, self._is_byte = vocab, scores, is_byte

    @functools.cached_property
    def _table(self) -> Lookup:
        """Of tokens that text may become, id and score."""
        scores = np.where(np.isfinite(self._scores), self._scores, _INVALID).astype(np.float64) * _SCALE
        scores = np.trunc(scores + np.copysign(0.5, scores))  # to the nearest, ties away from zero
        rows = zip(self._vocab.items(), scores.tolist(), self._is_byte.tolist(), strict=True)
        return Lookup.of({t: (i, int(score)) for (t, i), score, byte in rows if not byte and score > _INVALID})

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands, but that U+FEFF is
        left out where it comes first.
        """
        return list(self._cut(text.removeprefix(_BYTE_ORDER_MARK)))

    def _cut(self, text: str) -> Iterator[int]:
        n, rows, lengths = len(text), self._table.rows, self._table.lengths
        scores, ends, ids = [0] * (n + 1), [0] * n, [-1] * n  # of the best cut from here on, and of its first token
        for at in range(n - 1, -1, -1):
            best = None
            for length in lengths.get(text[at], ()):
                row = rows.get(text[at : at + length]) if at + length <= n else None
                if row is not None and (best is None or scores[at + length] + row[1] > best):
                    best, ends[at], ids[at] = scores[at + length] + row[1], at + length, row[0]
            if best is None or scores[at + 1] + _UNKNOWN > best:
                best, ends[at], ids[at] = scores[at + 1] + _UNKNOWN, at + 1, -1
            scores[at] = best
        at = 0
        while at < n:
            if ids[at] >= 0:
                yield ids[at]
            else:
                yield from (self._vocab[byte_token(byte)] for byte in text[at].encode())
            at = ends[at]
