"""Text to token ids and back, exactly as llama.cpp does it, from a GGUF file's `tokenizer.ggml.*` metadata.

Knows which metadata keys there are and what llama.cpp makes of them: special tokens, their types and where they cut a
text, beginning and end of sequence, the ids that end a generation. Knows neither how plain text is encoded (`bpe`,
`spm`, `wpm`) nor how text is streamed, and needs no jax.

Source: llama.cpp src/llama-vocab.cpp, unless said otherwise.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from packlight.common.errors import ConfigError, GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile, open_gguf
from packlight.model.text import bpe, spm, wpm
from packlight.model.text.pretokenizers import PRETOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_KEY = "tokenizer.ggml."
_MODELS = ("llama", "gpt2", "bert")

# llama.cpp's ids for a file that names none.
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2},
    "gpt2": {"bos": 11, "eos": 11},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102},  # GGUF spells it so
}

# Special tokens known by their text where the file does not give their id.
_BY_TEXT = {
    "eot": "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] "
    "<\uff5cend\u2581of\u2581sentence\uff5c> <end_of_utterance>",
    "eom": "<|eom_id|>",
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
    "<|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> "
    "<|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> "
    "<|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}

# Whatever the file says of them, these end a generation.
_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~["
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

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
        self._metadata = metadata
        self.kind = _choice(metadata, "model", _MODELS, "tokenizer")
        self._tokens, self._vocab = _read_tokens(metadata)
        self.vocab_size = len(self._tokens)
        self.token_types = self._read_types()
        if self.kind == "llama":
            self._coder = spm.SPM(self._vocab, _numbers(metadata, "scores", self.vocab_size, ("float32", "int32")))
            self._normal_piece = spm.piece
            default_bos = True
        elif self.kind == "bert":
            lowercase = self._flag("normalizer.lowercase", True)
            strip_accents = self._flag("normalizer.strip_accents", lowercase)
            self._coder = wpm.WPM(self._vocab, self._needed_id("unknown"), lowercase, strip_accents)
            self._normal_piece = spm.piece
            default_bos = True
        else:
            pre = PRETOKENIZERS[_choice(metadata, "pre", PRETOKENIZERS, "pre-tokenizer", missing="default")]
            self._coder = bpe.BPE(self._vocab, _strings(metadata, "merges"), pre)
            self._normal_piece = bpe.piece
            default_bos = pre.add_bos
        self._space_prefix = self._flag("add_space_prefix", self.kind == "llama")
        self._find_special_ids()
        self.add_bos = self._flag("add_bos_token", default_bos)
        self.add_eos = self._flag("add_eos_token", False)
        if self.kind == "bert":  # which frames every text, whatever these flags say
            self.add_bos, self.add_eos = True, False
            self.bos_id, self.end_id = self._needed_id("bos"), self._needed_id("seperator")
        else:
            self.end_id = self.eos_id if self.add_eos else None
        for flag, token_id, name in ((self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos")):
            if flag and token_id is None:
                _fail(f"{name}_token_id", f"is missing, but a {name} token is to be added")
        self._specials = self._list_specials()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer of a GGUF file's metadata: str -> str, int, bool, list[str] or numpy array.

        Raises UnsupportedError for an unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre`, by name and with what is
        supported; GGUFError naming the key that is missing, of the wrong type or length, or makes no sense.
        """
        return cls(metadata)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike) -> "Tokenizer":
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
        Raises GGUFError for a text that a vocabulary without byte tokens cannot spell.
        """
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for fragment in self._partition(_sound(text), parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
            else:
                prefixed = self._space_prefix and after_special and self.kind == "llama"
                ids.extend(self._coder.encode(" " + fragment if prefixed else fragment))
                after_special = False
        if add_special and self.end_id is not None:
            ids.append(self.end_id)
        return ids

    def encode_continued(self, text: str) -> list[int]:
        """The ids of plain text as it follows other text: nothing put before it, no special token seen in it."""
        return self._coder.encode(_sound(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, as llama_detokenize(remove_special=false, unparse_special=true) without space clean-up.

        The first token loses a leading space if the vocabulary adds one in `encode`. What is not UTF-8 becomes U+FFFD.
        Raises ConfigError for an id out of range.
        """
        pieces = [self.piece(token_id) for token_id in ids]
        if pieces and self._space_prefix:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token, as llama_token_to_piece(lstrip=0, special=true); empty for an unused one.

        Raises ConfigError for an id out of range.
        """
        if not 0 <= token_id < self.vocab_size:
            raise ConfigError(f"token id {token_id} is not in 0..{self.vocab_size - 1}")
        token = self._tokens[token_id]
        match int(self.token_types[token_id]):
            case 1:  # NORMAL
                return self._normal_piece(token)
            case 2 | 3 | 4:  # UNKNOWN, CONTROL, USER_DEFINED
                return token.encode()
            case 6:  # BYTE
                return bytes([int(token[3:5], 16)])
            case _:
                return b""

    def _partition(self, text: str, parse_special: bool) -> list[str | int]:
        """`text` cut at its special tokens, which are tried longest first, each on all the text still left."""
        fragments: list[str | int] = [text] if text else []
        characters = set(text)
        for special, token_id, token_type in self._specials:
            if token_type != USER_DEFINED and not parse_special:
                continue
            # the set spares a search of the whole text for nearly every one of a vocabulary's thousands
            if characters.issuperset(special) and special in text:
                before, after = token_id in self._strip_before, token_id in self._strip_after
                fragments = [part for f in fragments for part in _cut(f, special, token_id, before, after)]
        return fragments

    def _list_specials(self) -> list[tuple[str, int, int]]:
        """(text, id, type) of what `_partition` looks for, the longest first; of equal lengths the lowest id."""
        ids = np.flatnonzero(np.isin(self.token_types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
        specials = [(self._tokens[i], i, int(self.token_types[i])) for i in ids]
        specials.sort(key=lambda special: -len(special[0].encode()))
        self._strip_before, self._strip_after = self._greedy_specials(specials)
        return specials

    def _greedy_specials(self, specials: list[tuple[str, int, int]]) -> tuple[frozenset[int], frozenset[int]]:
        """The ids that swallow the white space before and after them. No key says so; llama.cpp goes by names."""
        keys = (_KEY + "pre", "general.architecture", "general.name")
        pre, architecture, name = (str(self._metadata.get(key, "")) for key in keys)
        name = name.lower()
        if re.search("jina-v2-(de|es|code)", pre) or re.search("nomic-bert-moe|jina-bert-v3", architecture):
            mask = "<mask>"
        elif "phi-3" in name or "phi3" in name:
            plain = ("<unk>", "<s>", "<|endoftext|>")
            return frozenset(), frozenset(i for text, i, _ in specials if text not in plain)
        else:
            mask = "[MASK]" if "modern-bert" in name else ""
        return frozenset({self._vocab[mask]} if mask in self._vocab else ()), frozenset()

    def _find_special_ids(self) -> None:
        """Sets `bos_id`, `eos_id` and `eog_ids`, and corrects the types of tokens that are special by their text."""
        defaults = {name: i for name, i in _DEFAULT_IDS[self.kind].items() if i < self.vocab_size}
        self.bos_id = self._special_id("bos", defaults.get("bos"), strict=True)
        self.eos_id = self._special_id("eos", defaults.get("eos"), strict=True)
        ids: dict[str, int | None] = {}
        for name, texts in _BY_TEXT.items():
            ids[name] = self._special_id(_OLD_KEYS.get(name, name), self._special_id(name, None))
            found = [self._vocab[text] for text in texts.split() if text in self._vocab]
            if ids[name] is None and found:
                ids[name] = min(found)
                self.token_types[min(found)] = CONTROL
        ends = {self._vocab[text] for text in _ENDS.split() if text in self._vocab}
        self.token_types[list(ends)] = CONTROL
        self.token_types[[self._vocab[text] for text in _ALWAYS_SHOWN if text in self._vocab]] = USER_DEFINED
        ends |= {ids[name] for name in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")} | {self.eos_id}
        self.eog_ids = frozenset(self._without_false_ends({i for i in ends if i is not None}))

    def _without_false_ends(self, ends: set[int]) -> set[int]:
        """`ends` without what other ends show to be something else (gpt-oss, Solar Open; Gemma 4)."""
        texts = {self._tokens[i] for i in ends}
        call = bool(texts & {"<|call|>", "<|calls|>"})
        if "<|end|>" in texts and call and texts & {"<|return|>", "<|flush|>"}:
            ends.discard(self._vocab["<|end|>"])
            self.token_types[self._vocab["<|end|>"]] = USER_DEFINED
        if {"<|tool_response>", "</s>"} <= texts:
            ends.discard(self._vocab["</s>"])
            self.token_types[self._vocab["</s>"]] = NORMAL
        return ends

    def _special_id(self, name: str, default: int | None, strict: bool = False) -> int | None:
        """The file's id; `default` where it is absent or, unless `strict`, out of range (llama.cpp warns)."""
        key = f"{name}_token_id"
        value = self._metadata.get(_KEY + key)
        if value is None:
            return default
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            _fail(key, f"is {shown(repr(value))}, not a token id")
        if 0 <= value < self.vocab_size:
            return int(value)
        if strict:
            _fail(key, f"is {value}, but the vocabulary ends at {self.vocab_size - 1}")
        return default

    def _needed_id(self, name: str) -> int:
        """A special id that no text can do without."""
        default = _DEFAULT_IDS[self.kind][name]
        found = self._special_id(name, default if default < self.vocab_size else None, strict=True)
        if found is None:
            _fail(f"{name}_token_id", f"is missing, and a vocabulary of {self.vocab_size} tokens has no id {default}")
        return found

    def _flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(_KEY + key, default)
        if not isinstance(value, (bool, np.bool_)):
            _fail(key, f"is {shown(repr(value))}, neither true nor false")
        return bool(value)

    def _read_types(self) -> np.ndarray:
        """(V,) int32, all NORMAL if the file has none; byte tokens are well-formed after this."""
        types = _numbers(self._metadata, "token_type", self.vocab_size, ("int32",))
        if types is None:
            return np.full(self.vocab_size, NORMAL, np.int32)
        for i in np.flatnonzero(types == BYTE).tolist():
            token = self._tokens[i]
            digits = token[3:5]
            if token != f"<0x{digits}>" or len(digits) != 2 or not set(digits) <= set("0123456789abcdefABCDEF"):
                _fail("tokens", f"has '{shown(token)}' as id {i}, a byte token, which must read like '<0x0A>'")
        return types.copy()


