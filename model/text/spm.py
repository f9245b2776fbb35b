"""SentencePiece-style encoding as llama.cpp does it: characters merged by score, what is no token spelled in bytes.

Knows tokens and scores, and that a space is written U+2581. Knows no special token and no GGUF file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from packlight.common.errors import GGUFError
from packlight.model.text.bpe import SPACE, byte_token, cached, merge


def piece(token: str) -> bytes:
    """The bytes a normal token stands for."""
    return token.replace(SPACE, " ").encode()


def between_words(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches, empty, before every U+2581 where no token has that behind the character that stands before it.

    No token reaches across such a place, so that what lies left and right of it is tokenized apart: the same ids, and
    words that repeat.
    """
    glued = {c for t in tokens if SPACE in t[1:] for c in re.findall(f"([^{SPACE}]){SPACE}", t)}
    return re.compile(f"(?<=[^{SPACE}{''.join(map(re.escape, sorted(glued)))}])(?={SPACE})")


class SPM:
    """Plain text to ids. The ranks are built by the first `encode`, for the sake of a fast start."""

    def __init__(self, vocab: Mapping[str, int], scores: np.ndarray, space_prefix: bool) -> None:
        """`vocab`: token -> id, in the order of the ids; `scores` (V,) float32; `space_prefix`: whether a text gets a
        space before it.
        """
        self._vocab, self._scores, self._prefix = vocab, scores, " " if space_prefix else ""
        self._word_ids = cached(self._encode_word)
        self._ranks: dict[str, int] = {}
        self._between_words = re.compile("")

    def _prepare(self) -> None:
        """Scores to ranks, where equal scores share one, and the places at which a text may be cut into words."""
        dense = np.unique(-self._scores, return_inverse=True)[1]
        self._between_words = between_words(self._vocab)
        self._ranks = dict(zip(self._vocab, dense.tolist(), strict=True))

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens. begins: whether no text comes before it.

        Raises GGUFError for a character that is no token in a vocabulary without the byte tokens to spell it.
        Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_spm_session.
        """
        if not self._ranks:
            self._prepare()
        prefixed = self._prefix + text if begins else text
        ids: list[int] = []
        for word in self._between_words.split(prefixed.replace(" ", SPACE)):
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
        token = byte_token(byte)
        if token not in self._vocab:
            token = chr(byte) if byte < 0x80 else token
        if token not in self._vocab:
            raise GGUFError(f"key 'tokenizer.ggml.tokens' has no byte token '<0x{byte:02X}>', which this text needs")
        return self._vocab[token]
