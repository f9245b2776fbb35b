"""What is peculiar to single kinds of vocabularies, spelled out, and files of theirs that make no sense."""

import functools

import numpy as np
import pytest
import tokenizer_goldens
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import BYTES, KEY, bpe, genes, plamo, rwkv, text_bpe, unigram

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.model.text import greedy
from packlight.model.text.streaming import TextStream
from packlight.model.text.tokenizer import Tokenizer

KINDS = {
    "gemma4": functools.partial(text_bpe, "gemma4", "default"),
    "whitespace": functools.partial(text_bpe, "whitespace", "whitespace"),
    "hybriddna": genes,
    "t5": unigram,
    "rwkv": rwkv,
    "plamo2": plamo,
    "kimi-k2": functools.partial(bpe, "kimi-k2"),
}


@functools.cache
def made(kind: str) -> Tokenizer:
    return Tokenizer.from_metadata(KINDS[kind]())


def without(metadata: dict, *keys: str) -> dict:
    return {key: value for key, value in metadata.items() if key.removeprefix(KEY) not in keys}


@pytest.mark.parametrize("name", tokenizer_goldens.VARIANTS)
def test_a_stream_is_the_pieces_joined(name):
    ours = Tokenizer.from_metadata(tokenizer_goldens.VARIANTS[name])
    for ids in tokenizer_goldens.random_ids(ours.vocab_size):
        stream = TextStream(ours)
        shown = "".join([*map(stream.feed, ids), stream.finish()])
        assert shown == b"".join(map(ours.piece, ids)).decode("utf-8", "replace")


def test_supported_kinds_have_goldens():
    """Each that the refusal lists, beside BERT's own in `wpm_goldens`."""
    told = {metadata[KEY + "model"] for metadata in tokenizer_goldens.VARIANTS.values()}
    with pytest.raises(UnsupportedError, match="supported: ") as refusal:
        Tokenizer.from_metadata({KEY + "model": "no-such"})
    assert told | {"bert"} == set(str(refusal.value).rpartition(": ")[2].split(", "))


# ---- BPE without byte letters


def test_gemma4():
    ours, tokens = made("gemma4"), KINDS["gemma4"]()[KEY + "tokens"]
    assert ours.add_bos
    assert Tokenizer.from_metadata(KINDS["gemma4"](add_bos_token=False)).encode("") == [ours.bos_id]
    runs = [[tokens[i] for i in ours.encode("\n" * n, add_special=False)] for n in (1, 2, 3, 4, 5)]
    assert runs == [["\n"], ["\n\n"], ["\n" * 3], ["\n\n"] * 2, ["\n" * 5]]  # of three and five no merge makes a token
    assert [tokens[i] for i in ours.encode("\u00e8", add_special=False)] == ["<0xC3>", "<0xA8>"]
    assert ours.encode("\U0001f600", add_special=False) == [0x9F, 0x98, 0x80]  # the vocabulary has no F0


def test_a_file_without_merges():
    for kind in ("gemma4", "whitespace", "hybriddna"):
        with pytest.raises(GGUFError, match="merges' is missing"):
            Tokenizer.from_metadata(without(KINDS[kind](), "merges"))
    bare = Tokenizer.from_metadata(without(KINDS["kimi-k2"](), "merges"))
    assert len(bare.encode("\u4e2d\u6587s", add_special=False)) == 7  # bytes
    assert bare.decode(bare.encode("\u4e2d\u6587s", add_special=False)) == "\u4e2d\u6587s"
    with pytest.raises(GGUFError, match="merges' is not an array of strings"):
        Tokenizer.from_metadata(KINDS["kimi-k2"](merges=np.arange(3)))


def test_gemma4_needs_bos():
    with pytest.raises(GGUFError, match="bos_token_id' is missing, but a bos token is to be added"):
        Tokenizer.from_metadata(without(KINDS["gemma4"](), "bos_token_id"))


def test_spaces_are_dropped():
    ours = made("whitespace")
    assert ours.encode(" a\u00a0\n b") == ours.encode("a") + ours.encode("b")
    lower = Tokenizer.from_metadata(KINDS["whitespace"](**{"normalizer.lowercase": True}))
    assert lower.encode("Z\u0416\u00c9") == ours.encode("z\u0436\u00e9") != ours.encode("Z\u0416\u00c9")


# ---- genes


def test_genes():
    ours, tokens = made("hybriddna"), KINDS["hybriddna"]()[KEY + "tokens"]
    unknown, opened, closed = (tokens.index(text) for text in ("<oov>", "<dna>", "</dna>"))
    known = next(t for t in tokens if t.endswith("A\ue000"))
    ids = ours.encode(f"<dna>{known[:5].lower()}</dna>")
    assert ids == [opened, tokens.index(known), closed]
    assert ours.decode(ids) == f"<dna>{known[:6]}</dna>"
    assert ours.encode("<dna>ACGNNN\u00e9") == [opened, unknown, unknown]
    assert ours.piece(tokens.index("x\ue000")) == b"x[UNK_BYTE_0xee8080x\xee\x80\x80]"  # stands before <oov>
    plain = made("kimi-k2").encode
    assert Tokenizer.from_metadata(bpe("kimi-k2", model="hybriddna")).encode("<dna>AC") == plain("<dna>AC")


# ---- RWKV


