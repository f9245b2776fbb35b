"""What llama.cpp makes of texts under a small WordPiece vocabulary: how `wpm_goldens.json` is made.

The files depend on this module alone; tests write them anew.
"""

import hashlib
import json
import os
import pathlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

from peer import Vocab

KEY = "tokenizer.ggml."
LOWERCASE, STRIP_ACCENTS = KEY + "normalizer.lowercase", KEY + "normalizer.strip_accents"
NORMALIZERS: dict[str, dict[str, Any]] = {
    "uncased": {},
    "cased": {LOWERCASE: False},
    "cased without accents": {LOWERCASE: False, STRIP_ACCENTS: True},
    "uncased with accents": {STRIP_ACCENTS: False},
}
ONE_STEP = ("cased without accents", "uncased with accents")  # each step alone, seen on every character
VARIANTS: dict[str, dict[str, Any]] = {
    **NORMALIZERS,
    "odd flags": {
        KEY + "add_bos_token": False,
        KEY + "add_eos_token": True,
        KEY + "add_sep_token": False,
        KEY + "add_space_prefix": True,
        KEY + "bos_token_id": 7,
        KEY + "seperator_token_id": 8,
        KEY + "unknown_token_id": 9,
        "general.name": "Modern-BERT of ours",
    },
    "mask by pre-tokenizer": {KEY + "pre": "jina-v2-es", KEY + "eos_token_id": 102},
}

# BERT's layout: 0 [PAD], [unused...], 100 [UNK], 101 [CLS], 102 [SEP], 103 [MASK], and then what texts are made of.
CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>")
USER_DEFINED = ("<user>", "<user>s")
LETTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\u00e9\u00c9\u00f6\u00df\u00e6\u00f8\u0131"
    "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b9\u03bb\u03bf\u03c2\u03c3\u0391\u0430\u0431\u0432\u0433\u0434\u0435\u0438\u043a"
    "\u043e\u0440\u0442\u0416\u05d0\u05d1\u05d2\u0627\u0628\u062a\u0633\u0644\u0645\u0915\u0924\u0928\u092e\u0930\u0939"
    "\u093f\u0940\u094d\u0e01\u0e02\u0e32\u3042\u3044\u30ab\u30f3\u1112\u1161\u11ab\u1100\u0663\u00b2\u20ac\u00a9\u2122"
    "\u0301\u0308\U0001f600\U00010428"
)
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u3002\u00ab\u00bb\u2014\u2026\u00a7\u060c\u0964"
CHINESE = "\u4e00\u4e2d\u56fd\u4eba\u6587\u5b57\u6771\u4eac\u3400\U00020000\u8eca"
WORDS = (
    "the of and to in a is was he for it with as his on be at by i this had not are but from or have an they which one "
    "you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "even most made after also did many off before must well back through years where much your way down should "
    "because long each just those people how too little world good very still see men work life day token hello "
    "embed international language caf\u00e9 cafe na\u00efve HELLO Hello "
    "\u043a\u043e\u0442 \u03bb\u03bf\u03b3\u03bf\u03c3"
)
PIECES = (
    "s ed ing er ly ization ize izer al able ness ment tion un fort ten ns 'll ... "
    "\u043a\u0438 \u0924\u0947 \u11ab\u1100"
)

TEXTS = (
    "",
    " ",
    "hello",
    " Hello  WORLD \n",
    "The internationalization of tokenizers, unbelievably!",
    "a ' ' ' b ' . ' ! c",
    "don't they'll ' quoted ' it 's we 're 've i 'm , really ? no . yes !",
    "caf\u00e9 cafe\u0301 CAF\u00c9 na\u00efve \u00d6l stra\u00dfe \u1e9e \u00c6gir",
    "\u0130stanbul \u0131s\u0131 \u01c5 \ufb01ne \u212b \u212a \u2126",
    "\u039b\u03cc\u03b3\u03bf\u03c2 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "\u041a\u043e\u0442\u0438\u043a\u0438 \u0439\u043e\u0433 \u0416",
    "\u4e2d\u56fd\u4eba abc\u4e2ddef \u6771\u4eac\u3067\u3059 \uf902 \U0002f800",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0924",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u064e \u05d0\u05b0\u05d1",
    "\ud55c\uad6d\uac00 \u1112\u1161\u11ab",
    "\u304c\u3044 \u30ab\u30f3 \u0e01\u0e32",
    "1234567 3.14 \u0663 x\u00b2 10\u20ac \u00a9\u2122",
    "a\x00b\x07c\u00add\u200be\ufefff\ufffdg\U000e0061h",
    "a\tb\nc\rd\x0be\x0cf\x85g\u00a0h\u2003i\u3000j\u2028k\x1cl",
    "<user> a<user>s <user>s.",
    "[CLS] a [SEP] b[MASK]c [MASK] d <mask> e [PAD][UNK] [mask]",
    "[CLS][SEP]",
    "#hash ##ing @x $5 ~ ` ^ a_b c-d",
    "\u2581 \u2581hello a\u2581the",
    "\u00ab\u2014\u2026\u00bb \u3002\u00a7 \u060c \u0964",
    "\U0001f600 a\U0001f600 \U00010400 \U00010428",
    "zzzzqqqq xylophonists the" + "s" * 150,
    "ab" * 300 + " " + "unfortten" * 40,
    "\u1e69 \u1ec7 \u1fa7 \u0958 \u0b4b \u09cb \U0001d15e",
)


