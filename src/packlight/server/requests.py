"""From the fields of a body to runs of the engine: prompts as token ids, how they are sampled, what is to be answered.

It is the slow part of a request beside the model itself (templates, tokens, grammars), and is done in a thread beside
the event loop. All that can be refused is refused here, before anything is queued.
"""

import dataclasses
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from packlight import conversing
from packlight.common.errors import PacklightError
from packlight.common.text import shown_path
from packlight.model.sampling.config import PARAMETERS, SamplingConfig
from packlight.model.spec.pooling import check_generates, pooling_of
from packlight.model.text.chat import Prompt, prompt_ids, special_texts, template_of
from packlight.model.text.replies.parser import ReplyParser
from packlight.serve.prefix import Keep
from packlight.serve.run import Run
from packlight.server.conversation import called_tools, check_message, cut_behind, template_variables
from packlight.server.errors import ApiError, api_error, wrong

if TYPE_CHECKING:
    from packlight.llm import LLM

FIELDS = {"messages", "tools", "tool_choice", *(each.name for each in PARAMETERS)}  # that errors begin with
MOST_PROMPTS = 1024  # of one request
STREAM_OPTIONS = ("include_usage", "continuous_usage_stats", "include_obfuscation")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request for texts."""

    chat: bool
    model: str  # by the name that it is answered under
    prompts: list[list[int]]
    runs: list[Run]  # n of each prompt, those of a prompt together
    n: int
    stream: bool = False
    usage: bool = False  # as an event of its own
    usage_so_far: bool = False  # of each choice in every event
    echo: bool = False
    tokens: bool = False  # the ids of the texts, too, as llama.cpp has them
    token_ids: bool = False  # the ids of prompts and texts, too, as vLLM has them
    logprobs: bool = False
    prompt_logprobs: bool = False
    parsers: list[ReplyParser] | None = None  # of each run's text, of a chat

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.n]


class Requests:
    """What bodies ask of one model."""

    def __init__(self, llm: "LLM", names: Sequence[str], defaults: Mapping[str, Any], generic_tools: bool = False):
        """names: of the model, the one that it is shown under first. defaults: sampling parameters where a body says
        nothing. generic_tools: a model whose template has no place for tools is told of them in a form of ours.
        """
        self._llm, self._names, self._defaults = llm, names, dict(defaults)
        self._generic_tools = generic_tools

    def model(self, values: Mapping[str, Any]) -> str:
        """The name of the model that is asked. Raises ApiError for another one."""
        name = values.get("model")
        if name is None or name in self._names:
            return name or self._names[0]
        said = f"there is no model {reprlib.repr(name)} here; there is {self._names[0]!r}"
        raise ApiError(404, said, "model", "model_not_found")

    def chat(self, values: Mapping[str, Any]) -> Asked:
        """A request for the next message. Raises ApiError."""
        name = self.model(values)
        talk = self._conversation(values)
        with _of("messages"):
            self._llm.prompts.check_length(talk.prompt.text)
            ids = self._llm.prompts.answerable(prompt_ids(self._llm.tokenizer, talk.prompt), parse_special=False)
        if values.get("top_logprobs") is not None and not values.get("logprobs"):
            raise wrong("top_logprobs", "top_logprobs goes with logprobs=true")
        logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
        return self._asked(True, name, [ids], values, {"logprobs": logprobs}, talk)

    def completion(self, values: Mapping[str, Any]) -> Asked:
        """A request for continuations. Raises ApiError."""
        name = self.model(values)
        logprobs = values.get("logprobs")
        changes: dict[str, Any] = {"logprobs": logprobs}
        if values.get("echo") and logprobs is not None:
            if "prompt_logprobs" in values:
                raise wrong("prompt_logprobs", "prompt_logprobs: echo with logprobs gives those of the prompt already")
            changes["prompt_logprobs"] = logprobs
        answered = values.get("max_tokens") != 0
        prompts = [self._prompt(each, answered) for each in _several("prompt", values.get("prompt"))]
        return self._asked(False, name, prompts, values, changes)

    def rendered(self, values: Mapping[str, Any]) -> Prompt:
        """The text that the template makes of a conversation. Raises ApiError."""
        return self._conversation(values).prompt

    def _conversation(self, values: Mapping[str, Any]) -> conversing.Asked:
        """A conversation as the template renders it, and how the reply to it is read. Raises ApiError."""
        messages = values.get("messages")
        if messages is None:
            raise wrong("messages", "messages are missing: the conversation", "missing_required_parameter")
        for number, message in enumerate(messages):
            check_message(number, message)
        tools, choice = called_tools(values)
        schema, variables = _schema(values.get("response_format", {})), template_variables(values)
        metadata, tokenizer = self._llm.file.metadata, self._llm.tokenizer
        bos, eos = special_texts(metadata, tokenizer)
        with _of("messages", json_schema="response_format"):
            check_generates(self._llm.model)
            asked = conversing.asked(
                template_of(metadata, shown_path(self._llm.file.path), tools),
                tokenizer,
                messages,
                tools,
                choice,
                parallel=values.get("parallel_tool_calls", True),
                schema=schema,
                generic_tools=self._generic_tools,
                bos_token=bos,
                eos_token=eos,
                variables=variables,
            )
        if not values.get("continue_final_message"):
            return asked
        return dataclasses.replace(asked, prompt=cut_behind(asked.prompt, messages[-1]))

    def texts(self, values: Mapping[str, Any]) -> tuple[list[list[int]], str]:
        """The texts that an embedding is asked of, and the pooling that the file asks for. Raises ApiError."""
        with _of("model"):
            pooling = pooling_of(self._llm.model, None)
        with _of("input"):
            return [self._llm.prompts.fitting(each) for each in _several("input", values.get("input"))], pooling

    def pairs(self, values: Mapping[str, Any]) -> tuple[list[str], list[list[int]]]:
        """Documents to rank, and the texts that each is read as with the query. Raises ApiError."""
        with _of("model"):
            pooling_of(self._llm.model, "rank")
        documents = []
        for i, each in enumerate(_several("documents", values.get("documents"))):
            text = each.get("text") if isinstance(each, dict) else each
            if not isinstance(text, str):
                raise wrong("documents", f"documents[{i}] is a text, or an object with one, not {reprlib.repr(each)}")
            documents.append(text)
        if "query" not in values:
            raise wrong("query", "query is missing", "missing_required_parameter")
        with _of("documents"):
            return documents, [self._llm.prompts.pair(values["query"], each) for each in documents]

    def tokens(self, values: Mapping[str, Any]) -> list[int]:
        """The token ids of a text or of a conversation. Raises ApiError."""
        given = [name for name in ("prompt", "content", "messages") if name in values]
        if len(given) != 1:
            raise wrong("prompt", "give one of prompt, content and messages", "missing_required_parameter")
        if given == ["messages"]:
            return prompt_ids(self._llm.tokenizer, self.rendered(values))
        special = values.get("add_special_tokens", given == ["prompt"])
        return self._llm.tokenizer.encode(values[given[0]], special, values.get("parse_special", True))

    def tokenized(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The token ids of a text or of a conversation, and what each of them is, where that is asked for. Raises
        ApiError.
        """
        ids, piece = self.tokens(values), self._llm.tokenizer.piece
        reply: dict[str, Any] = {"tokens": ids, "count": len(ids)}
        if values.get("with_pieces"):
            reply["tokens"] = [{"id": each, "piece": _text_or_bytes(piece(each))} for each in ids]
        if values.get("return_token_strs"):
            reply["token_strs"] = [piece(each).decode(errors="replace") for each in ids]
        return reply

    def text(self, values: Mapping[str, Any]) -> str:
        """The text of token ids. Raises ApiError."""
        if "tokens" not in values:
            raise wrong("tokens", "tokens are missing", "missing_required_parameter")
        with _of("tokens"):
            if not isinstance(values["tokens"], list):
                raise wrong("tokens", f"tokens are a list of ids, not {reprlib.repr(values['tokens'])}")
            ids = self._llm.prompts.ids(values["tokens"]) if values["tokens"] != [] else []
        return self._llm.tokenizer.decode(ids)

    def _prompt(self, prompt: Any, answered: bool) -> list[int]:
        with _of("prompt"):
            return self._llm.prompts.answerable(prompt, parse_special=True, answered=answered)

    def _asked(
        self,
        chat: bool,
        name: str,
        prompts: list[list[int]],
        values: Mapping[str, Any],
        changes: dict[str, Any],
        talk: conversing.Asked | None = None,
    ) -> Asked:
        n = values.get("n", 1)
        if len(prompts) * n > MOST_PROMPTS:
            raise wrong("n", f"{len(prompts)} prompts and n={n} are more than {MOST_PROMPTS} texts")
        given = {each.name: values[each.name] for each in PARAMETERS if each.name in values}
        parsers: list[ReplyParser] = []

        def parser(prompt: list[int], config: SamplingConfig) -> ReplyParser | None:
            if talk is None:
                return None
            parsers.append(talk.parser(self._llm.tokenizer, config.seed, prompt, config.stop))
            return parsers[-1]

        form = "tools" if talk is not None and talk.tools else "response_format"
        made = self._constraint(values, given, talk)
        given |= made | changes
        with _of(None, **dict.fromkeys(made, form)):
            config = SamplingConfig(**(self._defaults | given))
            self._llm.prompts.check_sampling(config)
            keep = Keep.TOKENS if values.get("cache_prompt", True) else Keep.NOTHING
            runs = self._llm.runs(prompts, config, n, keep, values.get("cache_salt", ""), parser)
        options = values.get("stream_options", {})
        for option, value in options.items():
            if option not in STREAM_OPTIONS or not isinstance(value, bool | None):
                said = f"stream_options: {reprlib.repr(option)}={reprlib.repr(value)} is unknown"
                raise wrong("stream_options", said)
        if "prompt_logprobs" in values and values.get("stream"):
            raise wrong("prompt_logprobs", "prompt_logprobs come with a whole answer, not with stream=true")
        if options and not values.get("stream"):
            raise wrong("stream_options", "stream_options goes with stream=true")
        return Asked(
            chat=chat,
            model=name,
            prompts=prompts,
            runs=runs,
            n=n,
            stream=values.get("stream", False),
            usage=bool(options.get("include_usage")),
            usage_so_far=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
            echo=values.get("echo", False),
            tokens=values.get("return_tokens", False),
            token_ids=values.get("return_token_ids", False),
            logprobs=changes["logprobs"] is not None,
            prompt_logprobs="prompt_logprobs" in values,
            parsers=parsers or None,
        )

    def _constraint(
        self, values: Mapping[str, Any], given: dict[str, Any], talk: conversing.Asked | None
    ) -> dict[str, str]:
        """The sampling parameter that a text's form asks for: of a response format, of tools. Raises ApiError."""
        schema = _schema(values.get("response_format", {}))
        others = [name for name in ("json_schema", "regex", "grammar") if given.get(name) is not None]
        if others and (schema is not None or (talk is not None and talk.tools)):
            what = "tools" if schema is None else "response_format"
            raise wrong(what, f"{what} and {others[0]} exclude each other")
        if talk is not None:
            return {} if talk.grammar is None else {"grammar": talk.grammar}
        return {} if schema is None else {"json_schema": json.dumps(schema)}


