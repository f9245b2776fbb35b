"""llama.cpp's perplexity and divergence on a text: how `perplexity_goldens.json` is made.

Of the trained model of `demo_files`, on text that it did not see, and of the story models of ../shared, on seeded text;
where that is absent, what was made of them is kept. Chunks and statistics as in llama.cpp's tools/perplexity, in
float64; the cache is float32, as packlight's on a CPU.
"""

import json
import pathlib
import random
import tempfile
from typing import Any

import numpy as np
from demo_files import TEXT, trained_model
from peer import SHARED, Peer, Vocab

PATH = pathlib.Path(__file__).with_suffix(".json")
LENGTH = 128
# The first of each is of floats, and what the divergence of the others is from.
FAMILIES = {
    "demo": ("demo/F32", "demo/Q8_0", "demo/Q4_K_M"),
    "stories": tuple(f"models/stories260K-k256-{name}" for name in ("f32", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")),
}
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


def text(family: str) -> str:
    """The text that was held out, some 28 chunks, or some 100 KB of simple sentences, the same everywhere."""
    if family == "demo":
        return TEXT.read_text(encoding="utf-8")
    rng, out = random.Random(1), []
    for _ in range(3500):
        words = {"a": rng.choice(KINDS), "n": rng.choice(NOUNS), "m": rng.choice(NOUNS), "v": rng.choice(VERBS)}
        out.append(rng.choice(SENTENCES).format(**words))
    return "".join(out)


def predictions(peer: Peer, context: Any, chunk: np.ndarray) -> np.ndarray:
    """Log-probabilities after each token of the second half but the last: float64 (LENGTH / 2 - 1, V)."""
    peer.lib.llama_memory_clear(peer.lib.llama_get_memory(context), True)
    peer.decode(context, chunk.tolist())
    second_half = range(LENGTH // 2, LENGTH - 1)
    rows = [peer.lib.llama_get_logits_ith(context, i)[: peer.vocab_size] for i in second_half]
    logits = np.array(rows, np.float64)
    below = logits - logits.max(1, keepdims=True)
    return below - np.log(np.exp(below).sum(1, keepdims=True))


def all_predictions(path: pathlib.Path, words: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a whole text: those of all its chunks, (n, V), and the tokens that followed, (n, 1)."""
    vocab, peer = Vocab(path), Peer(path)
    ids = np.array(vocab.encode(words, True, False))
    chunks = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    followed = chunks[:, LENGTH // 2 + 1 :].reshape(-1, 1)
    if vocab.add_bos:
        chunks[:, 0] = vocab.bos
    context = peer.context(n_ctx=LENGTH)
    logp = np.concatenate([predictions(peer, context, chunk) for chunk in chunks])
    peer.lib.llama_free(context)
    peer.close()
    vocab.close()
    return logp, followed


def make() -> None:
    out = json.loads(PATH.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for kind in FAMILIES if SHARED.exists() else ("demo",):
            base = None
            for name in FAMILIES[kind]:
                logp, followed = all_predictions(trained_model(name, pathlib.Path(folder)), text(kind))
                base = logp if base is None else base
                nll = -np.take_along_axis(logp, followed, 1)[:, 0]
                kl = np.where(base > -16, np.exp(base) * (base - logp), 0).sum(1)
                out[name] = {
                    "tokens": len(nll),
                    "perplexity": np.exp(nll.mean()),
                    "perplexity_error": np.exp(nll.mean()) * nll.std() / (len(nll) - 1) ** 0.5,
                    "kl_divergence": kl.mean(),
                    "kl_divergence_error": kl.std() / (len(kl) - 1) ** 0.5,
                    "same_top": float((logp.argmax(1) == base.argmax(1)).mean()),
                }
    PATH.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
