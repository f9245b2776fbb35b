"""llama.cpp's perplexity and divergence on a seeded text: how `perplexity_goldens.json` was made.

    python tests/goldens/perplexity_goldens.py MODELS > tests/goldens/perplexity_goldens.json

MODELS is the folder of the story models; runs where llama-cpp-python is installed and imports nothing of packlight.
Chunks and statistics as in llama.cpp's tools/perplexity, in float64; the cache is float32, as packlight's on a CPU.
"""

import ctypes
import json
import os
import pathlib
import random
import sys
from typing import Any

import numpy as np

LENGTH = 128
BASE = "stories260K-k256-f32"
MODELS = (BASE, "stories260K-k256-Q8_0", "stories260K-k256-Q6_K", "stories260K-k256-Q4_K_M", "stories260K-k256-Q2_K")
NOUNS = [
    "girl",
    "boy",
    "dog",
    "cat",
    "bird",
    "tree",
    "house",
    "ball",
    "friend",
    "mother",
    "garden",
    "river",
    "cake",
    "toy",
    "box",
    "sun",
    "moon",
]
VERBS = ["saw", "found", "loved", "helped", "wanted", "liked", "took", "made", "lost", "asked"]
KINDS = ["little", "big", "happy", "sad", "red", "old", "new", "nice", "funny", "small"]
SENTENCES = (
    "Once upon a time, there was a {a} {n}. ",
    "The {a} {n} {v} the {m}. ",
    'She said, "I {v} the {n}!" ',
    "One day, the {n} and the {m} were {a}. ",
    "\n\n",
)


def text() -> str:
    """Some 100 KB of simple sentences, the same everywhere."""
    rng, out = random.Random(1), []
    for _ in range(3500):
        words = {"a": rng.choice(KINDS), "n": rng.choice(NOUNS), "m": rng.choice(NOUNS), "v": rng.choice(VERBS)}
        out.append(rng.choice(SENTENCES).format(**words))
    return "".join(out)


class Peer:
    """A model in llama.cpp with a context of LENGTH tokens."""

    def __init__(self, lib: Any, path: pathlib.Path):
        self.lib = lib
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = LENGTH
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        self.context = lib.llama_init_from_model(self.model, params)
        self.batch = lib.llama_batch_init(LENGTH, 0, 1)
        self.size = lib.llama_vocab_n_tokens(self.vocab)

    def tokens(self, words: str) -> np.ndarray:
        raw = words.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), True, False)
        return np.array(buffer[:count], np.int32)

    def predictions(self, chunk: np.ndarray) -> np.ndarray:
        """Log-probabilities after each token of the second half but the last: float64 (LENGTH / 2 - 1, V)."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        for i, token in enumerate(chunk.tolist()):
            first = i == 0 and self.lib.llama_vocab_get_add_bos(self.vocab)
            self.batch.token[i] = self.lib.llama_vocab_bos(self.vocab) if first else token
            self.batch.pos[i], self.batch.n_seq_id[i], self.batch.seq_id[i][0] = i, 1, 0
            self.batch.logits[i] = i >= LENGTH // 2
        self.batch.n_tokens = LENGTH
        if self.lib.llama_decode(self.context, self.batch):
            sys.exit("llama_decode failed")
        rows = [self.lib.llama_get_logits_ith(self.context, i)[: self.size] for i in range(LENGTH // 2, LENGTH - 1)]
        logits = np.array(rows, np.float64)
        below = logits - logits.max(1, keepdims=True)
        return below - np.log(np.exp(below).sum(1, keepdims=True))


def main() -> None:
    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    folder, base, out = pathlib.Path(sys.argv[1]), None, {}
    for name in MODELS:
        peer = Peer(lib, folder / f"{name}.gguf")
        ids = peer.tokens(text())
        chunks = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
        logp = np.concatenate([peer.predictions(chunk) for chunk in chunks])
        base = logp if base is None else base
        nll = -np.take_along_axis(logp, chunks[:, LENGTH // 2 + 1 :].reshape(-1, 1), 1)[:, 0]
        kl = np.where(base > -16, np.exp(base) * (base - logp), 0).sum(1)
        out[name] = {
            "tokens": len(nll),
            "perplexity": np.exp(nll.mean()),
            "perplexity_error": np.exp(nll.mean()) * nll.std() / (len(nll) - 1) ** 0.5,
            "kl_divergence": kl.mean(),
            "kl_divergence_error": kl.std() / (len(kl) - 1) ** 0.5,
            "same_top": float((logp.argmax(1) == base.argmax(1)).mean()),
        }
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
