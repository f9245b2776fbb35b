"""From the fields of a body to runs of the engine: prompts as token ids, how they are sampled, what is to be answered.

It is the slow part of a request beside the model itself (templates, tokens, grammars), and is done in a thread beside
the event loop. All that can be refused is refused here, before anything is queued.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from packlight.common.errors import PacklightError
from packlight.model.sampling.config import PARAMETERS, SamplingConfig
from packlight.model.spec.pooling import pooling_of
from packlight.model.text.chat import prompt_ids
from packlight.serve.prefix import Keep
from packlight.serve.run import Run
from packlight.server.errors import ApiError, api_error, wrong

if TYPE_CHECKING:
    from packlight.llm import LLM
    from packlight.model.text.chat import Prompt

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_PROMPTS = 1024  # of one request
ANY_OBJECT = '{"type": "object"}'


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
    echo: bool = False
    tokens: bool = False  # the ids of the texts, too
    logprobs: bool = False

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.n]


class Requests:
    """What bodies ask of one model."""

    def __init__(self, llm: "LLM", names: Sequence[str], defaults: Mapping[str, Any]):
        """names: of the model, the one that it is shown under first. defaults: sampling parameters where a body says
        nothing.
        """
        self._llm, self._names, self._defaults = llm, names, dict(defaults)

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
        made = self.rendered(values)
        with _of("messages"):
            ids = self._llm.prompts.answerable(prompt_ids(self._llm.tokenizer, made), parse_special=False)
        if values.get("top_logprobs") is not None and not values.get("logprobs"):
            raise wrong("top_logprobs", "top_logprobs goes with logprobs=true")
        logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
        return self._asked(True, name, [ids], values, {"logprobs": logprobs})

    def completion(self, values: Mapping[str, Any]) -> Asked:
        """A request for continuations. Raises ApiError."""
        name = self.model(values)
        prompts = [self._prompt(each) for each in _several("prompt", values.get("prompt"))]
        logprobs = values.get("logprobs")
        changes: dict[str, Any] = {"logprobs": logprobs}
        if values.get("echo") and logprobs is not None:
            changes["prompt_logprobs"] = logprobs
        return self._asked(False, name, prompts, values, changes)

    def rendered(self, values: Mapping[str, Any]) -> "Prompt":
        """The text that the template makes of a conversation. Raises ApiError."""
        messages = values.get("messages")
        if messages is None:
            raise wrong("messages", "messages are missing: the conversation", "missing_required_parameter")
        told = [_message(i, each) for i, each in enumerate(messages)]
        variables = dict(values.get("chat_template_kwargs", {}))
        if taken := variables.keys() & {"messages", "tools", "documents", "bos_token", "eos_token", "strftime_now"}:
            raise wrong("chat_template_kwargs", f"chat_template_kwargs: {min(taken)} is not its to say")
        if "reasoning_effort" in values:
            variables["reasoning_effort"] = values["reasoning_effort"]
        goes_on = values.get("continue_final_message", False)
        variables["add_generation_prompt"] = values.get("add_generation_prompt", not goes_on)
        if goes_on and variables["add_generation_prompt"]:
            raise wrong("continue_final_message", "continue_final_message and add_generation_prompt exclude each other")
        with _of("messages"):
            made = self._llm.rendered_chat(told, values.get("tools") or None, **variables)
        return _cut_behind(made, told[-1]) if goes_on else made

    def texts(self, values: Mapping[str, Any]) -> list[list[int]]:
        """The texts that an embedding is asked of. Raises ApiError."""
        with _of("input"):
            return [self._llm.prompts.fitting(each) for each in _several("input", values.get("input"))]

    def pairs(self, values: Mapping[str, Any]) -> tuple[str, list[str], list[list[int]]]:
        """A query and documents to rank, and the texts that they are read as. Raises ApiError."""
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
            return values["query"], documents, [self._llm.prompts.pair(values["query"], each) for each in documents]

    def tokens(self, values: Mapping[str, Any]) -> list[int]:
        """The token ids of a text or of a conversation. Raises ApiError."""
        given = [name for name in ("prompt", "content", "messages") if name in values]
        if len(given) != 1:
            raise wrong("prompt", "give one of prompt, content and messages", "missing_required_parameter")
        if given == ["messages"]:
            return prompt_ids(self._llm.tokenizer, self.rendered(values))
        special = values.get("add_special_tokens", given == ["prompt"])
        return self._llm.tokenizer.encode(values[given[0]], special, values.get("parse_special", True))

    def text(self, values: Mapping[str, Any]) -> str:
        """The text of token ids. Raises ApiError."""
        if "tokens" not in values:
            raise wrong("tokens", "tokens are missing", "missing_required_parameter")
        with _of("tokens"):
            ids = self._llm.prompts.ids(values["tokens"]) if values["tokens"] != [] else []
        return self._llm.tokenizer.decode(ids)

    def _prompt(self, prompt: Any) -> list[int]:
        with _of("prompt"):
            return self._llm.prompts.answerable(prompt, parse_special=True)

    def _asked(
        self, chat: bool, name: str, prompts: list[list[int]], values: Mapping[str, Any], changes: dict[str, Any]
    ) -> Asked:
        n = values.get("n", 1)
        if len(prompts) * n > MOST_PROMPTS:
            raise wrong("n", f"{len(prompts)} prompts and n={n} are more than {MOST_PROMPTS} texts")
        given = {each.name: values[each.name] for each in PARAMETERS if each.name in values}
        constraint = _constraint(values.get("response_format", {}))
        if constraint is not None and any(given.get(each) is not None for each in ("json_schema", "regex", "grammar")):
            raise wrong("response_format", "response_format and json_schema, regex and grammar exclude each other")
        if constraint is not None:
            given["json_schema"] = constraint
        with _of(None):
            config = SamplingConfig(**(self._defaults | given | changes))
            self._llm.prompts.check_sampling(config)
            keep = Keep.TOKENS if values.get("cache_prompt", True) else Keep.NOTHING
            runs = self._llm.runs(prompts, config, n, keep)
        options = values.get("stream_options", {})
        for option, value in options.items():
            if option not in ("include_usage", "include_obfuscation") or not isinstance(value, bool | None):
                raise wrong(
                    "stream_options", f"stream_options: {reprlib.repr(option)}={reprlib.repr(value)} is unknown"
                )
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
            echo=values.get("echo", False),
            tokens=values.get("return_tokens", False),
            logprobs=changes["logprobs"] is not None,
        )


class _of:  # noqa: N801  a context manager
    """Errors inside follow from this field."""

    def __init__(self, param: str | None):
        self._param = param

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PacklightError):
            raise api_error(error, self._param or _first_word(error)) from None


def _first_word(error: PacklightError) -> str | None:
    """The sampling parameter that an error begins with, as all of them do."""
    name = str(error).split(" ", 1)[0].rstrip(":")
    return name if any(name == each.name for each in PARAMETERS) else None


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


def _message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates take it: its text in one piece; what else it has is kept. Raises ApiError."""
    param = f"messages[{number}]"
    role = message.get("role")
    if role not in ROLES:
        raise wrong(f"{param}.role", f"{param}.role is one of {', '.join(ROLES)}, not {reprlib.repr(role)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_text_of(f"{param}.content[{i}]", part) for i, part in enumerate(content))
    elif content is None and role in ("assistant", "function"):
        content = ""
    elif not isinstance(content, str):
        raise wrong(f"{param}.content", f"{param}.content is a text or a list of parts, not {reprlib.repr(content)}")
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _text_of(param: str, part: Any) -> str:
    """The text of a content part. Raises ApiError for what is none."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
        raise wrong(param, f"{param} is not a text: of parts only those of type text are supported")
    return text


def _cut_behind(made: "Prompt", last: Mapping[str, Any]) -> "Prompt":
    """A prompt up to the end of its last message's text. Source: transformers, `continue_final_message`."""
    end = made.text.rfind(last["content"].strip())
    if not last["content"].strip() or end < 0:
        raise wrong(
            "continue_final_message", "continue_final_message: the prompt does not show the last message's text"
        )
    end += len(last["content"].strip())
    return made._replace(text=made.text[:end], kinds=made.kinds[:end])


def _constraint(response_format: Mapping[str, Any]) -> str | None:
    """The JSON schema that a response format asks for. Raises ApiError."""
    kind = response_format.get("type", "text")
    given = response_format.get("json_schema", response_format)
    schema = given.get("schema") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object" and schema is None:
        return ANY_OBJECT
    if kind not in ("json_schema", "json_object"):
        said = f"response_format.type is text, json_object or json_schema, not {reprlib.repr(kind)}"
        raise wrong("response_format", said)
    if not isinstance(schema, dict):
        raise wrong("response_format", "response_format.json_schema.schema is missing: a JSON schema, an object")
    return json.dumps(schema)
