"""WordPiece against llama.cpp's ids and texts, and against the `tokenizers` library."""

import functools
import json
import random
import string
import time
import unicodedata

import numpy as np
import pytest
import tokenizers
import wpm_goldens
from cleanup import cleaned
from conftest import GOLDENS_FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st
from processor import slowness
from wpm_goldens import KEY, LOWERCASE, NORMALIZERS, STRIP_ACCENTS, TEXTS, VARIANTS, digest

import packlight
from packlight.common.errors import GGUFError
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.text.wpm import WPM

GOLDENS = json.loads((GOLDENS_FOLDER / "wpm_goldens.json").read_text())


@functools.cache
def metadata() -> dict:
    """The small vocabulary as a file holds it, in the default reading."""
    return written(*wpm_goldens.vocabulary())


def written(tokens: list[str], types: list[int]) -> dict:
    prefixed = wpm_goldens.prefixed(tokens, types)
    return {KEY + "model": "bert", KEY + "tokens": prefixed, KEY + "token_type": np.array(types, np.int32)}


@functools.cache
def tokenizer(variant: str) -> Tokenizer:
    return Tokenizer.from_metadata(metadata() | VARIANTS[variant])


# ---- llama.cpp's ids


@pytest.mark.parametrize("variant", VARIANTS)
def test_encodes_as_llama_cpp(variant):
    golden, encode = GOLDENS[variant], tokenizer(variant).encode
    for text, ids in zip(TEXTS, golden["ids"], strict=True):
        assert encode(text, True, True) == json.loads(ids), repr(text)
    assert digest([encode(text, False, False) for text in TEXTS]) == golden["plain"]
    texts = [(t, s, p) for t in wpm_goldens.random_texts() for s in (False, True) for p in (False, True)]
    assert digest([encode(*arguments) for arguments in texts]) == golden["random"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_decodes_as_llama_cpp(variant):
    """llama.cpp tidies spaces away in this kind of vocabulary; the pieces show what it tidied."""
    golden, ours = GOLDENS[variant], tokenizer(variant)
    assert digest([ours.piece(i).hex() for i in range(ours.vocab_size)]) == golden["pieces"]
    ids = [*map(json.loads, golden["ids"]), *wpm_goldens.random_ids()]
    assert digest([cleaned(ours.decode(row).encode()).hex() for row in ids]) == golden["texts"]
    assert ours.eog_ids == frozenset(golden["ends"])


@pytest.mark.parametrize("variant", wpm_goldens.ONE_STEP)
def test_every_character_as_llama_cpp(variant):
    """Whatever Unicode this Python knows."""
    changes = NORMALIZERS[variant] | wpm_goldens.ALPHABET_IDS
    ours = Tokenizer.from_metadata(written(*wpm_goldens.alphabet()) | changes)
    golden = GOLDENS[variant]["characters"]
    found = {block: digest(ours.encode(text, add_special=False)) for block, text in wpm_goldens.blocks()}
    assert found == golden


def test_from_a_file(tmp_path):
    path = tmp_path / "bert.gguf"
    wpm_goldens.write(path, *wpm_goldens.vocabulary(), VARIANTS["odd flags"])
    ours = packlight.Tokenizer.from_gguf(path)
    for text, ids in zip(TEXTS, GOLDENS["odd flags"]["ids"], strict=True):
        assert ours.encode(text, True, True) == json.loads(ids)


def test_a_vocabulary_alone_is_no_model(tmp_path):
    """It can be read, and says nothing of the encoder that it is for."""
    path = tmp_path / "bert.gguf"
    wpm_goldens.write(path, *wpm_goldens.vocabulary(), {})
    with pytest.raises(GGUFError, match="token_type_count' is missing"):
        packlight.load(path)


# ---- the reading, spelled out


def test_frame():
    ours = tokenizer("uncased")
    hello = ours.encode("hello", add_special=False)
    assert (ours.bos_id, ours.eos_id, ours.end_id, ours.add_bos, ours.add_eos) == (101, None, 102, True, False)
    assert ours.encode("hello") == [101, *hello, 102]
    assert ours.encode("") == [101, 102]
    assert ours.encode("", add_special=False) == []
    assert ours.decode(ours.encode("Hello token")) == "[CLS] hello token[SEP]"


def test_longest_pieces_or_unknown():
    tokens = [*metadata()[KEY + "tokens"]]
    ours = tokenizer("uncased")
    assert [tokens[i] for i in ours.encode("international\u00efzations", add_special=False)] == [
        *("\u2581international", "ization", "s")
    ]
    assert ours.encode("hello\U0001f680 hello", add_special=False) == [100, ours.encode("hello", False)[0]]


def test_specials_only_when_asked():
    ours = tokenizer("uncased")
    text = "[MASK] <user>s"
    assert ours.encode(text, False, True) == [103, ours.vocab_size and metadata()[KEY + "tokens"].index("<user>s")]
    assert 103 not in ours.encode(text, False, False)
    assert ours.encode(text, False, False)[-1] == metadata()[KEY + "tokens"].index("<user>s")


# ---- the `tokenizers` library


@functools.cache
def library(variant: str) -> tokenizers.Tokenizer:
    tokens, _ = wpm_goldens.vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    lowercase, strip_accents = reading(variant)
    out = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=1 << 30)  # llama.cpp has no limit
    )
    out.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    out.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return out


