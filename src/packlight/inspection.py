"""What is in a file and which kernel would read it, as plain data. Imports no jax; reads no weights."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from packlight.common.errors import MemoryLimitError, PacklightError
from packlight.compile.config import default_config
from packlight.compile.kernels import KernelPlan, expected
from packlight.compile.memory import Limit, MemoryPlan, host_limit, plan_memory
from packlight.compile.plan import plan_of
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
from packlight.quant.kernels.native_build import Running, obstacle, running_if_built
from packlight.sources.find import find


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Header, metadata and tensor table of the file at `path`, all checked; builds no model and imports no jax.

    path: of a file, or a name of a model, which `load` explains.
    All of it is plain Python that JSON can hold; numbers that are not finite become words. Keys:
        path, version, alignment, file_bytes, architecture, name, hyperparameters, metadata
        tensors: of each its name, shape, format, bytes, offset, and path: its kernel's under the CPU's default config
        formats: the tensors and bytes of each, most bytes first
        quantization: the recipe that the file names, else the format of most bytes
        parameters: without tensors of a type that holds no weights; bits_per_weight
        chat_templates: their names; the one without is "default"
        layers: how their parts repeat, in words
        positions: how the file stretches them, in words
        native: instructions and origin of the native kernels, None until they are built
        cache: context, slots, kv_type and bytes of what `generate` keeps on a CPU
        memory: bytes of weights, cache, process and of all, and this machine's limit with its source
        not_utf8: the keys whose text is not UTF-8 and has its bytes escaped here
        unsupported: in words, what keeps packlight from running the file, the first problem with the model and the
            first with its tokenizer; empty when it runs, unless a weight is not finite, which is seen when it is read
        here: whether this machine's CPU runs it, why_not, and what makes it slow
    Raises GGUFError when the container itself is not sound, UnsupportedError for a tensor type that ggml has removed.
    """
    path = find(path)
    file = open_gguf(path, join=False, weights_only=False)
    problems, hyperparameters, positions, planned = [], {}, None, _Planned()
    metadata = {key: _plain(value) for key, value in file.metadata.items()}
    try:
        if metadata.keys() & {"split.count", "split.no"}:
            file = open_gguf(path, weights_only=False)
        check_types(file)
        model = ModelConfig.from_gguf(file)
        hyperparameters, positions = dataclasses.asdict(model), str(model.rope_scaling)
        check(file, model)
        planned = _Planned.of(file, model)
    except PacklightError as error:
        problems.append(str(error))
    try:
        Tokenizer.from_file(file)
    except PacklightError as error:
        problems.append(str(error))
    totals, unsupported = format_totals(file), list(dict.fromkeys(problems))
    weights = [info for info in file.tensors.values() if info.format.name in FORMATS]
    parameters = sum(math.prod(info.shape) for info in weights)
    too_large = planned.too_large(os.path.basename(file.path))
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
                "path": planned.paths.get(info.name),
            }
            for info in file.tensors.values()
        ],
        "formats": totals,
        "quantization": quantization(file),
        "bits_per_weight": 8 * sum(info.nbytes for info in weights) / parameters if parameters else None,
        "chat_templates": _chat_templates(metadata),
        "layers": planned.layers,
        "positions": positions,
        "native": planned.native and planned.native._asdict(),
        "cache": planned.cache,
        "memory": planned.memory_report(),
        "parameters": parameters,
        "not_utf8": [key for key, value in file.metadata.items() if isinstance(value, NotText)],
        "unsupported": unsupported,
        "here": {
            "runs": not unsupported and too_large is None,
            "why_not": [*unsupported, *([too_large] if too_large else [])],
            "slow": planned.slow,
        },
    }


@dataclasses.dataclass(frozen=True)
class _Planned:
    """What the CPU's default config makes of a model, with one slot; nothing of one that does not run."""

    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)  # tensor -> kernel path
    layers: str | None = None  # how their parts repeat
    native: Running | None = None
    cache: dict[str, Any] | None = None
    memory: MemoryPlan | None = None
    limit: Limit | None = None  # of this machine's memory
    slow: list[str] = dataclasses.field(default_factory=list)  # what makes it so, in words

    @classmethod
    def of(cls, file: GGUFFile, model: ModelConfig) -> "_Planned":
        config = Changes(slots=1).applied(expected(default_config("cpu")))
        kernels, plan = KernelPlan.of(config, model, formats(file)), plan_of(config, model)
        native = running_if_built() if config.cpu_kernels == "native" else None
        # until the kernels are built nobody knows their layout, which differs in rows of padding only
        layouts = dict.fromkeys(kernels.tensors, "ggml") if native is None else kernels.layouts
        memory = plan_memory(file, model, layouts, WHOLE, plan, config)
        cache = {"context": plan.context, "slots": plan.slots, "kv_type": config.kv_dtype, "bytes": memory.cache}
        slow = []
        if config.cpu_kernels != "native":
            slow = [f"{obstacle()}; the xla kernels run"]
        elif others := sorted({name for name in kernels.multiplied.values() if kernels.products[name] != "native"}):
            slow = [f"the xla kernels read {', '.join(others)}"]
        skipped = f", {model.skipped_blocks} more for predicting further tokens that are not run"
        layers = in_words(model.layers) + (skipped if model.skipped_blocks else "")
        return cls(kernels.tensors, layers, native, cache, memory, host_limit(), slow)

    def too_large(self, name: str) -> str | None:
        """Why the model `name` does not fit this machine, or None."""
        try:
            if self.memory is not None and self.limit is not None:
                self.limit.check(self.memory, name)
        except MemoryLimitError as error:
            return str(error)
        return None

    def memory_report(self) -> dict[str, Any] | None:
        if self.memory is None:
            return None
        return {
            "weights_bytes": self.memory.weights,
            "cache_bytes": self.memory.cache,
            "process_bytes": self.memory.process,
            "bytes": self.memory.total,
            "limit_bytes": self.limit and self.limit.bytes,
            "limit": self.limit and self.limit.source,
        }


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


def quantization(file: GGUFFile) -> str | None:
    """What the file was quantized to, in llama.cpp's word for the mix; else the format of most of its bytes."""
    return file_type(file.metadata) or next(iter(format_totals(file)), None)


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
