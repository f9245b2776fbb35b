"""What llama.cpp makes of texts under every pre-tokenizer name, as digests: how `pretokenizer_goldens.json` was made.

    python tests/goldens/pretokenizer_goldens.py VOCABS NAME ... > tests/goldens/pretokenizer_goldens.json

VOCABS is the folder of real vocabularies (`ggml-vocab-NAME.gguf`, `extra-NAME.json`); runs where llama-cpp-python is
installed and imports nothing of packlight. A vocabulary is loaded once under each name, the rest of it unchanged.
"""

import ctypes
import hashlib
import json
import os
import pathlib
import random
import sys
import tempfile

VOCABS = ("gpt-2", "llama-bpe")
OF_A_VOCABULARY = ("special", "special_unparsed", "add_special")  # kinds of strings that name special tokens
ALPHABET = (
    "aZ\u00e9\u00c9\u0416\u0436\u4e2d\u3042\u30ab\uac00\u0e01\u0915\u094d\u0301 \t\n\r0159\u0665\u00b2.,!?'/-_$+"
    "\u3002\u20ac\u00ab\U0001f600\u00a0\u2028"
)
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
)


def texts(extra: pathlib.Path) -> list[str]:
    """Those of the fixture that hold no special token, and seeded random ones."""
    records = json.loads(extra.read_text(encoding="utf-8"))["strings"]
    found = [r["text"] for r in records if r["kind"] not in OF_A_VOCABULARY and len(r["text"]) < 2000]
    rng = random.Random(1)
    found += ["".join(rng.choices(ALPHABET, k=rng.randint(1, 40))) for _ in range(300)]
    return found + [
        "".join(rng.choice(WORDS) + rng.choice(("", " ", "  ", "\n")) for _ in range(8)) for _ in range(100)
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


def main() -> None:
    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    folder, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
    out: dict[str, dict[str, str]] = {}
    for vocab_name in VOCABS:
        data = (folder / f"ggml-vocab-{vocab_name}.gguf").read_bytes()
        strings = texts(folder / f"extra-{vocab_name}.json")
        for name in names:
            with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
                file.write(named(data, name))
                file.flush()
                params = lib.llama_model_default_params()
                params.vocab_only = True
                model = lib.llama_model_load_from_file(os.fsencode(file.name), params)
            if not model:
                sys.exit(f"llama.cpp does not know {name}")
            vocab = lib.llama_model_get_vocab(model)
            buffer = (ctypes.c_int32 * 8192)()
            ids = []
            for text in strings:
                raw = text.encode()
                ids.append(list(buffer[: lib.llama_tokenize(vocab, raw, len(raw), buffer, 8192, False, False)]))
            out.setdefault(name, {})[vocab_name] = digest(ids)
            lib.llama_model_free(model)
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
