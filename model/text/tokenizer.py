"""Text to token ids and back, exactly as llama.cpp does it, from a GGUF file's `tokenizer.ggml.*` metadata.

It puts together what its neighbours know: which tokens are special and where they cut a text (`specials`), and how
plain text is encoded (`bpe`, `spm`, `wpm`, `ugm` and others). Knows nothing of how text is streamed, and needs no jax.

Source: llama.cpp src/llama-vocab.cpp, unless said otherwise.
"""

import functools
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np

from packlight.common.errors import ConfigError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile, open_gguf
from packlight.model.text import bpe, bpe_variants, greedy, plamo, provenance, spm, ugm, wpm
from packlight.model.text.keys import KEY, choice, fail, flag, numbers, strings, token_id
from packlight.model.text.pretokenizers import PRETOKENIZERS, PreTokenizer
from packlight.model.text.specials import DEFAULT_IDS, Frame, Special, Specials, TokenType, needed_id, read_types

_BPE = ("gpt2", "gemma4", "whitespace", "hybriddna")

# Vocabularies whose ids cover each character of a text, but for space beside special tokens.
_COVERING = ("gpt2", "gemma4", "llama")
_C_SPACES = " \t\n\v\f\r"


class Tokenizer:
    """A vocabulary with its encoder; immutable after construction.

    `bos_id`, `eos_id`: None if there is none. `add_bos`, `add_eos`: whether `encode` puts them around a text.
    `end_id`: what it puts behind a text: `eos_id` if `add_eos`, BERT's separator, or None.
    `eog_ids`: the ids after which a generation ends. `token_types` (V,) int32: `tokenizer.ggml.token_type` with
    llama.cpp's corrections.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """See `from_metadata`."""
        self.kind = choice(metadata, "model", DEFAULT_IDS, "tokenizer")
        pre = _pretokenizer(metadata, self.kind) if self.kind in _BPE else None
        self._tokens, self._vocab = _read_tokens(metadata, self.kind)
        self.vocab_size = len(self._tokens)
        self._space_prefix = flag(metadata, "add_space_prefix", self.kind == "llama")
        types = read_types(metadata, self._tokens)
        frame = _frame(self.kind, pre)
        self._specials = Specials.read(metadata, self.kind, self._tokens, self._vocab, types, frame)
        made = _Reading(metadata, self.kind, self._vocab, types, self._specials.types, self._space_prefix)
        self._coder, self._normal_piece = _byte_pairs(made, pre) if pre else _plain_text(made)
        self.token_types = self._specials.types
        self.bos_id, self.eos_id, self.end_id = self._specials.bos_id, self._specials.eos_id, self._specials.end_id
        self.add_bos, self.add_eos = self._specials.add_bos, self._specials.add_eos
        self.eog_ids = self._specials.eog_ids
        parted = self.kind != "bert" and flag(metadata, "add_sep_token", False)
        self._between = needed_id(metadata, self.kind, "seperator", self.vocab_size) if parted else None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer of a GGUF file's metadata: str -> str, int, bool, list[str] or numpy array.

        Raises UnsupportedError for an unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre`, by name and with what is
        supported; GGUFError naming the key that is missing, of the wrong type or length, or makes no sense.
        """
        return cls(metadata)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer of the GGUF file at `path`; reads no weights. Raises as `open_gguf` and `from_metadata` do."""
        return cls.from_file(open_gguf(path))

    @classmethod
    def from_file(cls, file: GGUFFile) -> "Tokenizer":
        """The tokenizer of an opened file. Raises as `from_metadata` does, naming the file too."""
        with naming(file.path):
            return cls(file.metadata)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`, as llama_tokenize gives them.

        `add_special` puts bos and eos around them where the file wants that. `parse_special` makes control tokens of
        their text; user-defined ones always are. An unpaired surrogate is encoded as U+FFFD.
        Raises ConfigError for what is no text, GGUFError for one that a vocabulary without byte tokens cannot spell.
        """
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        text = _sound(text)
        ids.extend(self._ids(text, self._partition(text, lambda special, _: parse_special or _user_defined(special))))
        if add_special and self.end_id is not None:
            ids.append(self.end_id)
        return ids

    @functools.cached_property
    def _longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokens))

    def fewest(self, text: str) -> int:
        """A number of ids that `text` has at least, without encoding it; 0 where a vocabulary leaves text out."""
        if self.kind not in _COVERING:
            return 0
        characters = len(text)
        if self._specials.strip_before or self._specials.strip_after:
            characters -= sum(map(text.count, _C_SPACES))
        return characters // self._longest

    def first_difference(self, other: "Tokenizer", start: int) -> int | None:
        """The first id from `start` on that is another token in another vocabulary, as far as both have ids; None
        where all are the same.
        """
        both = enumerate(zip(self._tokens[start:], other._tokens[start:], strict=False), start)
        return next((token for token, (mine, its) in both if mine != its), None)

    def encode_pair(self, first: str, second: str) -> list[int]:
        """The ids of two texts that belong together, with what the vocabulary puts around and between them: of BERT's
        [CLS] first [SEP] second [SEP], of others bos first eos sep second eos, as far as the file adds them.
        """
        between = [] if self._between is None else [self._between]
        end = [] if self.end_id is None else [self.end_id]
        return [*self.encode(first), *between, *self.encode(second, add_special=False), *end]

    def encode_prompt(self, text: str, kinds: str, template: str) -> list[int]:
        """The ids of a prompt that `template` made, in which `kinds` says of each character where it comes from.

        Control tokens are those that the template wrote, with a role's plain word inside at most. What a message spells
        is text, also where it spells a user-defined token that serves the template as a control token. bos and a token
        that ends a text are never made of a role.
        """
        text, specials = _sound(text), self._specials
        marks = specials.marks_of(template)
        ends = specials.eog_ids | {specials.bos_id}

        def meant(special: Special, at: int) -> bool:
            if _user_defined(special) and special.id not in marks:
                return True
            found = kinds[at : at + len(special.text)]
            if found.strip(provenance.TEMPLATE + provenance.WORD):
                return False
            return provenance.WORD not in found or (provenance.TEMPLATE in found and special.id not in ends)

        return list(self._ids(text, self._partition(text, meant), marks | specials.control_ids))

    def encode_continued(self, text: str) -> list[int]:
        """The ids of plain text as it follows other text: nothing put before it, no special token seen in it."""
        return self._coder.encode(_sound(text), begins=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, as llama_detokenize(remove_special=false, unparse_special=true) without space clean-up.

        The first token loses a leading space if the vocabulary adds one in `encode`. What is not UTF-8 becomes U+FFFD.
        Raises ConfigError for what is no list of ids, and for one out of range.
        """
        if not isinstance(ids, Iterable):
            raise ConfigError(f"token ids to decode are a list, not {reprlib.repr(ids)}")
        pieces = [self.piece(token_id) for token_id in ids]
        if pieces and self._space_prefix:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token, as llama_token_to_piece(lstrip=0, special=true); empty for an unused one.

        Raises ConfigError for an id out of range.
        """
        if not isinstance(token_id, Integral) or not 0 <= token_id < self.vocab_size:
            raise ConfigError(f"token id {reprlib.repr(token_id)} is not in 0..{self.vocab_size - 1}")
        token = self._tokens[token_id]
        match int(self.token_types[token_id]):
            case TokenType.NORMAL:
                return self._normal_piece(token)
            case TokenType.UNKNOWN | TokenType.CONTROL | TokenType.USER_DEFINED:
                return token.encode()
            case TokenType.BYTE:
                return bytes([int(token[3:5], 16)])
            case _:
                return b""

    def _ids(self, text: str, fragments: Iterable[int | slice], kept: frozenset[int] = frozenset()) -> Iterator[int]:
        """The ids of a text's fragments. kept: ids that plain text is not to become, whatever the vocabulary merges."""
        for fragment in fragments:
            if isinstance(fragment, int):
                yield fragment
            else:  # a special token, or nothing, comes before it
                plain = text[fragment]
                ids = self._coder.encode(plain)
                if not kept.isdisjoint(ids):
                    parts = _taken_apart(plain, [self._tokens[i] for i in kept if self._tokens[i] in plain])
                    ids = [i for n, part in enumerate(parts) for i in self._coder.encode(part, begins=n == 0)]
                yield from ids

    def _partition(self, text: str, meant: Callable[[Special, int], bool]) -> list[int | slice]:
        """`text` cut at its special tokens, which are tried longest first, each on all the text still left.

        meant: whether a special token that is spelled at a place of the text is one.
        """
        fragments: list[int | slice] = [slice(0, len(text))] if text else []
        characters = set(text)
        for special in self._specials.in_text:
            # the set spares a search of the whole text for nearly every one of a vocabulary's thousands
            if characters.issuperset(special.text) and special.text in text:
                before, after = special.id in self._specials.strip_before, special.id in self._specials.strip_after
                fragments = [part for f in fragments for part in _cut(text, f, special, meant, before, after)]
        return fragments


class _Coder(Protocol):
    """How a kind of vocabulary reads text without special tokens."""

    def encode(self, text: str, begins: bool = True) -> list[int]:
        """The ids of `text`. begins: whether no text comes before it."""
        ...


class _PlainText(NamedTuple):
    """How a kind of vocabulary reads and writes text without special tokens."""

    coder: _Coder
    piece: Callable[[str], bytes]  # the bytes of a normal token


class _Reading(NamedTuple):
    """What was read of a file before its coder is made."""

    metadata: Mapping[str, Any]
    kind: str
    vocab: Mapping[str, int]
    types: np.ndarray  # (V,) int32, as the file has it
    corrected: np.ndarray  # (V,) int32, as llama.cpp corrects it
    space_prefix: bool


def _frame(kind: str, pre: PreTokenizer | None) -> Frame:
    """What is put around a text."""
    if pre is not None:
        return Frame(pre.add_bos or pre.always_bos, bos_fixed=pre.always_bos, default_bos=pre.default_bos)
    match kind:
        case "bert":  # its separator is no eos; `add_sep_token` is only asked where two texts make one
            return Frame(bos=True, bos_fixed=True, eos_fixed=True)
        case "t5":
            return Frame(bos=False, eos=True)
        case "rwkv" | "plamo2":
            return Frame(bos=False, bos_fixed=True, eos_fixed=True)
        case _:
            return Frame(bos=True)


def _pretokenizer(metadata: Mapping[str, Any], kind: str) -> PreTokenizer:
    if kind == "gemma4":
        return PRETOKENIZERS[kind]
    return PRETOKENIZERS[choice(metadata, "pre", PRETOKENIZERS, "pre-tokenizer", missing="default")]


def _byte_pairs(made: _Reading, pre: PreTokenizer) -> _PlainText:
    metadata, vocab = made.metadata, made.vocab
    merges = strings(metadata, "merges") if pre.needs_merges or KEY + "merges" in metadata else []
    coder, piece = bpe.BPE(vocab, merges, pre), spm.piece if pre.marked_spaces else bpe.piece
    match made.kind:
        case "whitespace":
            lowercase = flag(metadata, "normalizer.lowercase", pre is not PRETOKENIZERS["whitespace"])
            return _PlainText(bpe_variants.SpacesDropped(coder, lowercase), piece)
        case "hybriddna":
            return _PlainText(bpe_variants.Genes(coder, vocab), piece)
        case _:
            return _PlainText(coder, piece)


def _plain_text(made: _Reading) -> _PlainText:
    metadata, kind, vocab = made.metadata, made.kind, made.vocab
    match kind:
        case "bert":
            lowercase = flag(metadata, "normalizer.lowercase", True)
            strip_accents = flag(metadata, "normalizer.strip_accents", lowercase)
            unknown = needed_id(metadata, kind, "unknown", len(vocab))
            return _PlainText(wpm.WPM(vocab, unknown, lowercase, strip_accents), spm.piece)
        case "t5":
            return _PlainText(_unigrams(made), spm.piece)
        case "rwkv":
            return _PlainText(greedy.Greedy(vocab, token_id(metadata, "unknown", len(vocab))), greedy.piece)
        case "plamo2":
            return _PlainText(plamo.Plamo(vocab, _scores(made), made.types == TokenType.BYTE), plamo.piece)
        case _:
            return _PlainText(spm.SPM(vocab, _scores(made), made.space_prefix), spm.piece)


def _unigrams(made: _Reading) -> ugm.UGM:
    metadata, user_defined = made.metadata, TokenType.USER_DEFINED
    free = (made.corrected == user_defined) | ((made.types == user_defined) & (made.corrected == TokenType.CONTROL))
    charsmap = numbers(metadata, "precompiled_charsmap", None, ("int8", "uint8"))
    replacements = None if charsmap is None else ugm.Replacements(charsmap.tobytes())
    spaces = ugm.Spaces(made.space_prefix, flag(metadata, "remove_extra_whitespaces", False))
    unknown = needed_id(metadata, made.kind, "unknown", len(made.vocab))
    return ugm.UGM(made.vocab, _scores(made), made.types, free, unknown, replacements, spaces)


def _scores(made: _Reading) -> np.ndarray:
    """(V,) float32, all equal if the file has none."""
    scores = numbers(made.metadata, "scores", len(made.vocab), ("float32", "int32"))
    if scores is None:
        return np.zeros(len(made.vocab), np.float32)
    if (nan := np.isnan(scores)).any():
        fail("scores", f"is NaN for id {int(nan.argmax())}")
    return scores.astype(np.float32)


def _read_tokens(metadata: Mapping[str, Any], kind: str) -> tuple[list[str], dict[str, int]]:
    """The tokens by id and the ids by token. An empty token gets a name, as in llama.cpp."""
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(strings(metadata, "tokens"))]
    if not tokens:
        fail("tokens", "is empty")
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        first = next(i for i, token in enumerate(tokens) if vocab[token] != i)
        fail("tokens", f"has '{shown(tokens[first])}' twice, as ids {first} and {vocab[tokens[first]]}")
    if kind == "hybriddna":
        genes = vocab.get(bpe_variants.UNKNOWN, len(tokens)) + 1  # they come behind it
        tokens[genes:] = [token.removesuffix(bpe_variants.GENE_MARK) or token for token in tokens[genes:]]
    return tokens, vocab


