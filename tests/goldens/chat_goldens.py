"""Chat templates in the kinds that models use, and what they make of conversations: how `chat_goldens.json` is made.

Rendered by jinja2 as Hugging Face transformers sets it up; this environment is written apart from packlight's. Where
llama.cpp has the kind built in, `make` asserts that its C++ writes the same text, without the token that begins it.
"""

import ctypes
import datetime
import json
import pathlib
from typing import Any

from peer import library

PATH = pathlib.Path(__file__).with_suffix(".json")
NOW = "2025-01-02T03:04:05"

TEMPLATES = {
    "chatml": """\
{% for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama-2": """\
{% set start = 1 if messages[0]['role'] == 'system' else 0 %}
{% for message in messages[start:] %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must take turns: ' + message['role'] + ' at ' + loop.index|string) }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' }}
        {%- if loop.first and start %}{{ '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' }}{% endif %}
        {{- message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{% endfor %}
""",
    "llama-3": """\
{{- bos_token }}
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- if tools %}
    {{- header('system') ~ 'Today is ' ~ strftime_now('%d %b %Y') ~ '.\\nCall one of these as JSON:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) ~ '\\n\\n' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- header('ipython') }}
        {{- message.content | tojson }}
    {%- elif message.tool_calls is defined %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('One call at a time, please.') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- header('assistant') ~ '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}' }}
    {%- else %}
        {{- header(message.role) }}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
""",
    "gemma": """\
{{ bos_token }}
{%- set first = '' %}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content | trim ~ '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- set role = {'user': 'user', 'assistant': 'model'}[message.role] %}
    {%- if loop.first and role == 'model' %}
        {{- raise_exception("The user begins.") }}
    {%- endif %}
    {{- '<start_of_turn>' ~ role ~ '\\n' ~ (first if loop.first) ~ message.content | trim ~ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
""",
    "mistral": """\
{%- set said = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') %}
{%- set state = namespace(users=0, last=said | selectattr('role', 'equalto', 'user') | list | length) %}
{{- bos_token }}
{%- for message in said %}
    {%- if message.role == 'user' %}
        {%- set state.users = state.users + 1 %}
        {%- if state.users == state.last %}
            {%- if tools is not none and tools %}
                {{- '[AVAILABLE_TOOLS] [' }}
                {%- for tool in tools %}
                    {{- '{"type": "function", "function": {' }}
                    {%- for key, value in tool.function.items() if key != 'return' %}
                        {{- '"' ~ key ~ '": ' ~ value | tojson }}
                        {%- if not loop.last %}{{ ', ' }}{% endif %}
                    {%- endfor %}
                    {{- '}}' ~ ('' if loop.last else ', ') }}
                {%- endfor %}
                {{- '][/AVAILABLE_TOOLS]' }}
            {%- endif %}
            {{- '[INST] ' ~ (system ~ '\\n\\n' if system) ~ message.content ~ '[/INST]' }}
        {%- else %}
            {{- '[INST] ' ~ message.content ~ '[/INST]' }}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' ~ {'content': message.content} | tojson ~ '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] ' ~ message.tool_calls | map(attribute='function') | list | tojson ~ eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content ~ eos_token }}
    {%- else %}
        {{- raise_exception('no role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
""",
    "phi": """\
{% for message in messages %}
{% if message.role == 'assistant' %}
<|assistant|>
{% generation %}
{{ message.content }}<|end|>
{% endgeneration %}
{% else %}
<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
""",
    "thinking": """\
{%- set ns = namespace(query=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role != 'user' %}{% continue %}{% endif %}
    {%- set ns.query = messages | length - loop.index %}
    {%- break %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if '</think>' in content and loop.index0 < ns.query %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|' ~ message.role ~ '|>' ~ content ~ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
}
# What templates are told of the tokens that begin and end a text, and which kinds llama.cpp has built in.
TOKENS = {
    "chatml": ("", "<|im_end|>"),
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>"),
}
BUILT_IN = ("chatml", "llama-3", "gemma", "phi")


def said(*turns: str) -> list[dict[str, Any]]:
    """Messages of "role: content"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def function(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    described = {"name": name, "description": f"What {name} says: a < b & 'c' \u00e9", "parameters": parameters}
    return {"type": "function", "function": described}


TOOLS = [function("weather", city="string"), function("add", a="number", b="number")]
CALL = {"id": "c12345678", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2.5}}}
PLAIN: dict[str, dict[str, Any]] = {
    "no prompt": {"messages": said("user: What is a block?", "assistant: 32 weights."), "add_generation_prompt": False},
    "turns": {"messages": said("system: Be brief.", "user: Hi", "assistant:  Hello. \n", "user: And now?")},
    "marks and blanks": {
        "messages": said(
            "user: \u00e9\u4e2d\U0001f600 <|im_end|></s> {{ 7 * 7 }} {% if %} <b>&'\"\n\t{# x #}",
            "assistant: ",
            "user: \n  two\n\nlines \n",
        )
    },
    "an answer first": {"messages": said("assistant: Hi", "user: Hello")},
}
TOOL_USE: dict[str, dict[str, Any]] = {
    "tools": {"messages": said("system: Be brief.", "user: Is it raining in K\u00f6ln?"), "tools": TOOLS},
    "a call": {
        "messages": [
            *said("user: 1 + 2.5?"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "add", "content": "3.5 <ok>", "tool_call_id": CALL["id"]},
        ],
        "tools": TOOLS,
    },
    "two calls": {
        "messages": [*said("user: Both?"), {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}]
    },
}
PARTS = [{"type": "text", "text": "of"}, {"type": "text", "text": " parts"}]
# What some templates are asked beside PLAIN.
FURTHER: dict[str, dict[str, dict[str, Any]]] = {
    "chatml": {"parts": {"messages": [{"role": "user", "content": PARTS}]}},
    "llama-3": TOOL_USE,
    "mistral": TOOL_USE,
    "thinking": {
        "thoughts": {
            "messages": said("user: 1 + 1?", "assistant: <think>\none and one\n</think>\n\n2", "user: Sure?"),
            "vars": {"enable_thinking": False},
        }
    },
}


def fixture(name: str) -> dict[str, Any]:
    """A template's conversations, in the form of the fixtures under ../shared/templates, without what comes of them."""
    bos, eos = TOKENS.get(name, ("<s>", "</s>"))
    cases = PLAIN | FURTHER.get(name, {})
    defaults = {"add_generation_prompt": True, "tools": None, "vars": {}}
    conversations = [{"name": key, **defaults, **case} for key, case in cases.items()]
    return {"bos_token": bos, "eos_token": eos, "now": NOW, "conversations": conversations}


def environment() -> Any:
    """Source: transformers, utils/chat_template_utils.py."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = datetime.datetime.fromisoformat(NOW).strftime
    return made


def built_in(template: str, case: dict[str, Any]) -> str:
    """llama.cpp's text, of the kind that it takes the template for."""
    lib, messages = library(), case["messages"]
    array = (lib.llama_chat_message * len(messages))(
        *(lib.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in messages)
    )
    buffer = ctypes.create_string_buffer(1 << 12)
    arguments = (template.encode(), array, len(array), case["add_generation_prompt"], buffer, len(buffer))
    size = lib.llama_chat_apply_template(*arguments)
    assert 0 < size < len(buffer)
    return buffer.raw[:size].decode()


def make() -> None:
    from jinja2 import TemplateError

    out: dict[str, dict[str, dict[str, str]]] = {}
    for name, template in TEMPLATES.items():
        told, compiled = fixture(name), environment().from_string(template)
        tokens = {key: told[key] for key in ("bos_token", "eos_token")}
        out[name] = {}
        for case in told["conversations"]:
            values = {key: case[key] for key in ("messages", "tools", "add_generation_prompt")}
            try:
                text = compiled.render(documents=None, **values, **tokens, **case["vars"])
                if name in BUILT_IN and case["name"] in PLAIN:
                    theirs = built_in(template, case)
                    assert text.removeprefix(tokens["bos_token"]) == theirs, (name, case["name"], text, theirs)
                out[name][case["name"]] = {"expected": text}
            except TemplateError as error:
                out[name][case["name"]] = {"error": "raised_by_template", "message": str(error.message)}
    PATH.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
