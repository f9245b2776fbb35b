"""What a reply is taken apart into. Knows no text and no tokens."""

import dataclasses
import hashlib
import string
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Content:
    """More of what the user is shown."""

    text: str


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks."""

    text: str


@dataclasses.dataclass(frozen=True)
class CallBegun:
    """A call, of which only the arguments are missing."""

    index: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments: joined they are JSON."""

    index: int
    text: str


Delta = Content | Reasoning | CallBegun | CallArguments


@dataclasses.dataclass
class Call:
    """One call."""

    id: str
    name: str
    arguments: str = ""  # JSON of an object
    complete: bool = False


def letters(digest: bytes) -> str:
    """Nine letters and digits that follow from eight bytes."""
    number, alphabet = int.from_bytes(digest, "little"), string.ascii_letters + string.digits
    found = []
    for _ in range(9):
        number, digit = divmod(number, len(alphabet))
        found.append(alphabet[digit])
    return "".join(found)


def call_ids(seed: int | None, prompt: Sequence[int]) -> Callable[[int], str]:
    """The id of each call by its number: "call_" and nine letters or digits, which some templates ask for.

    They follow from seed and prompt, so that a request with a seed has the same reply again, and differ from those of
    other turns, whose prompts are others.
    """
    key = hashlib.blake2b(np.asarray([seed or 0, *prompt], np.int64).tobytes(), digest_size=16).digest()
    digest = lambda index: hashlib.blake2b(index.to_bytes(4, "little"), key=key, digest_size=8).digest()  # noqa: E731
    return lambda index: "call_" + letters(digest(index))
