"""Sound containers that are no usable models: files for each kind of badgguf's "Model level" list, and what is said.

A case is (file bytes, words): a pattern that the error must match, or None where the file must be accepted. Each is a
tiny llama whose keys `write_llama` was told to change, or whose bytes were edited.
"""

import math
import pathlib
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import tokenizers
from ggufs import write_llama
from hostile import ARR, I32, array, info, pair, u32, u64

from packlight.model.gguf.reader import GGUFFile, open_gguf

Case = tuple[bytes, str | None]

TINY: dict[str, Any] = {"layers": 1, "embed": 32, "vocab": 270}
NAN, INF = math.nan, math.inf


def tiny(extra=None, **changes) -> bytes:
    """A tiny llama with further or replacing keys."""
    with tempfile.TemporaryDirectory() as folder:
        return write_llama(pathlib.Path(folder, "m.gguf"), extra=extra, **(TINY | changes)).read_bytes()


def opened(raw: bytes) -> GGUFFile:
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        return open_gguf(file.name)


def row(file: GGUFFile, name: str, dims=None, type_id: int | None = None) -> bytes:
    """The tensor info of `name` as it is, or with other dimensions or another type."""
    tensor, start = file.tensors[name], min(t.offset for t in file.tensors.values())
    kind = tensor.format.type_id if type_id is None else type_id
    return info(name, tensor.shape[::-1] if dims is None else dims, kind, tensor.offset - start)


def edited(raw: bytes, old: bytes, new: bytes) -> bytes:
    """`raw` with one stretch of its header replaced and the padding before the data section made anew."""
    file = opened(raw)
    last = row(file, list(file.tensors)[-1])
    end, start = raw.index(last) + len(last), min(t.offset for t in file.tensors.values())
    assert raw[:end].count(old) == 1
    head = raw[:end].replace(old, new)
    return head + bytes(-len(head) % 32) + raw[start:]


def reshaped(raw: bytes, name: str, dims=None, type_id: int | None = None) -> bytes:
    file = opened(raw)
    return edited(raw, row(file, name), row(file, name, dims, type_id))


def poked(raw: bytes, name: str, block: int, at: int, value: bytes) -> bytes:
    """`raw` with bytes overwritten at byte `at` of a block of tensor `name`."""
    tensor = opened(raw).tensors[name]
    at += tensor.offset + block * tensor.format.bytes
    return raw[:at] + value + raw[at + len(value) :]


def with_empty_array(key: str) -> bytes:
    one = pair(key, ARR, array(I32, 1, u32(7)))
    return edited(tiny({key: ("[i32]", [7])}), one, pair(key, ARR, array(I32, 0)))


def with_tensor(raw: bytes, name: str) -> bytes:
    """`raw` with one more tensor, 8 numbers of F32."""
    file = opened(raw)
    size = len(raw) - min(t.offset for t in file.tensors.values())
    last = row(file, list(file.tensors)[-1])
    out = edited(raw, last, last + info(name, [8], 0, size))
    return out[:8] + u64(len(file.tensors) + 1) + out[16:] + bytes(32)


def good() -> Iterator[Case]:
    for seed in range(3):
        yield tiny(seed=seed), None
    yield tiny(tied=True, biases=True), None
    yield tiny({"llama.attention.head_count_kv": ("[u32]", [2])}), None


def block_count() -> Iterator[Case]:
    yield tiny({"llama.block_count": 2}), r"tensor 'blk\.1\.attn_norm\.weight' is missing"
    for value in (0, 513, 10**6, 2**32 - 1, ("u64", 2**63), ("i64", -1), "1", 1.0, ("[u32]", [1]), True):
        yield tiny({"llama.block_count": value}), r"key 'llama\.block_count'"


INTEGERS = ["context_length", "embedding_length", "feed_forward_length", "vocab_size", "rope.dimension_count"]
INTEGERS += ["attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"]
INTEGERS += ["rope.scaling.original_context_length", "expert_count", "expert_used_count"]
FLOATS = ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor"]
FLOATS += ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"]
YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}
BAD_INTEGERS = [0, 2**32 - 1, ("u64", 2**63), ("i64", -1), 32.0, "32", ("[u32]", [3, 4]), ["32"], True, NAN]
BAD_FLOATS = [0.0, -1.0, NAN, INF, -INF, ("f64", 1e300), 1, "1", ("[f32]", [1.0]), True]


