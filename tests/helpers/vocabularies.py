"""Small vocabularies by recipe, of every kind of tokenizer, as metadata and as files. Imports no jax."""

import functools
import itertools
import os
import pathlib
import random
import unicodedata
from collections.abc import Mapping, Sequence
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
ASIAN = "\u6587\ufa6e\u3105\u2014"  # of what some pre-tokenizers tell apart by block; U+FA6E is not assigned
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
def bpe_vocabulary(more: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges: each character of ALPHABET and `more`, each pair in a random order, and some pairs of pairs.

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
    for character in ALPHABET + LETTERS + more:
        first, *rest = (letters[byte] for byte in character.encode())
        characters.append(functools.reduce(join, rest, first))
    pairs = [*itertools.product(characters, repeat=2)]
    rng.shuffle(pairs)
    joined = [join(*pair) for pair in pairs]
    for left, right in zip(rng.sample(joined, 800), rng.sample(joined, 800), strict=True):
        join(left, right)
    return tuple(tokens), tuple(merges)


def bpe(pre: str, more: str = "", **changes: Any) -> dict[str, Any]:
    """Metadata of a byte-level file; `more` characters than ALPHABET; `changes` by key without its prefix."""
    tokens, merges = bpe_vocabulary(more)
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


SPACE = "\u2581"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
UNSPELLED = "\u0e01\u00ab\U0001f600"  # of ALPHABET what the vocabularies below have no token for, bytes aside
SPELLED = "".join(c for c in ALPHABET + LETTERS if c not in UNSPELLED)


@functools.cache
def text_bpe_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges of BPE without byte letters: characters, some pairs and pairs of pairs, and runs of newlines.

    No pair holds a newline but those of two, where a file with merges has none for three and four.
    """
    rng = random.Random(9)
    characters = [*dict.fromkeys(SPELLED.replace(" ", SPACE)), "\u00e8", "b"]
    pairs = [pair for pair in itertools.product(characters, repeat=2) if "\n" not in pair]
    pairs = [("\n", "\n"), *rng.sample(pairs, 1000)]
    joined = [left + right for left, right in pairs]
    longer = [*zip(rng.sample(joined[1:], 400), rng.sample(joined[1:], 400), strict=True)]
    tokens = [*characters, *joined, *map("".join, longer), "\n\n\n", "\n" * 5]
    # "b" and U+00E8 are joined and then no token by themselves
    tokens = [token for token in dict.fromkeys(tokens) if token not in ("\u00e8", "b")]
    return (*BYTES[:200], *tokens), tuple(" ".join(pair) for pair in (*pairs, *longer))


def text_bpe(model: str, pre: str, **changes: Any) -> dict[str, Any]:
    """Metadata of a BPE file without byte letters; it lacks 56 of the bytes."""
    tokens, merges = text_bpe_vocabulary()
    end = len(tokens)
    types = np.array([6 if token in BYTES else 1 for token in tokens] + [*TYPES], np.int32)
    values = {"model": model, "pre": pre, "tokens": [*tokens, *MARKED], "merges": [*merges], "token_type": types}
    values |= {"bos_token_id": end, "eos_token_id": end + 1, **changes}
    return {KEY + key: value for key, value in values.items()}


def charsmap(replaced: Mapping[bytes, bytes]) -> np.ndarray:
    """A table of replacements as `tokenizer.ggml.precompiled_charsmap` has it: (size,) uint8."""
    children: dict[bytes, set[int]] = {b"": set()}
    for key in replaced:
        for n in range(len(key)):
            children.setdefault(key[:n], set()).add(key[n])
    places, blob = {}, b""
    for new in sorted(set(replaced.values())):
        places[new] = len(blob)
        blob += new + b"\0"
    units, taken, bases = {0: 0}, {0}, set()  # a label tells whose a unit is as long as bases differ
    waiting = [(b"", 0)]
    while waiting:
        prefix, index = waiting.pop(0)
        labels = sorted(children.get(prefix, ()))
        slots = [*labels, *([0] if prefix in replaced else [])]
        base = next(b for b in itertools.count(1) if b not in bases and all(b ^ label not in taken for label in slots))
        bases.add(base)
        taken.update(base ^ label for label in slots)
        assert index ^ base < 1 << 21  # so that no base needs bit 9
        units[index] = units[index] | (index ^ base) << 10 | (0x100 if prefix in replaced else 0)
        if prefix in replaced:
            units[base] = 1 << 31 | places[replaced[prefix]]
        for label in labels:
            units[base ^ label] = label
            waiting.append((prefix + bytes([label]), base ^ label))
    size = max(units) + 1 + 256  # what is looked for and not there stays inside
    packed = np.array([units.get(i, 0) for i in range(size)], "<u4").tobytes()
    return np.frombuffer(len(packed).to_bytes(4, "little") + packed + blob, np.uint8)


def normalized() -> dict[bytes, bytes]:
    """Replacements like those of Unicode's NFKC, sequences of several characters among them, and of odd ones."""
    alike = "\u00a0\u2028\u3000\uff21\uff5a\ufb01\u2460\u00b2\u2126\u212b\uff76\uff9e\u2026\u01c5\u017f\u3392\U0001d400"
    joined = ("e\u0301", "E\u0301", "\u304b\u3099", "\u1112\u1161", "\u1112\u1161\u11ab", "a\u0308", "A\u030a")
    table = {text: unicodedata.normalize("NFKC", text) for text in (*alike, *joined)}
    table |= {"\t": " ", "\n": " ", "\r": " ", "\r\n": " ", "\u200b": "", "\u00ad": "", "\u0416": "\u0436", "--": " - "}
    return {key.encode(): new.encode() for key, new in table.items()}


def unigram(user_defined: Sequence[str] = ("\u3000\u3001x", "<mask>"), **changes: Any) -> dict[str, Any]:
    """Metadata of a T5 file: scores with ties, unused tokens; and tokens of which texts have a part of a character."""
    rng = random.Random(10)
    letters = SPELLED.replace(" ", SPACE).translate({ord(c): None for c in "\t\n\r\u00a0\u2028"})
    tokens = [*dict.fromkeys(letters)]
    tokens += ["".join(rng.choices(letters, k=rng.choice((2, 2, 3, 4, 6)))) for _ in range(1500)]
    tokens += [SPACE + "".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(300)]
    words = (SPACE + "the", "in", "er", SPACE + "hello", "ab", SPACE * 2, SPACE * 4, "fi", "\u304c", "a" + SPACE)
    tokens += words
    tokens = [token for token in dict.fromkeys(tokens) if token not in MARKED]
    types = [1 if token in words else rng.choices((1, 5), (20, 1))[0] for token in tokens]
    scores = [-rng.randint(4, 60) / 4 for _ in tokens]
    # behind what T5 has first: bytes, which no text becomes; a control token; user-defined tokens
    first = {"<pad>": 3, "</s>": 3, "<unk>": 2, **dict.fromkeys(BYTES[:4], 6)}
    last = {**dict(zip(MARKED, TYPES, strict=True)), **dict.fromkeys(user_defined, 4)}
    values = {
        "model": "t5",
        "pre": "default",
        "tokens": [*first, *tokens, *last],
        "scores": np.array([0] * len(first) + scores + [-1] * len(last), np.float32),
        "token_type": np.array([*first.values(), *types, *last.values()], np.int32),
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "precompiled_charsmap": charsmap(normalized()),
        **changes,
    }
    return {KEY + key: value for key, value in values.items() if value is not None}


def rwkv(**changes: Any) -> dict[str, Any]:
    """Metadata of an RWKV file: escaped bytes, and words."""
    rng = random.Random(11)
    escaped = {9: "\\t", 10: "\\n", 13: "\\r", 39: "\\'", 92: "\\\\"}
    single = [escaped.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in range(256)]
    alphabet = [c if c not in "\t\n\r'" else escaped[ord(c)] for c in ALPHABET + LETTERS]
    words = ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(800)]
    tokens = ["<s>", *dict.fromkeys([*single, *words, "\\xe4\\xb8", "\\x4A", "\\xgz"]), *MARKED]
    types = [3] + [1] * (len(tokens) - 5) + [*TYPES]
    values = {"model": "rwkv", "tokens": tokens, "token_type": np.array(types, np.int32), **changes}
    return {KEY + key: value for key, value in values.items()}


