"""Conversations: what a request says of messages, tools and the template, checked before anything is rendered."""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from packlight.model.text.chat import Prompt
from packlight.model.text.provenance import TEMPLATE
from packlight.model.text.replies.messages import TEXTS, content_text
from packlight.server.errors import wrong

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TOLD = {"template", "messages", "tools", "documents", "bos_token", "eos_token", "strftime_now"}  # to every template
MODES = ("auto", "none", "required")  # of calling tools


def check_message(number: int, message: Mapping[str, Any]) -> None:
    """Raises ApiError for a role or a content that is none."""
    param = f"messages[{number}]"
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise wrong(f"{param}.role", f"{param}.role is one of {', '.join(ROLES)}, not {reprlib.repr(role)}")
    if isinstance(content, list):
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
            if kind not in TEXTS or not isinstance(text, str):
                place = f"{param}.content[{i}]"
                raise wrong(place, f"{place} is not a text: of parts only those of type text are supported")
    elif not isinstance(content, str) and (content is not None or role not in ("assistant", "function")):
        raise wrong(f"{param}.content", f"{param}.content is a text or a list of parts, not {reprlib.repr(content)}")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(each, dict) for each in calls)):
        raise wrong(f"{param}.tool_calls", f"{param}.tool_calls is a list of calls, not {reprlib.repr(calls)}")


def template_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The names that a template is told beside the conversation. Raises ApiError."""
    variables = dict(values.get("chat_template_kwargs", {}))
    if taken := variables.keys() & TOLD:
        raise wrong("chat_template_kwargs", f"chat_template_kwargs: {min(taken)} is not its to say")
    if "reasoning_effort" in values:
        variables["reasoning_effort"] = values["reasoning_effort"]
    goes_on = values.get("continue_final_message", False)
    opens = variables.get("add_generation_prompt", not goes_on)
    variables["add_generation_prompt"] = values.get("add_generation_prompt", opens)
    if goes_on and variables["add_generation_prompt"]:
        raise wrong("continue_final_message", "continue_final_message and add_generation_prompt exclude each other")
    return variables


def called_tools(values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The tools that may be called, and which must be: auto, none, required, or a name. Raises ApiError."""
    tools = values.get("tools", [])
    names = set()
    for i, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if tool.get("type") != "function" or not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,128}", name):
            said = f"tools[{i}] is {{'type': 'function', 'function': {{'name': ..., 'parameters': ...}}}}"
            raise wrong(f"tools[{i}]", f"{said}, its name of letters, digits, '_', '-' and '.'")
        assert isinstance(function, dict)
        if not isinstance(function.get("parameters", {}), dict | None):
            raise wrong(
                f"tools[{i}].function.parameters", f"tools[{i}].function.parameters is a JSON schema, an object"
            )
        if name in names or name in MODES:
            said = "there is another one" if name in names else "no tool is"
            raise wrong(f"tools[{i}]", f"tools[{i}]: {said} named {name!r}")
        names.add(name)
    choice = values.get("tool_choice", "auto")
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        choice = choice["function"].get("name")
        if not isinstance(choice, str) or choice not in names:
            raise wrong("tool_choice", f"tool_choice: there is no tool {reprlib.repr(choice)}")
        return tools, choice
    if choice not in MODES:
        raise wrong("tool_choice", f"tool_choice is {', '.join(MODES)} or a function, not {reprlib.repr(choice)}")
    if choice == "required" and not tools:
        raise wrong("tool_choice", "tool_choice=required goes with tools")
    return ([], choice) if choice == "none" else (tools, choice)


def cut_behind(made: Prompt, last: Mapping[str, Any]) -> Prompt:
    """A prompt up to the end of its last message's text. Source: transformers, `continue_final_message`."""
    text = (content_text(last.get("content"), "the last message's content") or "").strip()
    end = made.text.rfind(text)
    while end >= 0 and TEMPLATE in made.kinds[end : end + len(text)]:  # the template says the same
        end = made.text.rfind(text, 0, end + len(text) - 1)
    if not text or end < 0:
        raise wrong(
            "continue_final_message", "continue_final_message: the prompt does not show the last message's text"
        )
    end += len(text)
    return made._replace(text=made.text[:end], kinds=made.kinds[:end])
