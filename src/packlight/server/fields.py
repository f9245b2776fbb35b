"""The fields of every request body: one table, from which bodies are checked, docs printed and openapi.json made.

A field is honoured; or inert, because no value of it can change an answer; or known and not supported, where any value
that would change something is refused by name. Every other name is refused with its nearest neighbour. Source: OpenAI's
API reference, and the names that llama.cpp's server and vLLM have beside it.
"""

import dataclasses
import enum
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from packlight.common.errors import ConfigError
from packlight.common.text import near
from packlight.model.sampling.config import MOST_LOGPROBS, PARAMETERS
from packlight.model.sampling.parameters import Biases, Integer, Parameter, Real, Schema, Switch, Text, Texts
from packlight.model.text.replies.messages import content_text
from packlight.server.errors import ApiError

MOST_CHOICES = 64  # of a prompt
MOST_STOPS = 16
LONGEST_NAME = 100  # characters of an unknown field's name that are looked at
MOST_MESSAGES = 10_000


class Standing(enum.StrEnum):
    """What becomes of a field."""

    HONOURED = enum.auto()
    INERT = enum.auto()
    UNSUPPORTED = "not supported"


class Kind(Protocol):
    """What values a field takes."""

    def check(self, name: str, value: Any) -> Any:
        """The value as the server uses it. Raises ConfigError."""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    options: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        if value not in self.options:
            raise ConfigError(f"{name} is one of {', '.join(self.options)}, not {reprlib.repr(value)}")
        return value


