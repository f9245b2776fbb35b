"""Thinking and tool calls through the API: what a scripted model writes in its template's form reaches clients in
OpenAI's, whole and streamed alike.
"""

import json
import time

import pytest
from reply_templates import JSON, template
from test_api import Served

from packlight import conversing
from packlight.model.text.replies.probe import reply_format
from packlight.server.app import make_app

HERMES = template(f"'<tool_call>\\n' + {JSON} + '\\n</tool_call>'", ("\n", "\n", ""))
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
DEEP = {  # which Python's json reads, and does not write
    "role": "assistant",
    "tool_calls": [{"function": {"name": "weather", "arguments": '{"a": ' + "[" * 985 + "]" * 985 + "}"}}],
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Zürich 🙂"}}\n</tool_call>'


def served_with(answer, form=HERMES, **settings):
    served = Served(answer=answer, **settings)
    served.llm.file.metadata["tokenizer.chat_template"] = form
    return served


def joined(parts):
    """(content, reasoning, calls, finish reason) of a stream's deltas, joined as clients join them."""
    content, reasoning, calls, reason = "", "", {}, None
    for part in parts[:-1]:
        for choice in part["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            assert delta.get("reasoning_content") == delta.get("reasoning")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] not in calls
                    calls[call["index"]] = {"id": call["id"], "name": call["function"]["name"], "arguments": ""}
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return content, reasoning, list(calls.values()), reason


def whole(said):
    (choice,) = said["choices"]
    message = choice["message"]
    calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())]
    return message["content"] or "", message.get("reasoning_content", ""), calls, choice["finish_reason"]


@pytest.mark.parametrize(
    ("answer", "content", "reasoning", "towns", "reason"),
    [
        ("Only words.", "Only words.", "", [], "stop"),
        (f"<think>\nIt asks.\n</think>\n\n{CALL}", "", "It asks.", ["Zürich 🙂"], "tool_calls"),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.", "", ["Zürich 🙂"] * 2, "tool_calls"),
        ("<think>\nhm\n</think>\n\nDone.", "Done.", "hm", [], "stop"),
    ],
)
def test_calls_and_thinking_are_told_apart(answer, content, reasoning, towns, reason):
    served = served_with(answer)
    said = served.ask("/v1/chat/completions", CHAT | {"seed": 1})[2]
    found = whole(said)
    assert (found[0], found[1], found[3]) == (content, reasoning, reason)
    assert [json.loads(call["arguments"])["town"] for call in found[2]] == towns
    assert len({call["id"] for call in found[2]}) == len(towns)
    assert (said["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0) == bool(reasoning)
    assert joined(served.ask("/v1/chat/completions", CHAT | {"seed": 1, "stream": True})[2]) == found


def test_a_call_that_is_cut_off_is_none_to_run():
    served = served_with(CALL)
    for stream in (False, True):
        said = served.ask("/v1/chat/completions", CHAT | {"max_tokens": 14, "stream": stream})[2]
        assert (joined(said) if stream else whole(said))[3] == "length"


@pytest.mark.parametrize("seconds", [0, 0.002])  # of a step: many tokens make an event, or one does
@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        (CALL, {}),
        (f"<think>\nIt asks.\n</think>\n\nTwo, 日本:\n{CALL}\n{CALL}", {}),
        (CALL, {"max_tokens": 14}),
        ("Only words, 日本 and 🙂, END of them.", {"stop": ["END"]}),
    ],
)
def test_each_token_of_a_stream_with_tools_has_its_log_probability(answer, changes, seconds):
    served = served_with(answer)
    served.llm.engine.before_step = lambda number: time.sleep(seconds)
    body = CHAT | {"seed": 1, "logprobs": True, "top_logprobs": 2} | changes
    said = served.ask("/v1/chat/completions", body)[2]
    entries = said["choices"][0]["logprobs"]["content"]
    parts = served.ask("/v1/chat/completions", body | {"stream": True})[2]
    told = [choice["logprobs"] for part in parts[:-1] for choice in part["choices"] if choice["logprobs"]]
    assert [entry for each in told for entry in each["content"]] == entries
    assert len(entries) == said["usage"]["completion_tokens"] > 0
    text = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert text == answer.encode() or (changes and answer.encode().startswith(text))
    assert joined(parts) == whole(said)


def test_tools_that_may_not_be_called_are_text():
    served = served_with(CALL)
    said = served.ask("/v1/chat/completions", CHAT | {"tool_choice": "none"})[2]
    assert whole(said) == (CALL, "", [], "stop")


def test_a_whole_reply_goes_back_as_it_came():
    """What clients echo: the message with its calls, and the tool's answer."""
    served = served_with(CALL)
    message = served.ask("/v1/chat/completions", CHAT)[2]["choices"][0]["message"]
    (call,) = message["tool_calls"]
    turn = [*CHAT["messages"], message, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    made = served.ask("/apply-template", CHAT | {"messages": turn})[2]["prompt"]
    assert '"town": "Zürich 🙂"' in made
    assert "sunny" in made


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools[1]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"regex": "a"}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"messages": [DEEP]}, "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_tools_that_cannot_be_honoured_are_refused(changes, param):
    status, _, said = served_with("x").ask("/v1/chat/completions", CHAT | changes)
    assert (status, said["error"]["param"]) == (400, param)


def test_the_format_is_measured_before_the_server_is_ready():
    served = served_with("x", HERMES + "{# of this test #}")
    make_app(served.llm, served.settings, served.metrics, served.faults.append)
    measured = reply_format.cache_info().misses
    assert served.ask("/v1/chat/completions", CHAT)[0] == 200
    assert reply_format.cache_info().misses == measured


@pytest.mark.parametrize("form", ["{{ raise_exception('no') }}", "{% if %}", "", None, 7])
def test_a_template_that_cannot_be_measured_stops_no_start(form):
    served = served_with("x", form)
    make_app(served.llm, served.settings, served.metrics, served.faults.append)
    assert served.ask("/v1/chat/completions", CHAT)[0] == 400
    assert not served.faults


def test_a_fault_of_measuring_stops_no_start(monkeypatch):
    def fails(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(conversing, "reply_format", fails)
    served = served_with("x")
    make_app(served.llm, served.settings, served.metrics, served.faults.append)
    assert served.ask("/v1/chat/completions", CHAT)[0] == 500
    assert [str(each) for each in served.faults] == ["ours"]


def test_a_template_without_tools_is_told_of_them_only_where_the_server_is_told_so():
    plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    status, _, said = served_with("x", plain).ask("/v1/chat/completions", CHAT)
    assert (status, said["error"]["param"]) == (400, "tools")
    told = served_with(
        '{"tool_calls": [{"name": "weather", "arguments": {"town": "Bern"}}]}', plain, generic_tools=True
    )
    found = whole(told.ask("/v1/chat/completions", CHAT)[2])
    assert json.loads(found[2][0]["arguments"]) == {"town": "Bern"}
    assert found[3] == "tool_calls"
