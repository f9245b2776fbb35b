"""packlight: GGUF language models with JAX. Load a file, generate text, look inside.

    llm = packlight.load("model.gguf")
    print(llm.generate("Once upon a time", max_tokens=64, temperature=0).text)

Names only, each imported at its first use: a help text needs no numpy, and what refuses a bad file needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packlight.arguments import Sampling
    from packlight.common.errors import (
        ArgumentError,
        ConfigError,
        ContextLengthError,
        DownloadError,
        GGUFError,
        MemoryLimitError,
        MissingFileError,
        NonFiniteLogitsError,
        PacklightError,
        UnsupportedError,
    )
    from packlight.compile.config import CompileConfig
    from packlight.inspection import format_totals, inspect
    from packlight.llm import LLM, load
    from packlight.model.sampling.config import SamplingConfig
    from packlight.model.spec.architectures import ARCHITECTURES
    from packlight.model.text.chat import ChatTemplateError
    from packlight.model.text.tokenizer import Tokenizer
    from packlight.prepared import Prepared, prepare
    from packlight.quant.formats.table import FORMATS
    from packlight.rendering import render_chat
    from packlight.serve.run import Completion, TokenLogprob, TopLogprob
    from packlight.serve.scheduler import Stream
    from packlight.unpacking import unpack

_HOMES = {  # module -> the public names that it defines
    "arguments": ("Sampling",),
    "common.errors": (
        "ArgumentError", "ConfigError", "ContextLengthError", "DownloadError", "GGUFError", "MemoryLimitError",
        "MissingFileError",
        "NonFiniteLogitsError", "PacklightError", "UnsupportedError",
    ),
    "compile.config": ("CompileConfig",),
    "inspection": ("format_totals", "inspect"),
    "llm": ("LLM", "load"),
    "model.sampling.config": ("SamplingConfig",),
    "model.spec.architectures": ("ARCHITECTURES",),
    "model.text.chat": ("ChatTemplateError",),
    "model.text.tokenizer": ("Tokenizer",),
    "prepared": ("Prepared", "prepare"),
    "quant.formats.table": ("FORMATS",),
    "rendering": ("render_chat",),
    "serve.run": ("Completion", "TokenLogprob", "TopLogprob"),
    "serve.scheduler": ("Stream",),
    "unpacking": ("unpack",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "FORMATS",
    "LLM",
    "ArgumentError",
    "ChatTemplateError",
    "CompileConfig",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "DownloadError",
    "GGUFError",
    "MemoryLimitError",
    "MissingFileError",
    "NonFiniteLogitsError",
    "PacklightError",
    "Prepared",
    "Sampling",
    "SamplingConfig",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "TopLogprob",
    "UnsupportedError",
    "format_totals",
    "inspect",
    "load",
    "prepare",
    "render_chat",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("packlight")
    if name not in _HOME:
        raise AttributeError(f"module 'packlight' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"packlight.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
