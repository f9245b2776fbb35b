"""The API as an OpenAPI document, for programs: routes, the fields of their bodies as `fields` has them, the shapes of
answers and of errors. Source: the OpenAPI specification, 3.1.
"""

from collections.abc import Mapping
from typing import Any

from packlight.server import fields
from packlight.server.conversation import ROLES
from packlight.server.fields import Field, Standing

Schema = dict[str, Any]
TEXT, NUMBER, WHOLE, SWITCH = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Mapping[str, Schema], **others: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **others}, "required": list(required)}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


MESSAGE = _object(
    {"role": {"enum": list(ROLES)}},
    content=_or_null({"anyOf": [TEXT, _list(_object({"type": TEXT}))]}),
    tool_calls=_or_null(_list({"type": "object"})),
    tool_call_id=_or_null(TEXT),
)
TOOL = _object({"type": {"const": "function"}, "function": _object({"name": TEXT}, parameters={"type": "object"})})
SHAPES = {"messages": _list(MESSAGE) | {"minItems": 1}, "tools": _list(TOOL)}  # of fields whose items have a form
CALL = _object({"id": TEXT, "type": {"const": "function"}, "function": _object({"name": TEXT, "arguments": TEXT})})
ANSWER = _object(
    {"role": {"const": "assistant"}, "content": _or_null(TEXT), "refusal": {"type": "null"}},
    tool_calls=_list(CALL),
    reasoning_content=TEXT,
    reasoning=TEXT,
)
TOKEN = {"token": TEXT, "logprob": NUMBER, "bytes": _list(WHOLE)}
CHAT_LOGPROBS = _object({"content": _list(_object({**TOKEN, "top_logprobs": _list(_object(TOKEN))}))})
TEXT_LOGPROBS = _object(
    {
        "tokens": _list(TEXT),
        "token_logprobs": _list(_or_null(NUMBER)),
        "top_logprobs": _list(_or_null({"type": "object"})),
        "text_offset": _list(WHOLE),
    }
)


def _choices(logprobs: Schema, **said: Schema) -> Schema:
    reason = {"enum": ["stop", "length", "tool_calls"]}
    choice = {"index": WHOLE, **said, "logprobs": _or_null(logprobs), "finish_reason": reason}
    ids = _list(WHOLE)
    return _list(_object(choice, tokens=ids, token_ids=ids, prompt_token_ids=ids))


def _texts(kind: str, choices: Schema) -> Schema:
    return _object(
        {
            "id": TEXT,
            "object": {"const": kind},
            "created": WHOLE,
            "model": TEXT,
            "system_fingerprint": TEXT,
            "choices": choices,
            "usage": _named("Usage"),
        },
        timings={"type": "object"},
        prompt_token_ids=_list(WHOLE),
    )


def _answers(name: str, items: Schema) -> Schema:
    """A list of what was asked of texts that are only read."""
    return _object({"object": {"const": "list"}, "model": TEXT, name: _list(items), "usage": _named("Usage")})


EMBEDDING = _object({"object": {"const": "embedding"}, "index": WHOLE, "embedding": {"anyOf": [TEXT, _list(NUMBER)]}})
RANKED = _object({"index": WHOLE, "relevance_score": NUMBER}, document=_object({"text": TEXT}))
MODEL = _object({"id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT, "max_model_len": WHOLE})
TOKENS = _object(
    {"tokens": _list({"anyOf": [WHOLE, _object({"id": WHOLE})]}), "count": WHOLE, "max_model_len": WHOLE},
    token_strs=_list(TEXT),
)
ERROR = _object({"error": _object({"message": TEXT, "type": TEXT, "param": _or_null(TEXT), "code": _or_null(TEXT)})})
COMPONENTS = {
    "Error": ERROR,
    "Usage": _object({"prompt_tokens": WHOLE, "total_tokens": WHOLE}, completion_tokens=WHOLE),
}

RANKING = _answers("results", RANKED)
ANSWERS: dict[str, dict[str, Schema]] = {  # method -> route -> what it answers
    "post": {
        "/v1/chat/completions": _texts("chat.completion", _choices(CHAT_LOGPROBS, message=ANSWER)),
        "/v1/completions": _texts("text_completion", _choices(TEXT_LOGPROBS, text=TEXT)),
        "/v1/embeddings": _answers("data", EMBEDDING),
        "/v1/rerank": RANKING,
        "/v1/reranking": RANKING,
        "/tokenize": TOKENS,
        "/detokenize": _object({"prompt": TEXT, "content": TEXT}),
        "/apply-template": _object({"prompt": TEXT, "tokens": _list(WHOLE), "count": WHOLE}),
    },
    "get": {
        "/v1/models": _object({"object": {"const": "list"}, "data": _list(MODEL)}),
        "/v1/models/{name}": MODEL,
        "/tokenizer_info": _object({"vocab_size": WHOLE, "model_max_length": WHOLE}),
        "/health": _object({"status": TEXT}),
        "/metrics": TEXT,
        "/props": {"type": "object"},
        "/slots": _list({"type": "object"}),
    },
}
SAME = {"/v1/reranking": "/v1/rerank"}  # routes whose bodies are another's
PLAIN = ("/metrics",)  # routes whose answers are no JSON
REQUIRED = {  # without which a body asks for nothing
    "/v1/chat/completions": ["messages"],
    "/v1/completions": ["prompt"],
    "/v1/embeddings": ["input"],
    "/v1/rerank": ["query", "documents"],
    "/detokenize": ["tokens"],
    "/apply-template": ["messages"],
}


def document(version: str) -> dict[str, Any]:
    """The whole API. version: of the program."""
    paths: dict[str, dict[str, Any]] = {}
    for method, routes in ANSWERS.items():
        for path, answer in routes.items():
            paths[path] = {method: _operation(path, answer)}
    said = "OpenAI's API. Paths with /v1 answer without it too, and /openapi.json is this document"
    return {
        "openapi": "3.1.0",
        "info": {"title": "packlight", "version": version, "description": said},
        "paths": paths,
        "components": {"schemas": COMPONENTS},
    }


def _operation(path: str, answer: Schema) -> dict[str, Any]:
    good = {"text/plain" if path in PLAIN else "application/json": {"schema": answer}}
    body_of = SAME.get(path, path)
    rows = fields.BODIES.get(body_of, ())
    if any(field.name == "stream" for field in rows):
        good["text/event-stream"] = {"schema": TEXT}
    refused = {"description": "an error", "content": {"application/json": {"schema": _named("Error")}}}
    operation: dict[str, Any] = {
        "responses": {"200": {"description": "the answer", "content": good}, "4XX": refused, "503": refused}
    }
    if rows:
        body = {"type": "object", "properties": {field.name: _field(field) for field in rows}}
        body |= {"required": REQUIRED.get(body_of, []), "additionalProperties": False}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if "{" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    return operation


def _field(field: Field) -> Schema:
    """The values that a field may have. null is as good as leaving it out."""
    match field.standing:
        case Standing.INERT:
            shape = {} if field.kind is None else _or_null(fields.schema(field.kind))
            return shape | {"description": f"changes nothing: {field.meaning}"}
        case Standing.UNSUPPORTED:
            said = f"not supported: {field.meaning}"
            return {"description": said, "enum": [None, "", [], {}, *field.neutral]}
    shape = SHAPES.get(field.name) or fields.schema(field.kind)
    return _or_null(shape) | {"description": field.meaning}