@dataclasses.dataclass(frozen=True)
class Object:
    """A JSON object."""

    def check(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(f"{name} must be an object, not {reprlib.repr(value)}")
        return value


@dataclasses.dataclass(frozen=True)
class Objects:
    """A list of JSON objects."""

    most: int
    least: int = 0

    def check(self, name: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise ConfigError(f"{name} must be a list of objects, not {reprlib.repr(value)}")
        if not self.least <= len(value) <= self.most:
            raise ConfigError(f"{name} has {len(value)} entries; there may be {self.least} to {self.most}")
        return value


@dataclasses.dataclass(frozen=True)
class Anything:
    """What the route checks itself; schema says its form."""

    schema: Mapping[str, Any]

    def check(self, name: str, value: Any) -> Any:
        return value


@dataclasses.dataclass(frozen=True)
class Stops:
    """One text or several."""

    def check(self, name: str, value: Any) -> list[str]:
        stops = [value] if isinstance(value, str) else value
        found = Texts().check(name, [each for each in stops if each != ""] if isinstance(stops, list) else stops)
        if len(found) > MOST_STOPS:
            raise ConfigError(f"{name} has {len(found)} texts; at most {MOST_STOPS}")
        return list(found)


@dataclasses.dataclass(frozen=True)
class JsonBiases:
    """Biases by token id, which JSON spells as texts; or llama.cpp's pairs, of which false forbids a token."""

    of: Biases

    def check(self, name: str, value: Any) -> tuple[tuple[int, float], ...]:
        pairs = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ConfigError(f"{name} must map token ids to numbers, not {reprlib.repr(value)}")
        ids = (int(k) if isinstance(k, str) and k.isascii() and k.isdigit() and len(k) < 10 else k for k, _ in pairs)
        biases = (float("-inf") if bias is False else bias for _, bias in pairs)
        return self.of.check(name, list(zip(ids, biases, strict=True)))


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A text, or OpenAI's object with one as `content`, which may be parts as a message has them."""

    def check(self, name: str, value: Any) -> str | None:
        content = value.get("content") if isinstance(value, dict) else value
        text = content_text(content, f"{name}.content")
        if text is None:
            raise ConfigError(f"{name} is an object with a text as content, not {reprlib.repr(value)}")
        return Text().check(name, text)


@dataclasses.dataclass(frozen=True)
class OrLess:
    """A whole number, or -1 for `least`: for none, or for what is off."""

    of: Integer
    least: int | None

    def check(self, name: str, value: Any) -> int | None:
        return self.least if type(value) is int and value == -1 else self.of.check(name, value)


@dataclasses.dataclass(frozen=True)
class Field:
    """One name that a body may have."""

    name: str
    meaning: str
    kind: Kind | None = None
    standing: Standing = Standing.HONOURED
    same_as: str = ""  # the field that it is another name of
    neutral: tuple[Any, ...] = ()  # values that change nothing, beside null and what is empty

    @property
    def target(self) -> str:
        return self.same_as or self.name


def _inert(name: str, meaning: str, kind: Kind | None = None) -> Field:
    """A field that changes nothing. kind: what values it takes all the same; None takes any."""
    return Field(name, meaning, kind, Standing.INERT)


def _not(name: str, meaning: str, *neutral: Any) -> Field:
    return Field(name, meaning, None, Standing.UNSUPPORTED, neutral=neutral)


def _kind_in_json(parameter: Parameter) -> Kind:
    match parameter.kind:
        case Texts() if parameter.name == "stop":  # OpenAI's may be one text
            return Stops()
        case Biases() as kind:
            return JsonBiases(kind)
        case Integer() as kind if kind.optional:
            return OrLess(kind, None)
        case Integer() as kind if parameter.name == "top_k":  # vLLM's way to say it
            return OrLess(kind, 0)
        case Text() if parameter.name == "prediction":
            return Predicted()
    return parameter.kind


_IN_JSON = {  # what parameters mean here, where their help speaks of the terminal
    "top_k": "draw from the k most probable tokens; 0 and -1 are off",
    "seed": "seed of the draws; without one, or with -1, a random one",
    "max_tokens": "tokens to generate at most; without it, or with -1, until the end; 0 reads the prompt for the cache",
    "stop": "end before this text, or before one of these",
    "logit_bias": "an object: token id to what is added to its logit; or llama.cpp's pairs",
    "json_schema": "write JSON that matches this schema, an object or a text",
    "grammar": "write text that matches this grammar (GBNF or Lark)",
    "prediction": "a text that is expected, or an object with it as `content`: for drafts, where the server makes any",
}
_PARAMETER = {each.name: each for each in PARAMETERS}
_SAMPLED = tuple(
    Field(each.name, _IN_JSON.get(each.name, each.help), _kind_in_json(each))
    for each in PARAMETERS
    if each.name != "logprobs"
)
_ALIASES = tuple(
    Field(name, f"as `{same}`", _kind_in_json(_PARAMETER[same]), same_as=same)
    for name, same in (
        ("max_completion_tokens", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
        ("guided_json", "json_schema"),
        ("guided_regex", "regex"),
        ("guided_grammar", "grammar"),
    )
)
_SWITCH = Switch()
_COMMON = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    *_SAMPLED,
    *_ALIASES,
    Field("n", "completions of each prompt; they read it once, and may be more than there are slots",
          Integer(1, MOST_CHOICES)),
    Field("stream", "server-sent events, one for what a step gave, ended by [DONE]", _SWITCH),
    Field("stream_options", "include_usage: one more event with the usage before [DONE]; with "
          "continuous_usage_stats every event has its choice's so far", Object()),
    Field("response_format", "text, json_object or json_schema", Object()),
    Field("cache_prompt", "false reads the whole prompt anew", _SWITCH),
    Field("cache_salt", "only requests of the same one share what their prompts begin with", Text()),
    Field("return_tokens", "`tokens`: the ids of each piece (llama.cpp)", _SWITCH),
    Field("return_token_ids", "`token_ids`: the ids of each piece; and `prompt_token_ids` (vLLM)", _SWITCH),
    _inert("user", "who asks"),
    _inert("metadata", "notes of the caller's"),
    _inert("safety_identifier", "who asks"),
    _inert("prompt_cache_key", "prompts are found by what they begin with"),
    _inert("prompt_cache_retention", "prompts are found by what they begin with"),
    _inert("priority", "requests take turns", Integer(-(2**63), 2**63 - 1)),
    _inert("timings_per_token", "`timings` come with the last event", _SWITCH),
    _not("store", "nothing is kept", False),
    _not("service_tier", "there is one", "auto", "default"),
    _not("id_slot", "the scheduler chooses", -1),
    _not("samplers", "the chain has one order"),
    _not("logits_processors", "programs are not run"),
    _not("min_tokens", "an end token ends a text", 0),
    _not("stop_token_ids", "end tokens are the file's"),
    _not("use_beam_search", "texts are sampled", False),
    _not("best_of", "give n", 1),
    _not("n_keep", "nothing leaves the context", 0, -1),
    _not("n_discard", "nothing leaves the context", 0),
    _not("truncate_prompt_tokens", "nothing is cut"),
    _not("truncation", "nothing is cut", "disabled"),
    _not("lora", "no adapters"),
    _not("return_progress", "no events before the first token", False),
)  # fmt: skip

CHAT = (
    Field("messages", "the conversation: roles system, developer, user, assistant, tool; content is text",
          Objects(MOST_MESSAGES, 1)),
    *_COMMON,
    Field("logprobs", "the log-probability of each token", _SWITCH),
    Field("top_logprobs", "beside each, so many of the most probable ones", Integer(0, MOST_LOGPROBS)),
    Field("tools", "functions that the model may call", Objects(1024)),
    Field("tool_choice", "auto, none, required, or one function",
          Anything({"anyOf": [{"type": "string"}, {"type": "object"}]})),
    Field("parallel_tool_calls", "false: one call at most", _SWITCH),
    Field("reasoning_effort", "given to the template", Text()),
    Field("chat_template_kwargs", "further variables of the template, such as enable_thinking", Object()),
    Field("add_generation_prompt", "false: the template does not open an answer", _SWITCH),
    Field("continue_final_message", "true: the answer goes on where the last message ends", _SWITCH),
    _inert("verbosity", "a hint that no template reads: low, medium or high", OneOf(("low", "medium", "high"))),
    _not("audio", "text only"),
    _not("modalities", "text only", ["text"]),
    _not("web_search_options", "no web"),
    _not("functions", "give tools"),
    _not("function_call", "give tool_choice", "none"),
    _not("chat_template", "the file's is used; another one is given where the server is started"),
    _not("documents", "give them in a message"),
    _not("echo", "of completions only", False),
)  # fmt: skip

COMPLETION = (
    Field("prompt", "text or token ids, or a list of either; its control tokens are read as such",
          Anything({"anyOf": [{"type": "string"}, {"type": "array"}]})),
    *_COMMON,
    Field("logprobs", "log-probabilities of each token and of so many of the most probable ones",
          Integer(0, MOST_LOGPROBS)),
    Field("echo", "the prompt before the text, with what the tokenizer adds to it; its tokens' log-probabilities too",
          _SWITCH),
    _not("suffix", "no filling in between", ""),
)  # fmt: skip

EMBEDDING = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    Field("input", "text or token ids, or a list of either",
          Anything({"anyOf": [{"type": "string"}, {"type": "array"}]})),
    Field("encoding_format", "float, or base64 of float32", OneOf(("float", "base64"))),
    _inert("user", "who asks"),
    _not("dimensions", "vectors are as long as the model makes them"),
)  # fmt: skip

RERANK = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    Field("query", "what is looked for", Text()),
    Field("documents", "texts, or objects with a `text`", Anything({"type": "array"})),
    Field("top_n", "the best so many", Integer(1)),
    Field("return_documents", "the texts too", _SWITCH),
    _inert("user", "who asks"),
    _not("max_tokens_per_doc", "nothing is cut"),
)

