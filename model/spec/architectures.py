"""`Architecture`: what the one forward pass must know about a family beyond a file's hyperparameters. Imports no jax.

A family of a known kind is one entry of ARCHITECTURES; what it must have that no other has is a field first.
Sources: llama.cpp's graph of each family, checked by its logits.
"""

import dataclasses
from typing import Literal

QKV = ("attn_q", "attn_k", "attn_v")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """rope_style: "adjacent" rotates pairs (2i, 2i+1), "halves" rotates (i, i + rot/2).
    partial_rotation: rope.dimension_count may be less than the head's width; llama.cpp refuses it for llama.
    norm: "rms", or "layer" (mean and variance, with biases).
    pre_norms: attention and feed-forward read normed inputs; ffn_norm: the name of the second one's weights.
    post_norms: what attention and feed-forward give is normed before it is added.
    qk_norm: queries and keys are normed before rotation, each "head" or the "whole" projection.
    ffn: "swiglu" and "geglu" have a gate, "gelu" has none, "swiglu_oai" is clamped, with 1 added to the linear half.
    fused: one tensor holds q, k and v, another gate and up.
    biases: matrices that must have one; optional_biases: those that may.
    window_period: each so-manieth layer sees everything, the others a window only; 0: no windows. window: its default
        width; 0: a file that states none has none; None: the file must. plain_windows: layers with a window rotate
        without the stretching that the file asks for. window_rope_base: default of their own base, 0: the model's.
    softcaps: defaults of the soft caps of attention scores and of logits, 0 for none; None where a file cannot ask.
    long_rope: a file may hold two sets of divisors of the rotation's frequencies, for short and for long contexts.
    scale_embedding: embeddings are multiplied with sqrt(D); scales: the file states scales of embeddings, residuals,
        attention and logits.
    router: experts' weights are the softmax over "all" experts, made to sum to 1, or over the "chosen" ones.
    sinks: each head has a score that takes weight and gives no value.
    sharpens: the file may state by how much attention is to sharpen beyond the original context.
    """

    name: str
    rope_style: Literal["adjacent", "halves"] = "halves"
    partial_rotation: bool = False
    norm: Literal["rms", "layer"] = "rms"
    pre_norms: bool = True
    ffn_norm: str = "ffn_norm"
    post_norms: bool = False
    qk_norm: Literal["", "head", "whole"] = ""
    ffn: Literal["swiglu", "geglu", "gelu", "swiglu_oai"] = "swiglu"
    fused: bool = False
    biases: tuple[str, ...] = ()
    optional_biases: tuple[str, ...] = ()
    window_period: int = 0
    window: int | None = None
    plain_windows: bool = False
    window_rope_base: float = 0.0
    softcaps: tuple[float | None, float | None] = (None, None)
    long_rope: bool = False
    scale_embedding: bool = False
    scales: bool = False
    experts: Literal["never", "may", "must"] = "never"
    router: Literal["all", "chosen"] = "all"
    sinks: bool = False
    sharpens: bool = False


FFN = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture("llama", "adjacent", optional_biases=(*QKV, "attn_output", *FFN), experts="may"),
        Architecture("mistral3", "adjacent", optional_biases=(*QKV, "attn_output", *FFN), experts="may", sharpens=True),
        Architecture("qwen2", biases=QKV),
        Architecture("qwen3", qk_norm="head"),
        Architecture("qwen3moe", qk_norm="head", experts="must"),
        Architecture(
            "olmo2",
            pre_norms=False,
            post_norms=True,
            qk_norm="whole",
            window_period=4,
            window=0,
            plain_windows=True,
        ),
        Architecture("granite", "adjacent", scales=True),
        Architecture("phi3", partial_rotation=True, fused=True, long_rope=True),
        Architecture("starcoder2", norm="layer", ffn="gelu", biases=(*QKV, "attn_output", "ffn_up", "ffn_down")),
        Architecture(
            "gemma2",
            post_norms=True,
            ffn="geglu",
            window_period=2,
            window=4096,
            softcaps=(50.0, 30.0),
            scale_embedding=True,
        ),
        Architecture(
            "gemma3",
            post_norms=True,
            qk_norm="head",
            ffn="geglu",
            window_period=6,
            window=0,
            plain_windows=True,
            window_rope_base=10000.0,
            softcaps=(None, 0.0),
            scale_embedding=True,
        ),
        Architecture(
            "gpt-oss",
            ffn_norm="post_attention_norm",
            ffn="swiglu_oai",
            biases=(*QKV, "attn_output", *EXPERTS),
            window_period=2,
            experts="must",
            router="chosen",
            sinks=True,
        ),
    )
}
