"""Chat templates: the one in a model's file, or another, rendered to a prompt. Knows texts, no tokens; imports no jax.

A template is a stranger's program, so each render is a process of its own with bounded time, memory and output
(`model.text.sandboxes`). What it answers says of each character whether the template wrote it or was given it, so
that messages stay text.
"""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from packlight.common.errors import Argument, ConfigError, PacklightError
from packlight.common.text import shown
from packlight.model.text import provenance, sandboxes
from packlight.model.text.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
SECONDS = 5  # of processor time; wall time is bounded by four times that, for a machine that is busy
MEMORY = 1 << 30  # bytes of address space
MOST = 1 << 22  # characters a prompt may have


class ChatTemplateError(PacklightError):
    """A template that is missing, wrong, refuses the messages, or does not end."""


class TemplateEndError(ChatTemplateError):
    """A render that was stopped, or whose process died: it says nothing of what the template makes of messages."""


class Prompt(NamedTuple):
    """What a template made of a conversation."""

    text: str
    kinds: str  # for each character of the text where it comes from (`model.text.provenance`)
    template: str  # the template's own text


def template_of(
    metadata: Mapping[str, Any], path: str, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None
) -> str:
    """The template in a GGUF file's metadata: the one named `tool_use` for a conversation with tools, the one named
    `rag` for one with documents, where the file has it, or else the one without a name.

    Raises ChatTemplateError, saying how to pass one, when there is none.
    Source: transformers, `get_chat_template`; llama.cpp common/chat.cpp, `common_chat_templates_init`.
    """
    named = [f"{KEY}.{name}" for name, given in (("tool_use", tools), ("rag", documents)) if given]
    for key in (*named, KEY):
        template = metadata.get(key)
        if isinstance(template, str) and template:
            return template
    others = sorted(key for key in metadata if key.startswith(KEY + "."))
    has = f"; it has {shown(', '.join(others), 200)}, which is for other conversations" if others else ""
    raise ChatTemplateError(
        f"{path}: the file has no chat template (key '{KEY}'){has}; pass one with ", Argument("template")
    )


def own_prompt(
    metadata: Mapping[str, Any],
    path: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    **variables: Any,
) -> Prompt:
    """The prompt that a file's own template makes. variables: as for `render`.

    Raises ChatTemplateError as `template_of` and `render` do, and for tools or documents that the prompt does not show.
    """
    template = template_of(metadata, path, tools, documents)
    made = make_prompt(template, messages, tools=tools, documents=documents, **variables)
    for name, given, kind in (("tools", tools, provenance.TOOLS), ("documents", documents, provenance.DOCUMENTS)):
        if given and kind not in made.kinds:
            raise ChatTemplateError(
                f"{path}: the file's chat template leaves the {name} out; pass one that shows them with ",
                Argument("template"),
                f", or no {name}",
            )
    return made


def render(template: str, messages: Sequence[Mapping[str, Any]], *values: Any, **variables: Any) -> str:
    """The text of `make_prompt(...)`, whose parameters and errors are its own."""
    return make_prompt(template, messages, *values, **variables).text


def make_prompt(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    strftime_now: str | None = None,
    **variables: Any,
) -> Prompt:
    """The prompt that `template` makes of `messages`, each {"role": ..., "content": ...}.

    strftime_now: ISO time that templates are told; None is the time it is. variables: further names for the template.
    Raises ConfigError for messages that are none, ChatTemplateError with the template's own words when it refuses
    them, fails, or runs past its bounds. Source: Hugging Face's `apply_chat_template`.
    """
    check(messages)
    for name, given in (("tools", tools), ("documents", documents)):
        if given is not None and (isinstance(given, str | Mapping) or not isinstance(given, Sequence)):
            raise ConfigError(f"{name} are a list, not {shown(reprlib.repr(given))}")
    known = {
        "messages": list(messages),
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    opening = json.dumps({"template": template, "seconds": SECONDS, "bytes": MEMORY, "most": MOST})
    try:
        job = json.dumps({"variables": known | variables, "now": strftime_now})
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"messages, tools and documents are plain data that JSON can hold: {error}") from None
    try:
        answer = json.loads(sandboxes.answer(opening, job, 4 * SECONDS))
    except TimeoutError:
        raise TemplateEndError(f"chat template: it does not end within {4 * SECONDS} s") from None
    except ValueError:  # killed by its limits before it could answer
        raise TemplateEndError("chat template: it does not end, or needs too much memory") from None
    if "error" in answer:
        raise ChatTemplateError(f"chat template: {shown(' '.join(answer['error'].split()), 400)}")
    text = re.sub("[\ud800-\udfff]", "\ufffd", answer["text"])  # halves of a character that an escape spelled
    return Prompt(text, answer.get("kinds", provenance.DATA * len(text)), template)  # of unknown origin: data


def prompt_ids(tokenizer: Tokenizer, made: Prompt | str) -> list[int]:
    """Token ids of a rendered prompt: the control tokens that its template wrote are parsed, those that messages spell
    stay text, and bos stands before it once, not twice. A str is read as a template's writing.
    """
    if isinstance(made, str):
        ids = tokenizer.encode(made, add_special=False, parse_special=True)
    else:
        ids = tokenizer.encode_prompt(*made)
    bos = tokenizer.bos_id
    return [bos, *ids] if tokenizer.add_bos and bos is not None and ids[:1] != [bos] else ids


def rerank_template(metadata: Mapping[str, Any]) -> str | None:
    """The template for a query and a document that a reranker's file may have, no program but a text with `{query}` and
    `{document}` in it. Source: llama.cpp's `format_prompt_rerank`.
    """
    template = metadata.get(f"{KEY}.rerank")
    return template if isinstance(template, str) and template else None


def filled(template: str, values: Mapping[str, str]) -> Prompt:
    """The prompt that a template makes by putting each value where its name stands in braces."""
    pieces = re.split("(" + "|".join(re.escape(f"{{{name}}}") for name in values) + ")", template)
    known = {f"{{{name}}}": value for name, value in values.items()}
    text = "".join(known.get(piece, piece) for piece in pieces)
    kinds = (provenance.DATA * len(known[p]) if p in known else provenance.TEMPLATE * len(p) for p in pieces)
    return Prompt(text, "".join(kinds), template)


def special_texts(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[str, str]:
    """What a template is told of the file's `bos_token` and `eos_token`; "" where there is none."""
    tokens = metadata["tokenizer.ggml.tokens"]
    bos, eos = ("" if i is None else tokens[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    return bos, eos


def check(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for what is no conversation."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ConfigError("messages are a list of {'role': ..., 'content': ...}, not empty")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"message {i} is no mapping with a 'role'")