def plamo(**changes: Any) -> dict[str, Any]:
    """Metadata of a PLaMo 2 file: scores with ties, some of them never to be taken."""
    rng = random.Random(12)
    tokens = [*dict.fromkeys(SPELLED)] + [
        "".join(rng.choices(SPELLED, k=rng.choice((2, 2, 3, 5)))) for _ in range(1500)
    ]
    tokens = [token for token in dict.fromkeys([*tokens, " the", "in", "</s>"]) if token not in MARKED]
    scores = [-rng.randint(4, 60) / 4 + rng.choice((0, 0, 0.00005)) for _ in tokens]
    scores[40:44] = [-np.inf, -3000, -1999.99995, 3.25]
    first = {"<|plamo:unk|>": 2, "<|plamo:bos|>": 3, "<|plamo:eos|>": 3, "<|plamo:pad|>": 3, **dict.fromkeys(BYTES, 6)}
    values = {
        "model": "plamo2",
        "tokens": [*first, *tokens, *MARKED],
        "scores": np.array([0] * len(first) + scores + [0] * len(MARKED), np.float32),
        "token_type": np.array([*first.values(), *[1] * len(tokens), *TYPES], np.int32),
        **changes,
    }
    return {KEY + key: value for key, value in values.items()}


def genes(**changes: Any) -> dict[str, Any]:
    """Metadata of a HybriDNA file: byte-level BPE, and tokens of six letters behind <oov>."""
    metadata = bpe("gpt-2", model="hybriddna")
    sixes = ["".join(six) + "\ue000" for six in itertools.product("ACGT", repeat=6)][::5]
    tokens = [*metadata[KEY + "tokens"], "CCCCCC", "x\ue000", "<dna>", "</dna>", "<oov>", *sixes, "\u0120\ue000"]
    types = np.ones(len(tokens), np.int32)
    types[: len(metadata[KEY + "tokens"])] = metadata[KEY + "token_type"]
    values = metadata | {KEY + "tokens": tokens, KEY + "token_type": types}
    return values | {KEY + key: value for key, value in changes.items()}


def write_vocabulary(path: str | os.PathLike, metadata: Mapping[str, Any]) -> pathlib.Path:
    """A llama file without tensors; returns the path."""
    keys = {"context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 64}
    keys |= {"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    pairs = {"general.architecture": ("str", "llama")} | {f"llama.{key}": typed(value) for key, value in keys.items()}
    return write_gguf(path, pairs | {key: typed(value) for key, value in metadata.items()}, {})
