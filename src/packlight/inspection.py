"""What is in a file and which kernel would read it, as plain data. Imports no jax; reads no weights."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from packlight.common.errors import PacklightError
from packlight.compile.config import CompileConfig, default_config
from packlight.compile.kernels import KernelPlan, expected
from packlight.compile.memory import MemoryPlan, host_limit, plan_memory
from packlight.compile.plan import Plan, make_plan
from packlight.model.gguf.filetypes import file_type
from packlight.model.gguf.header import NotText
from packlight.model.gguf.reader import GGUFFile, check_types, open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import in_words
from packlight.model.spec.sharding import WHOLE
from packlight.model.spec.weights import check, formats
from packlight.model.text import chat
from packlight.model.text.tokenizer import Tokenizer
from packlight.prepared import Changes
from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels.native_build import running_if_built


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Header, metadata and tensor table of the file at `path`, all checked; builds no model and imports no jax.

    Keys: path, version, alignment, file_bytes, architecture, name, metadata, tensors (name, shape, format, bytes,
    offset, path: the kernel path under the CPU's default config), formats (count and bytes each), parameters,
    quantization (the recipe that the file names, else the format of most bytes), bits_per_weight, chat_templates (their
    names; "default" has none), layers (how their parts repeat, in words), native (instructions and origin of the native
    kernels, None until they are built), cache (context, slots, kv_type and bytes of what `generate` keeps on a CPU),
    memory (weights, cache and all bytes for it, and the limit that this machine sets, with its source), `unsupported`:
    in words, what keeps packlight from running the file, the first problem with the model and the first with its
    tokenizer (empty when it runs, unless a weight is not finite: that is seen when the weights are read), and `here`:
    whether this machine's CPU runs it, with the reasons against that, and what makes it slow. `not_utf8`: the keys
    whose text is not UTF-8 and has its bytes escaped here. `parameters` counts no tensor of a type that holds no
    weights. All of it is plain Python that JSON can hold; numbers that are not finite become words.
    Raises GGUFError when the container itself is not sound, UnsupportedError for a tensor type that ggml has removed.
    """
    file = open_gguf(path, join=False, weights_only=False)
    problems, paths, hyperparameters, layers, cache, native, memory = [], {}, {}, None, None, None, None
    slow: list[str] = []
    metadata = {key: _plain(value) for key, value in file.metadata.items()}
    try:
        if metadata.keys() & {"split.count", "split.no"}:
            file = open_gguf(path, weights_only=False)
        check_types(file)
        model = ModelConfig.from_gguf(file)
        hyperparameters = dataclasses.asdict(model)
        check(file, model)
        config = Changes(slots=1).applied(expected(default_config("cpu")))
        kernels = KernelPlan.of(config, model, formats(file))
        paths, native = kernels.tensors, running_if_built() if config.cpu_kernels == "native" else None
        plan, layers = make_plan(config, model.context_length), in_words(model.layers)
        layouts = dict.fromkeys(paths, "ggml") if native is None else kernels.layouts  # differ in rows of padding
        memory = plan_memory(file, model, layouts, WHOLE, plan, config.kv_dtype)
        cache, slow = _cache(config, plan, memory), _slow(config, kernels.multiplied, kernels.products)
    except PacklightError as error:
        problems.append(str(error))
    try:
        Tokenizer.from_file(file)
    except PacklightError as error:
        problems.append(str(error))
    totals = format_totals(file)
    weights = [info for info in file.tensors.values() if info.format.name in FORMATS]
    parameters = sum(math.prod(info.shape) for info in weights)
    return {
        "path": file.path,
        "version": file.version,
        "alignment": file.alignment,
        "file_bytes": file.file_bytes,
        "architecture": metadata.get("general.architecture"),
        "name": metadata.get("general.name"),
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
        "formats": totals,
        "quantization": file_type(file.metadata) or next(iter(totals), None),
        "bits_per_weight": 8 * sum(info.nbytes for info in weights) / parameters if parameters else None,
        "chat_templates": _chat_templates(metadata),
        "layers": layers,
        "native": native and native._asdict(),
        "cache": cache,
        "memory": memory and _memory(memory),
        "parameters": parameters,
        "not_utf8": [key for key, value in file.metadata.items() if isinstance(value, NotText)],
        "unsupported": list(dict.fromkeys(problems)),
        "here": _here(list(dict.fromkeys(problems)), file, memory, slow),
    }


def _cache(config: CompileConfig, plan: Plan, memory: MemoryPlan) -> dict[str, Any]:
    """What is kept of the sequences under a config."""
    return {"context": plan.context, "slots": plan.slots, "kv_type": config.kv_dtype, "bytes": memory.cache}


def _memory(memory: MemoryPlan) -> dict[str, Any]:
    """The plan, and what this machine has free for it."""
    limit = host_limit()
    return {
        "weights_bytes": memory.weights,
        "cache_bytes": memory.cache,
        "bytes": memory.total,
        "limit_bytes": limit and limit.bytes,
        "limit": limit and limit.source,
    }


def _slow(config: CompileConfig, multiplied: Mapping[str, str], products: Mapping[str, str]) -> list[str]:
    """Why the CPU runs a model slower than it could."""
    if config.cpu_kernels != "native":
        return ["there are no built kernels and no C++ compiler: the xla kernels run"]
    others = sorted({qtype for qtype in multiplied.values() if products[qtype] != "native"})
    return [f"the xla kernels read {', '.join(others)}"] if others else []


def _here(problems: list[str], file: GGUFFile, memory: MemoryPlan | None, slow: list[str]) -> dict[str, Any]:
    """Whether this machine runs the file."""
    if memory is not None and (limit := host_limit()) is not None:
        try:
            limit.check(memory, os.path.basename(file.path))
        except PacklightError as error:
            problems = [*problems, str(error)]
    return {"runs": not problems, "why_not": problems, "slow": slow}


def _chat_templates(metadata: Mapping[str, Any]) -> list[str]:
    """The names of a file's chat templates; "default" is the one without a name."""
    named = (key.removeprefix(f"{chat.KEY}.") for key in metadata if key.startswith(f"{chat.KEY}."))
    return [*(["default"] if metadata.get(chat.KEY) else []), *named]


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
