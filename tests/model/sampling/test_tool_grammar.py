"""Replies that a grammar made of a format and tools allows: whatever a model would say, calls in them are valid."""

import json
import random

import numpy as np
import pytest
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_templates import SPECIALS, TEMPLATES, made

from packlight.common.errors import ConfigError
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.grammar import Grammar, vocabulary
from packlight.model.sampling.tool_grammar import reply_grammar
from packlight.model.text.replies import probe
from packlight.model.text.replies.format import GENERIC, ReplyFormat, Shape
from packlight.model.text.replies.parser import ReplyParser
from packlight.model.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Z\u00fcrich"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "kinds": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "near": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}, "no": {"type": "null"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "near"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
FORMATS = {
    "hermes": ReplyFormat(
        "<think>\n", "\n</think>\n\n", Shape.JSON, call_open="<tool_call>\n", call_close="\n</tool_call>",
        separator="\n", parallel=True,
    ),
    "bare": ReplyFormat(shape=Shape.JSON, arguments_key="parameters", also_open="<|python_tag|>"),
    "ids": ReplyFormat(shape=Shape.LIST, section_open="[TOOL_CALLS]", id_key="id", parallel=True),
    "channels": ReplyFormat(shape=Shape.CHANNELS, call_open="to=functions."),
    "generic": GENERIC,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and pairs; markers are control tokens and user-defined ones in turn."""
    plain, pairs = vocabularies.bpe_vocabulary()
    types = [1] * len(plain) + [3 + number % 2 for number in range(len(SPECIALS))] + [3]
    return Tokenizer.from_metadata(
        vocabularies.bpe(
            "gpt-2",
            tokens=[*plain, *SPECIALS, "<|endoftext|>"],
            merges=[*pairs],
            token_type=np.array(types, np.int32),
            bos_token_id=len(types) - 1,
            eos_token_id=len(types) - 1,
        )
    )


@pytest.fixture(scope="module")
def words(tokenizer):
    return vocabulary(tokenizer)


@pytest.fixture(scope="module")
def formats():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "make_prompt", made)
        probe.reply_format.cache_clear()
        found = FORMATS | {name: probe.reply_format(text) for name, text in TEMPLATES.items()}
        probe.reply_format.cache_clear()
    return found


def forced(words, text, seed, likely=(), most=3000, begun=()):
    """Ids that a model which draws from all allowed tokens alike writes. likely: texts that it tries half of the time,
    so that it does not write free text for ever.
    """
    rng, ids = random.Random(seed), [*begun]
    tokenizer, grammar = words.tokenizer, Grammar(words, SamplingConfig(grammar=text))
    likely = [tokenizer.encode(each, add_special=False, parse_special=True) for each in likely]
    ends = tokenizer.eog_ids
    queue: list[int] = []
    while len(ids) < most:
        allowed = np.unpackbits(grammar.allowed(ids).view(np.uint8), bitorder="little")[: tokenizer.vocab_size]
        possible = np.flatnonzero(allowed)
        assert possible.size, tokenizer.decode(ids)
        if not queue and possible.size > 50 and likely and rng.random() < 0.5:
            queue = [*rng.choice(likely)]
        queue = queue if queue and allowed[queue[0]] else []
        token = queue.pop(0) if queue else int(rng.choice(possible.tolist()))
        if not queue and possible.size > 50 and rng.random() < 0.2 and any(allowed[end] for end in ends):
            token = min(ends)
        if token in ends:
            return ids
        ids.append(token)
    raise AssertionError(f"no end: {tokenizer.decode(ids)!r}")


def valid(call):
    """Whether a call is one of TOOLS'."""
    arguments = json.loads(call.arguments)
    if call.name == "now":
        return isinstance(arguments, dict)
    near = arguments.pop("near")
    return (
        call.name == "get_weather"
        and arguments.keys() <= {"city", "days", "kinds"}
        and arguments["city"] in ("Bern", "Z\u00fcrich")
        and isinstance(arguments.get("days", 0), int)
        and all(isinstance(kind, bool) for kind in arguments.get("kinds", []))
        and isinstance(near["yes"], bool)
        and near.get("no") is None
        and near.keys() <= {"yes", "no"}
    )


NAMES = [*FORMATS, *TEMPLATES]


def parse(form, tokenizer, ids, **options):
    parser = ReplyParser(form, tokenizer, TOOLS, guarded=True, **options)
    for token in ids:
        parser.feed(token)
    parser.finish()
    return parser


def closes(form):
    texts = [form.think_close.strip(), form.value_close, form.quote, '"', "}", "]"]
    return [text for text in texts if text]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_required_call_is_always_valid(formats, tokenizer, words, name, choice):
    form = formats[name]
    for seed in range(6):
        thinking = bool(form.think_close) and seed % 2 == 1
        text = reply_grammar(form, tokenizer, TOOLS, choice, thinking=thinking)
        ids = forced(words, text, seed, [*closes(form), "<|end|>"])
        result = parse(form, tokenizer, ids, thinking=thinking)
        assert result.content == "", tokenizer.decode(ids)
        assert result.finish_reason("stop") == "tool_calls", tokenizer.decode(ids)
        assert all(map(valid, result.calls))
        assert form.parallel or len(result.calls) == 1
        assert choice == "required" or [call.name for call in result.calls] == [choice]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_model_writes_by_itself_is_allowed(formats, tokenizer, words, name):
    """Text, thinking and calls as the template writes them, with tools that need not be called; and a call that is open
    goes on as a call.
    """
    form = formats[name]
    grammar = reply_grammar(form, tokenizer, TOOLS, thinking=False)
    for text in replies(form):
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        matched = Grammar(words, SamplingConfig(grammar=grammar))
        for number in range(len(ids) + 1):
            allowed = np.unpackbits(matched.allowed(ids[:number]).view(np.uint8), bitorder="little")
        assert allowed[min(tokenizer.eog_ids)], text


def replies(form):
    arguments = {"city": "Bern", "near": {"yes": True}}
    thought = f"{form.think_open}Hm, <b> {form.think_close}" if form.think_close else ""
    if form.shape is Shape.CHANNELS:
        thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        call = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{json.dumps(arguments)}"
        return [f"{thought}<|channel|>final<|message|>Yes.", thought + call]
    match form.shape:
        case Shape.NAMED:
            ids = f"{form.id_open}abcdefghi" if form.id_open else ""
            call = f"get_weather{ids}{form.arguments_open}{json.dumps(arguments)}"
        case Shape.TAGGED:
            values = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in arguments.items()]
            tags = [f"{form.key_open}{key}{form.value_open}{value}{form.value_close}" for key, value in values]
            call = f"get_weather{form.arguments_open}{''.join(tags)}"
        case Shape.GEMMA:
            call = f"get_weather{{city:{form.quote}Bern{form.quote},near:{{yes:true}}}}"
        case _:
            named = {form.name_key: "get_weather", form.arguments_key: arguments}
            call = json.dumps(named | ({form.id_key: "abcdefghi"} if form.id_key else {}))
    call = f"[{call}]" if form.shape is Shape.LIST else call
    called = f"{form.opens}{call}{form.call_close}{form.section_close}"
    free = [
        f"{thought}Just {'{'} text. <x>\n",
        *([] if form.bare or form.generic else [f"{thought}Let me see.{called}"]),
    ]
    return [*free, thought + called]


