"""What llama.cpp's grammars allow, token by token: how `grammar_goldens.json` is made.

Grammars written for the traps of the notation, and generated ones, under a vocabulary of 64 tokens in which a character
is one token, a part of one, or cut in two. Each grammar is walked from its beginning along tokens that it allows, and
at each step told which of all tokens may follow: what it refuses is told with what it admits.

Left out is where llama.cpp does not say what it means: a negated class refuses the first byte of a character where it
excludes another one with the same first byte, so these classes hold ASCII only.
"""

import ctypes
import json
import pathlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from peer import Vocab
from vocabularies import bpe, byte_letters, write_vocabulary

PATH = pathlib.Path(__file__).with_suffix(".json")
ALPHABET = 'abcxyz019 \n"\\-]~&.é中😀'
PIECES = (
    *ALPHABET, "ab", "bc", "aa", "az", "xy", "01", "019", 'a"', '"a', '""', "\\\\", '\\"', " a", "  ", "\n\n", "a\n",
    "abc", "aaa", "éa", "aé", "中é", "é中", "&&", "a-z", "..", "~~", "-]", "b]", "9.", "1 ", "abab", "ca", "cb", "xz",
    "yx", "00", '"\\', "😀😀", "😀a",
)  # fmt: skip
BYTES = (b"\xc3", b"\xa9")  # é in two tokens
GENERATED, WALKS, STEPS = 60, 3, 7

TRAPS = (
    'root ::= "\\x41\\u00e9\\U0001F600\\n\\t\\r\\\\\\"\\[\\]\\-"',
    'root ::= "\\u0061b\\x63" | "\\U00004e2d"',
    'root ::= "a.c" | "a" . "c"',
    "root ::= .",
    'root ::= .* "ab"',
    'root ::= [a-z]* "b"',
    'root ::= "\\"" [^"]* "\\""',
    'root ::= "\\"" ([^"\\\\] | "\\\\" ["\\\\])* "\\"" [a-z]?',
    "root ::= [a&&b]+",
    "root ::= [~a-]+ [-a~]",
    "root ::= [a-c&&[^b]+",
    "root ::= [\\]\\-\\\\^]+ [a^]?",
    "root ::= [a-b-x]+",
    "root ::= [^a-z\\n]{2}",
    "root ::= [\\x00-\\x5A]+",
    "root ::= [\\u00C0-\\u024F\\u4e00-\\u9fff]+",
    "root ::= [^\\x00-\\x7f]+",
    'root ::= "a"{0} "b"{0,0} "c"',
    'root ::= ("a" | "bc"){0} | "x"',
    'root ::= "a"{2} "b"{1,} "c"{0,2}',
    'root ::= "ab"{2}?',
    'root ::= "ab"+*',
    'root ::= "a" { 1 , 2 } "c"',
    'root ::= start\nstart ::= "a" import\nimport ::= E0 | ""\nE0 ::= "b" T-1\nT-1 ::= "c"',
    "root ::= A a 1\nA ::= [ab]\na ::= [bc]\n1 ::= [0-9]",
    'root ::= aB a-b\naB ::= "a"\na-b ::= "b"',
    'root ::= "x" | a\na ::= "b"\na ::= "c"',
    'root ::= # what follows\n  "a" | # and\n  "b"\r\n# the end',
    'root ::= ("a"\n  | "b" # c "d"\n  )*\n',
    'root ::= | "a"',
    "root ::= ",
    'root ::= ("" | "a") "b"',
    'root ::= ("a"?)* "b"',
    'root ::= a root | "b"\na ::= [ac]?',
    'root ::= "a" root "b" | ""',
    'root ::= "a" root "a" | "b"?',
    'root ::= "(" | x\nx ::= "\\"" x "\\"" | [a-z]+ | "az"',
    'root ::= "a" one | ""\none ::= "b" two | "c"\ntwo ::= "c" root | "a" one',
    'root ::= ("a" root "b" | "ab")+ [ab]*',
    'root ::= "\\"ab\\"" root "x" | "\\"" [^"]* "\\"" root "y" | "z"',
    'root ::= ("abc" | [a-c] "b" | "ab") root "x" | "aa" root | "abc" "z"',
    "root ::= value\nvalue ::= [0-9]+ | string | list\nlist ::= \"xy\" (value (\" \" value)*)? \"z\"\n"
    'string ::= "\\"" ( [^"\\\\] | "\\\\" ["\\\\n] )* "\\"" space\nspace ::= | " " | "\\n"{1,2} [ a]{0,3}',
    'root ::= x{2,3}\nx ::= "a" x? | "b" y\ny ::= root | "c"',
    'root ::= "aa" | "a" rest\nrest ::= "bc" root "ab" | "b"',
)  # fmt: skip


def write(path: pathlib.Path) -> pathlib.Path:
    """A file of the vocabulary."""
    letters = byte_letters()
    texts = ["".join(letters[byte] for byte in each) for each in (*(piece.encode() for piece in PIECES), *BYTES)]
    end = len(texts)
    metadata = bpe("llama-bpe", tokens=[*texts, "<|end|>"], merges=["a b"], bos_token_id=end, eos_token_id=end)
    metadata["tokenizer.ggml.token_type"] = np.array([1] * end + [3], np.int32)
    return write_vocabulary(path, metadata)


