"""SentencePiece-style encoding as llama.cpp does it: characters merged by score, what is no token spelled in bytes.

Knows tokens and scores, and that a space is written U+2581. Knows no special token, no space prefix and no GGUF file.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from packlight.common.errors import GGUFError
from packlight.model.text.bpe import cached, merge

_SPACE = "\u2581"


def piece(token: str) -> bytes:
    """The bytes a normal token stands for."""
    return token.replace(_SPACE, " ").encode()


class SPM:
    """Plain text to ids. The ranks are built by the first `encode`, for the sake of a fast start."""

    def __init__(self, vocab: Mapping[str, int], scores: np.ndarray | None) -> None:
        """`vocab`: token -> id, in the order of the ids; `scores` (V,), all equal if None.

        Raises GGUFError for a NaN score.
        """
        self._vocab = vocab
        self._scores = np.zeros(len(vocab), np.float32) if scores is None else scores.astype(np.float32)
        if (nan := np.isnan(self._scores)).any():
            raise GGUFError(f"key 'tokenizer.ggml.scores' is NaN for id {int(nan.argmax())}")
        self._word_ids = cached(self._encode_word)
        self._ranks: dict[str, int] = {}
        self._between_words = re.compile("")

    def _prepare(self) -> None:
        """Scores to ranks, where equal scores share one, and the places at which a text may be cut into words.

        A merge makes a token. So where no token has character `c` before a U+2581, no merge reaches across the two, and
        what lies left and right of them can be merged apart: the same ids, and words that repeat.
        """
        dense = np.unique(-self._scores, return_inverse=True)[1]
        glued = {c for t in self._vocab if _SPACE in t[1:] for c in re.findall(f"([^{_SPACE}]){_SPACE}", t)}
        before = "".join(map(re.escape, sorted(glued)))
        self._between_words = re.compile(f"(?<=[^{_SPACE}{before}])(?={_SPACE})")
        self._ranks = dict(zip(self._vocab, dense.tolist(), strict=True))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, which is not searched for special tokens and gets no space prefix.

        Raises GGUFError for a character that is no token in a vocabulary without the byte tokens to spell it.
        Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_spm_session.
        """
        if not self._ranks:
            self._prepare()
        ids: list[int] = []
        for word in self._between_words.split(text.replace(" ", _SPACE)):
            ids.extend(self._word_ids(word))
        return ids

    def _encode_word(self, word: str) -> Sequence[int]:
        vocab = self._vocab
        ids: list[int] = []
        for symbol in merge(list(word), self._ranks, ""):
            if symbol in vocab:
                ids.append(vocab[symbol])
            else:
                ids.extend(map(self._byte_id, symbol.encode()))
        return tuple(ids)

    def _byte_id(self, byte: int) -> int:
        token = f"<0x{byte:02X}>"
        if token not in self._vocab:
            token = chr(byte) if byte < 0x80 else token
        if token not in self._vocab:
            raise GGUFError(f"key 'tokenizer.ggml.tokens' has no byte token '<0x{byte:02X}>', which this text needs")
        return self._vocab[token]
