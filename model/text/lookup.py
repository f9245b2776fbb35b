"""Finds the tokens that stand at a place of a text. Knows no vocabulary's rules and no GGUF file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lookup:
    """Tokens, as str or as bytes, to look up in a text of the same type."""

    rows: Mapping[Any, Any]  # token -> what is known of it, not None
    lengths: Mapping[Any, Sequence[int]]  # what tokens begin with -> how long those are, descending

    @classmethod
    def of(cls, rows: Mapping[Any, Any]) -> "Lookup":
        lengths: dict[Any, set[int]] = {}
        for token in filter(None, rows):
            lengths.setdefault(token[0], set()).add(len(token))
        return cls(rows, {first: sorted(found, reverse=True) for first, found in lengths.items()})

    def longest(self, text: str | bytes, at: int) -> tuple[Any, int] | None:
        """What is known of the longest token that `text` has at `at`, and its length; None if there is none."""
        for length in self.lengths.get(text[at], ()):
            # near the end this may be a shorter token than asked for: all that is left of the text
            if (row := self.rows.get(text[at : at + length])) is not None:
                return row, length
        return None
