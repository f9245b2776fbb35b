"""What llama.cpp's samplers make of seeded logits: how `sampler_goldens.json` is made.

Each case is a chain of samplers applied to a row of logits: the tokens that are left, and their probabilities. DRY is
told under the vocabulary of the trained model of `demo_files` and under GPT-2's of ../shared, because its breakers are
pieces of real tokens; where that is absent, what was made of it is kept.
"""

import ctypes
import json
import pathlib
from typing import Any

import numpy as np
from demo_files import MODEL
from peer import SHARED, Vocab, library

PATH = pathlib.Path(__file__).with_suffix(".json")
VOCAB = 128
VOCABS = ("demo", "gpt-2")  # of DRY
ROWS = 5
TOKENS = [5, 9, 12, 5, 9, 12, 7, 5, 9, 12, 5, 9, 30, 31, 30, 31, 30, 5, 9]  # what was said before a penalized row
DRY_TEXT = "One two three four. One two three five: one two three four. One two three"

# The fields of a sampling config that each case sets; steps that it does not name are off.
CASES: dict[str, dict[str, Any]] = {
    "top_n_sigma": {"top_n_sigma": 1.5},
    "typical": {"typical_p": 0.7},
    "typical of top-k": {"top_k": 30, "typical_p": 0.4},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    "xtc of top-k": {"top_k": 20, "xtc_probability": 1.0, "xtc_threshold": 0.1, "temperature": 0.7},
    "dynatemp": {"top_k": 40, "dynatemp_range": 0.5, "temperature": 0.8, "dynatemp_exponent": 1.3},
    "all": {
        "top_k": 50,
        "typical_p": 0.9,
        "top_p": 0.9,
        "min_p": 0.02,
        "xtc_probability": 1.0,
        "xtc_threshold": 0.15,
        "temperature": 1.2,
        "dynatemp_range": 0.3,
    },
    "repeat": {"repeat_penalty": 1.4, "repeat_last_n": 8},
    "frequency": {"frequency_penalty": 0.3, "presence_penalty": 0.2, "repeat_last_n": -1},
    "bias": {"logit_bias": [[3, 2.5], [17, -4.0], [40, float("-inf")]], "top_k": 200},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 3.0, "temperature": 0.9},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 3.0, "temperature": 0.9},
}
DRY = {"dry_multiplier": 0.8, "dry_allowed_length": 2, "dry_penalty_last_n": -1}
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def rows() -> np.ndarray:
    """Logits, float32 (ROWS, VOCAB): flat to peaked."""
    rng = np.random.default_rng(7)
    return (rng.normal(size=(ROWS, VOCAB)) * np.linspace(0.7, 3, ROWS)[:, None]).astype(np.float32)


def chain(lib: Any, case: dict[str, Any]) -> Any:
    """llama.cpp's default chain up to the draw, or Mirostat's."""
    c = {
        "repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_last_n": 64,
        "top_n_sigma": -1.0, "typical_p": 1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1,
        "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
        "logit_bias": [], **OFF, **case,
    }  # fmt: skip
    made = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    bias = (lib.llama_logit_bias * len(c["logit_bias"]))(*(lib.llama_logit_bias(t, b) for t, b in c["logit_bias"]))
    steps = [lib.llama_sampler_init_logit_bias(VOCAB, len(bias), bias)]
    if c["mirostat"]:
        steps.append(lib.llama_sampler_init_temp(c["temperature"]))
        if c["mirostat"] == 1:
            steps.append(lib.llama_sampler_init_mirostat(VOCAB, 1, c["mirostat_tau"], c["mirostat_eta"], 100))
        else:
            steps.append(lib.llama_sampler_init_mirostat_v2(1, c["mirostat_tau"], c["mirostat_eta"]))
    else:
        last = len(TOKENS) if c["repeat_last_n"] < 0 else c["repeat_last_n"]
        steps += [
            lib.llama_sampler_init_penalties(
                VOCAB, last, c["repeat_penalty"], c["frequency_penalty"], c["presence_penalty"]
            ),
            lib.llama_sampler_init_top_n_sigma(c["top_n_sigma"]),
            lib.llama_sampler_init_top_k(c["top_k"]),
            lib.llama_sampler_init_typical(c["typical_p"], 0),
            lib.llama_sampler_init_top_p(c["top_p"], 0),
            lib.llama_sampler_init_min_p(c["min_p"], 0),
            lib.llama_sampler_init_xtc(c["xtc_probability"], c["xtc_threshold"], 0, 1),
            lib.llama_sampler_init_temp_ext(c["temperature"], c["dynatemp_range"], c["dynatemp_exponent"]),
        ]
    for step in steps:
        lib.llama_sampler_chain_add(made, step)
    for token in TOKENS:
        lib.llama_sampler_accept(made, token)
    return made


def apply(lib: Any, sampler: Any, logits: np.ndarray) -> dict[str, Any]:
    """The ids left, ascending, and their logits after the chain."""
    data = (lib.llama_token_data * len(logits))(*(lib.llama_token_data(i, float(x), 0) for i, x in enumerate(logits)))
    array = lib.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    lib.llama_sampler_apply(sampler, ctypes.byref(array))
    left = sorted((array.data[i].id, array.data[i].logit) for i in range(array.size) if array.data[i].logit > -1e30)
    weights = np.exp(np.array([logit for _, logit in left]) - max(logit for _, logit in left))
    return {"ids": [token for token, _ in left], "p": [float(f"{p:.7g}") for p in weights / weights.sum()]}


def vocabulary_file(name: str) -> pathlib.Path:
    """Of the trained model of `demo_files`, or a fixture."""
    return MODEL if name == "demo" else SHARED / "vocabs" / f"ggml-vocab-{name}.gguf"


def dry_of(vocab: Vocab) -> dict[str, Any]:
    """The ids of DRY_TEXT, and what DRY takes from which token after each beginning of at least three."""
    lib, ids, taken = vocab.lib, vocab.encode(DRY_TEXT, False, False), []
    breakers = (ctypes.c_char_p * 4)(b"\n", b":", b'"', b"*")
    for cut in range(3, len(ids) + 1):
        settings = (DRY["dry_multiplier"], 1.75, DRY["dry_allowed_length"], 64, breakers, 4)
        dry = lib.llama_sampler_init_dry(vocab.vocab, *settings)
        for token in ids[:cut]:
            lib.llama_sampler_accept(dry, token)
        data = (lib.llama_token_data * vocab.size)(*(lib.llama_token_data(i, 0.0, 0) for i in range(vocab.size)))
        array = lib.llama_token_data_array(data=data, size=vocab.size, selected=-1, sorted=False)
        lib.llama_sampler_apply(dry, ctypes.byref(array))
        taken.append({str(each.id): float(f"{-each.logit:.6g}") for each in data if each.logit != 0})
    return {"ids": ids, "taken": taken}


def make() -> None:
    lib, out = library(), json.loads(PATH.read_text(encoding="utf-8"))
    out["cases"] = {name: [apply(lib, chain(lib, case), row) for row in rows()] for name, case in CASES.items()}
    for name in VOCABS if SHARED.exists() else VOCABS[:1]:
        vocab = Vocab(vocabulary_file(name))
        out["dry"][name] = dry_of(vocab)
        vocab.close()
    PATH.write_text(json.dumps(out) + "\n", encoding="utf-8")