def vocabulary() -> tuple[list[str], list[int]]:
    """Tokens as BERT writes them ("##" before what continues a word), without repetition, and their types."""
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>"]
    tokens += [*USER_DEFINED, *MARKS, *LETTERS, *CHINESE, *WORDS.split()]
    tokens += ["##" + piece for piece in (*LETTERS, *PIECES.split())]
    tokens = list(dict.fromkeys(tokens))
    return tokens, [3 if t in CONTROL else 4 if t in USER_DEFINED else 1 for t in tokens]


def alphabet() -> tuple[list[str], list[int]]:
    """A vocabulary that shows what becomes of any character: nearly every one continues a word."""
    points = (*range(1, 0xD800), *range(0xE000, 0x24000), *range(0x28000, 0x30000))
    tokens = ["[UNK]", "[CLS]", "[SEP]", *("##" + chr(c) for c in points), "a"]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3)


ALPHABET_IDS = {KEY + "unknown_token_id": 0, KEY + "bos_token_id": 1, KEY + "seperator_token_id": 2}


def prefixed(tokens: list[str], types: list[int]) -> list[str]:
    """As converters write them: U+2581 before what begins a word, continuations without their "##"."""
    typed = zip(tokens, types, strict=True)
    return [t if kind != 1 else t[2:] if t.startswith("##") else "\u2581" + t for t, kind in typed]


def write(path: str | os.PathLike, tokens: list[str], types: list[int], changes: dict[str, Any]) -> None:
    """A bert file without tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "bert")
    for key, number in {
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 64,
    }.items():
        writer.add_uint32(f"bert.{key}", number)
    writer.add_uint32("bert.attention.head_count", 2)
    writer.add_float32("bert.attention.layer_norm_epsilon", 1e-12)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(prefixed(tokens, types))
    writer.add_token_types(types)
    for key, value in changes.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_all(folder: pathlib.Path) -> None:
    for name, changes in VARIANTS.items():
        write(folder / f"{name}.gguf", *vocabulary(), changes)
    for name in ONE_STEP:
        write(folder / f"{name}.alphabet.gguf", *alphabet(), {**NORMALIZERS[name], **ALPHABET_IDS})


def random_texts() -> list[str]:
    rng = random.Random(4)
    tokens = [t.removeprefix("##") for t in vocabulary()[0] if not t.startswith("[unused")]
    odd = [
        *"\u00c5\u1e69\uac01\u0345\u0903\u20dd\u200d\u00ad\u2003\x85\x0b\x1f\u00a0\u0130\u1fb3\uff01\ufffd\u30ac",
        " ",
    ]
    return ["".join(rng.choice(rng.choice((tokens, odd, "  "))) for _ in range(rng.randint(1, 30))) for _ in range(400)]


def random_ids() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(len(vocabulary()[0])) for _ in range(rng.randint(0, 20))] for _ in range(200)]


def blocks() -> Iterator[tuple[str, str]]:
    """The characters that Unicode has given a meaning, each between two letters: (name, text)."""
    for start in (*range(0, 0x24000, 0x4000), 0x28000, 0x2C000, 0xE0000, 0xF0000):
        points = (c for c in range(start, start + 0x4000) if not 0xD800 <= c < 0xE000)
        yield f"{start:X}", " ".join(f"a{chr(c)}b" for c in points)


def digest(found: Any) -> str:
    """16 hex digits of ids."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def make() -> None:
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_all(folder)
        for name in VARIANTS:
            vocab = Vocab(folder / f"{name}.gguf")
            ids = [vocab.encode(text, True, True) for text in TEXTS]
            out[name] = {
                "ids": [json.dumps(row, separators=(",", ":")) for row in ids],
                "plain": digest([vocab.encode(text, False, False) for text in TEXTS]),
                "random": digest([vocab.encode(t, s, p) for t in random_texts() for s in (0, 1) for p in (0, 1)]),
                "texts": digest([vocab.decode(row).hex() for row in ids + random_ids()]),
                "pieces": digest([vocab.piece(i).hex() for i in range(vocab.size)]),
                "ends": vocab.ends,
            }
        for name in ONE_STEP:
            vocab = Vocab(folder / f"{name}.alphabet.gguf")
            out[name]["characters"] = {block: digest(vocab.encode(text, False, False)) for block, text in blocks()}
    text = json.dumps(out, indent=1) + "\n"
    pathlib.Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
