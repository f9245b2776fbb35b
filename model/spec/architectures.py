"""`Architecture`: what the one forward pass must know about a family beyond a file's hyperparameters. Imports no jax.

A family whose parts are all known is one row of ARCHITECTURES. A part that no other family has becomes a field first,
with a default that changes nothing for the others.
Sources: llama.cpp's graph of each family, checked by its logits.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Attention:
    """How queries, keys and values are made and scored."""

    fused: bool = False  # one tensor, attn_qkv, holds the three projections
    qk_norm: Literal["", "head", "whole"] = ""  # queries and keys are normed: each head, or the whole projection
    softcap: float | None = None  # default of the scores' soft cap; 0: none; None: a file cannot ask for one
    sinks: bool = False  # each head has a score that takes weight and gives no value
    sharpens: bool = False  # the file may state by how much attention sharpens beyond the original context


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which layers see a sliding window only, and how these rotate."""

    # Every n-th layer attends to the whole context, the others to a sliding window; 0: all slide; None: none does.
    period: int | None = None
    width: int | None = None  # default width; None: the file must give one; 0: no window unless the file gives one
    unstretched: bool = False  # sliding layers rotate without the stretching that the file asks for
    rope_base: float = 0.0  # default base of the sliding layers' rotation; 0: the model's


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions rotate queries and keys."""

    style: Literal["adjacent", "halves"] = "halves"  # rotates pairs (2i, 2i+1), or (i, i + rot/2)
    partial: bool = False  # rope.dimension_count may be less than a head's width, which llama.cpp refuses for llama
    two_contexts: bool = False  # a file may divide frequencies by other numbers for long contexts than for short ones


@dataclasses.dataclass(frozen=True)
class Norms:
    """What is normed, and how."""

    kind: Literal["rms", "layer"] = "rms"  # "layer" subtracts the mean and has biases
    before: bool = True  # attention and feed-forward read normed inputs
    after: bool = False  # what attention and feed-forward give is normed before it is added
    before_ffn: str = "ffn_norm"  # name of the weights of the norm before the feed-forward part
    last: str = "output_norm"  # name of the weights of the norm behind all layers


@dataclasses.dataclass(frozen=True)
class Ffn:
    """The feed-forward part, of a dense layer or of each expert."""

    kind: Literal["swiglu", "geglu", "gelu", "swiglu_oai"] = "swiglu"  # "gelu" has no gate; "swiglu_oai" is clamped
    fused: bool = False  # one tensor, ffn_up, holds gate and up
    experts: Literal["never", "may", "must"] = "never"  # whether a file has a mixture of experts
    # How the router's logits become weights of the chosen experts: they take their share of a softmax over "all", there
    # is a softmax over the "chosen" ones alone, or the file says of what they take their share: softmax or sigmoid.
    router: Literal["all", "chosen", "stated"] = "all"
    choice_bias: bool = False  # a file may have biases that choose experts and do not count in their weights
    leading_dense: bool = False  # the file may say how many layers, the first ones, have no experts


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One family."""

    name: str  # `general.architecture`
    attention: Attention = Attention()
    windows: Windows = Windows()
    rope: Rope = Rope()
    norms: Norms = Norms()
    ffn: Ffn = Ffn()
    without_kv_heads: Literal["", "shortconv"] = ""  # the mixer of layers without kv heads; "": there are none
    biases: tuple[str, ...] = ()  # matrices that must have one
    optional_biases: tuple[str, ...] = ()  # matrices that may have one
    scale_embedding: bool = False  # embeddings are multiplied by sqrt(D)
    scales: bool = False  # the file states scales of embeddings, residuals, attention and logits
    logit_softcap: float | None = None  # default of the logits' soft cap; 0: none; None: a file cannot ask for one


QKV = ("attn_q", "attn_k", "attn_v")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
ADJACENT = Rope("adjacent")
LLAMA_BIASES = (*QKV, "attn_output", *DENSE)

ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("llama", rope=ADJACENT, ffn=Ffn(experts="may"), optional_biases=LLAMA_BIASES),
        Architecture(
            "mistral3",
            attention=Attention(sharpens=True),
            rope=ADJACENT,
            ffn=Ffn(experts="may"),
            optional_biases=LLAMA_BIASES,
        ),
        Architecture("qwen2", biases=QKV),
        Architecture("qwen3", attention=Attention(qk_norm="head")),
        Architecture("qwen3moe", attention=Attention(qk_norm="head"), ffn=Ffn(experts="must")),
        Architecture(
            "olmo2",
            attention=Attention(qk_norm="whole"),
            windows=Windows(4, width=0, unstretched=True),
            norms=Norms(before=False, after=True),
        ),
        Architecture("granite", rope=ADJACENT, scales=True),
        Architecture(
            "phi3",
            attention=Attention(fused=True),
            rope=Rope(partial=True, two_contexts=True),
            ffn=Ffn(fused=True),
        ),
        Architecture(
            "starcoder2",
            norms=Norms("layer"),
            ffn=Ffn("gelu"),
            biases=(*QKV, "attn_output", "ffn_up", "ffn_down"),
        ),
        Architecture(
            "gemma2",
            attention=Attention(softcap=50.0),
            windows=Windows(2, width=4096),
            norms=Norms(after=True),
            ffn=Ffn("geglu"),
            scale_embedding=True,
            logit_softcap=30.0,
        ),
        Architecture(
            "gemma3",
            attention=Attention(qk_norm="head"),
            windows=Windows(6, width=0, unstretched=True, rope_base=10000.0),
            norms=Norms(after=True),
            ffn=Ffn("geglu"),
            scale_embedding=True,
            logit_softcap=0.0,
        ),
        Architecture(
            "gpt-oss",
            attention=Attention(sinks=True),
            windows=Windows(2),
            norms=Norms(before_ffn="post_attention_norm"),
            ffn=Ffn("swiglu_oai", experts="must", router="chosen"),
            biases=(*QKV, "attn_output", *EXPERTS),
        ),
        Architecture(
            "lfm2",
            attention=Attention(qk_norm="head"),
            windows=Windows(0, width=0),
            norms=Norms(last="token_embd_norm"),
            without_kv_heads="shortconv",
        ),
        Architecture(
            "lfm2moe",
            attention=Attention(qk_norm="head"),
            norms=Norms(last="token_embd_norm"),
            ffn=Ffn(experts="must", router="stated", choice_bias=True, leading_dense=True),
            without_kv_heads="shortconv",
        ),
    )
}
