"""Small chat templates in the kinds in which models write calls and thinking, and conversations to write with them."""

import json
from typing import Any

from packlight.model.text.chat import Prompt
from packlight.model.text.chat_environment import ChatEnvironment, told
from packlight.model.text.provenance import joined, kinds_of

HEAD = """\
{%- if tools %}<|system|>Call: {{ tools | tojson }}<|end|>{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
    {%- if message.role == 'assistant' and message.reasoning_content %}
        {{- @OPEN + message.reasoning_content + @CLOSE }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {%- set f = call.function %}
        {%- set args = f.arguments %}
        {{- (@SECTION[0] if loop.first else @SECTION[1]) + @CALL }}
        {{- @SECTION[2] if loop.last else '' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' + @START }}{% endif %}
"""
TAGS = """\
'<call>\\n<function=' + f.name + '>\\n' }}{%- for k, v in args.items() %}{{- '<parameter=' + k + '>\\n'
+ (v if v is string else v | tojson) + '\\n</parameter>\\n' }}{%- endfor %}{{- '</function>\\n</call>'"""
KEYS = """\
'<tool_call>' + f.name }}{%- for k, v in args.items() %}{{- '<arg_key>' + k + '</arg_key><arg_value>'
+ (v if v is string else v | tojson) + '</arg_value>' }}{%- endfor %}{{- '</tool_call>'"""
GEMMA = """\
'<|tool_call>call:' + f.name + '{' }}{%- macro own(v) -%}{%- if v is string -%}{{ '<|"|>' + v + '<|"|>' }}
{%- elif v is mapping -%}{{ '{' }}
{%- for k, w in v.items() %}{{ k + ':' + own(w) }}{{ ',' if not loop.last }}{% endfor %}
{{- '}' }}{%- elif v is iterable -%}[{% for w in v %}{{ own(w) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else -%}{{ v | tojson }}{%- endif -%}{%- endmacro -%}
{%- for k, v in args.items() %}{{- k + ':' + own(v) }}{{ ',' if not loop.last }}{%- endfor %}{{- '}<tool_call|>'"""


def template(call: str, section: tuple[str, str, str] = ("", "", ""), think: str = "<think>\n", start: str = "") -> str:
    """A template that writes a call so, with these texts before the first, before others and behind the last."""
    close = "\n</think>\n\n" if think else ""
    head = HEAD if think else HEAD.replace("message.reasoning_content %}", "false %}")
    text = head.replace("@SECTION", json.dumps(section)).replace("@CALL", call).replace("@START", json.dumps(start))
    return text.replace("@OPEN", json.dumps(think)).replace("@CLOSE", json.dumps(close))


JSON = "'{\"name\": \"' + f.name + '\", \"arguments\": ' + args | tojson + '}'"
TEMPLATES = {
    "tags": template(TAGS, ("\n", "\n", "")),
    "tags-thinking-open": template(TAGS, ("\n", "\n", ""), start="<think>\n"),
    "keys": template(KEYS),
    "name-id-json": template("'[CALLS]' + f.name + '[ID]' + call.id + '[ARGS]' + args | tojson", think=""),
    "name-json": template("'[CALLS]' + f.name + '[ARGS]' + args | tojson"),
    "sections": template(
        "'<|one|>' + f.name + '<|sep|>' + args | tojson + '<|/one|>'", ("<|several|>", "", "<|/several|>")
    ),
    "json-in-a-section": template(JSON, ("<calls>\n", "\n", "\n</calls>")),
    "json-list": template(JSON, ("<TOOLCALL>[", ", ", "]</TOOLCALL>")),
    "gemma": template(GEMMA, think="<|channel>thought\n").replace("\\n</think>\\n\\n", "\\n<channel|>"),
}
# What a template of each kind has for tokens; the others are spelled as text.
SPECIALS = (
    *("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<tool_call>", "</tool_call>", "<think>"),
    *("</think>", "[CALLS]", "[ID]", "[ARGS]", "<|one|>", "<|/one|>", "<|sep|>", "<|several|>", "<|/several|>"),
    *("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>", "[TOOL_CALLS]", "<|channel|>", "<|start|>"),
    *(
        "<|message|>",
        "<|call|>",
        "<|return|>",
        "<|constrain|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|python_tag|>",
        "<|eot_id|>",
    ),
)


def made(template: str, *values: Any, **variables: Any) -> Prompt:
    """`make_prompt` in this process: no sandbox guards these templates."""
    names = ("messages", "add_generation_prompt", "tools", "documents")
    given = {"add_generation_prompt": True, "tools": None, "documents": None, "bos_token": "", "eos_token": ""}
    given |= dict(zip(names, values, strict=False)) | variables
    text = joined(ChatEnvironment("2025-01-02T03:04:05").from_string(template).generate(**told(given)))
    return Prompt(str.__str__(text), kinds_of(text), template)