@pytest.mark.parametrize("name", NAMES)
def test_an_open_call_is_always_valid(formats, tokenizer, words, name):
    form = formats[name]
    if form.shape is Shape.CHANNELS:
        opened = "<|channel|>commentary to=functions."
    elif form.bare or form.generic:
        opened = reply_start(form)
    else:
        opened = "Let me see." + form.opens
    ids = tokenizer.encode(opened, add_special=False, parse_special=True)
    grammar = reply_grammar(form, tokenizer, TOOLS, parallel=False)
    for seed in range(4):
        written = forced(words, grammar, seed, closes(form), begun=ids)
        result = parse(form, tokenizer, written)
        assert len(result.calls) == 1, tokenizer.decode(written)
        assert valid(result.calls[0])
        assert result.finish_reason("stop") == "tool_calls"


def reply_start(form):
    return form.call_open + "[" if form.generic else '{"name": "get_weather", "parameters": '


def test_letters_that_spell_a_marker_open_nothing(tokenizer, words):
    form = FORMATS["hermes"]
    ids = tokenizer.encode_continued("<tool")
    ids += tokenizer.encode_continued("_call> said")
    matched = Grammar(words, SamplingConfig(grammar=reply_grammar(form, tokenizer, TOOLS)))
    bits = np.unpackbits(matched.allowed(ids).view(np.uint8), bitorder="little")
    assert bits[: tokenizer.vocab_size].sum() > 1000


