"""Messages as clients send them, made what templates want: every template renders them, and shows what they say."""

import json
import re

import pytest
from conftest import SHARED
from golden_models import shared
from reply_templates import TEMPLATES, made

from packlight.common.errors import ConfigError
from packlight.model.text import sandboxes
from packlight.model.text.chat import ChatTemplateError
from packlight.model.text.replies import probe
from packlight.model.text.replies.deltas import call_ids
from packlight.model.text.replies.format import GENERIC, Messages, ReplyFormat, Shape
from packlight.model.text.replies.messages import prepared

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("get_weather", "look_up")]


def call(name, arguments, number=0):
    return {"id": call_ids(1, [])(number), "type": "function", "function": {"name": name, "arguments": arguments}}


def nested(depth):
    """JSON of so many brackets inside each other."""
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


CONVERSATION = [
    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": "Weather?", "id": "x"},
    {
        "role": "assistant", "content": None, "reasoning": "Both, then.", "refusal": None,
        "tool_calls": [call("get_weather", '{"city": "Bern"}'), call("look_up", '{"city": "Chur"}', 1)],
    },
    {"role": "tool", "tool_call_id": call_ids(1, [])(0), "content": "sunny"},
    {"role": "tool", "tool_call_id": call_ids(1, [])(1), "content": "7"},
]  # fmt: skip
FILES = (
    *("Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct"),
    *("mistralai-Mistral-Nemo-Instruct-2407", "openai-gpt-oss-120b", "google-gemma-2-2b-it", "tinyllama-zephyr"),
    *("microsoft-Phi-3.5-mini-instruct", "qwen2-chatml"),
)


def here(*values, **variables):
    try:
        return made(*values, **variables)
    except Exception as error:
        raise ChatTemplateError(str(error)) from None


@pytest.mark.parametrize("name", [*TEMPLATES, *shared(FILES)])
def test_each_template_shows_an_agents_conversation(name, monkeypatch):
    """Calls come with arguments as texts, content is null, ids are ours, the system's role is the newest one's."""
    monkeypatch.setattr(probe, "make_prompt", here)
    path = SHARED / "templates" / f"{name}.jinja"
    template = TEMPLATES[name] if name in TEMPLATES else path.read_bytes().decode()
    form = probe.reply_format.__wrapped__(template, "", "<eos>")
    form = form if form.shape else form.with_generic_tools()
    messages, tools = prepared(CONVERSATION, TOOLS, form)
    text = made(template, messages, True, tools, eos_token="<eos>").text
    seen = ["Weather?", "get_weather", "look_up", "Bern", "Chur", "sunny", "7"]
    if name != "mistralai-Mistral-Nemo-Instruct-2407":  # it shows the system's words to the last user only
        seen += ["Be brief.\nBe kind."]
    assert [word for word in seen if word not in text] == []
    places = [text.rindex(word) for word in ("Bern", "sunny", "7")]
    assert places == sorted(places)
    assert re.search(r'\\+"Bern|None', text) is None
    assert CONVERSATION[2]["content"] is None  # nothing of the request was changed


def test_one_call_at_a_time_where_a_template_writes_no_two():
    form = ReplyFormat(shape=Shape.JSON)
    found = prepared(CONVERSATION, TOOLS, form)[0][2:]
    assert [message["role"] for message in found] == ["assistant", "tool"] * 2
    assert [message["tool_calls"][0]["id"] for message in found[::2]] == [m["tool_call_id"] for m in found[1::2]]


def test_short_ids_belong_together():
    form = ReplyFormat(shape=Shape.LIST, parallel=True, messages=Messages(short_ids=True))
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call("look_up", "{}"), call("look_up", "{}") | {"id": "toolu_01-a"}]},
        {"role": "tool", "tool_call_id": call_ids(1, [])(0), "content": ""},
        {"role": "tool", "tool_call_id": "toolu_01-a", "content": ""},
    ]
    found = prepared(messages, TOOLS, form)[0]
    ids = [each["id"] for each in found[1]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in found[2:]]
    assert ids[0] == call_ids(1, [])(0)[-9:]
    assert all(re.fullmatch("[A-Za-z0-9]{9}", each) for each in ids)


def test_thinking_goes_where_the_template_reads_it():
    message = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning": "z", "thinking": ""},
    ]
    for key in ("reasoning_content", "thinking", ""):
        found = prepared(message, (), ReplyFormat(messages=Messages(reasoning=key)))[0][1]
        assert found == {"role": "assistant", "content": "y"} | ({key: "z"} if key else {})


def test_tools_in_our_own_words():
    messages, tools = prepared([{"role": "user", "content": "x"}], TOOLS, GENERIC)
    assert tools is None
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "get_weather" in messages[0]["content"]
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]
    messages, _ = prepared(said, TOOLS, ReplyFormat(messages=Messages(system=False)).with_generic_tools())
    assert [message["role"] for message in messages] == ["user"]
    assert messages[0]["content"].startswith("Be kind.\n\nYou may call")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, r"messages\[0\].content\[0\] is a 'image_url'"),
        ({"role": "user", "content": 7}, r"messages\[0\].content is a text or a list of parts, not 7"),
        ({"role": "assistant", "tool_calls": [{}]}, r"messages\[0\].tool_calls\[0\] has no 'function' with a 'name'"),
        ({"role": "assistant", "tool_calls": [call("x", "[1]")]}, r"tool_calls\[0\].function.arguments is no JSON obj"),
        (
            {"role": "assistant", "tool_calls": [call("x", "{")]},
            r"tool_calls\[0\].function.arguments is no JSON object",
        ),
        ({"role": "assistant", "tool_calls": [call("x", nested(65))]}, "of more than 64 brackets inside each other"),
        ({"role": "assistant", "tool_calls": [call("x", nested(985))]}, "of more than 64 brackets inside each other"),
        ({"role": "assistant", "tool_calls": [call("x", {"a": {1}})]}, "is no JSON object"),
    ],
)
def test_what_is_no_message_is_named(message, said):
    with pytest.raises(ConfigError, match=said):
        prepared([message], (), ReplyFormat())


def test_arguments_may_be_as_deep_as_a_body():
    message = {"role": "assistant", "tool_calls": [call("x", nested(64))]}
    form = ReplyFormat(messages=Messages(calls=True, arguments_as_text=True))
    (made,), _ = prepared([message], (), form)
    assert json.loads(made["tool_calls"][0]["function"]["arguments"]) == json.loads(nested(64))


def test_the_format_comes_from_a_sandbox():
    """Once as it is, with the process that guards us from templates."""
    form = probe.reply_format(TEMPLATES["json-list"], eos_token="<|end|>")
    assert (form.shape, form.section_open, json.dumps(form.parallel)) == (Shape.LIST, "<TOOLCALL>", "true")


@pytest.mark.parametrize("fault", ["it dies", "it is stopped"])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_format_that_was_not_measured_to_its_end_is_not_remembered(monkeypatch, fault, at):
    """Else a machine that was busy once would have no tools until the program ends."""
    answer, template, asked = sandboxes.answer, TEMPLATES["json-list"] + f"{{# {fault} {at} #}}", []

    def failing(*job):
        asked.append(job)
        if len(asked) <= at:
            return answer(*job)
        if fault == "it dies":
            return b""
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(sandboxes, "answer", failing)
        with pytest.raises(ChatTemplateError, match="it does not end"):
            probe.reply_format(template, eos_token="<|end|>")
    assert probe.reply_format(template, eos_token="<|end|>").shape is Shape.LIST
