"""SentencePiece's unigram model as llama.cpp runs it (T5, XLM-RoBERTa): a text is normalized by the file's own table of
replacements, and of all ways to cut it into tokens the one with the highest sum of scores is taken.

Knows tokens, their scores and types. Knows no GGUF file, and not where special tokens cut a text.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_ugm_session.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from packlight.common.errors import GGUFError
from packlight.model.text.bpe import SPACE, cached
from packlight.model.text.lookup import Lookup
from packlight.model.text.specials import TokenType
from packlight.model.text.spm import between_words

_PENALTY = np.float32(10)  # how much less than the worst token an unknown character scores
_WIDTHS = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)  # bytes of a character, by the upper half of its first
_LOWEST = -np.finfo(np.float64).max
_EXACT_BITS = 53  # of a float64
_MARK = SPACE.encode()


class Replacements:
    """The table that normalizes a text: what replaces the longest of its strings that a text has at a place.

    A compact double array (Kanda 2018) leads from a string, byte by byte, to its replacement, which a zero ends:

        u32 size                 of the array, in bytes
        u32 unit[size / 4]       bits 0-7 label, 8 is_leaf, 10-30 base (times 256 if bit 9)
                                 behind a leaf: bits 0-30 where its replacement begins, bit 31 set
        u8  replacement[]
    """

    def __init__(self, table: bytes) -> None:
        """Raises GGUFError for a table without its parts."""
        size = int.from_bytes(table[:4], "little")
        if len(table) < 4 or size + 4 >= len(table):
            _fail(f"has {len(table)} bytes, too few for an array of {size} and replacements")
        self._units = np.frombuffer(table, "<u4", size // 4, 4).tolist()
        self._replacements = table[4 + size :]

    def longest(self, text: bytes, at: int) -> tuple[bytes, int]:
        """What replaces the longest string of the table that `text` has at `at`, and its length, 0 if there is none.

        Raises GGUFError where the table leads outside itself.
        """
        units, length, place = self._units, 0, 0
        if not units:
            return b"", 0
        try:
            node = _base(units[0])
            for i in range(at, len(text)):
                byte = text[i]
                node ^= byte
                unit = units[node] if byte else 0
                if not byte or unit & 0x800000FF != byte:
                    break
                node ^= _base(unit)
                if unit & 0x100:
                    length, place = i - at + 1, units[node] & 0x7FFFFFFF
        except IndexError:
            _fail("leads outside its array")
        if not length:
            return b"", 0
        end = self._replacements.find(b"\0", place)
        if end < 0:
            _fail("leads outside its replacements")
        return self._replacements[place:end], length


def _base(unit: int) -> int:
    return ((unit >> 10) << ((unit & 0x200) >> 6)) & 0xFFFFFFFF


def _fail(what: str) -> NoReturn:
    raise GGUFError(f"key 'tokenizer.ggml.precompiled_charsmap' {what}")


@dataclass(frozen=True)
class Spaces:
    """What becomes of a text's spaces."""

    prefix: bool  # a text that is not blank gets one before it
    merged: bool  # several become one, those at the end none, and a text gets one before it


