"""WordPiece as BERT's models use it, in llama.cpp's reading: words in lower case without accents, each spelled by the
longest tokens from its left, or unknown. Knows tokens; knows no special token and no GGUF file.

Our own rather than the `tokenizers` library's, which the tests compare it with: that one decomposes characters in full
and drops other marks and controls (`tests/model/text/test_wpm.py` lists the differences), and llama.cpp's ids are the
contract.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_wpm_session.
"""

import unicodedata
from collections.abc import Mapping, Sequence

from packlight.model.text.bpe import cached
from packlight.model.text.lookup import Lookup
from packlight.model.text.pretokenizers import SPACES, class_of

_WORD = "\u2581"  # before what begins a word
_ASCII_SPACES = " \t\n\v\f\r"
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # so in llama.cpp and Hugging Face; BERT's own begins at 2B820
    (0x2F800, 0x2FA1F),
)
_LATE_CONTROLS = range(0x13439, 0x13440)  # of Unicode 15, which Python 3.11 does not know


class WPM:
    """Plain text to ids."""

    def __init__(self, vocab: Mapping[str, int], unknown: int, lowercase: bool, strip_accents: bool) -> None:
        """`vocab`: token -> id, where a word's first token begins with U+2581; `unknown`: the id of a word that the
        tokens do not spell.
        """
        self._ids, self._unknown = Lookup.of(vocab), unknown
        self._normal = _Normal(lowercase, strip_accents)
        self._word_ids = cached(self._spelled)

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`, which is not searched for special tokens; the same wherever it stands."""
        ids: list[int] = []
        for word in self.words(text):
            ids.extend(self._word_ids(word))
        return ids

    def words(self, text: str) -> list[str]:
        """The words of `text`, in the form that tokens have."""
        return text.translate(self._normal).split()

    def _spelled(self, word: str) -> Sequence[int]:
        word = _WORD + word
        ids, at = [], 0
        while at < len(word):
            found = self._ids.longest(word, at)
            if found is None:
                return (self._unknown,)
            token, length = found
            ids.append(token)
            at += length
        return tuple(ids)


class _Normal(dict[int, str]):
    """A `str.translate` table that fills itself: code point -> what it contributes, with spaces where words end.

    llama.cpp takes the first code point alone of a decomposition and of a lower-case form.
    """

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, code_point: int) -> str:
        return self.setdefault(code_point, self._of(chr(code_point)))

    def _of(self, character: str) -> str:
        kind = _kind(character)
        if self._strip_accents and kind != "x":
            character = unicodedata.normalize("NFD", character)[0]
            kind = _kind(character)
        code_point = ord(character)
        if is_space(character):
            return " "
        control = unicodedata.category(character) in ("Cc", "Cf", "Co") or code_point in _LATE_CONTROLS
        if control or character == "\ufffd" or (self._strip_accents and kind == "M"):
            return ""
        alone = kind == "P" or (kind == "S" and character.isascii())
        alone = alone or any(low <= code_point <= high for low, high in _CHINESE)
        character = lowered(character) if self._lowercase else character
        return f" {character} " if alone else character


def is_space(character: str) -> bool:
    """Whether Unicode calls it white space."""
    return character in _ASCII_SPACES or ord(character) in SPACES


def lowered(character: str) -> str:
    """A character's lower case, of which llama.cpp takes the first code point alone."""
    return character if _kind(character) == "x" else character.lower()[0]


def _kind(character: str) -> str:
    """The class letter that Unicode 15.1 gives, as llama.cpp's tables do; "x" for what it does not know, too."""
    return unicodedata.category(character)[0] if character.isascii() else class_of(ord(character))
