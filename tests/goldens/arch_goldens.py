"""llama.cpp's logits, greedy ids and embeddings of every recipe: how `arch_goldens.npz` is made, and how it is read.

Of the logits it has some positions and each third token, in float32. `logits_f32` and all else are of the twin whose
matrices were unpacked to F32; `logits` are of a file of packed matrices as it is, where llama.cpp rounds activations.
Made by llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36 on x86-64; floats of another build differ in their last bits.
"""

import pathlib
import tempfile
from collections.abc import Iterable

import numpy as np
from peer import POOLINGS, Peer
from recipe_files import VOCAB, write
from recipes import RECIPES

PATH = pathlib.Path(__file__).with_suffix(".npz")
TOKENS, GREEDY = 40, 24
POSITIONS = np.array([0, 5, 13, 21, 30, 39])
COLUMNS = np.arange(0, VOCAB, 3)
SURE = 2e-3  # of the logits' deviation: the least lead of a greedy token, twice what float32 may be off


def ids() -> list[int]:
    return np.random.default_rng(9).integers(3, VOCAB, TOKENS).tolist()


def picked(logits: np.ndarray) -> np.ndarray:
    """What is kept of logits (TOKENS, V)."""
    return logits[POSITIONS][:, COLUMNS]


def make(names: Iterable[str] = RECIPES) -> None:
    """Of these recipes; the arrays of the others are kept as they are.

    Raises AssertionError for a recipe whose greedy ids float32 would not decide: it needs another seed.
    """
    kept = RECIPES.keys() - set(names)
    out = {key: value for key, value in np.load(PATH).items() if key.partition(".")[0] in kept} if kept else {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.gguf"
        for name in names:
            recipe = RECIPES[name]
            peer = Peer(write(path, recipe, twin=True))
            logits, greedy, leads = peer.logits(ids(), GREEDY)
            assert np.isfinite(logits).all(), name
            assert leads.min() > SURE * logits.std(), (name, leads.min() / logits.std())
            out[f"{name}.logits_f32"], out[f"{name}.greedy"] = picked(logits), np.array(greedy, np.int16)
            for pooling in POOLINGS:
                out[f"{name}.{pooling}"] = peer.embedding(ids(), pooling)
            peer.close()
            if recipe.formats:
                peer = Peer(write(path, recipe))
                out[f"{name}.logits"] = picked(peer.logits(ids(), 1)[0])
                peer.close()
    np.savez_compressed(PATH, **out)
