"""Typed reads of a file's `tokenizer.ggml.*` keys. Each error names its key. Knows no vocabulary."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import shown

KEY = "tokenizer.ggml."


def fail(key: str, what: str) -> NoReturn:
    raise GGUFError(f"key '{KEY}{key}' {what}")


def choice(
    metadata: Mapping[str, Any], key: str, supported: Iterable[str], what: str, missing: str | None = None
) -> str:
    """The string at `key`, which must be one of `supported`."""
    value = metadata.get(KEY + key, missing)
    if value is None:
        fail(key, "is missing")
    if not isinstance(value, str):
        fail(key, f"is {shown(repr(value))}, not a name")
    if value not in supported:
        raise UnsupportedError(f"{what} '{shown(value)}' ({KEY}{key}); supported: {', '.join(sorted(supported))}")
    return value


def strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    values = metadata.get(KEY + key)
    if values is None:
        fail(key, "is missing")
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        fail(key, "is not an array of strings")
    return values


def numbers(metadata: Mapping[str, Any], key: str, length: int | None, dtypes: tuple[str, ...]) -> np.ndarray | None:
    """The array at `key`, None if there is none. length: how long it must be, None if as it likes."""
    values = metadata.get(KEY + key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.name not in dtypes or values.ndim != 1:
        fail(key, f"is not an array of {' or '.join(dtypes)}")
    if length is not None and len(values) != length:
        fail(key, f"has {len(values)} elements for {length} tokens")
    return values


def flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """The truth value at `key`."""
    value = metadata.get(KEY + key, default)
    if not isinstance(value, (bool, np.bool_)):
        fail(key, f"is {shown(repr(value))}, neither true nor false")
    return bool(value)


def token_id(
    metadata: Mapping[str, Any], name: str, vocab_size: int, default: int | None = None, strict: bool = False
) -> int | None:
    """The id that the file gives the special token `name`.

    `default` where it gives none or, unless `strict`, one that is out of range (llama.cpp warns).
    """
    key = f"{name}_token_id"
    value = metadata.get(KEY + key)
    if value is None:
        return default
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        fail(key, f"is {shown(repr(value))}, not a token id")
    if 0 <= value < vocab_size:
        return int(value)
    if strict:
        fail(key, f"is {value}, but the vocabulary ends at {vocab_size - 1}")
    return default