def reading(variant: str) -> tuple[bool, bool]:
    """Whether it lowers case and strips accents."""
    lowercase = NORMALIZERS[variant].get(LOWERCASE, True)
    return lowercase, NORMALIZERS[variant].get(STRIP_ACCENTS, lowercase)


def of_one_age(character: str) -> bool:
    """Whether a character still is what it was in Unicode 3.2: then it is to the library's old tables, too."""
    return unicodedata.ucd_3_2_0.category(character) == unicodedata.category(character) != "Cn"


def read_apart(character: str, variant: str) -> bool:
    """Whether llama.cpp means to do with a character something else than the library."""
    lowercase, strip_accents = reading(variant)
    if character in "\v\f\x85":  # white space to one, dropped controls to the other
        return True
    if not strip_accents:
        return lowercase and character == "\u0130"  # whose lower-case form has two code points; llama.cpp takes one
    # llama.cpp drops every mark, the library those without width; of a decomposition llama.cpp takes one code point
    rest = [c for c in unicodedata.normalize("NFD", character) if unicodedata.category(c) != "Mn"]
    return len(rest) > 1 or unicodedata.category(character) in ("Mc", "Me")


@pytest.mark.parametrize("variant", NORMALIZERS)
def test_characters_that_the_library_reads_otherwise(variant):
    """They are those that `read_apart` names and no others."""
    words, pieces = library(variant).normalizer, library(variant).pre_tokenizer
    assert words is not None
    assert pieces is not None
    ours = WPM({"a": 0}, 0, *reading(variant))
    apart = 0
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE1000))):
        if of_one_age(character):
            text = f"a{character}b"
            theirs = [word for word, _ in pieces.pre_tokenize_str(words.normalize_str(text))]
            assert (ours.words(text) != theirs) == read_apart(character, variant), hex(ord(character))
            apart += read_apart(character, variant)
    assert apart > 2


@pytest.mark.parametrize("variant", NORMALIZERS)
def test_encodes_as_the_library(variant):
    characters = st.characters(exclude_categories=["Cs", "Cn"]).filter(
        # U+2581 is text to the library and the mark of a word in a GGUF file: "a\u2581the" is "a", "the" there
        lambda c: of_one_age(c) and not read_apart(c, variant) and c != "\u2581"
    )
    known = st.sampled_from([t.removeprefix("##") for t in wpm_goldens.vocabulary()[0] if t[0] not in "[<"])
    known = known.filter(lambda t: not any(read_apart(c, variant) for c in t))
    texts = st.lists(known | st.text(characters, max_size=8) | st.sampled_from([" ", "\n"])).map("".join)

    @settings(deadline=None, max_examples=200)
    @given(texts)
    def check(text):
        assert tokenizer(variant).encode(text, add_special=False) == library(variant).encode(text).ids

    check()


