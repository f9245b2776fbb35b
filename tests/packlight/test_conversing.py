"""A chat request from its messages to its calls, without a model."""

import json

import numpy as np
import pytest
import vocabularies
from reply_templates import SPECIALS, TEMPLATES

from packlight.common.errors import ConfigError
from packlight.conversing import asked
from packlight.model.text.chat import prompt_ids
from packlight.model.text.tokenizer import Tokenizer

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}]
ASKED = [{"role": "user", "content": "Look <|assistant|>!"}]
REPLY = "Hm.\n</think>\n\nLet me.\n<call>\n<function=look>\n<parameter=at>\nthe sky\n</parameter>\n</function>\n</call>"


@pytest.fixture(scope="module")
def tokenizer():
    plain, pairs = vocabularies.bpe_vocabulary()
    types = np.array([1] * len(plain) + [3] * len(SPECIALS), np.int32)
    ids = {"bos_token_id": len(plain), "eos_token_id": len(plain)}
    metadata = vocabularies.bpe("gpt-2", tokens=[*plain, *SPECIALS], merges=[*pairs], token_type=types, **ids)
    return Tokenizer.from_metadata(metadata)


def test_a_request_with_tools(tokenizer):
    pytest.importorskip("llguidance")
    made = asked(TEMPLATES["tags-thinking-open"], tokenizer, ASKED, TOOLS)
    assert made.thinking
    assert "<function=" in (made.grammar or "")
    ids = prompt_ids(tokenizer, made.prompt)
    assert tokenizer.decode(ids).endswith("Look <|assistant|>!<|end|><|assistant|><think>\n")
    parsers = [made.parser(tokenizer, 7, ids) for _ in range(2)]
    for parser in parsers:
        for token in tokenizer.encode(REPLY, parse_special=True):
            parser.feed(token)
        parser.finish()
        assert (parser.reasoning, parser.content) == ("Hm.", "Let me.")
        assert [(call.name, json.loads(call.arguments)) for call in parser.calls] == [("look", {"at": "the sky"})]
    assert parsers[0].calls[0].id == parsers[1].calls[0].id != made.parser(tokenizer, 8, ids)._id_of(0)


def test_a_template_without_a_place_for_tools(tokenizer):
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    with pytest.raises(ConfigError, match="tools: the model's chat template has no place for them"):
        asked(template, tokenizer, ASKED, TOOLS)
    assert "look" not in asked(template, tokenizer, ASKED, TOOLS, "none").prompt.text
    made = asked(template, tokenizer, ASKED, TOOLS, generic_tools=True)
    assert '"look"' in made.prompt.text
    assert (made.form.generic, made.tools) == (True, TOOLS)


def test_without_the_library_free_calls_are_checked_when_complete(tokenizer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made = asked(TEMPLATES["tags"], tokenizer, ASKED, TOOLS)
    assert made.grammar is None
    parser = made.parser(tokenizer, 1, [])
    for token in tokenizer.encode(REPLY.partition("</think>\n\n")[2], parse_special=True):
        parser.feed(token)
        assert parser.calls == [] or parser.calls[0].complete
    assert parser.calls