def _fail(key: str, what: str) -> NoReturn:
    raise GGUFError(f"key '{_KEY}{key}' {what}")


def _choice(
    metadata: Mapping[str, Any], key: str, supported: Iterable[str], what: str, missing: str | None = None
) -> str:
    """The string at `key`, which must be one of `supported`."""
    value = metadata.get(_KEY + key, missing)
    if value is None:
        _fail(key, "is missing")
    if not isinstance(value, str):
        _fail(key, f"is {shown(repr(value))}, not a name")
    if value not in supported:
        raise UnsupportedError(f"{what} '{shown(value)}' ({_KEY}{key}); supported: {', '.join(sorted(supported))}")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    values = metadata.get(_KEY + key)
    if values is None:
        _fail(key, "is missing")
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        _fail(key, "is not an array of strings")
    return values


def _read_tokens(metadata: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """The tokens by id and the ids by token. An empty token gets a name, as in llama.cpp."""
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(_strings(metadata, "tokens"))]
    if not tokens:
        _fail("tokens", "is empty")
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        first = next(i for i, token in enumerate(tokens) if vocab[token] != i)
        _fail("tokens", f"has '{shown(tokens[first])}' twice, as ids {first} and {vocab[tokens[first]]}")
    return tokens, vocab


def _numbers(metadata: Mapping[str, Any], key: str, length: int, dtypes: tuple[str, ...]) -> np.ndarray | None:
    """The array at `key`, None if there is none."""
    values = metadata.get(_KEY + key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.name not in dtypes or values.ndim != 1:
        _fail(key, f"is not an array of {' or '.join(dtypes)}")
    if len(values) != length:
        _fail(key, f"has {len(values)} elements for {length} tokens")
    return values


def _sound(text: str) -> str:
    """`text` with U+FFFD for each surrogate, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def _cut(fragment: str | int, special: str, token_id: int, before: bool, after: bool) -> list[str | int]:
    """A text fragment cut at every `special`; C's white space `before` and `after` one is dropped where asked."""
    if isinstance(fragment, int) or special not in fragment:
        return [fragment]
    parts: list[str | int] = []
    at = 0
    while (found := fragment.find(special, at)) >= 0:
        left = fragment[at:found]
        if left := left.rstrip(_C_SPACES) if before else left:
            parts.append(left)
        parts.append(token_id)
        at = found + len(special)
        while after and at < len(fragment) and fragment[at] in _C_SPACES:
            at += 1
    if at < len(fragment):
        parts.append(fragment[at:])
    return parts
