"""Structured output: which tokens may come next so that a text matches a JSON schema, a regular expression or a
grammar. The matching is llguidance's (extra "grammar"); this gives it our vocabulary and says its errors.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packlight.common.errors import ConfigError
from packlight.model.sampling import gbnf, lark, nesting, rules
from packlight.model.sampling.config import SamplingConfig
from packlight.model.text.specials import TokenType
from packlight.model.text.tokenizer import Tokenizer

# Between the parts of JSON; bounded as llama.cpp bounds it, because weak models would write nothing else.
WHITE_SPACE = r"( |\n{1,2}[ \t]{0,20})?"
FIELDS = ("json_schema", "regex", "grammar")  # of a SamplingConfig; llguidance's names for the kinds are the same


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as grammars need it."""

    matched: Any  # the tokenizer as llguidance's
    tokenizer: Tokenizer

    @functools.cached_property
    def lark(self) -> Callable[[str], str]:
        """`_lark` of a GBNF grammar, which remembers the last few: each is checked once and used for every text."""
        return functools.lru_cache(16)(lambda text: _lark(text, self.tokenizer))


class _Wrapper:
    """What llguidance wants to know of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id = min(tokenizer.eog_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        held_back = np.isin(tokenizer.token_types, (TokenType.CONTROL, TokenType.UNKNOWN))
        self.special_token_ids = sorted({*np.flatnonzero(held_back).tolist(), *tokenizer.eog_ids})
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_continued(text)


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer as grammars need it, which takes a second for a large vocabulary: make it once.

    Raises ConfigError where llguidance is not installed or the vocabulary has no end token.
    """
    try:
        import llguidance
    except ImportError:
        raise ConfigError(f"{', '.join(FIELDS)} need the extra 'grammar': pip install 'packlight[grammar]'") from None
    if not tokenizer.eog_ids:
        raise ConfigError("a text cannot be made to match: the model's vocabulary has no end token")
    wrapper: Any = _Wrapper(tokenizer)
    return Vocabulary(llguidance.LLTokenizer(wrapper, eos_token=sorted(tokenizer.eog_ids)), tokenizer)


class Grammar:
    """One generation that must match; see `model.sampling.penalties.Constraint`."""

    def __init__(self, vocabulary: Vocabulary, config: SamplingConfig):
        """Raises ConfigError for a schema, expression or grammar that is wrong or that cannot be honoured in full."""
        import llguidance

        kind: Any  # llguidance has a type for its names
        kind, text = next((name, text) for name in FIELDS if (text := getattr(config, name)) is not None)
        if config.ignore_eos:
            raise ConfigError(f"ignore_eos and {kind} exclude each other: a text that matches has an end")
        try:
            if kind == "json_schema":
                nesting.check_schema(json.loads(text))
                blank: Any = {"whitespace_pattern": WHITE_SPACE}
                grammar = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=blank)
            elif kind == "grammar":
                if gbnf.is_gbnf(text):
                    text = vocabulary.lark(text)
                else:
                    nesting.check_lark(text)
                grammar = llguidance.LLMatcher.grammar_from_lark(text)
            else:
                grammar = llguidance.grammar_from(kind, text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{kind}: {_line(error)}") from None
        self._matcher = llguidance.LLMatcher(vocabulary.matched, grammar, log_level=0)
        for problem in (self._matcher.get_error(), *self._matcher.get_grammar_warnings()):
            if problem:
                raise ConfigError(f"{kind}: {_line(problem)}")
        self._kind, self._consumed, self._words = kind, 0, -(-vocabulary.matched.vocab_size // 32)

    def allowed(self, generated: Sequence[int]) -> np.ndarray:
        """Bits of the tokens that may follow, uint32 (ceil(V / 32),). Raises ConfigError for a text that does not
        match, or that is more than llguidance follows.
        """
        fresh, self._consumed = list(generated[self._consumed :]), len(generated)
        matches = self._matcher.consume_tokens(fresh)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32) if matches else None
        if bits is None or self._matcher.is_error():
            raise ConfigError(f"{self._kind}: the text no longer matches: {_line(self._matcher.get_error())}")
        return bits[: self._words]


def _lark(text: str, tokenizer: Tokenizer) -> str:
    """A GBNF grammar in llguidance's notation, with the same meaning."""
    found = gbnf.read(text)
    graph = {name: rules.references(rule) for name, rule in found.items()}
    reached, todo = {gbnf.ROOT}, [gbnf.ROOT]
    while todo:
        fresh = graph[todo.pop()] - reached
        reached |= fresh
        todo += fresh
    found = {name: rule for name, rule in found.items() if name in reached}
    order = rules.components({name: graph[name] for name in found})
    if endless := found.keys() - rules.closure(found, order, single=True):
        raise ConfigError(f"grammar: the rule {min(endless)!r} has no end: all that it matches needs it again")
    solved = rules.without_tail_recursion(found)
    levels = {name: 1 + rules.height(rule) for name, rule in solved.items()}
    nesting.check_depth("grammar: its rules", levels, {name: rules.references(rule) for name, rule in solved.items()})
    return lark.write(solved, gbnf.ROOT, lambda token: _token_id(token, tokenizer))


def _token_id(token: rules.Token, tokenizer: Tokenizer) -> int:
    """The id of a control token. Others are text for llguidance, and a text's end is no part of it."""
    if isinstance(token.wanted, int):
        shown, ids = f"<[{token.wanted}]>", [token.wanted]
    else:
        shown, ids = token.wanted, tokenizer.encode(token.wanted, add_special=False, parse_special=True)
    if token.negated:
        gbnf.fail(f"!{shown}: any token but one cannot be asked for", token.line)
    if len(ids) != 1 or ids[0] >= tokenizer.vocab_size:
        gbnf.fail(f"{shown} is not one token of the model's vocabulary", token.line)
    if ids[0] in tokenizer.eog_ids:
        gbnf.fail(f"{shown} ends a text, and stands behind all that a grammar matches", token.line)
    if tokenizer.token_types[ids[0]] != TokenType.CONTROL:
        gbnf.fail(f"{shown} is a token of text and no control token: write its text", token.line)
    return ids[0]


def _line(problem: Any) -> str:
    """A problem in one line, without the state and the grammar that llguidance adds to it."""
    return " ".join(str(problem).partition("<state>")[0].split())
