"""What a model can be asked: prompts and sampling, checked against its vocabulary and its context. Imports no jax
before the first generation.
"""

import functools
import numbers
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from packlight.common.errors import Argument, ConfigError, ContextLengthError
from packlight.common.text import shown
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.grammar import Grammar, Vocabulary, vocabulary
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.pooling import check_generates
from packlight.model.text.chat import filled, prompt_ids
from packlight.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from packlight.model.sampling.penalties import Steering


class Array(Protocol):
    """What numpy can take for an array: its own and jax's."""

    def __array__(self, *values: Any, **named: Any) -> np.ndarray: ...


Ids = Sequence[int] | Array  # token ids


def _as_list(prompt: Any) -> list[Any] | tuple[Any, ...] | None:
    """The elements of a list, a tuple or an array, numpy's or another's; None of anything else."""
    if isinstance(prompt, list | tuple):
        return prompt
    return np.asarray(prompt).tolist() if hasattr(prompt, "__array__") and np.ndim(prompt) else None


def _whole(given: Any) -> bool:
    """Whether it is a whole number, which True is not."""
    return isinstance(given, numbers.Integral) and not isinstance(given, bool)


class Prompts:
    """Checks what callers ask of one model, served with a context of `context` tokens."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, context: int, rerank_template: str | None = None):
        self._tokenizer, self._model, self._context = tokenizer, model, context
        self._rerank_template = rerank_template
        self._breakers = functools.lru_cache(16)(self._found_breakers)  # each looks at every token of the vocabulary

    def ids(self, prompt: str | Ids, parse_special: bool = False) -> list[int]:
        """Token ids of a text, or ids given as such: checked. parse_special: control tokens that it spells are tokens.

        Raises ConfigError for none and for impossible ones.
        """
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, parse_special=parse_special) if prompt else []
        elif (given := _as_list(prompt)) is not None and all(map(_whole, given)):
            ids = [int(i) for i in given]
        else:
            hint = "; messages are for chat" if isinstance(prompt, Mapping) else ""
            said = " ".join(reprlib.repr(prompt).split())
            raise ConfigError(f"a prompt is text or a list of token ids, not {said}{hint}")
        if not ids:
            raise ConfigError("the prompt is empty")
        for i in ids:
            if not 0 <= i < self._model.vocab_size:
                raise ConfigError(f"prompt token id {i} is outside the vocabulary of {self._model.vocab_size}")
        return ids

    def pair(self, query: str, document: str) -> list[int]:
        """Token ids of a query and a document for a reranker: in its file's own template, or one text behind the other
        with the tokens that end and part texts. Of control tokens texts spell none. Raises ConfigError for what is no
        text, ContextLengthError for too many tokens.

        Source: llama.cpp's `format_prompt_rerank`; BERT's pairs end with a separator (1810.04805).
        """
        for name, text in (("query", query), ("document", document)):
            if not isinstance(text, str) or not text:
                raise ConfigError(f"a {name} to rank with is a text, not {' '.join(reprlib.repr(text).split())}")
            self.check_length(text)
        tokenizer = self._tokenizer
        if self._rerank_template is not None:
            ids = prompt_ids(tokenizer, filled(self._rerank_template, {"query": query, "document": document}))
        else:
            ids = tokenizer.encode_pair(query, document)
        return self.fitting(ids)

    def fitting(self, prompt: str | Ids) -> list[int]:
        """`ids` of a prompt that fits the context. Raises ContextLengthError for one that does not."""
        self.check_length(prompt)
        ids = self.ids(prompt)
        if len(ids) > self._context:
            raise ContextLengthError(f"the text has {len(ids)} tokens; the context holds {self._context}")
        return ids

    def check_length(self, prompt: str | Ids) -> None:
        """Raises ContextLengthError for a text that cannot fit the context, however it is cut into tokens: one of
        megabytes would take seconds to be cut.
        """
        if isinstance(prompt, str) and (fewest := self._tokenizer.fewest(prompt)) > self._context:
            raise ContextLengthError(f"the text has {fewest} tokens or more; the context holds {self._context}")

    def answerable(self, prompt: str | Ids, parse_special: bool, answered: bool = True) -> list[int]:
        """`ids` of a prompt that leaves room for an answer, unless none is wanted. Raises ContextLengthError for one
        that does not fit.

        Warns of a text that spells a token which the file puts there too, so that it stands there twice; the warning is
        at who called the method of `LLM`.
        Source: llama.cpp `check_double_bos_eos`.
        """
        self.check_length(prompt)
        ids = self.ids(prompt, parse_special)
        if isinstance(prompt, str):
            bos, end = self._tokenizer.bos_id if self._tokenizer.add_bos else None, self._tokenizer.end_id
            for where, pair, token in (("begins", ids[:2], bos), ("ends", ids[-2:], end)):
                if token is not None and pair == [token, token]:
                    name = shown(self._tokenizer.piece(token))
                    said = f"the prompt {where} with {name} twice: the text has it, and the model's file adds one"
                    warnings.warn(said, stacklevel=4)  # over the method and its check of names
        if not answered:
            return self.fitting(ids)
        if len(ids) >= self._context:
            longest = self._model.longest_context
            more = (", or load with up to ", Argument("context", longest)) if longest > self._context else ()
            said = f"the prompt has {len(ids)} tokens, which leaves no room for an answer in a context of "
            raise ContextLengthError(f"{said}{self._context}; shorten it", *more)
        return ids

    def check_sampling(self, config: SamplingConfig) -> None:
        """Raises ConfigError for a logit bias of a token that the vocabulary does not have, and for a JSON schema,
        regular expression or grammar that is wrong or cannot be honoured. Raises UnsupportedError for an encoder, of
        which nothing is sampled.
        """
        check_generates(self._model)
        for token, _ in config.logit_bias:
            if token >= self._model.vocab_size:
                raise ConfigError(f"logit_bias of token id {token}: the vocabulary has {self._model.vocab_size}")
        if config.constrained:
            Grammar(self._vocabulary, config)

    def steering(self, config: SamplingConfig) -> "Steering":
        """How the logits of one generation follow from its history and its grammar; each generation needs its own."""
        from packlight.model.sampling.penalties import Steering

        breakers = self._breakers(config.dry_sequence_breakers) if config.dries else None
        constraint = Grammar(self._vocabulary, config) if config.constrained else None
        return Steering(config, sorted(self._tokenizer.eog_ids), breakers, constraint)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        """The tokenizer as grammars need it. Raises ConfigError as `model.sampling.grammar.vocabulary` does."""
        return vocabulary(self._tokenizer)

    def _found_breakers(self, texts: tuple[str, ...]) -> dict[int, list[tuple[int, ...]]]:
        """`sequence_breakers` of these texts."""
        from packlight.model.sampling.penalties import sequence_breakers

        pieces = [self._tokenizer.piece(i) for i in range(self._tokenizer.vocab_size)]
        encode = functools.partial(self._tokenizer.encode, add_special=False)
        return sequence_breakers(texts, pieces, encode)
