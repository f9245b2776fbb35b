"""What some vocabularies do before byte-pair merges: Jina's Chinese one drops spaces, HybriDNA's reads genes by six.

Knows tokens. Knows no special token and no GGUF file.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_whitespace_session and llm_tokenizer_hybriddna_session.
"""

import re
from collections.abc import Mapping

from packlight.model.text.bpe import BPE
from packlight.model.text.wpm import is_space, lowered

GENE_MARK = "\ue000"  # behind tokens of letters of genes, to tell them from the same letters as text
UNKNOWN = "<oov>"  # six letters that are no token
_OPEN, _CLOSE = "<dna>", "</dna>"
_LETTERS = 6
_SMALL = {ord(c): c.upper() for c in "abcdefghijklmnopqrstuvwxyz"}


class SpacesDropped:
    """Plain text to ids: what stands between spaces, each by itself."""

    def __init__(self, bpe: BPE, lowercase: bool) -> None:
        self._bpe, self._lowercase = bpe, lowercase

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands."""
        words = "".join(" " if is_space(c) else lowered(c) if self._lowercase else c for c in text).split(" ")
        return [i for word in words for i in self._bpe.encode(word)]


class Genes:
    """Plain text to ids: between <dna> and </dna> six letters make a token, the last ones filled up with A."""

    def __init__(self, bpe: BPE, vocab: Mapping[str, int]) -> None:
        self._bpe, self._vocab = bpe, vocab

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands."""
        if not {_OPEN, _CLOSE, UNKNOWN} <= self._vocab.keys():
            return self._bpe.encode(text)
        ids: list[int] = []
        at = 0
        for found in re.finditer(f"{_OPEN}(.*?)({_CLOSE}|\\Z)", text, re.DOTALL):
            ids += self._bpe.encode(text[at : found.start()])
            ids.append(self._vocab[_OPEN])
            ids += self._genes(found[1].translate(_SMALL))
            ids += [self._vocab[_CLOSE]] if found[2] else []
            at = found.end()
        return ids + self._bpe.encode(text[at:])

    def _genes(self, letters: str) -> list[int]:
        vocab, unknown = self._vocab, self._vocab[UNKNOWN]
        # llama.cpp counts bytes, and what is not ASCII is unknown
        letters = "".join(c if c.isascii() else "?" * len(c.encode()) for c in letters)
        sixes = (letters[i : i + _LETTERS].ljust(_LETTERS, "A") for i in range(0, len(letters), _LETTERS))
        return [vocab.get(six + GENE_MARK, unknown) for six in sixes]
