"""What is in a file and which kernel would read it, as plain data. Imports no jax; reads no weights."""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from packlight.common.errors import PacklightError
from packlight.compile.config import CompileConfig, default_config
from packlight.compile.kernels import KernelPlan, expected
from packlight.compile.plan import make_plan
from packlight.model.gguf.header import NotText
from packlight.model.gguf.reader import GGUFFile, check_types, open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import in_words
from packlight.model.spec.sharding import WHOLE
from packlight.model.spec.weights import check, formats
from packlight.model.text.tokenizer import Tokenizer
from packlight.prepared import Changes
from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels.native_build import running_if_built


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Header, metadata and tensor table of the file at `path`, all checked; builds no model and imports no jax.

    Keys: path, version, alignment, file_bytes, architecture, metadata, tensors (name, shape, format, bytes, offset,
    path: the kernel path under the CPU's default config), formats (count and bytes each), parameters, layers (how their
    parts repeat, in words), native (instructions and origin of the native kernels, None until they are built), cache
    (context, slots, kv_type and bytes of what `generate` keeps on a CPU), and `unsupported`: in words, what keeps
    packlight from running the file, the first problem with the model and the first with its tokenizer (empty when it
    runs, unless a weight is not finite: that is seen when the weights are read). `not_utf8`: the keys whose text is not
    UTF-8 and has its bytes escaped here. `parameters` counts no tensor of a type that holds no weights. All of it is
    plain Python that JSON can hold; numbers that are not finite become words.
    Raises GGUFError when the container itself is not sound, UnsupportedError for a tensor type that ggml has removed.
    """
    file = open_gguf(path, join=False, weights_only=False)
    problems, paths, hyperparameters, layers, cache, native = [], {}, {}, None, None, None
    metadata = {key: _plain(value) for key, value in file.metadata.items()}
    try:
        if metadata.keys() & {"split.count", "split.no"}:
            file = open_gguf(path, weights_only=False)
        check_types(file)
        model = ModelConfig.from_gguf(file)
        hyperparameters = dataclasses.asdict(model)
        check(file, model)
        config = Changes(slots=1).applied(expected(default_config("cpu")))
        paths = KernelPlan.of(config, model, formats(file)).tensors
        native = running_if_built() if config.cpu_kernels == "native" else None
        layers, cache = in_words(model.layers), _cache(config, model)
    except PacklightError as error:
        problems.append(str(error))
    try:
        Tokenizer.from_file(file)
    except PacklightError as error:
        problems.append(str(error))
    return {
        "path": file.path,
        "version": file.version,
        "alignment": file.alignment,
        "file_bytes": file.file_bytes,
        "architecture": metadata.get("general.architecture"),
        "hyperparameters": hyperparameters,
        "metadata": metadata,
        "tensors": [
            {
                "name": info.name,
                "shape": list(info.shape),
                "format": info.format.name,
                "bytes": info.nbytes,
                "offset": info.offset,
                "path": paths.get(info.name),
            }
            for info in file.tensors.values()
        ],
        "formats": format_totals(file),
        "layers": layers,
        "native": native and native._asdict(),
        "cache": cache,
        "parameters": sum(math.prod(info.shape) for info in file.tensors.values() if info.format.name in FORMATS),
        "not_utf8": [key for key, value in file.metadata.items() if isinstance(value, NotText)],
        "unsupported": list(dict.fromkeys(problems)),
    }


def _cache(config: CompileConfig, model: ModelConfig) -> dict[str, Any]:
    """What is kept of the sequences under a config."""
    plan = make_plan(config, model.context_length)
    kept = plan.cache(model, config.kv_dtype, WHOLE).device_bytes
    return {"context": plan.context, "slots": plan.slots, "kv_type": config.kv_dtype, "bytes": kept}


def format_totals(file: GGUFFile) -> dict[str, dict[str, int]]:
    """Format name -> tensors and bytes of the file in it, most bytes first."""
    totals: dict[str, dict[str, int]] = {}
    for info in file.tensors.values():
        entry = totals.setdefault(info.format.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += info.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _plain(value: Any) -> Any:
    """A metadata value as plain Python: what `json` can write."""
    if isinstance(value, NotText):
        return value.escaped
    if isinstance(value, np.ndarray):
        finite = value.dtype.kind != "f" or np.isfinite(value).all()
        return value.tolist() if finite else [_plain(v) for v in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str | int | float | bool | list) else repr(value)
