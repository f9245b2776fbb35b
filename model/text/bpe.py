"""Byte-pair encoding: words of byte letters or of characters, merged by rank; and the merge loop that SPM shares.

Knows merges, ranks and GPT-2's byte alphabet. Knows no special token and no GGUF file.

The merging is our own rather than the `tokenizers` library's, which the tests compare it with: that takes 0.6 s to
build a vocabulary of 128,256 tokens and 280,147 merges against 0.1 s for the dict here; it drops a byte that is no
token before merging, llama.cpp after; and SPM's ties, which it cannot express, need this loop anyway.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from packlight.common.errors import GGUFError
from packlight.common.text import shown
from packlight.model.text.pretokenizers import PreTokenizer, Splitter

SPACE = "\u2581"  # how vocabularies without byte letters write a space

_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 256  # longer words seldom come twice, and would make the cache big


def merge(symbols: list[str], ranks: Mapping[str, int], joint: str) -> list[str]:
    """Joins neighbours, the lowest-ranked pair first and of equals the leftmost, until no pair has a rank.

    Uses `symbols` up. The pair (a, b) has the rank `ranks[a + joint + b]`. O(n log n) for n symbols: the worst 100,000
    take 0.2 to 0.4 s, about 0.6 of what a single heap of ranks and positions took.
    Source: the order of the merges in llama.cpp src/llama-vocab.cpp, llm_tokenizer_{spm,bpe}_session.
    """
    n, rank_of = len(symbols), ranks.get
    # rank[i]: of symbol i with the next living one, -1 for none; a queued position that disagrees with it is stale
    rank = [rank_of(a + joint + b, -1) for a, b in pairwise(symbols)] + [-1]
    queues: dict[int, list[int]] = {}  # rank -> heap of positions
    for i, r in enumerate(rank):
        if r >= 0:
            queues.setdefault(r, []).append(i)
    order = list(queues)  # heap of ranks
    heapify(order)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    while order:
        lowest = order[0]
        queue = queues[lowest]
        while queue and order[0] == lowest:  # a merge can bring up a lower rank, which then goes first
            i = heappop(queue)
            if rank[i] != lowest:
                continue
            j = after[i]
            k = after[i] = after[j]
            joined = symbols[i] = symbols[i] + symbols[j]
            symbols[j] = ""
            rank[i] = rank[j] = -1
            if k < n:
                before[k] = i
                rank[i] = r = rank_of(joined + joint + symbols[k], -1)
                if r in queues:
                    heappush(queues[r], i)
                elif r >= 0:
                    queues[r] = [i]
                    heappush(order, r)
            if (h := before[i]) >= 0:
                rank[h] = r = rank_of(symbols[h] + joint + joined, -1)
                if r in queues:
                    heappush(queues[r], h)
                elif r >= 0:
                    queues[r] = [h]
                    heappush(order, r)
        if not queue and order[0] == lowest:
            del queues[heappop(order)]
    return [s for s in symbols if s]


def cached(ids_of: Callable[[str], Sequence[int]]) -> Callable[[str], Sequence[int]]:
    """`ids_of` with a bounded memory for short words: prose repeats them."""
    remembered = functools.lru_cache(_CACHED_WORDS)(ids_of)
    return lambda word: remembered(word) if len(word) <= _CACHED_LENGTH else ids_of(word)


@functools.cache
def _byte_letters() -> tuple[dict[int, str], dict[str, int]]:
    """GPT-2's alphabet, byte -> letter and back: printable Latin-1 stands for itself, the rest for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(plain))
    letters = {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}
    return letters, {letter: b for b, letter in letters.items()}


def piece(token: str) -> bytes:
    """The bytes a normal token stands for; one outside the byte alphabet becomes llama.cpp's `[UNK_BYTE_0x...]`."""
    byte_of = _byte_letters()[1]
    if all(letter in byte_of for letter in token):
        return bytes(map(byte_of.__getitem__, token))
    parts = (bytes([byte_of[c]]) if c in byte_of else f"[UNK_BYTE_0x{c.encode().hex()}{token}]".encode() for c in token)
    return b"".join(parts)


def byte_token(byte: int) -> str:
    """The token of a byte in a vocabulary whose tokens are text."""
    return f"<0x{byte:02X}>"


class BPE:
    """Plain text to ids. The ranks are built by the first `encode`, for the sake of a fast start."""

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[str], pre: PreTokenizer) -> None:
        """`vocab`: token -> id; `merges`: "left right", the first ranks lowest.

        Raises GGUFError for a merge that does not have two parts.
        """
        for i, pair in enumerate(merges):
            if pair.count(" ") != 1 or pair[0] == " " or pair[-1] == " ":
                raise GGUFError(
                    f"key 'tokenizer.ggml.merges' has '{shown(pair)}' as number {i}, which is not two parts"
                )
        self._vocab, self._merges, self._pre = vocab, merges, pre
        self._splitter = Splitter(pre)
        self._word_ids = cached(self._encode_word)

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        """The merges, a space between their parts, which have none themselves: a pair needs no tuple."""
        ranks = dict(zip(self._merges, range(len(self._merges)), strict=True))
        if len(ranks) != len(self._merges):
            ranks = {m: i for i, m in reversed(list(enumerate(self._merges)))}  # of equal merges the first counts
        return ranks

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands."""
        ids: list[int] = []
        for word in self._splitter.words(text.replace(" ", SPACE) if self._pre.marked_spaces else text):
            ids.extend(self._word_ids(word))
        return ids

    def _encode_word(self, word: str) -> Sequence[int]:
        vocab, pre = self._vocab, self._pre
        letters = word.encode().decode("latin-1").translate(_byte_letters()[0]) if pre.byte_letters else word
        whole = pre.ignore_merges or (pre.whole_newlines and word[0] == "\n")
        if whole and letters in vocab:
            return (vocab[letters],)
        ids: list[int] = []
        for symbol in merge(list(letters), self._ranks, " "):
            if symbol in vocab:
                ids.append(vocab[symbol])
            elif pre.byte_letters:
                # llama.cpp then looks for its UTF-8 bytes as tokens, which only ASCII can be, and drops the others
                ids.extend(vocab[c] for c in symbol if c < "\x80" and c in vocab)
            else:
                ids.extend(vocab[byte] for byte in map(byte_token, symbol.encode()) if byte in vocab)
        return tuple(ids)