TOKENIZE = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    Field("prompt", "the text (vLLM)", Text()),
    Field("content", "the text (llama.cpp)", Text()),
    Field("messages", "a conversation, rendered by the template", Objects(MOST_MESSAGES, 1)),
    Field("add_special_tokens", "those that the file puts around a text; default true with `prompt`", _SWITCH),
    Field("add_special", "as `add_special_tokens`; default false with `content`", _SWITCH,
          same_as="add_special_tokens"),
    Field("parse_special", "false: control tokens that it spells are text", _SWITCH),
    Field("with_pieces", "each token with its text (llama.cpp)", _SWITCH),
    Field("return_token_strs", "the tokens' texts (vLLM)", _SWITCH),
    Field("add_generation_prompt", "false: the template does not open an answer", _SWITCH),
    Field("tools", "functions that the template shows", Objects(1024)),
    Field("chat_template_kwargs", "further variables of the template", Object()),
)  # fmt: skip

DETOKENIZE = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    Field("tokens", "token ids", Anything({"type": "array", "items": {"type": "integer"}})),
)

TEMPLATE = (
    Field("model", "the name that /v1/models lists, or the file's", Text()),
    Field("messages", "the conversation", Objects(MOST_MESSAGES, 1)),
    Field("tools", "functions that the template shows", Objects(1024)),
    Field("add_generation_prompt", "false: the template does not open an answer", _SWITCH),
    Field("continue_final_message", "true: the prompt ends where the last message does", _SWITCH),
    Field("reasoning_effort", "given to the template", Text()),
    Field("chat_template_kwargs", "further variables of the template", Object()),
)