def test_a_schema_is_obeyed_behind_a_thought(formats, tokenizer, words):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    schema |= {"additionalProperties": False}
    for name in ("tags", "tags-thinking-open", "channels", "bare"):
        form = formats[name]
        for thinking in {False, bool(form.think_close)}:
            text = reply_grammar(form, tokenizer, schema=schema, thinking=thinking)
            for seed in range(3):
                ids = forced(words, text, seed, [*closes(form), "<|end|>"])
                parser = ReplyParser(form, tokenizer, thinking=thinking)
                content = "".join([*map(parser.feed, ids), parser.finish()])
                assert json.loads(content).keys() == {"n"}, (name, thinking, tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("shape", "inner"),
    [
        ("hermes", {"type": "array", "uniqueItems": True}),
        ("tags", {"type": "string", "pattern": "a+"}),
        ("gemma", {"type": "integer", "minimum": 3}),
    ],
)
def test_a_strict_tool_has_a_schema_that_holds(formats, tokenizer, words, shape, inner):
    parameters = {"type": "object", "properties": {"x": inner}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "strange", "strict": True, "parameters": parameters}}
    with pytest.raises(ConfigError, match=r"tools\[0\] \(strange\) is strict, but .*"):
        reply_grammar(formats[shape], tokenizer, [tool], "required")
    tool["function"]["strict"] = False
    text = reply_grammar(formats[shape], tokenizer, [tool], "required")
    parser = ReplyParser(formats[shape], tokenizer, [tool], guarded=True)
    ids = forced(words, text, 1, closes(formats[shape]))
    assert "".join([*map(parser.feed, ids), parser.finish()]) == ""
    assert isinstance(json.loads(parser.calls[0].arguments), dict)


def test_choices_that_cannot_be(tokenizer):
    form = FORMATS["hermes"]
    assert reply_grammar(form, tokenizer) is None
    assert reply_grammar(form, tokenizer, TOOLS, "none") is None
    with pytest.raises(ConfigError, match="there is no tool 'other'"):
        reply_grammar(form, tokenizer, TOOLS, "other")
    with pytest.raises(ConfigError, match="needs tools"):
        reply_grammar(form, tokenizer, (), "required")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["string", "object", "a", "#/$defs/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("type", "properties", "required", "enum", "anyOf", "items", "$ref", "a")), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(JSON, st.booleans(), st.sampled_from(["hermes", "channels", "tags", "gemma"]))
def test_whatever_a_client_calls_a_schema(formats, tokenizer, words, parameters, strict, name):
    """It gives a grammar that llguidance takes, or an error in one line."""
    tool = {"type": "function", "function": {"name": "t", "strict": strict, "parameters": parameters}}
    refused = ""
    try:
        text = reply_grammar(formats[name], tokenizer, [tool], "required")
        Grammar(words, SamplingConfig(grammar=text))
    except ConfigError as error:
        refused = str(error)
    assert "\n" not in refused
    assert strict or not refused
    ReplyParser(formats[name], tokenizer, [tool])


def test_a_schema_without_bottom(formats, tokenizer):
    deep = {"type": "object"}
    for _ in range(20_000):
        deep = {"type": "object", "properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "t", "parameters": deep}}
    for name in ("hermes", "tags", "gemma"):
        with pytest.raises(ConfigError, match="nested too deeply|more than 1,000 deep"):
            reply_grammar(formats[name], tokenizer, [tool])