def _sound(text: str) -> str:
    """`text` with U+FFFD for each surrogate, which has no UTF-8. Raises ConfigError for what is no text."""
    if not isinstance(text, str):
        raise ConfigError(f"a text to encode is a str, not {reprlib.repr(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def _user_defined(special: Special) -> bool:
    """Whether a special token is found in any text, as llama.cpp does."""
    return special.type == TokenType.USER_DEFINED


def _cut(
    text: str,
    fragment: int | slice,
    special: Special,
    meant: Callable[[Special, int], bool],
    before: bool,
    after: bool,
) -> list[int | slice]:
    """A fragment of `text` cut at every `special`; C's white space `before` and `after` one is dropped where asked."""
    if isinstance(fragment, int):
        return [fragment]
    parts: list[int | slice] = []
    at, end, found = fragment.start, fragment.stop, fragment.start - 1
    while (found := text.find(special.text, max(at, found + 1), end)) >= 0:
        if not meant(special, found):
            continue
        left = found
        while before and left > at and text[left - 1] in _C_SPACES:
            left -= 1
        if left > at:
            parts.append(slice(at, left))
        parts.append(special.id)
        at = found + len(special.text)
        while after and at < end and text[at] in _C_SPACES:
            at += 1
    if at < end:
        parts.append(slice(at, end))
    return parts


def _taken_apart(text: str, tokens: Iterable[str]) -> list[str]:
    """`text` cut behind the first character of each of these tokens, so that no merge makes one of them."""
    pattern = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in tokens if len(token) > 1)
    return re.split(pattern, text) if pattern else [text]
