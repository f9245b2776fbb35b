"""GBNF means here what it means in llama.cpp, and what cannot be honoured is refused by name and line."""

import json

import grammar_goldens
import numpy as np
import pytest
from conftest import GOLDENS_FOLDER
from vocabularies import KEY, bpe, write_vocabulary

from packlight.common.errors import ConfigError, PacklightError
from packlight.model.sampling import grammar
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.gbnf import is_gbnf
from packlight.model.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

CASES = json.loads((GOLDENS_FOLDER / "grammar_goldens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_gguf(grammar_goldens.write(tmp_path_factory.mktemp("grammars") / "vocabulary.gguf"))


@pytest.fixture(scope="module")
def known(tokenizer):
    return grammar.vocabulary(tokenizer)


def grammar_of(known, text):
    return grammar.Grammar(known, SamplingConfig(grammar=text))


def differences(known, cases):
    """Where a grammar allows other tokens than llama.cpp does: (grammar, tokens taken, which differ)."""
    found = []
    for case in cases:
        for taken, expected in case["walks"]:
            state = grammar_of(known, case["grammar"])
            for i, each in enumerate(expected):
                try:
                    got = int.from_bytes(state.allowed(taken[:i]).tobytes(), "little")
                except PacklightError:  # no token spells what must follow
                    got = 0
                found += [] if got == each else [(case["grammar"], taken[:i], hex(got ^ each))]
    return found


def test_those_tokens_are_allowed_that_llama_cpp_allows(known):
    assert not differences(known, CASES)


@pytest.mark.product
def test_more_grammars_allow_what_llama_cpp_allows(known):
    """Asked of llama.cpp itself; the goldens are its answers to the first ones."""
    pytest.importorskip("llama_cpp", reason="the extra 'peers' is not installed")
    cases = [case for case in grammar_goldens.told(range(1000, 1200)) if case["walks"] is not None]
    assert len(cases) > 100
    assert not differences(known, cases)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no rule 'root'"),
        ('a ::= "x"', "there is no rule 'root'"),
        ('root ::= "a"\n  b', "line 2: the end where '::=' behind the name 'b' should be"),
        ("root ::= [a]\n\n  | [b]", r"line 3: '\|' where the name of a rule should be"),
        ("root := [a]", "line 1: ':' where '::=' behind the name 'root' should be"),
        ("root ::= my_rule", "line 1: '_' where the end of the rule should be; names are letters, digits and '-'"),
        ("root ::= (\n[a] | [b]", "line 2: the end where '\\)' should be"),
        ("root ::= [a]\nx ::= [b] missing", "line 2: there is no rule 'missing'"),
        ('root ::= "a', "line 1: the grammar ends within a literal or a class"),
        ("root ::= [a", "line 1: the grammar ends within a literal or a class"),
        (r'root ::= "\x4"', r"line 1: '\\x4' needs 2 hexadecimal digits"),
        (r'root ::= "\u00e"', r"line 1: '\\u00e' needs 4 hexadecimal digits"),
        (r"root ::= [\U0001F60]", r"line 1: '\\U0001F60' needs 8 hexadecimal digits"),
        (r'root ::= "\d"', r"line 1: unknown escape '\\d'"),
        (r'root ::= "\ud83d\ude00"', r"line 1: U\+D83D is one half of a character in UTF-16: write \\U and 8 digits"),
        (r"root ::= [a-z\ud83d-\udfff]", r"line 1: U\+D83D is one half"),
        (r'root ::= "\x00"', r"line 1: no text holds U\+0000"),
        (r'root ::= "\U00110000"', r"line 1: no text holds U\+110000"),
        ("root ::= []", "line 1: a class that no character is in"),
        ("root ::= [^]", "line 1: a class that no character is in"),
        (r"root ::= [^\x01-\U0010FFFF]", "line 1: a class that no character is in"),
        ("root ::= [+-*/]", r"line 1: the range from U\+002B to U\+002A holds nothing"),
        ("root ::= *", "line 1: nothing stands before '\\*' that could be repeated"),
        ('root ::= ""+', "line 1: nothing stands before '\\+' that could be repeated"),
        ("root ::= [a]{0}?", "line 1: nothing stands before '\\?' that could be repeated"),
        ("root ::= [a]{,2}", "line 1: ',' where a number should be"),
        ("root ::= [a]{2", "line 1: the end where '}' should be"),
        ("root ::= [a]{3,2}", r"line 1: \{3,2\} says more at least than at most"),
        ("root ::= [a]{1,99999999999999999999}", "line 1: 99999999999999999999 repetitions, which are at most 100,000"),
        ("root ::= [a]{2001}", "line 1: repetitions within each other that come to more than 2,000 rules"),
        ("root ::= ([a]{0,100} [b]?){0,100}", "line 1: repetitions within each other that come to more than 2,000"),
        ("root ::= [a]\nx ::= x [b] | [c]", "left recursion: the rule 'x' can begin with itself"),
        ('root ::= ("" | [a]) b\nb ::= [a]? root', "left recursion: the rule 'b' can begin with itself"),
        ("root ::= [a] | x\nx ::= [b] x", "the rule 'x' has no end: all that it matches needs it again"),
        ("root ::= " + "(" * 51 + "[a]" + ")" * 51, "line 1: more than 50 groups within each other"),
        ("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(1200)) + 'r1200 ::= "a"', "1,000 deep"),
        ("root ::= [a] # \0", "line 1: a NUL character"),
        ("root ::= <[3]>", r"line 1: <\[3\]> is a token of text and no control token: write its text"),
        ("root ::= <[9999]>", r"line 1: <\[9999\]> is not one token of the model's vocabulary"),
        ("root ::= <abc>", "line 1: <abc> is not one token of the model's vocabulary"),
        ("root ::= \n | <|end|>", r"line 2: <\|end\|> ends a text"),
        ("root ::= !<|end|>", r"line 1: !<\|end\|>: any token but one cannot be asked for"),
        ("root ::= <abc", "line 1: a token is <text> or <\\[id\\]>, not '<abc'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_line(known, text, words):
    with pytest.raises(ConfigError, match=f"^grammar: .*{words}") as caught:
        grammar_of(known, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "gbnf"),
    [
        ("root ::= [a]", True),
        ("# start: not yet\n######\n\nroot::=[a]", True),
        ("#" * 5000, True),
        ("root := [a]", True),
        ('root ::= "start: "\nstart ::= [a]', True),
        ('start: "::="', False),
        ("start :/a/", False),
        ('# Lark\n// too\nstart: "a"', False),
        ('%llguidance {}\nstart: "a"', False),
        ('?item: "a"\nstart: item', False),
        ('_WORD.2: "a"\nstart: _WORD', False),
        ('x[capture, lazy]: "a"\nstart: x', False),
    ],
)
def test_gbnf_is_told_from_lark(text, gbnf):
    assert is_gbnf(text) is gbnf


@pytest.mark.parametrize(
    ("text", "pattern", "much"),
    [
        # Rules that end with themselves, which cost a row of the parser's items for each time; so do their friends.
        ('root ::= ws [b]\nws ::= " " ws | ""', " ", 3000),
        ('root ::= [b] | "a" one\none ::= "a" two | [c]\ntwo ::= "a" root | [c]', "a", 3000),
        ('root ::= item | item [1] root\nitem ::= [a]? | "x" root "y"', "a1", 3000),
        ('root ::= ("a" root "b" root)?', "ab", 3000),
        ("root ::= [a]{0,100000}", "a", 3000),
        ("root ::= ([a]{0,20} [b]?){0,90}", "aaab", 360),
    ],
)
def test_long_texts_are_no_trouble(known, tokenizer, text, pattern, much):
    """Asked each hundredth token for the next ones: what would grow does so within one text."""
    state = grammar_of(known, text)
    token = [next(i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == each.encode()) for each in pattern]
    taken = (token * much)[:much]
    for count in range(0, much, 100):
        assert state.allowed(taken[:count]).any()


def test_a_control_token_is_one_and_never_text(tmp_path):
    metadata = bpe("llama-bpe")
    metadata[KEY + "tokens"] = ["<|tool|>" if each == "<|end|>" else each for each in metadata[KEY + "tokens"]]
    tokenizer = Tokenizer.from_gguf(write_vocabulary(tmp_path / "vocabulary.gguf", metadata))
    known = grammar.vocabulary(tokenizer)
    (tool,) = tokenizer.encode("<|tool|>", add_special=False, parse_special=True)
    for asked in ("<|tool|>", f"<[{tool}]>"):
        state = grammar_of(known, f"root ::= [a] {asked} . [b]{{0}}")
        (a,) = tokenizer.encode("a", add_special=False)
        assert np.flatnonzero(np.unpackbits(state.allowed([a]).view(np.uint8), bitorder="little")).tolist() == [tool]
        assert not state.allowed([a, tool])[tool // 32] >> np.uint32(tool % 32) & 1
