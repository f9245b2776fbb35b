"""Replies taken apart: what a template writes of thinking, text and calls is what the machine reads, cut anywhere."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import SHARED
from golden_models import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from processor import seconds
from reply_templates import SPECIALS, TEMPLATES, made

from packlight.common.errors import ConfigError
from packlight.model.text.chat import ChatTemplateError
from packlight.model.text.replies import probe, values
from packlight.model.text.replies.deltas import CallArguments, CallBegun, Content, Reasoning, call_ids
from packlight.model.text.replies.format import ReplyFormat, Shape
from packlight.model.text.replies.measure import turn_at
from packlight.model.text.replies.parser import ReplyParser
from packlight.model.text.specials import END_TEXTS
from packlight.model.text.streaming import TextStream

FILES = {
    "templates/Qwen-Qwen2.5-7B-Instruct": "json",
    "templates/Qwen-Qwen3-0.6B": "json",
    "templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
    "templates/google-gemma-2-2b-it": None,
    "templates/meta-llama-Llama-3.1-8B-Instruct": "json",
    "templates/microsoft-Phi-3.5-mini-instruct": None,
    "templates/mistralai-Mistral-Nemo-Instruct-2407": "json list",
    "templates/openai-gpt-oss-120b": "channels",
    "templates/qwen2-chatml": None,
    "templates/tinyllama-zephyr": None,
}
OURS = {
    "tags": "tagged arguments",
    "tags-thinking-open": "tagged arguments",
    "keys": "tagged arguments",
    "name-id-json": "name and json",
    "name-json": "name and json",
    "sections": "name and json",
    "json-in-a-section": "json",
    "json-list": "json list",
    "gemma": "gemma",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "far": {"type": "object"},
                    "list": {"type": "array"},
                },
            },
        },
    }
    for name in ("get_weather", "look-up")
]
ARGUMENTS = [
    {"city": "Z\u00fcrich \U0001f600", "days": 3},
    {"city": 'a "quoted" {brace} \\ [x], </b>\n line', "far": {"deep": [1, {"x": None}], "y": "}"},
     "list": ["\u4e2d", True]},
    {"city": "7"},
]  # fmt: skip
TURNS = {
    "text": ("Just text, with a { and a <b>.", "", []),
    "call": ("", "", [("get_weather", ARGUMENTS[0])]),
    "two": ("", "", [("get_weather", ARGUMENTS[1]), ("look-up", ARGUMENTS[2])]),
    "text, call": ("Let me see.", "", [("look-up", ARGUMENTS[1])]),
    "thought, text": ("It is 7.", "First\n\nthen \u00e9.", []),
    "thought, call": ("", "Call it {now}.", [("get_weather", ARGUMENTS[0])]),
    "thought, text, two": ("Two.", "Hm.", [("get_weather", ARGUMENTS[0]), ("look-up", ARGUMENTS[2])]),
}


class Cut:
    """A tokenizer with a few tokens for markers, which cuts other text as it is told to."""

    def __init__(self, specials):
        self.specials = [text for text in specials if text]
        self.pieces = [text.encode() for text in self.specials] + [bytes([b]) for b in range(256)]
        self.pattern = re.compile("|".join(map(re.escape, sorted(self.specials, key=len, reverse=True))) or r"(?!)")

    @property
    def token_types(self):
        count = len(self.specials)
        return np.array([3] * count + [1] * (len(self.pieces) - count))

    def encode(self, text, add_special=True, parse_special=False):
        return self.cut(text) if parse_special else self.cut(text, specials=False)

    def cut(self, text, size=lambda: 1, specials=True):
        """The ids of a text, whose plain parts are cut into so many bytes each."""
        ids, at = [], 0
        for match in [*self.pattern.finditer(text)] if specials else []:
            ids += [*self.plain(text[at : match.start()], size), self.specials.index(match[0])]
            at = match.end()
        return [*ids, *self.plain(text[at:], size)]

    def plain_or_marks(self, data, size):
        """The ids of bytes that may end inside a character."""
        whole = data.decode(errors="ignore")
        return [*self.cut(whole, size), *self.plain(data[len(whole.encode()) :], size)]

    def plain(self, text, size):
        data, ids = text.encode() if isinstance(text, str) else text, []
        while data:
            count = size()
            self.pieces.append(data[:count])
            ids.append(len(self.pieces) - 1)
            data = data[count:]
        return ids

    def piece(self, token_id, /):
        return self.pieces[token_id]


def parsed(form, tokenizer, ids, tools=TOOLS, **options):
    """The parser at the end of a reply, after a look at what it said on the way."""
    parser = ReplyParser(form, tokenizer, tools, id_of=call_ids(7, [1, 2]), **options)
    shown = []
    for token in ids:
        shown.append(parser.feed(token))
        if parser.stopped:
            break
    shown.append(parser.finish())
    deltas = parser.taken()
    assert "".join(shown) == parser.content == "".join(d.text for d in deltas if isinstance(d, Content))
    assert parser.reasoning == "".join(d.text for d in deltas if isinstance(d, Reasoning))
    begun = [delta for delta in deltas if isinstance(delta, CallBegun)]
    assert [(call.id, call.name) for call in parser.calls] == [(delta.id, delta.name) for delta in begun]
    for index, call in enumerate(parser.calls):
        said = "".join(d.text for d in deltas if isinstance(d, CallArguments) and d.index == index)
        assert call.arguments == said
        assert not call.complete or isinstance(json.loads(said, strict=False), dict)
    return parser


def told(parser):
    """What a client is told in all."""
    calls = [(call.id, call.name, call.arguments, call.complete) for call in parser.calls]
    return parser.content, parser.reasoning, calls, parser.finish_reason("stop")


@pytest.fixture(scope="module")
def formats():
    """The templates and their formats, rendered in this process."""
    with pytest.MonkeyPatch.context() as patch:

        def here(*values, **variables):
            try:
                return made(*values, **variables)
            except Exception as error:
                raise ChatTemplateError(str(error)) from None

        patch.setattr(probe, "make_prompt", here)
        probe.reply_format.cache_clear()
        found = {}
        for name in FILES | OURS:
            path = SHARED / f"{name}.jinja"
            if name in OURS or path.exists():
                text = TEMPLATES[name] if name in OURS else path.read_bytes().decode()
                found[name] = (text, probe.reply_format(text, "", "<eos>"))
        probe.reply_format.cache_clear()
    return found


NAMES = [*OURS, *shared(FILES)]


@pytest.mark.parametrize("name", NAMES)
def test_each_template_has_its_format(formats, name):
    form = formats[name][1]
    assert (form.shape.value if form.shape else None) == (FILES | OURS)[name]
    assert not form.generic


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turn", TURNS)
def test_what_a_template_writes_is_read(formats, name, turn):
    """The template writes a turn, the machine reads it: at once, byte for byte, with the markers as tokens and as text,
    with a grammar's guard and without.
    """
    template, form = formats[name]
    tools = TOOLS if form.shape else ()
    content, thought, calls = TURNS[turn]
    if (calls and form.shape is None) or (len(calls) > 1 and not form.parallel):
        pytest.skip("the template has no place for it")
    if thought and not form.messages.reasoning:
        pytest.skip("the template writes no thinking")
    if content and calls and (name.endswith("Nemo-Instruct-2407") or form.bare or form.shape is Shape.CHANNELS):
        pytest.skip("the template writes either")
    text = written(template, form, content, thought, calls)
    thinking = form.begins_thinking(made(template, [probe.USER], True, TOOLS).text)
    for specials in (SPECIALS, ()):
        tokenizer = Cut(specials)
        results = []
        for size in (lambda: 10**9, lambda: 1):
            ids = tokenizer.cut(text, size)
            for guarded in (False, True):
                results.append(parsed(form, tokenizer, ids, tools, guarded=guarded, thinking=thinking))
        assert len({json.dumps(told(each)) for each in results}) == 1
        result = results[0]
        assert (result.content, result.reasoning) == (content, thought)
        assert [(call.name, json.loads(call.arguments)) for call in result.calls] == calls
        assert result.finish_reason("stop") == ("tool_calls" if calls else "stop")
        assert result.finish_reason("length") == "length"


def written(template, form, content, thought, calls):
    """What the model would have written for a turn of a conversation, without the token that ends it."""
    message = {"role": "assistant", "content": content}
    if thought:
        message |= {form.messages.reasoning: thought}
    if calls:
        message["tool_calls"] = [
            {"id": f"abcdefgh{n}", "type": "function", "function": {"name": each, "arguments": arguments}}
            for n, (each, arguments) in enumerate(calls)
        ]
    prompt = made(template, [probe.USER], True, TOOLS, eos_token="<eos>").text
    text = made(template, [probe.USER, message], False, TOOLS, eos_token="<eos>").text
    opened = form.begins_thinking(prompt) and not text.startswith(prompt)  # the turn has none
    text = "</think>" * opened + text[turn_at(text, prompt) :]
    ends = "|".join(map(re.escape, (*END_TEXTS, "<eos>")))
    return re.sub(rf"(\s*({ends}))*\s*$", "", text)


def reply(form, text, tools=TOOLS, specials=SPECIALS, size=lambda: 1, **options):
    """A text as a parser leaves it."""
    tokenizer = Cut(specials)
    return parsed(form, tokenizer, tokenizer.cut(text, size), tools, **options)


TAGS = ReplyFormat(
    "<think>", "</think>", Shape.JSON, call_open="<tool_call>\n", call_close="\n</tool_call>", parallel=True
)
BARE = ReplyFormat(shape=Shape.JSON, arguments_key="parameters", also_open="<|python_tag|>")
GOOD = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a"}}\n</tool_call>'
PARTS = (
    *("<think>", "</think>", GOOD, "<tool_call>", "</tool_call>", "\n", " ", "x", "\u00e9\U0001f600", "{", '"', "}"),
    *("STOP", "S", '<tool_call>{"name": "look-up", "arguments": {"far": {"y": "<think>"}}}'),
    '{"name": "get_weather", "parameters": {}}',
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(PARTS),
        max_size=12,
    ),
    st.sampled_from([(), ("STOP",), ("x", "\n\n")]),
    st.sampled_from([SPECIALS, ()]),
    st.sampled_from([TAGS, BARE]),
    st.booleans(),
    st.booleans(),
    st.data(),
)  # fmt: skip
def test_cut_anywhere_it_is_the_same(parts, stop, specials, form, guarded, thinking, data):
    """Whatever a model writes, complete or not, and however that is cut into tokens."""
    options = {"specials": specials, "stop": stop, "guarded": guarded, "thinking": thinking and form is TAGS}
    cuts = (lambda: 10**9, lambda: 1, lambda: data.draw(st.integers(1, 7)))
    results = [told(reply(form, "".join(parts), size=cut, **options)) for cut in cuts]
    assert results[0] == results[1] == results[2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["ab", "b", " ", "\n", "\u00e9", "<think>", GOOD]), max_size=8),
    st.sampled_from([(), ("b",)]),
)
def test_without_thinking_and_tools_it_is_a_text_stream(parts, stop):
    tokenizer = Cut(SPECIALS)
    ids = tokenizer.cut("".join(parts))
    stream = TextStream(tokenizer, stop)
    text = "".join([*map(stream.feed, ids), stream.finish()])
    assert parsed(dataclasses.replace(TAGS, think_close=""), tokenizer, ids, (), stop=stop).content == text


@pytest.mark.parametrize("guarded", [False, True])
def test_a_reply_cut_short_never_has_a_whole_call_too_many(guarded):
    text = f"Hm.\n{GOOD}\n<tool_call>\n" + '{"name": "look-up", "arguments": {"city": "\u4e2d"}}\n</tool_call>'
    for end in range(len(text)):
        result = reply(TAGS, text[:end], guarded=guarded)
        whole = [call for call in result.calls if call.complete]
        assert len(whole) == sum(match.end() <= end for match in re.finditer('"city": "."}', text))
        if not guarded:  # then what is no whole call is content
            assert len(whole) == len(result.calls)
            assert end < 20 or result.content.startswith("Hm.")


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_cut_at_any_byte_is_the_same_in_a_stream(formats, name):
    template, form = formats[name]
    tools = TOOLS if form.shape else ()
    thought = "Hm, \u00e9." if form.messages.reasoning else ""
    calls = [("get_weather", ARGUMENTS[0]), ("look-up", ARGUMENTS[2])][: 2 if form.parallel else bool(tools)]
    data = written(template, form, "" if calls else "Two.", thought, calls).encode()
    for end in range(0, len(data), 1 if name in FILES else 5):
        for guarded in (False, True):
            whole, stream = (
                parsed(form, tokenizer, tokenizer.plain_or_marks(data[:end], size), tools, guarded=guarded)
                for tokenizer, size in ((Cut(SPECIALS), lambda: 10**9), (Cut(SPECIALS), lambda: 1))
            )
            assert told(whole) == told(stream)


def test_letters_open_nothing_where_the_vocabulary_has_tokens():
    """A model that quotes its user's "<tool_call>" letter by letter says that text."""
    tokenizer = Cut(SPECIALS)
    ids = tokenizer.cut(f"Write <think> or {GOOD}!", specials=False)
    result = parsed(TAGS, tokenizer, ids)
    assert (result.content, result.calls, result.reasoning) == (f"Write <think> or {GOOD}!", [], "")
    result = parsed(TAGS, tokenizer, [*ids, *tokenizer.cut(GOOD)])
    assert [call.name for call in result.calls] == ["get_weather"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>no JSON</tool_call> and more",
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"city": }}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_call_is_content(text):
    result = reply(TAGS, f"So: {text}")
    assert (result.content, result.calls, result.finish_reason("stop")) == (f"So: {text}", [], "stop")
    assert reply(TAGS, f"{text}{GOOD}").calls[-1].complete


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        (TAGS, '<tool_call>{"name": "get_weather"}</tool_call>', {}),
        (TAGS, '<tool_call>{"arguments": {"days": 1}, "name": "get_weather"}', {"days": 1}),
        (TAGS, '<tool_call>\n {"name":"get_weather","arguments":"{\\"days\\": 1}"}\n</tool_call>\n', {"days": 1}),
        (TAGS, '<tool_call>{"name": "get_weather", "arguments": {"days": 1}</tool_call>', {"days": 1}),
        (BARE, ' {"type": "function", "name": "get_weather", "parameters": {"days": 1}}', {"days": 1}),
        (BARE, '<|python_tag|>{"name": "get_weather", "parameters": {"days": 1}}', {"days": 1}),
    ],
)
def test_calls_that_models_write_otherwise(form, text, arguments):
    for guarded in (False, True):
        result = reply(form, text, guarded=guarded)
        assert [(call.name, json.loads(call.arguments)) for call in result.calls] == [("get_weather", arguments)]
        assert (result.content, result.finish_reason("stop")) == ("", "tool_calls")


