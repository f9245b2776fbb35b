"""Special tokens: their ids and types, and where they cut a text.

Knows what llama.cpp makes of a file's keys and of the tokens' texts. Knows nothing of plain text.

Source: llama.cpp src/llama-vocab.cpp, `llama_vocab::impl::load`.
"""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from packlight.common.text import shown
from packlight.model.text.keys import KEY, fail, flag, numbers, token_id


class TokenType(enum.IntEnum):
    """`tokenizer.ggml.token_type`, of what is read here."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# llama.cpp's ids for a file that names none.
DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2},
    "gpt2": {"bos": 11, "eos": 11},
    "whitespace": {"bos": 11, "eos": 11},
    "hybriddna": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102},  # GGUF spells it so
    "t5": {"eos": 1, "unknown": 2},
    "rwkv": {},
    "plamo2": {"bos": 1, "eos": 2},
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

# These end a generation, also where the file does not say so.
_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~["
)
END_TEXTS = tuple(_ENDS.split())
_LIKE_CONTROL = re.compile(r"<[|\uff5c].*\w.*>|<.*\w.*[|\uff5c]>")
_TAG = re.compile(r"<.*\w.*>|\[.*\w.*\]")
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


class Frame(NamedTuple):
    """What is put around a text where the file does not say, or whatever it says."""

    bos: bool
    eos: bool = False
    bos_fixed: bool = False
    eos_fixed: bool = False
    default_bos: bool = True  # whether there is a bos token where the file names none


class Special(NamedTuple):
    """A token that is looked for in a text."""

    text: str
    id: int
    type: int


@dataclass(frozen=True)
class Specials:
    """The special tokens of a vocabulary."""

    types: np.ndarray  # (V,) int32, `tokenizer.ggml.token_type` with llama.cpp's corrections
    bos_id: int | None
    eos_id: int | None
    end_id: int | None  # the id that `encode` puts behind a text
    add_bos: bool  # whether `encode` puts bos_id before a text
    add_eos: bool  # whether `encode` puts eos_id behind a text
    eog_ids: frozenset[int]  # the ids after which a generation ends
    in_text: tuple[Special, ...]  # what a text is searched for, the longest first; of equal lengths the lowest id
    strip_before: frozenset[int]  # ids that swallow the white space before them
    strip_after: frozenset[int]  # ids that swallow the white space after them

    @property
    def control_ids(self) -> frozenset[int]:
        """The control tokens."""
        return frozenset(special.id for special in self.in_text if special.type == TokenType.CONTROL)

    def marks_of(self, template: str) -> frozenset[int]:
        """The user-defined tokens that serve a chat template as control tokens: those which look like one, and tags
        that it writes itself. (llama.cpp makes some control tokens user-defined, so that they are shown.)
        """
        return frozenset(
            special.id
            for special in self.in_text
            if special.type == TokenType.USER_DEFINED
            and (_LIKE_CONTROL.fullmatch(special.text) or (_TAG.fullmatch(special.text) and special.text in template))
        )

    @classmethod
    def read(
        cls,
        metadata: Mapping[str, Any],
        kind: str,
        tokens: Sequence[str],
        vocab: Mapping[str, int],
        types: np.ndarray,
        frame: Frame,
    ) -> "Specials":
        """The special tokens of a file. kind: its `tokenizer.ggml.model`. vocab: token -> id. types: as the file says.

        Raises GGUFError naming the key that is missing, of the wrong type, or makes no sense.
        """
        size = len(tokens)
        defaults = {name: i for name, i in DEFAULT_IDS[kind].items() if i < size}
        bos = token_id(metadata, "bos", size, defaults.get("bos") if frame.default_bos else None, strict=True)
        eos = token_id(metadata, "eos", size, defaults.get("eos"), strict=True)
        ends, types = _ends(metadata, tokens, vocab, eos, types)
        add_bos, add_eos = flag(metadata, "add_bos_token", frame.bos), flag(metadata, "add_eos_token", frame.eos)
        add_bos = frame.bos if frame.bos_fixed else add_bos
        add_eos = frame.eos if frame.eos_fixed else add_eos
        if kind == "bert":
            bos, end = needed_id(metadata, kind, "bos", size), needed_id(metadata, kind, "seperator", size)
        else:
            end = eos if add_eos else None
        for added, found, name in ((add_bos, bos, "bos"), (add_eos, eos, "eos")):
            if added and found is None:
                fail(f"{name}_token_id", f"is missing, but a {name} token is to be added")
        in_text = _in_text(tokens, types)
        return cls(types, bos, eos, end, add_bos, add_eos, ends, in_text, *_strips(metadata, vocab, in_text))


def needed_id(metadata: Mapping[str, Any], kind: str, name: str, vocab_size: int) -> int:
    """A special id that no text can do without."""
    default = DEFAULT_IDS[kind].get(name, vocab_size)
    found = token_id(metadata, name, vocab_size, default if default < vocab_size else None, strict=True)
    if found is None:
        known = (
            f"a vocabulary of {vocab_size} tokens has no id {default}"
            if name in DEFAULT_IDS[kind]
            else "has no default"
        )
        fail(f"{name}_token_id", f"is missing, and {known}")
    return found


def _ends(
    metadata: Mapping[str, Any], tokens: Sequence[str], vocab: Mapping[str, int], eos: int | None, types: np.ndarray
) -> tuple[frozenset[int], np.ndarray]:
    """The ids that end a generation, and the types with those of tokens that are special by their text."""
    types = types.copy()
    ids: dict[str, int | None] = {}
    for name, texts in _BY_TEXT.items():
        given = token_id(metadata, name, len(tokens))
        ids[name] = token_id(metadata, _OLD_KEYS.get(name, name), len(tokens), given)
        found = [vocab[text] for text in texts.split() if text in vocab]
        if ids[name] is None and found:
            ids[name] = min(found)
            types[min(found)] = TokenType.CONTROL
    ends = {vocab[text] for text in END_TEXTS if text in vocab}
    types[list(ends)] = TokenType.CONTROL
    types[[vocab[text] for text in _ALWAYS_SHOWN if text in vocab]] = TokenType.USER_DEFINED
    ends |= {i for name in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep") if (i := ids[name]) is not None}
    ends |= set() if eos is None else {eos}
    for end, corrected in _false_ends({tokens[i] for i in ends}).items():
        ends.discard(vocab[end])
        types[vocab[end]] = corrected
    return frozenset(ends), types


def _false_ends(texts: set[str]) -> dict[str, TokenType]:
    """Of the texts of ends, those that others show to be no ends, and their types (gpt-oss, Solar; Gemma 4, PLaMo)."""
    found = {}
    call = bool(texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in texts and call and texts & {"<|return|>", "<|flush|>"}:
        found["<|end|>"] = TokenType.USER_DEFINED
    if "</s>" in texts and texts & {"<|tool_response>", "<|plamo:eos|>"}:
        found["</s>"] = TokenType.NORMAL
    return found


def _in_text(tokens: Sequence[str], types: np.ndarray) -> tuple[Special, ...]:
    """What a text is searched for, the longest first; of equal lengths the lowest id."""
    sought = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
    found = [Special(tokens[i], i, int(types[i])) for i in np.flatnonzero(np.isin(types, sought)).tolist()]
    return tuple(sorted(found, key=lambda special: -len(special.text.encode())))


def _strips(
    metadata: Mapping[str, Any], vocab: Mapping[str, int], specials: Sequence[Special]
) -> tuple[frozenset[int], frozenset[int]]:
    """The ids that swallow the white space before and after them. No key says so; llama.cpp goes by names."""
    keys = (KEY + "pre", "general.architecture", "general.name")
    pre, architecture, name = (str(metadata.get(key, "")) for key in keys)
    name = name.lower()
    if re.search("jina-v2-(de|es|code)", pre) or re.search("nomic-bert-moe|jina-bert-v3", architecture):
        mask = "<mask>"
    elif "phi-3" in name or "phi3" in name:
        plain = ("<unk>", "<s>", "<|endoftext|>")
        return frozenset(), frozenset(special.id for special in specials if special.text not in plain)
    else:
        mask = "[MASK]" if "modern-bert" in name else ""
    return frozenset({vocab[mask]} if mask in vocab else ()), frozenset()


def read_types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> np.ndarray:
    """(V,) int32, all NORMAL if the file has none; byte tokens are well-formed after this."""
    types = numbers(metadata, "token_type", len(tokens), ("int32",))
    if types is None:
        return np.full(len(tokens), TokenType.NORMAL, np.int32)
    for i in np.flatnonzero(types == TokenType.BYTE).tolist():
        digits = tokens[i][3:5]
        if tokens[i] != f"<0x{digits}>" or len(digits) != 2 or not set(digits) <= set("0123456789abcdefABCDEF"):
            fail("tokens", f"has '{shown(tokens[i])}' as id {i}, a byte token, which must read like '<0x0A>'")
    return types
