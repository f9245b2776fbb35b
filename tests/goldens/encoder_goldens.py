"""llama.cpp's vectors and scores of every recipe of `encoders`: how `encoder_goldens.npz` is made.

Of two texts, in float32 and not of length 1: `NAME.POOLING` (2, width), of rerankers `NAME.rank`.
Made by llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36 on x86-64; floats of another build differ in their last bits.
"""

import pathlib
import tempfile

import numpy as np
from encoders import ENCODERS, VOCAB, Encoder, write
from peer import Peer

PATH = pathlib.Path(__file__).with_suffix(".npz")
POOLINGS = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama_pooling_type
TEXTS = [np.random.default_rng(9).integers(3, VOCAB, count).tolist() for count in (41, 7)]


def poolings(encoder: Encoder) -> list[str]:
    """Those that the goldens have."""
    ranks = encoder.metadata["pooling_type"] == POOLINGS["rank"]
    return ["rank"] if ranks else [name for name in POOLINGS if name != "rank"]


def make() -> None:
    """Of all recipes."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.gguf"
        for name, encoder in ENCODERS.items():
            peer = Peer(write(path, encoder))
            keys = encoder.metadata
            for pooling in poolings(encoder):
                width = len(keys.get("classifier.output_labels", [""])) if pooling == "rank" else None
                rows = [peer.embedding(ids, POOLINGS[pooling], width) for ids in TEXTS]
                assert np.isfinite(rows).all(), name
                out[f"{name}.{pooling}"] = np.array(rows)
            peer.close()
    np.savez_compressed(PATH, **out)
