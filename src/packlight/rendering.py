"""Chat templates for callers who want the prompt only: no model is loaded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from packlight.common.text import shown_path
from packlight.model.gguf.reader import open_gguf
from packlight.model.text.chat import own_prompt, render, special_texts
from packlight.model.text.tokenizer import Tokenizer
from packlight.sources import PREFIXES
from packlight.sources.find import find


def render_chat(
    path_or_template: str | os.PathLike[str],
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    strftime_now: str | None = None,
    **vars: Any,  # noqa: A002  the name templates' variables have in the field
) -> str:
    """The prompt that a chat template makes of a conversation; see `model.text.chat.make_prompt`, whose parameters are
    spelled again here because this is the public signature.

    path_or_template: a GGUF file or a name of a model (see `load`), whose own template and special tokens are used, or
        the text of a template.
    Raises ConfigError for what is no conversation, ChatTemplateError when there is no template, or it refuses the
    messages, fails or does not end, or a file's own leaves tools or documents out; GGUFError for a bad file.
    """
    template = os.fspath(path_or_template)
    given = {"add_generation_prompt": add_generation_prompt, "tools": tools, "documents": documents, **vars}
    if isinstance(path_or_template, os.PathLike) or template.endswith(".gguf") or template.startswith(PREFIXES):
        file = open_gguf(find(template))
        bos, eos = special_texts(file.metadata, Tokenizer.from_file(file))
        tokens = {"bos_token": bos_token or bos, "eos_token": eos_token or eos, "strftime_now": strftime_now}
        return own_prompt(file.metadata, shown_path(file.path), messages, **given, **tokens).text
    tokens = {"bos_token": bos_token, "eos_token": eos_token, "strftime_now": strftime_now}
    return render(template, messages, **given, **tokens)