def test_escapes():
    assert greedy.piece(r"a\t\n\r\'\\\x0a\xe4") == b"a\t\n\r'\\\n\xe4"
    assert greedy.piece("\\\u00e9\u4e2d") == "\u00e9\u4e2d".encode()
    assert greedy.piece(r"\x1") == greedy.piece("\\") == b""
    assert greedy.piece(r"\x4A") == bytes([0x40 + 17])  # llama.cpp reads small digits only


def test_bytes_that_are_no_token():
    tokens = ["<s>", "a", "bc", "\\n"]
    metadata = {KEY + "model": "rwkv", KEY + "tokens": tokens}
    ours = Tokenizer.from_metadata(metadata)
    assert ours.encode("abca\n") == [1, 2, 1, 3]
    for text in ("d", "bb", "b"):
        with pytest.raises(GGUFError, match=f"tokens' has no token for the byte 0x{ord(text[0]):X}"):
            ours.encode(text)
    known = Tokenizer.from_metadata(metadata | {KEY + "unknown_token_id": 0})
    assert known.encode("ad\u00e9") == [1, 0, 0, 0]
    with pytest.raises(GGUFError, match="0x62"):
        known.encode("bb")


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_rwkv_takes_the_longest(text):
    ours, raw, at = made("rwkv"), text.encode(), 0
    pieces = [ours.piece(i) for i in range(ours.vocab_size)]
    for i in ours.encode(text) if "<user>" not in text else ():
        longest = max((p for p in pieces if p and raw.startswith(p, at)), key=len)
        assert pieces[i] == longest
        at += len(longest)


# ---- PLaMo 2


def plamo_of(tokens: dict[str, float]) -> Tokenizer:
    first = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", *BYTES]
    values = {"model": "plamo2", "tokens": [*first, *tokens]}
    values["scores"] = np.array([0.0] * len(first) + list(tokens.values()), np.float32)
    values["token_type"] = np.array([2, 3, 3] + [6] * 256 + [1] * len(tokens), np.int32)
    return Tokenizer.from_metadata({KEY + key: value for key, value in values.items()})


SCORED = {"a": -2.0, "b": -3.0, "ab": -5.0, "ba": -4.0, "aab": -6.5, " a": -3.0, "\u00e9": -2000.0, "bb": -np.inf}


@settings(deadline=None, max_examples=200)
@given(st.text("ab \u00e9c", max_size=9))
def test_plamo_takes_the_best_cut(text):
    """Of equal ones that whose first tokens are longest."""
    tokens = list(SCORED)
    usable = {token: round(score * 1e4) for token, score in SCORED.items() if score > -2000}

    @functools.cache
    def best(at: int) -> tuple[int, list[int]]:
        if at == len(text):
            return 0, []
        fits = sorted((t for t in usable if text.startswith(t, at)), key=len, reverse=True)
        ways = [(usable[t] + best(at + len(t))[0], [259 + tokens.index(t), *best(at + len(t))[1]]) for t in fits]
        score, ids = best(at + 1)
        ways.append((score - 10_000_000, [3 + byte for byte in text[at].encode()] + ids))
        return max(ways, key=lambda way: way[0])

    assert plamo_of(SCORED).encode(text) == best(0)[1]


def test_plamo_frame_and_marks():
    ours = plamo_of(SCORED)
    assert (ours.add_bos, ours.add_eos, ours.bos_id, ours.eos_id) == (False, False, 1, 2)
    assert ours.encode("\ufeffab") == ours.encode("ab")
    assert ours.decode(ours.encode("a\ufeffb\u00e9")) == "a\ufeffb\u00e9"
    assert ours.eog_ids == {2}
    assert 259 + len(SCORED) not in plamo_of(SCORED | {"</s>": -1.0}).eog_ids
    types = plamo()[KEY + "token_type"]
    types[4 + 0x7F] = 1
    with pytest.raises(GGUFError, match="tokens' has no byte token '<0x7F>'"):
        Tokenizer.from_metadata(plamo(token_type=types))


# ---- files that make no sense

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 300, -1, 2**31, 2**64 - 1]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.sampled_from(["", "a", "\u2581", "a b", "\n", "\\x"]), max_size=4),
    st.sampled_from([np.arange(3), np.zeros(0, np.int8), np.full(40, 7, np.uint8), np.zeros(0, np.float32)]),
)
ODD_KEYS = ["pre", "tokens", "token_type", "scores", "merges", "add_space_prefix", "remove_extra_whitespaces"]
ODD_KEYS += ["precompiled_charsmap", "normalizer.lowercase", "add_bos_token", "add_eos_token"]
ODD_KEYS += [f"{name}_token_id" for name in ("bos", "eos", "unknown", "eot")]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_metadata_is_read_or_refused(kind):
    @settings(deadline=None, max_examples=60)
    @given(st.dictionaries(st.sampled_from([KEY + key for key in ODD_KEYS]), ODD_VALUES, max_size=3))
    def check(changes):
        changed = {key: value for key, value in (KINDS[kind]() | changes).items() if value is not None}
        try:
            ours = Tokenizer.from_metadata(changed)
            ids = ours.encode("Hello </s> \u4e2d a\u2581a\n\n")
        except (GGUFError, UnsupportedError):
            return
        assert isinstance(ours.decode(ids), str)

    check()