@pytest.mark.parametrize("text", ['{"name": "Ann", "parameters": {}}', '{"a": 1}', "{", '{"name": "get_weather"', "{}"])
def test_json_that_calls_no_tool_is_content(text):
    assert reply(BARE, text).content == text
    assert not reply(BARE, text).calls


def test_without_tools_nothing_is_a_call():
    assert reply(TAGS, GOOD, tools=()).content == GOOD
    with pytest.raises(ConfigError, match="tools: "):
        reply(ReplyFormat(), GOOD)


def test_a_guarded_calls_arguments_come_as_they_are_written():
    tokenizer = Cut(SPECIALS)
    parser = ReplyParser(TAGS, tokenizer, TOOLS, guarded=True)
    for token in tokenizer.cut('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Z'):
        parser.feed(token)
    assert (parser.calls[0].name, parser.calls[0].arguments) == ("get_weather", '{"city": "Z')
    parser.finish()
    assert parser.finish_reason("length") == "length"
    assert not parser.calls[0].complete


@pytest.mark.parametrize("guarded", [False, True])
def test_what_breaks_behind_a_call_is_content(guarded):
    form = ReplyFormat(shape=Shape.LIST, section_open="[TOOL_CALLS]", parallel=True)
    result = reply(form, '[TOOL_CALLS][{"name": "look-up", "arguments": {}}, {"name": 7}] so', guarded=guarded)
    assert [call.arguments for call in result.calls] == ["{}"]
    assert result.content == ', {"name": 7}] so'


