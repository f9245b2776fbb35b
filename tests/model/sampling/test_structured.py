"""Text that must match a JSON schema, a regular expression or a grammar does, whatever the model would say."""

import json
import re
import sys

import pytest
from ggufs import NOISE, write_llama
from running import packlight as command
from running import write_config

import packlight
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.tool_grammar import reply_grammar
from packlight.model.text.replies.format import GENERIC, ReplyFormat, Shape
from packlight.model.text.replies.parser import ReplyParser
from packlight.prepared import prepare

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that writes noise, with every byte as a token."""
    return write_llama(tmp_path_factory.mktemp("noise") / "noise.gguf", **NOISE, seed=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "c.toml")


@pytest.fixture(scope="module")
def llm(model, config):
    return packlight.load(model, config)


@pytest.mark.parametrize("seed", range(3))
def test_json_matches_its_schema(llm, seed):
    completion = llm.generate([5, 6, 7], json_schema=SCHEMA, seed=seed, temperature=2.0)
    assert completion.finish_reason == "stop"
    value = json.loads(completion.text)
    assert set(value) == {"name", "age", "kind"}
    assert len(value["name"]) <= 8
    assert 0 <= value["age"] <= 99
    assert value["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("field", "text", "pattern"),
    [
        ("regex", r"(yes|no), [a-z]{3}!", r"(yes|no), [a-z]{3}!"),
        ("grammar", 'root ::= "a" [0-9]{2,4} "z"', "a[0-9]{2,4}z"),  # GBNF
        ("grammar", 'start: "x" /[0-9]{2}/', "x[0-9]{2}"),  # Lark
        ("regex", "\u00e9{2}\u4e2d", "\u00e9{2}\u4e2d"),  # several tokens a character
    ],
)
def test_text_matches(llm, field, text, pattern):
    for seed in range(3):
        completion = llm.generate([5, 6, 7], seed=seed, **{field: text})
        assert completion.finish_reason == "stop"
        assert re.fullmatch(pattern, completion.text)


@pytest.mark.parametrize("form", [GENERIC, ReplyFormat(shape=Shape.JSON, call_open="<c>", call_close="</c>")])
def test_a_required_call_of_a_tool_is_one(llm, form):
    tools = [{"type": "function", "function": {"name": "keep", "strict": True, "parameters": SCHEMA}}]
    grammar = reply_grammar(form, llm.tokenizer, tools, "required", parallel=False)
    completion = llm.generate([5, 6, 7], seed=2, temperature=0, grammar=grammar)
    parser = ReplyParser(form, llm.tokenizer, tools, guarded=True)
    assert "".join([*map(parser.feed, completion.token_ids), parser.finish()]) == ""
    assert parser.finish_reason(completion.finish_reason) == "tool_calls"
    assert set(json.loads(parser.calls[0].arguments)) == {"name", "age", "kind"}


def test_each_slot_has_its_own_grammar_and_none_compiles(llm):
    from packlight.compile.counter import CompileCounter

    with CompileCounter() as compiled:
        free = llm.generate([5, 6, 7], seed=3, max_tokens=8, temperature=0).text
        first = llm.stream([5, 6, 7], seed=1, regex="a{40}")
        second = llm.stream([5, 6, 7], seed=3, max_tokens=8, temperature=0)
        texts = [next(first), "".join(second)]  # the second runs beside the first
        assert texts[0] + "".join(first) == "a" * 40
    assert texts[1] == free
    assert compiled.count == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"regex": "("}, "regex: .*unclosed group"),
        ({"json_schema": '{"type": "martian"}'}, "json_schema: .*martian"),
        ({"json_schema": "no json"}, "json_schema: "),
        (
            {"json_schema": {"type": "object", "not": {"type": "string"}}},
            'json_schema: Unimplemented keys: \\["not"\\]',
        ),
        ({"grammar": "root ::= missing"}, "grammar: .*missing"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos and regex exclude each other"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_an_error(llm, fields, words):
    with pytest.raises(packlight.ConfigError, match=words) as caught:
        llm.generate([5, 6, 7], max_tokens=4, **fields)
    assert "\n" not in str(caught.value)


def test_a_bias_against_all_that_matches_is_an_error(llm):
    yes = llm.encode("a", add_special=False)
    bias = {token: float("-inf") for token in range(llm.model.vocab_size) if b"a" in llm.tokenizer.piece(token)}
    assert set(yes) & set(bias)
    with pytest.raises(packlight.PacklightError, match="no longer matches"):
        llm.generate([5, 6, 7], max_tokens=4, regex="aaaa", logit_bias=bias)


def test_a_grammar_that_is_too_much_fails_for_its_own_text_alone(llm):
    rules = "".join(f"e{i}: A | A e{i}\n" for i in range(60))
    ambiguous = f'start: {" | ".join(f"e{i}" for i in range(60))}\n{rules}A: "a"\n'
    free = llm.generate([5, 6, 7], seed=3, max_tokens=80, temperature=0).text
    never = dict.fromkeys(llm.tokenizer.eog_ids, float("-inf"))
    first = llm.stream([5, 6, 7], seed=1, grammar=ambiguous, logit_bias=never)
    second = llm.stream([5, 6, 7], seed=3, max_tokens=80, temperature=0)
    texts = [next(first), "".join(second)]
    assert texts[1] == free
    with pytest.raises(packlight.ConfigError, match="grammar: the text no longer matches: .*2000"):
        texts += first
    assert set("".join([texts[0], *texts[2:]])) == {"a"}


def test_without_the_library_it_is_named(llm, monkeypatch):
    prepared = prepare(llm.file.path)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(packlight.ConfigError, match=r"pip install 'packlight\[grammar\]'"):
        prepared.prompts.check_sampling(SamplingConfig(regex="a"))


def test_the_command(model, config, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    flags = (f"--model={model}", f"--config={config}", "--prompt=x", "--seed=1")
    done = command(*flags, f"--json_schema=@{schema}")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"name", "age", "kind"}
    done = command(*flags, "--regex=(")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: regex: [^\n]+\n", done.stderr)