def generated(seed: int) -> str:
    """A grammar of up to four rules."""
    return "\n".join(_rules(random.Random(seed)))


def _rules(rng: random.Random) -> Iterator[str]:
    names = ["root", *rng.sample(["a", "B", "x-y", "start", "json", "T0", "1"], rng.choice([0, 1, 2, 3]))]
    for i, name in enumerate(names):
        end = f' | "{_character(rng, ALPHABET)}"'  # so that most rules have one
        yield f"{name} ::= {_alternatives(rng, names, i, 2)}{end}"


def _alternatives(rng: random.Random, names: list[str], rule: int, depth: int) -> str:
    return " | ".join(_sequence(rng, names, rule, depth) for _ in range(rng.choice([1, 1, 2, 3])))


def _sequence(rng: random.Random, names: list[str], rule: int, depth: int) -> str:
    count = rng.choice([0, 1, 1, 2, 2, 3]) if depth else rng.choice([1, 1, 2])
    return " ".join(_item(rng, names, rule, depth) for _ in range(count)) or '""'


def _item(rng: random.Random, names: list[str], rule: int, depth: int) -> str:
    kind, later = rng.random(), names[rule + 1 :]
    if kind < 0.2:
        item = f'"{"".join(_character(rng, ALPHABET) for _ in range(rng.choice([1, 1, 2, 3])))}"'
    elif kind < 0.4:
        item = _class(rng)
    elif kind < 0.45:
        item = "."
    elif kind < 0.65 and later:
        item = rng.choice(later)
    elif kind < 0.75 or not depth:  # a rule within itself, behind something: no left recursion
        item = f'("{_character(rng, ALPHABET)}" {rng.choice(names)})'
    else:
        item = f"({_alternatives(rng, names, rule, depth - 1)})"
    often = ("*", "+", "?", "?", "{0}", "{2}", "{1,2}", "{0,3}", "{2,}", " {1, 3}")
    return item + (rng.choice(often) if rng.random() < 0.25 else "")


def _class(rng: random.Random) -> str:
    negated = rng.random() < 0.3
    known = ["a-z", "0-9", "x-z", "\\x61-c", "a-b", " -~", "&&", *([] if negated else ["\\u00C0-\\u024F"])]
    parts = []
    for _ in range(rng.randint(1, 3)):
        character = _character(rng, ALPHABET[:-3] if negated else ALPHABET)
        parts.append(rng.choice(known) if rng.random() < 0.4 else "\\-" if character == "-" else character)
    return f"[{'^' * negated}{''.join(parts)}]"


def _character(rng: random.Random, among: str) -> str:
    character, kind = rng.choice(among), rng.random()
    if kind < 0.15 and ord(character) < 0x100:
        return f"\\x{ord(character):02X}"
    if kind < 0.25:
        return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08X}"
    return {'"': '\\"', "\\": "\\\\", "\n": "\\n", "]": "\\]"}.get(character, character)


class PeerGrammar:
    """A grammar in llama.cpp, or none where it refuses it."""

    def __init__(self, vocab: Vocab, grammar: str):
        self.vocab, self.lib = vocab, vocab.lib
        self.sampler = self.lib.llama_sampler_init_grammar(vocab.vocab, grammar.encode(), b"root")

    def allowed(self) -> list[int]:
        size = self.vocab.size
        data = (self.lib.llama_token_data * size)(*(self.lib.llama_token_data(i, 0.0, 0) for i in range(size)))
        array = self.lib.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)
        self.lib.llama_sampler_apply(self.sampler, ctypes.byref(array))
        return [each.id for each in data if each.logit == 0]

    def walk(self, rng: random.Random) -> list[list[int]]:
        """[tokens taken, bits of those allowed before each and at the end], along tokens that are allowed."""
        self.lib.llama_sampler_reset(self.sampler)
        taken: list[int] = []
        bits: list[int] = []
        while True:
            allowed = self.allowed()
            bits.append(sum(1 << i for i in allowed))
            ahead = [i for i in allowed if i not in self.vocab.ends]
            if not ahead or len(taken) == STEPS:
                return [taken, bits]
            taken.append(rng.choice(ahead))
            self.lib.llama_sampler_accept(self.sampler, taken[-1])

    def close(self) -> None:
        self.lib.llama_sampler_free(self.sampler)


def walks(vocab: Vocab, grammar: str, seed: int) -> list[list[list[int]]] | None:
    """Some walks through a grammar; None where llama.cpp refuses it."""
    peer = PeerGrammar(vocab, grammar)
    if not peer.sampler:
        return None
    found = [peer.walk(random.Random(seed + i)) for i in range(WALKS)]
    peer.close()
    return [each for i, each in enumerate(found) if each not in found[:i]]


def told(seeds: range, grammars: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What llama.cpp says of these grammars and of those generated with these seeds."""
    with tempfile.TemporaryDirectory() as folder:
        vocab = Vocab(write(pathlib.Path(folder) / "vocabulary.gguf"))
    cases = [*grammars, *(generated(seed) for seed in seeds)]
    out = [{"grammar": case, "walks": walks(vocab, case, i)} for i, case in enumerate(cases)]
    vocab.close()
    return out


def make() -> None:
    cases = [case for case in told(range(GENERATED + 20), TRAPS) if case["walks"] is not None]
    lines = (json.dumps(case, separators=(",", ":")) for case in cases[: len(TRAPS) + GENERATED])
    PATH.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
