"""Calls that name an argument wrongly: refused with the neighbour of the name. Knows no function in particular."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from packlight.common.errors import ArgumentError
from packlight.common.text import near, shown

Call = TypeVar("Call", bound=Callable[..., Any])
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What llama-cpp-python, vLLM and others call parameters of ours, where the names are not alike.
OTHERS = {
    **dict.fromkeys(("n_ctx", "max_model_len"), "context"),
    **dict.fromkeys(("n_parallel", "max_num_seqs"), "slots"),
    **dict.fromkeys(("type_k", "cache_type_k", "kv_cache_dtype"), "kv_type"),
    **dict.fromkeys(("mmap", "use_mmap"), "weights"),
    **dict.fromkeys(("model", "model_path", "filename"), "path"),
    **dict.fromkeys(("n_predict", "num_predict"), "max_tokens"),
    "temp": "temperature",
    "chat_template": "template",
    "response_format": "json_schema",
    "stream": "llm.stream",
    "messages": "llm.chat",
    **dict.fromkeys(("system", "system_prompt"), "messages"),
}


def suggesting(call: Call) -> Call:
    """The function, or the class, with calls that raise ArgumentError for an argument that its signature does not name:
    with the nearest name, or else all of them.
    """
    made: Any = call
    known = [name for name, each in inspect.signature(call).parameters.items() if each.kind in NAMED and name != "self"]
    if isinstance(made, type):
        made.__init__ = _checked(made.__init__, made.__name__, known)
        return call
    return _checked(made, made.__name__, known)


def _checked(function: Callable[..., Any], called: str, known: list[str]) -> Any:
    """The function, under the name by which it is called, with a check of its arguments' names."""

    @functools.wraps(function)
    def checked(*values: Any, **named: Any) -> Any:
        for name in named:
            if name not in known:
                raise ArgumentError(f"{called}() takes no argument {shown(name)!r}{_hint(name, called, known)}")
        return function(*values, **named)

    return checked


def _hint(name: str, called: str, known: list[str]) -> str:
    """The end of a message about an unknown name."""
    other = OTHERS.get(name, "")
    method = "." in other and "prompt" in known and other != f"llm.{called}"  # for what continues a prompt
    if other in known or method:
        return f"; did you mean {other!r}?"
    return near(name, known) or f"; it takes: {', '.join(known)}"