class _of:  # noqa: N801  a context manager
    """Errors inside follow from the field that they begin with, where they begin with one, else from this one."""

    def __init__(self, param: str | None, **renamed: str):
        """renamed: fields that stand for others that the request has."""
        self._param, self._renamed = param, renamed

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PacklightError):
            name = re.match(r"[\w.\[\]]*", str(error))[0]  # pyright: ignore[reportOptionalSubscript]  "" matches too
            known = name.partition("[")[0] in FIELDS
            raise api_error(error, self._renamed.get(name, name) if known else self._param) from None


def _several(name: str, given: Any) -> list[Any]:
    """The prompts that a field has: a text or token ids, or a list of either. Raises ApiError."""
    if given is None:
        raise wrong(name, f"{name} is missing", "missing_required_parameter")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise wrong(name, f"{name} is a text or token ids, or a list of either, and not empty")
    several = given if isinstance(given[0], str | list | dict) else [given]
    if len(several) > MOST_PROMPTS:
        raise wrong(name, f"{name} has {len(several)} entries; at most {MOST_PROMPTS}")
    return several


def _text_or_bytes(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _schema(response_format: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that a response format asks for. Raises ApiError."""
    kind = response_format.get("type", "text" if not response_format else None)
    given = response_format.get("json_schema", response_format)
    schema = given.get("schema") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object" and schema is None:
        return {"type": "object"}
    if kind not in ("json_schema", "json_object"):
        said = f"response_format.type is text, json_object or json_schema, not {reprlib.repr(kind)}"
        raise wrong("response_format", said)
    if not isinstance(schema, dict):
        raise wrong("response_format", "response_format.json_schema.schema is missing: a JSON schema, an object")
    return schema