BODIES: dict[str, tuple[Field, ...]] = {  # route -> the fields of its body
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
    "/v1/rerank": RERANK,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/apply-template": TEMPLATE,
}
_BY_NAME = {route: {field.name: field for field in fields} for route, fields in BODIES.items()}


def read(route: str, body: Any, warn_unknown: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The honoured fields of a body, checked, under the names that the server uses; and the unknown names, which are
    refused unless warn_unknown. Raises ApiError.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON object, not {reprlib.repr(body)}", code="invalid_body")
    known = _BY_NAME[route]
    values: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    unknown = []
    for name, value in body.items():
        field = known.get(name)
        if field is None:
            if not warn_unknown:
                said = f"unknown field {reprlib.repr(name)}{near(name[:LONGEST_NAME], known)}"
                raise ApiError(400, said, name[:LONGEST_NAME], "unknown_parameter")
            unknown.append(name)
        elif value is None or (field.standing is Standing.INERT and field.kind is None):
            continue
        elif field.standing is Standing.UNSUPPORTED:
            if value not in ("", [], {}) and not any(_same(value, each) for each in field.neutral):
                said = f"{name}={reprlib.repr(value)} is not supported: {field.meaning}"
                raise ApiError(400, said, name, "unsupported_parameter")
        else:
            assert field.kind is not None
            try:
                checked = field.kind.check(name, value)
            except ConfigError as error:
                raise ApiError(400, str(error), name, "invalid_value") from None
            if field.standing is Standing.INERT:
                continue
            if field.target in values and values[field.target] != checked:
                said = f"{name} and {said_by[field.target]} are the same, and have two values"
                raise ApiError(400, said, name, "invalid_value")
            values[field.target], said_by[field.target] = checked, name
    return values, unknown


def _same(a: Any, b: Any) -> bool:
    """Equality in JSON, where true is no number."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def table(rows: Iterable[Field]) -> str:
    """Fields as a table in Markdown."""
    lines = ["| field | | meaning |", "|---|---|---|"]
    lines += [f"| `{each.name}` | {each.standing} | {each.meaning} |" for each in rows]
    return "\n".join(lines) + "\n"


def schema(kind: Any) -> dict[str, Any]:
    """A field's values as a JSON schema."""
    match kind:
        case Integer():
            return {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        case OrLess():
            return {"type": "integer", "minimum": -1, "maximum": kind.of.high}
        case Real():
            return {"type": "number", "minimum": kind.low, "maximum": kind.high}
        case Switch():
            return {"type": "boolean"}
        case Text():
            return {"type": "string"}
        case OneOf():
            return {"type": "string", "enum": list(kind.options)}
        case Object() | JsonBiases():
            return {"type": "object"}
        case Objects():
            return {"type": "array", "items": {"type": "object"}, "minItems": kind.least}
        case Stops():
            return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        case Schema() | Predicted():
            return {"anyOf": [{"type": "string"}, {"type": "object"}]}
        case Anything():
            return dict(kind.schema)
    return {}
