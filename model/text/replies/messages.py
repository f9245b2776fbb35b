"""Messages of a conversation as OpenAI's API has them, made what a model's template wants. Knows no templates."""

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from packlight.common.errors import ConfigError
from packlight.common.text import shown
from packlight.model.text.chat import check
from packlight.model.text.replies.deltas import letters
from packlight.model.text.replies.format import ReplyFormat
from packlight.model.text.replies.values import DEEPEST, loaded

TEXTS = ("text", "input_text", "output_text", "refusal")  # kinds of content parts
REASONING = ("reasoning_content", "reasoning", "thinking")  # where clients put what a model thought
TOLD = (
    "You may call these functions:\n{}\nTo call some of them, answer with nothing but a JSON object like this one:\n"
    '{{"tool_calls": [{{"name": "function name", "arguments": {{"parameter name": "value"}}}}]}}\n'
    "Otherwise answer as usual."
)


def prepared(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    form: ReplyFormat,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The messages and the tools that a template is given.

    Raises ConfigError naming the message: for content that is no text, and arguments that are no JSON object.
    """
    check(messages)
    wants = form.messages
    found = [_message(message, f"messages[{number}]", form) for number, message in enumerate(messages)]
    if wants.calls and not form.parallel:
        found = _one_by_one(found)
    if tools and form.generic:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        found.insert(0, {"role": "system", "content": TOLD.format(listed)})
        if len(found) > 1 and found[1]["role"] == "system":
            found[:2] = [found[0] | {"content": f"{found[1]['content']}\n\n{found[0]['content']}"}]
    if not wants.system:
        found = _without_system(found)
    if not wants.results:
        found = _told(found)
    if not tools or form.generic:
        return found, None
    return found, [_tool(tool, wants.descriptions) for tool in tools]


def _message(message: Mapping[str, Any], place: str, form: ReplyFormat) -> dict[str, Any]:
    wants = form.messages
    made = {key: value for key, value in message.items() if key not in (*REASONING, "tool_calls")}
    calls = [
        _called(call, f"{place}.tool_calls[{number}]", form)
        for number, call in enumerate(message.get("tool_calls") or [])
    ]
    content = content_text(message.get("content"), f"{place}.content")
    if message["role"] == "developer" and not wants.developer:
        made["role"] = "system"
    if calls and not wants.calls:
        content = (content or "") + _written(calls, form)
    elif calls:
        made["tool_calls"] = calls
    made["content"] = None if "tool_calls" in made and not content and wants.null_content else content or ""
    thought = next((message[key] for key in REASONING if isinstance(message.get(key), str)), "")
    if thought and wants.reasoning and (wants.reasoning_with_content or not (calls and made["content"])):
        made[wants.reasoning] = thought
    if wants.short_ids and isinstance(made.get("tool_call_id"), str):
        made["tool_call_id"] = _short(made["tool_call_id"])
    return made


def content_text(content: Any, place: str) -> str | None:
    """Content that is a text, or parts that are texts, each on a line of its own."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") not in TEXTS:
                kind = part.get("type") if isinstance(part, Mapping) else part
                raise ConfigError(f"{place}[{number}] is a {shown(reprlib.repr(kind))}; models are given text only")
        return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    raise ConfigError(f"{place} is a text or a list of parts, not {shown(reprlib.repr(content))}")


def _called(call: Any, place: str, form: ReplyFormat) -> dict[str, Any]:
    """One call, with its arguments as the template wants them."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f"{place} has no 'function' with a 'name'")
    given = function.get("arguments")
    arguments = {} if given in (None, "") else loaded(given) if isinstance(given, str) else given
    try:
        text = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else None
    except (TypeError, ValueError, RecursionError):
        text = None
    if text is None:
        said = f"is no JSON object, or one of more than {DEEPEST} brackets inside each other"
        raise ConfigError(f"{place}.function.arguments {said}")
    made = {"type": "function", **call, "function": dict(function)}
    made["function"]["arguments"] = text if form.messages.arguments_as_text else arguments
    if form.messages.short_ids:
        made["id"] = _short(str(call.get("id", "")))
    return made


def _one_by_one(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with one call in each, and its result behind it, for a template that writes no two."""
    found, waiting = [], list[dict[str, Any]]()
    for message in messages:
        if message["role"] == "tool" and waiting:
            given = message.get("tool_call_id")
            call = next((each for each in waiting if each["tool_calls"][0].get("id") == given), waiting[0])
            waiting.remove(call)
            found += [call, message]
        else:
            found += waiting
            calls = message.get("tool_calls") or []
            first = message | ({"tool_calls": calls[:1]} if calls else {})
            waiting = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls[1:]]
            if calls:
                waiting.insert(0, first)
            else:
                found.append(message)
    return found + waiting


def _short(given: str) -> str:
    """An id's nine letters and digits: its own where it ends in them, as ours do, else some that follow from it."""
    tail = given[-9:]
    if len(tail) == 9 and tail.isalnum() and tail.isascii():
        return tail
    return letters(hashlib.blake2b(given.encode(errors="replace"), digest_size=8).digest())


def _written(calls: Sequence[Mapping[str, Any]], form: ReplyFormat) -> str:
    """Calls as the model wrote them, for a template that does not."""
    listed = [
        {form.name_key: call["function"]["name"], form.arguments_key: call["function"]["arguments"]} for call in calls
    ]
    return form.opens + json.dumps(listed, ensure_ascii=False) + form.call_close + form.section_close


def _told(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with results as the user's words: those of a turn, and what the user says next, in one message,
    because such templates often want user and assistant to take turns.
    """
    found: list[dict[str, Any]] = []
    telling = False
    for message in messages:
        result = message["role"] == "tool"
        if result:
            name = f" of {message['name']}" if isinstance(message.get("name"), str) else ""
            message = {"role": "user", "content": f"Result{name}: {message['content']}"}
        if telling and message["role"] == "user":
            found[-1] = message | {"content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(message)
        telling = result
    return found


def _without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with what "system" says before what the next user does."""
    found: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            found.append(message | {"content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            found.append(message)
    return [*found, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else found


def _tool(tool: Mapping[str, Any], description: bool) -> dict[str, Any]:
    """A tool with all that templates read of one."""
    function = {"parameters": {"type": "object", "properties": {}}, **tool["function"]}
    if description:
        function = {"description": "", **function}
    return {**tool, "function": function}
