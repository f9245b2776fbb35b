"""llama.cpp's logits of variants of which there is no other golden: how `variant_goldens.npz` was made.

    python tests/goldens/variant_goldens.py write FOLDER SHARED  # the files, with packlight's environment
    python tests/goldens/variant_goldens.py run FOLDER  # their logits, with llama-cpp-python's

The files are random, in float32, and depend on MODELS, or on a file of SHARED/arch and REVISED, alone; tests write them
anew. The cache is float32 and flash attention off.
"""

import ctypes
import dataclasses
import os
import pathlib
import sys
from typing import Any

import numpy as np

SMALL = {"layers": 2, "embed": 128, "heads": 4, "kv_heads": 2, "vocab": 300, "formats": {"default": "F32"}}
MODELS: dict[str, dict[str, Any]] = {
    # Nemo: heads whose width is not embedding / heads, a large base
    "nemo": {**SMALL, "head_dim": 64, "rope_base": 1e6, "seed": 1},
    # 7B v0.1: a window that the tag llama does not have in llama.cpp
    "window": {**SMALL, "extra": {"llama.attention.sliding_window": 8}, "seed": 2},
    # Ministral 3: YaRN with its sharpening taken back, queries sharpened beyond the original context
    "ministral3": {
        **SMALL,
        "architecture": "mistral3",
        "context": 512,
        "tied": True,
        "seed": 3,
        "extra": {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 16.0,
            "llama.rope.scaling.original_context_length": 16,
            "llama.rope.scaling.yarn_beta_fast": 32.0,
            "llama.rope.scaling.yarn_beta_slow": 1.0,
            "llama.rope.scaling.yarn_log_multiplier": 0.7,
            "llama.attention.temperature_scale": 0.4,
        },
    },
}
# Files of the shared folder with other keys.
REVISED: dict[str, tuple[str, dict[str, Any]]] = {
    # OLMo 3: windows in some layers, which do not stretch; an array says which
    "olmo3": (
        "olmo2",
        {
            "olmo2.attention.sliding_window": 8,
            "olmo2.attention.sliding_window_pattern": np.array([True, False, True]),
            "olmo2.rope.scaling.type": "yarn",
            "olmo2.rope.scaling.factor": 8.0,
            "olmo2.rope.scaling.original_context_length": 16,
            "olmo2.rope.scaling.attn_factor": 1.2,
        },
    ),
    # Phi 3 in its original context: the short divisors
    "phi3-short": ("phi3-longrope", {"phi3.rope.scaling.original_context_length": 512, "phi3.context_length": 512}),
}
TOKENS = 48
GREEDY = 8


def ids() -> list[int]:
    return np.random.default_rng(9).integers(3, 300, TOKENS).tolist()


def write(folder: pathlib.Path, shared: pathlib.Path) -> None:
    from ggufs import write_llama

    for name, model in MODELS.items():
        write_llama(folder / f"{name}.gguf", **model)
    for name, (source, _) in REVISED.items():
        revise(name, shared / "arch" / f"{source}.gguf", folder / f"{name}.gguf")


def revise(name: str, source: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the float32 twin of a file with the keys of REVISED[name]."""
    from packlight.bench.twin import write_twin
    from packlight.model.gguf.reader import open_gguf

    file = open_gguf(source)
    write_twin(dataclasses.replace(file, metadata={**file.metadata, **REVISED[name][1]}), path)


def run(folder: pathlib.Path) -> None:
    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    out = {}
    for name in (*MODELS, *REVISED):
        params = lib.llama_model_default_params()
        model = lib.llama_model_load_from_file(os.fsencode(folder / f"{name}.gguf"), params)
        if not model:
            sys.exit(f"llama.cpp does not load {name}")
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 128
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0
        context = lib.llama_init_from_model(model, settings)
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        batch = lib.llama_batch_init(128, 0, 1)
        fed, greedy, rows = ids(), [], []
        start = 0
        for _ in range(GREEDY):
            for row, token in enumerate(fed[start:]):
                batch.token[row], batch.pos[row], batch.logits[row] = token, start + row, 1
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.n_tokens = len(fed) - start
            if lib.llama_decode(context, batch):
                sys.exit("llama_decode failed")
            rows += [np.array(lib.llama_get_logits_ith(context, i)[:size]) for i in range(batch.n_tokens)]
            start = len(fed)
            greedy.append(int(rows[-1].argmax()))
            fed.append(greedy[-1])
        out[f"{name}.logits"] = np.array(rows[:TOKENS], np.float32)
        out[f"{name}.greedy"] = np.array(greedy, np.int32)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **out)


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
