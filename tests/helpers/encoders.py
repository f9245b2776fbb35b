"""Small random encoders and rerankers, by recipe: what `encoder_goldens.npz` has llama.cpp's numbers of.

The tables of tensors are written apart from the product's declaration, and llama.cpp reads what they make. Imports no
jax, so that whoever has llama-cpp-python makes the same files.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ggufs import typed, write_gguf
from recipe_files import VOCAB, matrix, vector

from packlight.bench.shapes import Shape
from packlight.bench.synthetic import metadata
from packlight.quant.formats.table import format_named


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model. keys are named without the architecture and replace those of BASE; None takes one away."""

    architecture: str
    layer: str  # its tensors; a name without an ending is a weight's
    more: str = ""  # tensors that are of no layer, beside the embedding
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def metadata(self) -> dict[str, Any]:
        return {key: value for key, value in {**BASE, **self.keys}.items() if value is not None}


# The epsilon is large so that another one shows.
BASE: dict[str, Any] = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.layer_norm_epsilon": 0.01,
    "attention.causal": False,
    "pooling_type": 1,
}
RMS = {"attention.layer_norm_rms_epsilon": 0.01, "attention.layer_norm_epsilon": None, "attention.causal": None}
TYPED = "token_types token_embd_norm token_embd_norm.bias"
QKV = "attn_q attn_q.bias attn_k attn_k.bias attn_v attn_v.bias"
SUMS = "attn_output_norm attn_output_norm.bias layer_output_norm layer_output_norm.bias"
OUT = "attn_output attn_output.bias"
UP = "ffn_up ffn_up.bias ffn_down ffn_down.bias"
QWEN3 = "attn_norm attn_q attn_k attn_v attn_q_norm attn_k_norm attn_output ffn_norm ffn_gate ffn_up ffn_down"
GEMMA = f"{QWEN3} post_attention_norm post_ffw_norm"
MODERN = "attn_norm attn_qkv attn_output ffn_norm fused_up ffn_down"
WINDOWS = {"block_count": 4, "attention.sliding_window": 10, "rope.freq_base": 160000.0, "rope.freq_base_swa": 1000.0}
MOE = {"block_count": 4, "moe_every_n_layers": 2, "expert_count": 4, "expert_used_count": 2, "rope.freq_base": 1000.0}
RANKS = {"pooling_type": 4}
TWO = {"classifier.output_labels": ["yes", "no"]}

ENCODERS = {
    "bert": Encoder("bert", f"{QKV} {OUT} {SUMS} {UP}", f"position_embd {TYPED}"),
    "bert-rank": Encoder(
        "bert", f"{QKV} {OUT} {SUMS} {UP}", f"position_embd {TYPED} cls cls.bias cls.output cls.output.bias", RANKS
    ),
    "nomic-bert": Encoder(
        "nomic-bert", f"attn_qkv attn_output {SUMS} ffn_gate ffn_up ffn_down", TYPED, {"rope.freq_base": 1000.0}
    ),
    "nomic-bert-moe": Encoder(
        "nomic-bert-moe", f"attn_qkv attn_qkv.bias {OUT} {SUMS} {UP}", TYPED, MOE, seed=1
    ),
    "jina-bert-v2": Encoder(
        "jina-bert-v2",
        f"{QKV} {OUT} {SUMS} ffn_gate ffn_up ffn_down ffn_down.bias",
        TYPED,
        {"attention.head_count": 6, "attention.head_count_kv": 6, "embedding_length": 96},  # slopes beyond a power of 2
    ),
    "jina-bert-v2-normed": Encoder(
        "jina-bert-v2",
        f"{QKV} whole_q_norm whole_q_norm.bias whole_k_norm whole_k_norm.bias {OUT} {SUMS}"
        " ffn_gate ffn_up ffn_down ffn_down.bias",
        TYPED,
    ),
    "jina-bert-v2-code": Encoder(
        "jina-bert-v2",
        f"{QKV} whole_q_norm whole_q_norm.bias whole_k_norm whole_k_norm.bias {OUT} {SUMS} attn_norm_2 attn_norm_2.bias"
        " fused_up ffn_down ffn_down.bias",
        TYPED,
    ),
    "modern-bert": Encoder("modern-bert", MODERN, "token_embd_norm output_norm", {**WINDOWS, "pooling_type": 2}),
    "modern-bert-rank": Encoder(
        "modern-bert",
        MODERN,
        "token_embd_norm output_norm cls cls.norm cls.output cls.output.bias",
        {**WINDOWS, **RANKS, "hidden_activation": "silu"},
    ),
    "gemma-embedding": Encoder(
        "gemma-embedding",
        GEMMA,
        "output_norm dense_2 dense_3",
        {
            **RMS,
            **WINDOWS,
            "block_count": 7,
            "attention.head_count_kv": 1,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "dense_2_feat_in": 64,
            "dense_2_feat_out": 128,
            "dense_3_feat_in": 128,
            "dense_3_feat_out": 64,
        },
    ),
    "qwen3-embedding": Encoder(
        "qwen3", QWEN3, "output_norm", {**RMS, "attention.head_count_kv": 2, "pooling_type": 3}
    ),
    "qwen2-bidirectional": Encoder(  # a family that generates, by whose file each token sees all of its text
        "qwen2",
        f"attn_norm {QKV} attn_output ffn_norm ffn_gate ffn_up ffn_down",
        "output_norm",
        {**RMS, "attention.head_count_kv": 2, "attention.causal": False},
    ),
    "qwen3-rank": Encoder(
        "qwen3", QWEN3, "output_norm cls.output", {**RMS, "attention.head_count_kv": 2, **RANKS, **TWO}
    ),
}  # fmt: skip
# Letters of `model.__init__`; Q and K: widths of all heads together, P: of q, k and v, U: gate and up, S: positions,
# Y: types of tokens, M and N: outputs of dense layers, O: labels.
SHAPES = {
    "attn_q": "QD", "attn_k": "KD", "attn_v": "KD", "attn_qkv": "PD", "attn_output": "DQ",
    "attn_q_norm": "C", "attn_k_norm": "C", "whole_q_norm": "Q", "whole_k_norm": "K",
    "ffn_gate": "FD", "ffn_up": "FD", "fused_up": "UD", "ffn_down": "DF",
    "ffn_gate_inp": "ED", "ffn_up_exps": "EFD", "ffn_down_exps": "EDF",
    "position_embd": "SD", "token_types": "YD", "dense_2": "MD", "dense_3": "NM", "cls": "DD", "cls.output": "OD",
}  # fmt: skip
RENAMED = {"whole_q_norm": "attn_q_norm", "whole_k_norm": "attn_k_norm", "fused_up": "ffn_up"}


def shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Every tensor, in file order."""
    keys = encoder.metadata
    D, H, K, F = (keys[name] for name in ("embedding_length", "attention.head_count", "attention.head_count_kv",
                                          "feed_forward_length"))  # fmt: skip
    C = keys.get("attention.key_length", D // H)
    sizes = {"D": D, "C": C, "Q": H * C, "K": K * C, "P": (H + 2 * K) * C, "F": F, "U": 2 * F, "Y": 2}
    sizes |= {"E": keys.get("expert_count", 0), "S": keys["context_length"], "V": VOCAB}
    sizes |= {"M": keys.get("dense_2_feat_out", 0), "N": keys.get("dense_3_feat_out", 0)}
    sizes |= {"O": len(keys.get("classifier.output_labels", [""]))}

    def shape(name: str) -> tuple[str, tuple[int, ...]]:
        base = name.removesuffix(".bias")
        letters, bias = SHAPES.get(base, "D"), base != name
        letters = letters[:-1] if bias and len(letters) > 1 else letters
        return f"{RENAMED.get(base, base)}.{'bias' if bias else 'weight'}", tuple(sizes[letter] for letter in letters)

    found = {"token_embd.weight": (VOCAB, D)} | dict(map(shape, encoder.more.split()))
    for layer in range(keys["block_count"]):
        names = encoder.layer
        if "moe_every_n_layers" in keys and layer % 2:
            names = names.replace(UP, "ffn_gate_inp ffn_up_exps ffn_down_exps")
        if encoder.architecture == "modern-bert" and not layer:
            names = names.replace("attn_norm ", "")
        found |= {f"blk.{layer}.{name}": size for name, size in map(shape, names.split())}
    return found


def write(path: str | os.PathLike, encoder: Encoder, kind: str = "F32") -> pathlib.Path:
    """Writes the model to `path`, its matrices in a format of 32 weights a block or in floats, and returns the path."""
    arch = encoder.architecture
    pairs = {k: v for k, v in metadata(Shape(1, 64, 64, 4, 4, VOCAB, 64), "by recipe").items() if "llama." not in k}
    pairs["general.architecture"] = ("str", arch)
    pairs |= {f"{arch}.{key}": typed(value) for key, value in encoder.metadata.items()}
    if "token_types" in encoder.more:
        pairs["tokenizer.ggml.token_type_count"] = ("u32", 2)
    tensors = {}
    for name, shape in shapes(encoder).items():
        if len(shape) == 1 or name.endswith(".bias"):
            tensors[name] = (shape, format_named("F32"), vector(name, shape, encoder.seed, False))
            continue
        floats = name.startswith(("position_embd", "token_types")) or "ffn_gate_inp" in name
        packed, of = matrix(name, shape, "F32" if floats else kind, encoder.seed, False)
        tensors[name] = (shape, format_named(of), packed)
    return write_gguf(path, pairs, tensors)
