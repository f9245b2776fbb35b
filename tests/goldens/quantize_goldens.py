"""What llama.cpp's quantizer makes of files of floats: how `quantize_goldens.json` is made.

Of each type: every quantized tensor's format and root-mean-square error, the keys that were added or changed, a digest
of the bytes of all tensors, and of some types each STRIDE-th of them. The sources are random models, and a story model
of ../shared; where that is absent, what was made of it is kept.
Made by llama.cpp b1-0c1e570 in llama-cpp-python 0.3.36.
"""

import base64
import ctypes
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

import gguf
import numpy as np
from peer import SHARED, library
from recipe_files import write
from recipes import WIDE, Recipe

PATH = pathlib.Path(__file__).with_suffix(".json")
STORIES = "models/stories260K-k256-f32"
TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype
SAMPLED, STRIDE = ("Q4_K_M", "Q6_K"), 997
# The mixes differ by layer, by heads, experts and tied embeddings; rows of 96 take other formats than those of 256.
NARROW = {"embedding_length": 96, "feed_forward_length": 128, "attention.head_count": 6, "attention.head_count_kv": 1}
SOURCES = {
    "own/deep": Recipe("llama", {**WIDE, "feed_forward_length": 256, "block_count": 4}, seed=1),
    "own/experts": Recipe(
        "qwen3moe",
        {**WIDE, "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 256},
        tied=True,
        seed=2,
    ),
    "own/narrow": Recipe("llama", {**NARROW, "block_count": 3}, seed=3),
}


def source_file(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A file of floats, which is written into `folder` if it is one of ours."""
    kind, stem = name.split("/")
    return write(folder / f"{stem}.gguf", SOURCES[name]) if kind == "own" else SHARED / kind / f"{stem}.gguf"


def blocks(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of all tensors in the order of their names, because llama.cpp changes that of the file."""
    tensors = sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name)
    return np.concatenate([tensor.data.reshape(-1).view(np.uint8) for tensor in tensors])


def errors(source: str | os.PathLike[str], quantized: str | os.PathLike[str]) -> dict[str, tuple[str, float]]:
    """Tensor -> (format, root-mean-square error), of the tensors that were quantized."""
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    found = {}
    for tensor in gguf.GGUFReader(quantized).tensors:
        if tensor.tensor_type != exact[tensor.name].tensor_type:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).ravel()
            error = np.sqrt(np.mean((values - exact[tensor.name].data.ravel()).astype(np.float64) ** 2))
            found[tensor.name] = (tensor.tensor_type.name, float(f"{error:.5g}"))
    return found


def keys(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file's metadata."""
    fields = gguf.GGUFReader(path).fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def told(source: pathlib.Path, quantized: pathlib.Path, name: str) -> dict[str, Any]:
    """What is said above of a file that was quantized to the type `name`."""
    before, after, data = keys(source), keys(quantized), blocks(quantized)
    assert before.keys() <= after.keys()
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    found = {"tensors": errors(source, quantized), "keys": changed}
    if name in SAMPLED:
        found["bytes"] = base64.b64encode(np.ascontiguousarray(data[::STRIDE])).decode()
    return found | {"sha256": hashlib.sha256(data).hexdigest()}


def make() -> None:
    lib, out = library(), json.loads(PATH.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for source in [*SOURCES, *([STORIES] if SHARED.exists() else [])]:
            file, out[source] = source_file(source, folder), {}
            for kind, number in TYPES.items():
                params = lib.llama_model_quantize_default_params()
                params.ftype = number
                quantized = folder / "quantized"
                code = lib.llama_model_quantize(os.fsencode(file), os.fsencode(quantized), ctypes.byref(params))
                assert code == 0, (source, kind)
                out[source][kind] = told(file, quantized, kind)
    PATH.write_text(json.dumps(out, separators=(",", ":")) + "\n", encoding="utf-8")
