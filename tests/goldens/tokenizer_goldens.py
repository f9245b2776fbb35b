"""What llama.cpp makes of texts under the small vocabularies of `vocabularies`: how `tokenizer_goldens.json` is made.

By llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36. The ids of some texts can be read, the rest are digests.
"""

import json
import pathlib
import random
import tempfile
from typing import Any

from peer import Vocab
from vocabularies import ALPHABET, MARKED, bpe, spm, write_vocabulary
from wpm_goldens import TEXTS, digest

VARIANTS: dict[str, dict[str, Any]] = {
    "spm": spm(),
    "spm without prefix": spm(add_space_prefix=False, add_bos_token=False, add_eos_token=True),
    "spm of phi3": spm(eos_token_id=803) | {"general.name": "Phi3"},
    "gpt-2": bpe("gpt-2"),
    "llama-bpe": bpe("llama-bpe"),
    "qwen2": bpe("qwen2"),
    "deepseek-llm": bpe("deepseek-llm", add_bos_token=True, add_eos_token=True),
    "starcoder": bpe("starcoder"),
}
CLEANED = {"gpt-2", "llama-bpe", "starcoder"}  # where llama_detokenize tidies spaces away
READABLE = 10  # texts whose ids are kept


def random_texts() -> list[str]:
    rng = random.Random(7)
    parts = (*ALPHABET, *MARKED, "<s>", "</s>", " the", "in", " .", " 's", "\u2581", "\x00", "a\u0301", "\U0001f680")
    return ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(300)]


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
                "all": digest([vocab.encode(t, *kind) for t in (*TEXTS, *random_texts()) for kind in kinds]),
                "texts": digest(decoded),
                "pieces": digest([vocab.piece(i).hex() for i in range(vocab.size)]),
                "ends": vocab.ends,
            }
            vocab.close()
    text = json.dumps(out, indent=1) + "\n"
    pathlib.Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
