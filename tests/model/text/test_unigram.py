"""T5's unigram model: against all cuts of a text, its table of replacements against a dict, and damaged tables."""

import random
import string
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor import slowness
from vocabularies import KEY, charsmap, normalized, unigram

from packlight.common.errors import GGUFError
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.text.ugm import UGM, Replacements, Spaces

SPACE = "\u2581"
TOKENS = ("<unk>", "a", "b", "ab", "ba", "aab", SPACE, SPACE + "a", SPACE + "ab", "b" + SPACE, "\u00e9", "a\u00e9")
SCORES = (0, -2, -3, -5, -4, -6.5, -1, -3, -6, -4, -2, -4)  # with ties
UNKNOWN = min(SCORES) - 10


def made(scores=SCORES, replacements: Replacements | None = None) -> UGM:
    types = np.array([2] + [1] * (len(TOKENS) - 1), np.int32)
    vocab = {token: i for i, token in enumerate(TOKENS)}
    free = np.zeros(len(TOKENS), bool)
    return UGM(vocab, np.array(scores, np.float32), types, free, 0, replacements, Spaces(prefix=True, merged=False))


def every_cut(text: str) -> list[list[int]]:
    """All ways to cut `text` into tokens and unknown characters."""
    cuts = [] if text else [[]]
    for n in range(1, len(text) + 1):
        known = text[:n] in TOKENS[1:]
        if known or n == 1:
            cuts += [[TOKENS.index(text[:n]) if known else 0, *rest] for rest in every_cut(text[n:])]
    return cuts


def score(ids: list[int]) -> float:
    return sum(SCORES[i] if i else UNKNOWN for i in ids)


def unknown_joined(ids: list[int]) -> list[int]:
    return [i for i, before in zip(ids, [-1, *ids], strict=False) if i or before]


@settings(deadline=None, max_examples=200)
@given(st.text("ab \u00e9c", max_size=9))
def test_no_cut_scores_higher(text):
    cuts = every_cut((SPACE if text.strip(" ") else "") + text.replace(" ", SPACE))
    best = max(map(score, cuts))
    assert made().encode(text) in [unknown_joined(cut) for cut in cuts if score(cut) == best]


@settings(deadline=None, max_examples=300)
@given(st.text("ab c", max_size=60), st.booleans())
def test_words_apart_are_words_in_their_text(text, begins):
    """Tokens that are told from the left: where sums are exact, ties fall as they do in the whole text."""
    apart, whole = made(), made()
    whole.__dict__["_exact_length"] = 0
    assert apart._exact_length > 1e9
    assert apart.encode(text, begins) == whole.encode(text, begins)


def test_words_stay_in_their_text_where_sums_are_rounded():
    fine = made((0, 2.0**-140, *SCORES[2:]))
    assert fine._exact_length < 1
    assert made((0, -np.inf, *SCORES[2:]))._exact_length == 0
    assert fine.encode("a a") == [6, 1, 6, 1]


# ---- replacements

KEYS = st.text("ab \u00e9\u3042\u3044", min_size=1, max_size=4).map(str.encode)
TABLES = st.dictionaries(KEYS, st.text("xy \u00e9", max_size=3).map(str.encode), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(TABLES, st.text("ab \u00e9\u3042\u3044c\0", max_size=20))
def test_replacements_are_those_of_a_dict(table, text):
    raw, replacements = text.encode(), Replacements(charsmap(table).tobytes())
    for at in range(len(raw)):
        fits = [key for key in table if raw.startswith(key, at)]
        longest = max(fits, key=len, default=b"")
        assert replacements.longest(raw, at) == (table.get(longest, b""), len(longest))


def test_bytes_or_small_numbers():
    """Of a table in a file either type of array is the same."""
    metadata = unigram()
    table = metadata[KEY + "precompiled_charsmap"]
    signed = Tokenizer.from_metadata(metadata | {KEY + "precompiled_charsmap": table.view(np.int8)})
    text = "\uff21\ufb01 \u2460"
    assert signed.encode(text) == Tokenizer.from_metadata(metadata).encode(text)


def test_far_bases():
    """A base with bit 9 counts 256 times: the only unit for "a" stands far away."""
    units = np.zeros(0x8000, "<u4")
    units[0] = (0x4000 >> 8) << 10 | 1 << 9
    units[0x4000 ^ ord("a")] = ord("a") | 1 << 8 | 1 << 10
    units[0x4000 ^ ord("a") ^ 1] = 1 << 31 | 2
    table = units.nbytes.to_bytes(4, "little") + units.tobytes() + b"n\0yes\0"
    assert Replacements(table).longest(b"ab", 0) == (b"yes", 1)
    assert Replacements(table).longest(b"ab", 1) == (b"", 0)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.binary(max_size=3))
