"""llama.cpp's greedy texts of the trained model of `demo_files` in several formats: how `text_goldens.npz` is made.

`_f32` is of the twin whose matrices were unpacked to F32; the rest is of the file as it is, where llama.cpp rounds
activations. Of the prompt's logits it has each COLUMNS-th token. A margin is the lead of a greedy token over the next.
Made by llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36 on x86-64; floats of another build differ in their last bits.
"""

import pathlib
import tempfile

import numpy as np
from arch_goldens import SURE
from demo_files import KINDS, write_demo
from peer import Peer, Vocab

PATH = pathlib.Path(__file__).with_suffix(".npz")
PROMPT = '"break" may only occur'  # the beginning of a held-out document
GREEDY, COLUMNS = 64, 48


def make() -> None:
    """Raises AssertionError for greedy ids that float32 would not decide, or that end: they need another prompt."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.gguf"
        for kind in KINDS:
            for ending, twin in (("", False), ("_f32", True)):
                vocab = Vocab(write_demo(path, kind, twin=twin))
                peer, ids = Peer(path), vocab.encode(PROMPT, True, True)
                logits, greedy, margins = peer.logits(ids, GREEDY)
                peer.close()
                if twin:
                    assert margins.min() > SURE * logits.std(), (kind, margins.min() / logits.std())
                    assert not set(greedy) & set(vocab.ends), kind
                found = {"ids": ids, "logits": logits[:, ::COLUMNS], "greedy_ids": greedy, "greedy_margin": margins}
                found["greedy_text"] = b"".join(map(vocab.piece, greedy)).decode()
                vocab.close()
                out |= {f"{kind}.{name}{ending}": np.asarray(value) for name, value in found.items()}
    np.savez_compressed(PATH, **out)