def test_a_stop_string_ends_content_and_no_thought():
    result = reply(TAGS, f"<think>END</think>Yes END {GOOD}", stop=("END",))
    assert (result.reasoning, result.content, result.calls, result.stopped) == ("END", "Yes ", [], True)
    assert told(reply(TAGS, f"a b{GOOD}", stop=(f"b{GOOD}+", "b")))[:3] == ("a ", "", [])
    assert reply(TAGS, GOOD, stop=("city",)).finish_reason("stop") == "tool_calls"


def test_ids_are_the_requests_own():
    first, again, other = call_ids(1, [5, 6]), call_ids(1, [5, 6]), call_ids(1, [5, 6, 7])
    assert first(0) == again(0) != first(1)
    assert first(0) != other(0) != call_ids(2, [5, 6, 7])(0)
    assert re.fullmatch(r"call_[A-Za-z0-9]{9}", first(0))


def test_channels_without_their_headers_are_content():
    form = ReplyFormat(shape=Shape.CHANNELS)
    harmony = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>"
    assert reply(form, "plain words").content == "plain words"
    assert told(reply(form, harmony))[:2] == ("", "Hm.")
    called = harmony + 'commentary to=functions.get_weather <|constrain|>json<|message|>{"days": 1}'
    assert reply(form, called).calls[0].arguments == '{"days": 1}'
    assert reply(form, called[:-1]).content == '{"days": 1'
    spoken = harmony + "commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>final<|message|>7"
    assert reply(form, spoken).content == "Let me look.7"


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("7", {"string"}, "7"),
        ("7", {"integer"}, 7),
        ("7", {"number", "string"}, 7),
        ("7", {"string", "null"}, "7"),
        ("null", {"string", "null"}, None),
        ("None", {"null", "integer"}, None),
        ("True", {"boolean"}, True),
        ("True", {"string"}, "True"),
        ('{"a": [1]}', {"object"}, {"a": [1]}),
        ('{"a": [1]}', {"string"}, '{"a": [1]}'),
        ('"x"', {"string", "integer"}, '"x"'),
        ("x y\n", set(), "x y\n"),
        (" 7", set(), 7),
        ("[" * 100_000, {"array"}, "[" * 100_000),
    ],
)
def test_a_value_without_quotes_is_what_its_schema_says(text, types, value):
    assert json.loads(values.typed(text, types)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{a:1,b:[true,<q>x"}<q>,None],c:{}}', {"a": 1, "b": [True, 'x"}', None], "c": {}}),
        ("{}", {}),
        ("{a:<q>", None),
        ("{a}", None),
        ("[1]", None),
        ("{a:" * 100_000, None),
    ],
)
def test_values_as_gemma_writes_them(text, value):
    found = values.gemma(text, "<q>")
    assert (found and json.loads(found)) == value


def test_a_schemas_types_are_found_behind_references():
    schema = {
        "$defs": {"U": {"enum": ["a", "b"]}},
        "properties": {"u": {"$ref": "#/$defs/U"}, "v": {"anyOf": [{"type": "null"}, {"type": "string"}]}, "w": True},
    }
    found = {key: values.types_of(inner) for key, inner in values.properties_of(schema).items()}
    assert found == {"u": {"string"}, "v": {"null", "string"}, "w": set()}


def test_openings_without_end_take_their_time_only():
    began = seconds()
    text = '<tool_call>{"a": [' * 5000
    assert reply(TAGS, text, specials=(), size=lambda: 7).content == text
    assert seconds() - began < 4