def bad_hparam() -> Iterator[Case]:
    yield tiny(YARN), None
    for keys, values in ((INTEGERS, BAD_INTEGERS), (FLOATS, BAD_FLOATS)):
        for key in keys:
            for value in values:
                if (key, value) != ("expert_count", 0):
                    experts = {"llama.expert_count": 2, "llama.expert_used_count": 1} if "expert" in key else {}
                    yield tiny(YARN | experts | {f"llama.{key}": value}), f"key 'llama.{key}'"
    for key, value in (("attention.head_count", 3), ("attention.head_count_kv", 3), ("attention.key_length", 16)):
        yield tiny({f"llama.{key}": value}), r"key 'llama\.|tensor '"
    # sound by themselves, but not what the tensors are
    yield tiny({"llama.embedding_length": 64}), "tensor 'token_embd.weight' has shape"
    yield tiny({"llama.feed_forward_length": 64}), "tensor 'blk.0.ffn_gate.weight' has shape"
    yield tiny({"llama.attention.head_count_kv": 4}), "tensor 'blk.0.attn_k.weight' has shape"
    yield tiny({"llama.expert_count": 2, "llama.expert_used_count": 1}), "tensor 'blk.0.ffn_gate_inp.weight' is missing"
    yield tiny({"llama.rope.scaling.type": "longrope"}), "key 'llama.rope.scaling.type'.*supported"


def missing_key() -> Iterator[Case]:
    keys = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
    keys = [f"llama.{key}" for key in [*keys, "attention.layer_norm_rms_epsilon"]]
    for key in [*keys, "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.tokens"]:
        yield tiny(omit=[key]), f"key '{key}'.* is missing"


def bad_architecture() -> Iterator[Case]:
    for name in ("grok9", "", "../../llama", "llama\0", "x" * 100_000, "a\nb\x1b[31m", "LLaMA"):
        yield tiny({"general.architecture": name}), "key 'general.architecture': unknown architecture"
    for value in (3, ["llama"], ("str", b"\xff")):
        yield tiny({"general.architecture": value}), "key 'general.architecture'"


def missing_tensor() -> Iterator[Case]:
    yield tiny(omit=["output.weight"]), None  # a tied model: GGUF has no other way to say so
    names = set(opened(tiny(layers=2)).tensors) - {"output.weight"}
    for name in sorted(names):
        yield tiny(layers=2, omit=[name]), f"tensor '{name}' is missing"
    yield tiny(layers=2, biases=True, omit=["blk.1.attn_q.bias"]), "tensor 'blk.1.attn_q.bias' is missing"
    yield tiny(layers=2, biases=True, omit=["blk.0.attn_v.bias"]), "tensor 'blk.0.attn_v.bias' is missing"


def extra_tensor() -> Iterator[Case]:
    for name in ("extra.weight", "blk.1.attn_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight"):
        yield with_tensor(tiny(), name), f"tensor '{name}' is not part of"
    yield with_tensor(tiny(), "a\nb\x1b[31m"), r"tensor 'a\\nb\\x1b\[31m' is not part of"
    yield with_tensor(tiny(), "output_norm.bias"), "tensor 'output_norm.bias' is not part of"
    yield with_tensor(tiny(layers=2), "blk.0.attn_q.bias"), "tensor 'blk.1.attn_q.bias' is missing"
    yield tiny({"llama.block_count": 1}, layers=2), r"tensor 'blk\.1\.\w+\.weight' is not part of"


def wrong_shape() -> Iterator[Case]:
    plain = tiny(formats={"default": "F32"})
    for name, dims in (("blk.0.ffn_up", [96, 32]), ("token_embd", [270, 32]), ("blk.0.attn_k", [16, 32])):
        for wrong in (dims, [512], [32, 8], [16, 16], [32, 8, 2], [1, 1, 1, 1]):
            yield reshaped(plain, f"{name}.weight", wrong), f"tensor '{name}.weight' has shape"
    for wrong in ([16], [1], [16, 2], [1, 32]):
        yield reshaped(plain, "output_norm.weight", wrong), "tensor 'output_norm.weight' has shape"
    yield reshaped(plain, "output_norm.weight", type_id=8), "tensor 'output_norm.weight': a vector in Q8_0"
    for type_id in (24, 25, 26, 27, 28):  # I8 to I64, F64
        yield reshaped(plain, "blk.0.attn_q.weight", [16, 8], type_id), "tensor 'blk.0.attn_q.weight' is of type"


def tokenizer_bad_arrays() -> Iterator[Case]:
    n = TINY["vocab"]
    wrong = {
        "tokens": ["text", 7, [7] * n, [1.0] * n, ["a"], ["a"] * (n - 1), [str(i) for i in range(n + 1)]],
        "scores": ["text", 7.0, ["a"] * n, [0.0] * (n - 1), [0.0] * (n + 1), ("[f64]", [0.0] * n), [True] * n],
        "token_type": ["text", 7, ["1"] * n, [1.0] * n, ("[i32]", [1] * (n - 1)), ("[i32]", [1] * (n + 1)), [True] * n],
    }
    for key, values in wrong.items():
        words = f"key 'tokenizer.ggml.{key}'" + ("|key 'llama.vocab_size'" if key == "tokens" else "")
        for value in values:
            yield tiny({f"tokenizer.ggml.{key}": value}), words
        yield with_empty_array(f"tokenizer.ggml.{key}"), words
    fewer = {"tokenizer.ggml.tokens": [str(i) for i in range(n - 1)]}
    yield tiny(fewer, omit=["llama.vocab_size"]), r"tensor 'token_embd\.weight' has shape \(270, 32\), \(269, 32\)"


