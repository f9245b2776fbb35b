"""A chat request made ready: its prompt, the grammar of its reply, and the parser that takes the reply apart.

Imports no jax.
"""

import contextlib
import dataclasses
import importlib.util
import types
from collections.abc import Mapping, Sequence
from typing import Any

from packlight.common.errors import ConfigError
from packlight.model.sampling.tool_grammar import reply_grammar
from packlight.model.text.chat import Prompt, make_prompt, special_texts, template_of
from packlight.model.text.replies.deltas import call_ids
from packlight.model.text.replies.format import ReplyFormat
from packlight.model.text.replies.messages import prepared
from packlight.model.text.replies.parser import ReplyParser
from packlight.model.text.replies.probe import reply_format
from packlight.model.text.tokenizer import Tokenizer


def measure(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Measures the reply formats of a file's templates, of chats and of chats with tools, so that no chat waits for it.

    Where that fails nothing is raised: the first chat is told why.
    """
    for tools in ((), ({},)):
        with contextlib.suppress(Exception):
            bos, eos = special_texts(metadata, tokenizer)
            reply_format(template_of(metadata, "", tools), bos, eos)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a chat request comes to."""

    prompt: Prompt
    grammar: str | None  # for `SamplingConfig.grammar`; None where nothing is asked of the reply
    form: ReplyFormat
    tools: Sequence[Mapping[str, Any]]  # that may be called
    thinking: bool  # the prompt ends inside of thinking

    def parser(
        self, tokenizer: Tokenizer, seed: int | None, prompt_ids: Sequence[int], stop: str | Sequence[str] = ()
    ) -> ReplyParser:
        """A parser for one reply, for `Run(..., shown=parser)`. The ids of calls follow from seed and prompt."""
        guarded = bool(self.tools) and self.grammar is not None
        ids = call_ids(seed, prompt_ids)
        return ReplyParser(
            self.form, tokenizer, self.tools, thinking=self.thinking, stop=stop, guarded=guarded, id_of=ids
        )


def asked(
    template: str,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    choice: str = "auto",
    *,
    parallel: bool = True,
    schema: Mapping[str, Any] | None = None,
    generic_tools: bool = False,
    bos_token: str = "",
    eos_token: str = "",
    variables: Mapping[str, Any] = types.MappingProxyType({}),
) -> Asked:
    """A request made ready.

    Args:
        template: the chat template's text.
        messages, tools: as OpenAI's API has them.
        choice: "auto", "none", "required" or a tool's name. With "none" the model is not told of tools either.
        parallel: whether a reply may have several calls.
        schema: of the reply's content.
        generic_tools: tells the model of tools in our own words where the template has no place for them.
        variables: further names for the template; not those that `make_prompt` has of its own.

    Raises:
        ConfigError: messages or tools are none, or the template has no place for tools, or what is asked of the reply
            cannot be enforced, or that needs the extra "grammar".
        ChatTemplateError: the template refuses the messages.
    """
    form = reply_format(template, bos_token, eos_token)
    used = () if choice == "none" else tools
    if used and form.shape is None:
        if not generic_tools:
            raise ConfigError("tools: the model's chat template has no place for them")
        form = form.with_generic_tools()
    found, told = prepared(messages, used, form)
    prompt = make_prompt(template, found, tools=told, bos_token=bos_token, eos_token=eos_token, **variables)
    thinking = form.begins_thinking(prompt.text)
    free = choice == "auto" and schema is None and not any(tool["function"].get("strict") for tool in used)
    if free and importlib.util.find_spec("llguidance") is None:  # calls are checked when they are complete
        grammar = None
    else:
        grammar = reply_grammar(form, tokenizer, used, choice, parallel=parallel, schema=schema, thinking=thinking)
    return Asked(prompt, grammar, form, used, thinking)
