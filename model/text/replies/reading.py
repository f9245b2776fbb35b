"""Text that is read while it comes: where more of it is needed, a reading yields.

Tokens that the vocabulary has for markers count by their id: each becomes one character that no text can spell (half of
a surrogate pair), so that what a user or a model writes letter by letter opens nothing. Markers that the vocabulary
spells as text are looked for in the text.
"""

import codecs
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol

import numpy as np

from packlight.model.text.specials import TokenType

MARKS = 0xD800  # the first of the characters that stand for tokens; no decoded text has one of them
Reading = Generator[None, None, Any]  # a part of a machine


class Markers(Protocol):
    """What a parser asks of a tokenizer."""

    token_types: np.ndarray  # (V,)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def piece(self, token_id: int, /) -> bytes: ...


def marks(tokenizer: Markers, text: str) -> dict[str, int]:
    """The tokens in a marker that the vocabulary has for markers: their texts and ids."""
    special, found = (TokenType.CONTROL, TokenType.USER_DEFINED), {}
    for token in tokenizer.encode(text, add_special=False, parse_special=True) if text else ():
        spelled = tokenizer.piece(token).decode(errors="replace")
        if tokenizer.token_types[token] in special and spelled.strip() and spelled in text:
            found[spelled] = token
    return found


class BrokenError(Exception):
    """What was opened is no call. It never leaves the machine."""


class Reader:
    """The text of a growing sequence of ids, and where the machine is in it."""

    def __init__(self, tokenizer: Markers):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._marks: dict[int, str] = {}  # token ids and the characters that stand for them
        self._spelled: dict[str, str] = {}  # these characters and the tokens' texts
        self._text, self._at, self._ended = "", 0, False

    def _decoded(self, token_id: int) -> str:
        """The text that came with a token; a marker's is one character."""
        mark = self._marks.get(token_id)
        if mark is None:
            return self._decoder.decode(self._tokenizer.piece(token_id))
        text = self._decoder.decode(b"", final=True) + mark
        self._decoder.reset()
        return text

    def _marked(self, text: str) -> str:
        """A marker with a character for each of its tokens that the vocabulary has for markers."""
        for spelled, token in marks(self._tokenizer, text).items():
            mark = self._marks.setdefault(token, chr(MARKS + len(self._marks)))
            self._spelled[mark] = spelled
            text = text.replace(spelled, mark)
        return text

    def _plain(self, text: str) -> str:
        """A text with the tokens' own texts in place of the characters that stand for them."""
        return "".join(self._spelled.get(c, c) for c in text) if self._spelled else text

    def _peek(self) -> Reading:
        """The next character; "" at the end."""
        while self._at >= len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def _space(self) -> Reading:
        while (yield from self._peek()).isspace():
            self._at += 1

    def _comes(self, text: str) -> Reading:
        """Whether this text comes next, behind white space."""
        yield from self._space()
        while len(self._text) - self._at < len(text) and text.startswith(self._text[self._at :]):
            if self._ended:
                return False
            yield
        return self._text.startswith(text, self._at)

    def _expect(self, marker: str, closing: bool = False) -> Reading:
        """Goes behind a marker, with any white space where it has some or its parts begin. closing: the reply may end
        before it.
        """
        for word in marker.split():
            yield from self._space()
            for character in word:
                found = yield from self._peek()
                if closing and not found:
                    return
                if found != character:
                    raise BrokenError
                self._at += 1

    def _upto(self, marker: str) -> Reading:
        """The text up to a marker, behind which it goes."""
        start = self._at
        while (found := self._text.find(marker, start)) < 0:
            if self._ended:
                raise BrokenError
            yield
        self._at = found + len(marker)
        return self._text[start:found]

    def _value(self, tell: Callable[[str], None] | None = None) -> Reading:
        """The text of one JSON value; told in pieces as it comes, where that is wanted."""
        yield from self._space()
        start = told = self._at
        depth, quoted, escaped = 0, False, False
        while True:
            if self._at >= len(self._text):
                if tell is not None:
                    tell(self._text[told : self._at])
                    told = self._at
                if not (yield from self._peek()):
                    raise BrokenError
            character = self._text[self._at]
            if quoted:
                quoted, escaped = escaped or character != '"', not escaped and character == "\\"
            elif character in "{[":
                depth += 1
            elif character == '"':
                quoted = True
            elif character in "}]" and depth:
                depth -= 1
            elif not depth and (character in ",}]" or character.isspace()):
                break
            self._at += 1
            if not depth and not quoted and character in '}]"':
                break
        if tell is not None:
            tell(self._text[told : self._at])
        return self._text[start : self._at]

    def _break(self) -> NoReturn:
        raise BrokenError