# ---- speed


def shapes() -> dict[str, str]:
    """100 KB each of what makes tokenizers slow."""
    rng = random.Random(0)
    return {
        "one word of letters": "".join(rng.choices(string.ascii_lowercase, k=100_000)),
        "one word of pieces": "unfortten" * 11_111,
        "one word that ends in the unknown": "a" * 99_999 + "\u0251",
        "prose": " ".join(rng.choices(wpm_goldens.WORDS.split(), k=20_000)),
        "marks": "".join(rng.choices(string.punctuation, k=100_000)),
        "spaces": " " * 100_000,
        "any characters": "".join(chr(rng.randrange(0x20, 0xD800)) for _ in range(34_000)),
        "specials": "[MASK]" * 16_667,
    }


@pytest.mark.parametrize("shape", shapes())
def test_100_kb_in_a_second(shape):
    """The worst is 0.2 s on an idle core; this thread's CPU time, on a tokenizer that has nothing cached."""
    ours = Tokenizer.from_metadata(metadata())
    start = time.thread_time()
    ours.encode(shapes()[shape], parse_special=True)
    assert time.thread_time() - start < slowness()


# ---- bad files

N = len(wpm_goldens.vocabulary()[0])
FEW = {KEY + "tokens": ["a", "b"], KEY + "token_type": None}
BAD = [
    ({KEY + "unknown_token_id": N}, f"unknown_token_id' is {N}, but the vocabulary ends at {N - 1}"),
    ({KEY + "seperator_token_id": 2**32 - 1}, "seperator_token_id' is 4294967295, but"),
    ({KEY + "seperator_token_id": "[SEP]"}, "seperator_token_id' is '\\[SEP\\]', not a token id"),
    ({KEY + "bos_token_id": N}, f"bos_token_id' is {N}, but"),
    (FEW, "bos_token_id' is missing, and a vocabulary of 2 tokens has no id 101"),
    (FEW | {KEY + "bos_token_id": 1}, "seperator_token_id' is missing, and a vocabulary of 2 tokens has no id 102"),
    (FEW | {KEY + "bos_token_id": 1, KEY + "seperator_token_id": 0}, "unknown_token_id' is missing, and .* no id 100"),
    ({LOWERCASE: 1}, "normalizer.lowercase' is 1, neither true nor false"),
    ({STRIP_ACCENTS: "no"}, "normalizer.strip_accents' is 'no', neither true nor false"),
    ({KEY + "tokens": None}, "tokens' is missing"),
    ({KEY + "tokens": ["\u2581a"] * N}, "tokens' has '\u2581a' twice"),
    ({KEY + "token_type": np.ones(N - 1, np.int32)}, f"token_type' has {N - 1} elements for {N} tokens"),
]


def changed(changes: dict) -> dict:
    return {key: value for key, value in (metadata() | changes).items() if value is not None}


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_metadata(changes, message):
    with pytest.raises(GGUFError, match=message):
        Tokenizer.from_metadata(changed(changes))


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, N - 1, N, -1, 2**31, 2**64 - 1]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.sampled_from(["", "a", "\u2581", "\u2581a", "[PAD]", "\ufffd"]), max_size=4),
    st.sampled_from([np.arange(3), np.zeros(0, np.int32), np.full(N, 7, np.int32), np.full(N, 6, np.int32)]),
)
KEYS = [
    *("tokens", "token_type", "pre", "add_space_prefix", "normalizer.lowercase", "normalizer.strip_accents"),
    *(f"add_{name}_token" for name in ("bos", "eos")),
    *(f"{name}_token_id" for name in ("bos", "eos", "unknown", "seperator", "padding", "fim_pad")),
]


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([KEY + key for key in KEYS] + ["general.name"]), ODD_VALUES, max_size=4))
def test_odd_metadata_is_read_or_refused(changes):
    try:
        ours = Tokenizer.from_metadata(changed(changes))
    except GGUFError:
        return
    ids = ours.encode("Hello [PAD] \u4e2d a\u2581a", parse_special=True)
    assert isinstance(ours.decode(ids), str)
