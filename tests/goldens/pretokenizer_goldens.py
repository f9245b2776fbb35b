"""What llama.cpp makes of texts under every pre-tokenizer name, as digests: how `pretokenizer_goldens.json` is made.

Under the small vocabulary of `vocabularies`, and under the real ones of ../shared where that is; they are then loaded
under each name, the rest of them unchanged. Names of vocabularies without byte letters are not here: llama.cpp ends the
process where it merges words with spaces in them. `tokenizer_goldens` has those.
"""

import hashlib
import json
import pathlib
import random
import tempfile

from peer import SHARED, Vocab
from vocabularies import ALPHABET, ASIAN, bpe, write_vocabulary
from wpm_goldens import TEXTS

from packlight.model.text.pretokenizers import PRETOKENIZERS

FIXTURES = SHARED / "vocabs"
VOCABS = ("gpt-2", "llama-bpe")
OF_A_VOCABULARY = ("special", "special_unparsed", "add_special")  # kinds of strings that name special tokens
WORDS = (
    "I'll",
    "HELLO",
    "camelCaseWord",
    "don'T",
    "\u00c9cole",
    "x1234567",
    "   ",
    "\n\n",
    "a/b//",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u4e2d\u6587",
    "!\ufa6e\u4e2d",
    "\ufa6e",
    "12345678",
    "\u0663\u06641234\u0663",
    "1\u06643",
    "x'LLy's",
    "\u0416\u0436'Re",
    "\u01c5\u0301",
    "\u3105\u3001\u2014",
    "\ud55c\uae00\u0e01",
    "\uf8ff\U00020000",
)
NAMES = tuple(name for name, pre in PRETOKENIZERS.items() if pre.byte_letters)


def texts(extra: pathlib.Path | None = None) -> list[str]:
    """Those of a fixture that hold no special token, or our own, and seeded random ones."""
    found = [*TEXTS]
    if extra is not None:
        records = json.loads(extra.read_text(encoding="utf-8"))["strings"]
        found = [r["text"] for r in records if r["kind"] not in OF_A_VOCABULARY and len(r["text"]) < 2000]
    rng = random.Random(1)
    found += ["".join(rng.choices(ALPHABET + ASIAN, k=rng.randint(1, 40))) for _ in range(300)]
    return found + [
        "".join(rng.choice(WORDS) + rng.choice(("", " ", "  ", "\n")) for _ in range(8)) for _ in range(200)
    ]


def digest(ids: list[list[int]]) -> str:
    """16 hex digits over the ids of all texts."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def named(vocab: bytes, pre: str) -> bytes:
    """A vocabulary file under another pre-tokenizer name; it has no tensors, so nothing needs aligning."""
    key = b"tokenizer.ggml.pre" + (8).to_bytes(4, "little")
    at = vocab.index(key) + len(key)
    length = int.from_bytes(vocab[at : at + 8], "little")
    return vocab[:at] + len(pre).to_bytes(8, "little") + pre.encode() + vocab[at + 8 + length :]


def make() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    out: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    sources = [("own", texts())]
    if FIXTURES.exists():
        sources += [(name, texts(FIXTURES / f"extra-{name}.json")) for name in VOCABS]
    with tempfile.TemporaryDirectory() as folder:
        for source, strings in sources:
            file = pathlib.Path(folder) / "m.gguf"
            write_vocabulary(file, bpe("default", ASIAN))
            data = (file if source == "own" else FIXTURES / f"ggml-vocab-{source}.gguf").read_bytes()
            for name in NAMES:
                file.write_bytes(named(data, name))
                vocab = Vocab(file)
                ids = [vocab.encode(text, False, False) for text in strings]
                out.setdefault(name, {})[source] = digest(ids)
                vocab.close()
    path.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
