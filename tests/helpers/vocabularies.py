"""Small vocabularies by recipe, sentencepiece and byte-level BPE, as metadata and as files. Imports no jax."""

import functools
import itertools
import os
import pathlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from ggufs import typed, write_gguf

from packlight.bench.synthetic import spm_tokens

KEY = "tokenizer.ggml."
# Of each of Unicode's classes that a pre-tokenizer tells apart, some characters.
ALPHABET = (
    "aZ\u00e9\u00c9\u0416\u0436\u4e2d\u3042\u30ab\uac00\u0e01\u0915\u094d\u0301 \t\n\r0159\u0665\u00b2.,!?'/-_$+"
    "\u3002\u20ac\u00ab\U0001f600\u00a0\u2028"
)
LETTERS = "sdtrvelmHIOx"  # of contractions and words
MARKED = ("<|endoftext|>", "<|end|>", "<user>", "<user>s")
TOKENS, MERGES = 128_256, 280_147  # of Llama 3
TYPES = (3, 3, 4, 4)  # control, control, user-defined, user-defined


@functools.cache
def byte_letters() -> tuple[str, ...]:
    """The letter of each byte in byte-level BPE. Source: GPT-2's `bytes_to_unicode`."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in itertools.count())
    return tuple(chr(byte) if byte in plain else next(others) for byte in range(256))


@functools.cache
def bpe_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges: each character of ALPHABET, each pair of them in a random order, and some pairs of pairs.

    As nearly every two neighbours would be joined, it shows in the ids where a pre-tokenizer cuts.
    """
    rng, letters = random.Random(6), byte_letters()
    tokens, merges = list(letters), []

    def join(left: str, right: str) -> str:
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
        return left + right

    known = set(tokens)
    characters = []
    for character in ALPHABET + LETTERS:
        first, *rest = (letters[byte] for byte in character.encode())
        characters.append(functools.reduce(join, rest, first))
    pairs = [*itertools.product(characters, repeat=2)]
    rng.shuffle(pairs)
    joined = [join(*pair) for pair in pairs]
    for left, right in zip(rng.sample(joined, 800), rng.sample(joined, 800), strict=True):
        join(left, right)
    return tuple(tokens), tuple(merges)


def bpe(pre: str, **changes: Any) -> dict[str, Any]:
    """Metadata of a byte-level file; `changes` by key without its prefix."""
    tokens, merges = bpe_vocabulary()
    end = len(tokens)
    types = np.array([1] * end + [*TYPES], np.int32)
    values = {"model": "gpt2", "pre": pre, "tokens": [*tokens, *MARKED], "merges": [*merges], "token_type": types}
    values |= {"bos_token_id": end, "eos_token_id": end, **changes}
    return {KEY + key: value for key, value in values.items()}


def large() -> dict[str, Any]:
    """Metadata of a byte-level file of as many tokens and merges as Llama 3's."""
    metadata, tokens = bpe("llama-bpe"), bpe_vocabulary()[0]
    joined = ("".join(pair) for pair in itertools.product(tokens, tokens))
    every = dict.fromkeys(itertools.chain(metadata[KEY + "tokens"], itertools.islice(joined, 3 * TOKENS)))
    merges = itertools.chain(metadata[KEY + "merges"], map(" ".join, itertools.product(tokens, tokens)))
    metadata[KEY + "tokens"] = [*itertools.islice(every, TOKENS)]
    metadata[KEY + "token_type"] = np.ones(TOKENS, np.int32)
    metadata[KEY + "merges"] = [*itertools.islice(merges, MERGES)]
    return metadata


def spm(**changes: Any) -> dict[str, Any]:
    """Metadata of a sentencepiece file."""
    tokens, scores, types = spm_tokens(800)
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": [*tokens, *MARKED],
        "scores": np.array([*scores, 0, 0, 0, 0], np.float32),
        "token_type": np.array([*types, *TYPES], np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {KEY + key: value for key, value in values.items()}


def write_vocabulary(path: str | os.PathLike, metadata: Mapping[str, Any]) -> pathlib.Path:
    """A llama file without tensors; returns the path."""
    keys = {"context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 64}
    keys |= {"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    pairs = {"general.architecture": ("str", "llama")} | {f"llama.{key}": typed(value) for key, value in keys.items()}
    return write_gguf(path, pairs | {key: typed(value) for key, value in metadata.items()}, {})
