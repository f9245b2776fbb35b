"""What llama.cpp makes of texts under the small vocabularies of `vocabularies`: how `tokenizer_goldens.json` is made.

By llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36. The ids of some texts can be read, the rest are digests.
"""

import json
import pathlib
import random
import tempfile
from typing import Any

from peer import Vocab
from vocabularies import ALPHABET, KEY, MARKED, bpe, genes, plamo, rwkv, spm, text_bpe, unigram, write_vocabulary
from wpm_goldens import TEXTS, digest

FRAMED = {"add_bos_token": True, "add_eos_token": True}
EMBEDDING = {
    "spm": spm(**FRAMED, add_space_prefix=False),  # Gemma's
    "t5": unigram(("<mask>",), **FRAMED, bos_token_id=0, pre="jina-v2-es"),  # XLM-RoBERTa's, with its <mask>
    "roberta-bpe": bpe("roberta-bpe", **FRAMED, add_sep_token=True, seperator_token_id=9),
    "modern-bert": bpe("modern-bert", **FRAMED, seperator_token_id=9),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "spm": spm(),
    "spm without prefix": spm(add_space_prefix=False, add_bos_token=False, add_eos_token=True),
    "spm of phi3": spm(eos_token_id=803) | {"general.name": "Phi3"},
    "gpt-2": bpe("gpt-2"),
    "llama-bpe": bpe("llama-bpe"),
    "qwen2": bpe("qwen2"),
    "deepseek-llm": bpe("deepseek-llm", add_bos_token=True, add_eos_token=True),
    "starcoder": bpe("starcoder"),
    "kimi-k2 without merges": {key: value for key, value in bpe("kimi-k2").items() if key != KEY + "merges"},
    "gemma4": text_bpe("gemma4", "default"),
    "granite": text_bpe("gpt2", "granite-embed-multi-311m", add_bos_token=False),
    "sarvam": text_bpe("gpt2", "sarvam-moe", add_bos_token=True, add_eos_token=True),
    "whitespace": text_bpe("whitespace", "whitespace"),
    "whitespace in lower case": text_bpe("whitespace", "whitespace", **{"normalizer.lowercase": True}),
    "whitespace of bytes": bpe("gpt-2", model="whitespace"),
    "t5": unigram(),
    "t5 with all spaces": unigram(remove_extra_whitespaces=False),
    "t5 as it is": unigram(precompiled_charsmap=None, remove_extra_whitespaces=False, add_space_prefix=None),
    "t5 with bos": unigram((), bos_token_id=0, add_bos_token=True, add_eos_token=False),
    **{f"{name} for embeddings": metadata for name, metadata in EMBEDDING.items()},
    "rwkv": rwkv(add_bos_token=True, add_eos_token=True, bos_token_id=0),
    "plamo2": plamo(add_bos_token=True),
    "hybriddna": genes(add_bos_token=True),
}
CLEANED = {  # where llama_detokenize tidies spaces away
    "gpt-2",
    "llama-bpe",
    "starcoder",
    "roberta-bpe for embeddings",
    "modern-bert for embeddings",
    "gemma4",
    "granite",
    "whitespace",
    "whitespace in lower case",
    "whitespace of bytes",
    "hybriddna",
}
ODD_TEXTS = (
    "<dna>ACGTAC</dna>",
    "x<dna>acgtacgg</dna> y <dna>ACGNNN\u00e9A",
    "<dna></dna>a<dna>",
    "\ufeffab",
    "a\ufeffb",
    "\u3000\u3000x",
    "\u3000\u3002",
    "\u3000 \u3001x\u3000\u3001x a",
    "<mask>a<ma <us",
    "\n\n\n\n\n",
    "a\n\n\nb",
    "\n\n\n\n\nc\n\n\n\n",
    "\u00e8 \u00e8b b",
    "  a  b  ",
    "a" + " " * 50 + "b",
    "a\u00a0b\u00a0",
    "\u1112\u1161\u11ab\u1112\u1161",
    "e\u0301\u0301 a\u0308",
    "--- -- -",
    "\r\n\r\na",
    "\u200b \u200b",
    "\u017ftra\u00dfe \ufb01\u2460\uff21\uff5a",
    "\u0130\u01c5\u1e9e\u0416\u00c9",
)
READABLE = 10  # texts whose ids are kept


def random_texts() -> list[str]:
    rng = random.Random(7)
    parts = (*ALPHABET, *MARKED, "<s>", "</s>", " the", "in", " .", " 's", "\u2581", "\x00", "a\u0301", "\U0001f680")
    return ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(300)]


def all_texts() -> list[str]:
    return [*TEXTS, *ODD_TEXTS, *random_texts()]


def random_ids(size: int) -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(size) for _ in range(rng.randint(0, 20))] for _ in range(200)]


def make() -> None:
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, metadata in VARIANTS.items():
            vocab = Vocab(write_vocabulary(pathlib.Path(folder) / "m.gguf", metadata))
            ids = [vocab.encode(text, True, True) for text in TEXTS]
            decoded = [vocab.decode(row).decode("utf-8", "replace") for row in ids + random_ids(vocab.size)]
            kinds = [(special, parse) for special in (False, True) for parse in (False, True)]
            out[name] = {
                "ids": [json.dumps(row, separators=(",", ":")) for row in ids[:READABLE]],
                "all": digest([vocab.encode(t, *kind) for t in all_texts() for kind in kinds]),
                "texts": digest(decoded),
                "pieces": digest([vocab.piece(i).hex() for i in range(vocab.size)]),
                "ends": vocab.ends,
            }
            vocab.close()
    text = json.dumps(out, indent=1) + "\n"
    pathlib.Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