def tokenizer_bad_values() -> Iterator[Case]:
    tokens = opened(tiny()).metadata["tokenizer.ggml.tokens"]

    def token(text):
        return tiny({"tokenizer.ggml.tokens": ("[str]", [*tokens[:9], text, *tokens[10:]])})

    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        for value in (270, 2**32 - 1, ("i32", -1), "1", 1.0, True, ("[u32]", [1])):
            yield tiny({key: value}), f"key '{key}'"
    for value in (1, "yes", 1.0):
        yield tiny({"tokenizer.ggml.add_bos_token": value}), "key 'tokenizer.ggml.add_bos_token'"
    for text in ("<0x-1>", "<0xGG>", "<0x100>", "<0x>", "", "x", b"\xff", tokens[8]):  # the 9th is a byte token
        yield token(text), "key 'tokenizer.ggml.tokens'"
    scores = [0.0] * 269
    yield tiny({"tokenizer.ggml.scores": [*scores, NAN]}), "key 'tokenizer.ggml.scores' is NaN for id 269"
    yield tiny({"tokenizer.ggml.scores": [*scores, -INF]}), None  # the least likely of all
    for name in ("no_vocab", "", "x\n", "x" * 9999, 3, ["llama"], ("str", b"\xff")):
        yield tiny({"tokenizer.ggml.model": name}), "tokenizer.ggml.model"


def bpe(merges: Any, pre: Any = "llama-bpe") -> bytes:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [f"{a}{a}" for a in letters[: TINY["vocab"] - 256]]
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": ("[i32]", [1] * len(tokens))}
    return tiny({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, omit=["tokenizer.ggml.scores"])


def bpe_bad_merges() -> Iterator[Case]:
    yield bpe(["! !"]), None
    yield bpe(["! unknown"]), None  # never applies
    for merges in ([1, 2], "! !", ["!!"], ["! ! !"], [""], [" "], ["! "], [("! !")] + ["x"], ("[str]", [b"\xff a"])):
        yield bpe(merges), "key 'tokenizer.ggml.merges'"
    for pre in ("no-such", "", "x\n", 3):
        yield bpe(["! !"], pre), "tokenizer.ggml.pre"


def bad_chat_template() -> Iterator[Case]:
    for value in (3, ["a"], "", ("str", b"\xff"), "{% if %}", "{{" * 1000):
        yield tiny({"tokenizer.chat_template": value}), None


def nonfinite() -> Iterator[Case]:
    q8, f32 = tiny(), tiny(formats={"default": "F32"})
    half = tiny(formats={"default": "BF16", "attn_q": "F16"})
    mixed = tiny(layers=2, embed=256, formats={"default": "Q4_K", "blk.1.attn_v": "Q6_K", "ffn_up": "MXFP4"})

    def words(name, block):
        return f"tensor '{name}': block {block} has a scale that is NaN or infinite"

    for scale in (b"\0\x7e", b"\0\x7c", b"\0\xfc"):  # NaN, inf, -inf
        yield poked(q8, "blk.0.attn_q.weight", 5, 0, scale), words("blk.0.attn_q.weight", 5)
        yield poked(half, "blk.0.attn_q.weight", 7, 0, scale), words("blk.0.attn_q.weight", 7)
        yield poked(mixed, "blk.1.attn_v.weight", 3, 208, scale), words("blk.1.attn_v.weight", 3)
        yield poked(mixed, "blk.1.attn_q.weight", 255, 2, scale), words("blk.1.attn_q.weight", 255)
    yield poked(mixed, "blk.0.ffn_up.weight", 9, 0, b"\xff"), words("blk.0.ffn_up.weight", 9)
    for value in (NAN, INF, -INF):
        word = struct.pack("<f", value)
        yield poked(f32, "token_embd.weight", 8639, 0, word), words("token_embd.weight", 8639)
        yield poked(half, "output.weight", 31, 0, word[2:]), words("output.weight", 31)
        yield poked(q8, "blk.0.ffn_norm.weight", 31, 0, word), "tensor 'blk.0.ffn_norm.weight' holds a value that"


def split() -> Iterator[Case]:
    """The files are named as the first of two parts."""
    yield tiny({"split.count": ("u16", 2), "split.no": ("u16", 0)}), r"-00002-of-00002\.gguf: part 2 of 2 .*cannot open"
    yield tiny({"split.count": ("u16", 2), "split.no": ("u16", 5)}), "part 6 of 2"
    yield tiny({"split.count": ("u16", 65535)}), "must be named NAME-00001-of-65535"
    for value in ("two", 2.0, ("[u16]", [2]), ("i32", -1)):
        yield tiny({"split.count": value}), "key 'split.count' is not a count"


KINDS = {
    f"model_{cases.__name__}": cases
    for cases in (
        *(good, block_count, bad_hparam, missing_key, bad_architecture, missing_tensor, extra_tensor, wrong_shape),
        *(tokenizer_bad_arrays, tokenizer_bad_values, bpe_bad_merges, bad_chat_template, nonfinite, split),
    )
}
