"""llama.cpp's embeddings of trained models, of length 1: how `embedding_goldens.json` is made.

The models are that of `demo_files` and story models of ../shared; where that is absent, what was made of them is kept.
"""

import json
import pathlib
import tempfile

import numpy as np
from demo_files import write_demo
from peer import POOLINGS, SHARED, Peer

PATH = pathlib.Path(__file__).with_suffix(".json")
IDS = [1, 407, 261, 383, 410, 300, 301, 302]
DEMOS = ("F32", "Q4_K_M")
STORIES = ("stories260K-k256-f32", "stories260K-k256-Q4_K_M")


def unit(values: np.ndarray) -> list[float]:
    return [float(f"{value:.7g}") for value in values / np.linalg.norm(values)]


def make() -> None:
    out = json.loads(PATH.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        files = {f"demo/{kind}": write_demo(pathlib.Path(folder) / f"{kind}.gguf", kind) for kind in DEMOS}
        if SHARED.exists():
            files |= {f"models/{name}": SHARED / "models" / f"{name}.gguf" for name in STORIES}
        for name, file in files.items():
            peer = Peer(file)
            out[name] = {pooling: unit(peer.embedding(IDS, pooling)) for pooling in POOLINGS}
            peer.close()
    PATH.write_text(json.dumps(out) + "\n", encoding="utf-8")