class UGM:
    """Plain text to ids. What it looks tokens up in is built by the first `encode`, for the sake of a fast start."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        scores: np.ndarray,
        types: np.ndarray,
        free: np.ndarray,
        unknown: int,
        replacements: Replacements | None,
        spaces: Spaces,
    ) -> None:
        """`vocab`: token -> id, in the order of the ids; `scores` (V,) float32 and `types` (V,) int32 of its tokens;
        `free` (V,) bool: tokens that score 0, whatever `scores` has; `unknown`: the id of what no token spells.
        """
        self._vocab, self._types, self._unknown = vocab, types, unknown
        self._replacements, self._spaces = replacements, spaces
        worst = scores[types == TokenType.NORMAL].min(initial=np.finfo(np.float32).max)
        self._unknown_score = float(worst - _PENALTY)
        self._scores = np.where(free, 0, scores.astype(np.float64))
        self._word_ids = cached(lambda word: _best(word, self._table, self._unknown, self._unknown_score))

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens. begins: whether no text comes before it.

        Raises GGUFError where the file's table of replacements is damaged.
        """
        raw = self._spaced(self._replaced(text.encode()), begins)
        try:
            normal = raw.decode()
        except UnicodeDecodeError:
            parts = [_best(raw, self._byte_table, self._unknown, self._unknown_score)]
        else:
            words = self._between_words.split(normal) if len(normal) < self._exact_length else [normal]
            parts = map(self._word_ids, words)
        ids, unknown, before = [], self._unknown, -1
        for i in itertools.chain.from_iterable(parts):
            if i != unknown or before != unknown:  # neighbours that are unknown are one
                ids.append(i)
            before = i
        return ids

    @functools.cached_property
    def _table(self) -> Lookup:
        """Of tokens that plain text may become, id and score."""
        usable = np.isin(self._types, (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)).tolist()
        rows = zip(self._vocab.items(), self._scores.tolist(), usable, strict=True)
        return Lookup.of({token: (i, score) for (token, i), score, use in rows if use})

    @functools.cached_property
    def _byte_table(self) -> Lookup:
        """The same tokens, for a text that is not UTF-8."""
        return Lookup.of({token.encode(): row for token, row in self._table.rows.items()})

    @functools.cached_property
    def _between_words(self) -> re.Pattern[str]:
        return between_words(self._table.rows)

    @functools.cached_property
    def _exact_length(self) -> float:
        """How long a text may be for its words to be cut apart.

        The best cut of a word is that which it has in its text as long as sums of scores are exact: then what stands
        before the word changes no comparison. In float64 they are while they stay below 2^53 times the lowest bit that
        any score has.
        """
        scores = np.abs(np.append(self._scores, self._unknown_score))
        scores = scores[scores > 0]
        if not np.isfinite(scores).all():
            return 0
        fractions, exponents = np.frexp(scores)
        whole = np.ldexp(fractions, _EXACT_BITS).astype(np.int64)
        lowest = np.ldexp((whole & -whole).astype(np.float64), exponents - _EXACT_BITS)
        return float(np.ldexp(lowest.min(initial=1), _EXACT_BITS) / scores.max(initial=1))

    @functools.cached_property
    def _kept(self) -> frozenset[bytes]:
        """What user-defined tokens begin with, in bytes.

        Those are not normalized. llama.cpp does not ask whether a text has all of one: as far as the two agree the text
        is left as it is, and be it to the middle of a character, the rest of which then is not UTF-8.
        """
        user_defined = (self._types == TokenType.USER_DEFINED).tolist()
        tokens = [token.encode() for token, kept in zip(self._vocab, user_defined, strict=True) if kept]
        return frozenset(token[:n] for token in tokens for n in range(1, len(token) + 1))

    def _replaced(self, text: bytes) -> bytes:
        """The text after the replacements, with U+FFFD for what is not UTF-8."""
        kept, replacements = self._kept, self._replacements
        if not kept and replacements is None:
            return text
        parts: list[bytes] = []
        at = 0
        while at < len(text):
            length = 0
            while text[at : at + length + 1] in kept and at + length < len(text):
                length += 1
            new = text[at : at + length]
            if not length and replacements is not None:
                new, length = replacements.longest(text, at)
            if not length:
                length = _WIDTHS[text[at] >> 4]
                new = b"\xef\xbf\xbd" if text[at] & 0xC0 == 0x80 else text[at : at + length]
            parts.append(new)
            at += length
        return b"".join(parts)

    def _spaced(self, text: bytes, begins: bool) -> bytes:
        """The text with U+2581 for its spaces."""
        if not self._spaces.merged:
            prefixed = begins and self._spaces.prefix and text.strip(b" ")
            return (_MARK if prefixed else b"") + text.replace(b" ", _MARK)
        words = [word for word in text.split(b" ") if word]
        prefixed = words and (begins or text.startswith(b" "))
        return (_MARK if prefixed else b"") + _MARK.join(words)


def _best(text: str | bytes, table: Lookup, unknown: int, unknown_score: float) -> Sequence[int]:
    """The ids of the cut of `text` that scores highest. Of equal ones that counts which is met first from the left.

    A character that is no token may also be unknown, and each by itself.
    """
    if not text:
        return ()
    n, rows, lengths = len(text), table.rows, table.lengths
    scores: list[float] = [0.0] + [_LOWEST] * n  # of the best cut that ends here
    begins, ids = [0] * (n + 1), [unknown] * (n + 1)  # of its last token
    at = 0
    while at < n:
        first, score = text[at], scores[at]
        width = 1 if isinstance(first, str) else min(_WIDTHS[first >> 4], n - at)
        single = False
        for length in lengths.get(first, ()):
            end = at + length
            row = rows.get(text[at:end]) if end <= n else None
            if row is not None:
                single = single or length == width
                if score + row[1] > scores[end]:
                    scores[end], begins[end], ids[end] = score + row[1], at, row[0]
        at += width
        if not single and score + unknown_score > scores[at]:
            scores[at], begins[at], ids[at] = score + unknown_score, at - width, unknown
    found = [ids[n]]
    at = begins[n]
    while at:
        found.append(ids[at])
        at = begins[at]
    return tuple(reversed(found))