def test_damaged_tables_are_refused_or_read(seed, size, tail):
    """Whatever is in the file: an id, or one line that names the key."""
    rng = np.random.default_rng(seed)
    table = bytearray(charsmap(normalized()).tobytes())
    for at in rng.integers(0, len(table), 40).tolist():
        table[at] ^= 1 << (at % 8)
    metadata = unigram(precompiled_charsmap=np.frombuffer(bytes(table[: len(table) - size]) + tail, np.uint8))
    try:
        ids = Tokenizer.from_metadata(metadata).encode("\uff21\ufb01 e\u0301\u2460 -- \u304b\u3099 Zab\u3000")
    except GGUFError as error:
        assert "key 'tokenizer.ggml.precompiled_charsmap' " in str(error)  # noqa: PT017
    else:
        assert max(ids) < len(metadata[KEY + "tokens"])


# ---- what the file says

BAD = [
    ({"precompiled_charsmap": np.zeros(0, np.uint8)}, "precompiled_charsmap' has 0 bytes, too few for an array of 0"),
    ({"precompiled_charsmap": np.array([9, 0, 0, 0, 0], np.uint8)}, "has 5 bytes, too few for an array of 9"),
    ({"precompiled_charsmap": np.zeros(9, np.int32)}, "precompiled_charsmap' is not an array of int8 or uint8"),
    ({"precompiled_charsmap": "nfkc"}, "precompiled_charsmap' is not an array"),
    ({"remove_extra_whitespaces": 1}, "remove_extra_whitespaces' is 1, neither true nor false"),
    ({"unknown_token_id": 1 << 20}, "unknown_token_id' is 1048576, but"),
    ({"add_bos_token": True}, "bos_token_id' is missing, but a bos token is to be added"),
    ({"scores": np.zeros(3, np.float32)}, "scores' has 3 elements"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_metadata(changes, message):
    with pytest.raises(GGUFError, match=message):
        Tokenizer.from_metadata(unigram(**changes))


def test_frame_and_spaces():
    ours = Tokenizer.from_metadata(unigram())
    assert (ours.bos_id, ours.eos_id, ours.end_id, ours.add_bos, ours.add_eos) == (None, 1, 1, False, True)
    assert ours.encode("") == ours.encode("  ") == [1]
    assert ours.encode("hello", add_special=False) == ours.encode("  hello ", add_special=False)
    assert ours.decode(ours.encode(" hello  the", add_special=False)) == "hello the"
    assert ours.decode(ours.encode_continued("er")) == "er"
    assert ours.encode_continued(" hello") == ours.encode("hello", add_special=False) != ours.encode_continued("hello")


def test_a_message_writes_no_control_token():
    """Also where the file's type makes a normal token of what is known by its text, so that text may become it."""
    metadata = unigram()
    types = metadata[KEY + "token_type"].copy()
    types[1] = 1
    ours = Tokenizer.from_metadata(metadata | {KEY + "token_type": types})
    assert 1 in ours.encode("ab</s>ab", add_special=False)
    assert 1 not in ours.encode_prompt("ab</s>ab", "4" * 8, "")
    assert ours.encode_prompt("ab</s>ab", "4" * 2 + "0" * 4 + "4" * 2, "").count(1) == 1


def large() -> dict:
    """Of as many tokens as XLM-RoBERTa's, and as long: a file's metadata."""
    rng = random.Random(1)
    letters = string.ascii_lowercase + string.digits + SPACE + "\u00e9\u4e2d\u6587\u3042"
    tokens = [*dict.fromkeys(letters), *("".join(rng.choices(letters, k=rng.randint(2, 16))) for _ in range(249_000))]
    tokens = ["<pad>", "</s>", "<unk>", *dict.fromkeys(tokens)]
    scores = np.random.default_rng(1).uniform(-14, -3, len(tokens)).astype(np.float32)
    types = np.array([3, 3, 2] + [1] * (len(tokens) - 3), np.int32)
    return unigram(tokens=tokens, scores=scores, token_type=types)


def test_a_big_vocabulary_is_fast():
    metadata = large()
    ours = Tokenizer.from_metadata(metadata)
    for text in ("hello", "internationalization" * 5_000, "the quick brown fox " * 5_000, "\u4e2d\u6587" * 16_000):
        start = time.thread_time()
        ours.encode(text)
        assert time.thread_time() - start < slowness()  # 0.4 s on an idle core, the first of them for the tables
