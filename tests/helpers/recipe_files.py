"""Writes the models of `recipes`: their tensors by architecture, and random values that depend on the recipe alone.

The tables are written apart from the product's declaration, and llama.cpp reads what they make. Imports no jax, so
that whoever has llama-cpp-python makes the same files.
"""

import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterable

import gguf
import numpy as np
from ggufs import typed, write_gguf
from recipes import Recipe

from packlight.bench.shapes import Shape
from packlight.bench.synthetic import Planned, metadata, tensor_chunks
from packlight.quant.formats.table import format_named

VOCAB = 300
ATTENTION = "attn_norm attn_q attn_k attn_v attn_output"
QK_NORMS = "attn_q_norm attn_k_norm"
QKV_BIASES = "attn_q.bias attn_k.bias attn_v.bias"
DENSE = "ffn_gate ffn_up ffn_down"
FFN = f"ffn_norm {DENSE}"
EXPERTS = "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
BIASED_EXPERTS = f"ffn_norm {EXPERTS} exp_probs_b.bias"
SHARED_EXPERTS = "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
POST_NORMS = "post_attention_norm post_ffw_norm"
SHORT_CONVOLUTION = "attn_norm conv conv_in conv_out"
GATED_ATTENTION = f"attn_norm gated_q attn_k attn_v attn_output {QK_NORMS}"
DELTA_NET = "ssm_conv1d ssm_dt.bias ssm_a ssm_norm ssm_out"
DELTA_IN_TURN = f"attn_norm delta_qkv delta_gate ssm_beta ssm_alpha {DELTA_NET}"
SHARED_AND_GATED = f"post_attention_norm {EXPERTS} ffn_gate_inp_shexp"
MAMBA = "mamba_in mamba_conv mamba_conv.bias ssm_dt.bias mamba_a mamba_d mamba_out"
MAMBA_LAYER = f"attn_norm {MAMBA} mamba_norm"
UNGATED_EXPERTS = "ffn_gate_inp exp_probs_b.bias ffn_up_shexp ffn_down_shexp"
LOW_RANK_QUERIES = "attn_q_a attn_q_a_norm attn_q_b"
LATENT = "attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b attn_output"
LATENT_WHOLE = "attn_kv_a_mqa attn_kv_a_norm attn_kv_b attn_output"
FUSED_ATTENTION = "attn_norm attn_qkv attn_output"
LAYER_NORM = "attn_norm attn_norm.bias"
TWO_LAYER_NORMS = f"{LAYER_NORM} ffn_norm ffn_norm.bias"
UNGATED = "ffn_up ffn_down"
UNGATED_BIASES = "attn_output.bias ffn_up.bias ffn_down.bias"
PARALLEL = f"{ATTENTION} {DENSE}"  # on one norm
NORMED_AFTER = f"attn_q attn_k attn_v attn_output {POST_NORMS} {DENSE}"
ALTUP = "altup_router_norm altup_router altup_predict_coef altup_correct_coef altup_correct_scale"
LAUREL = "laurel_l laurel_r laurel_post_norm"
GEMMA4 = f"{ATTENTION} {QK_NORMS} {POST_NORMS} {FFN} layer_output_scale"
SCALED_EXPERTS = "ffn_gate_inp ffn_gate_inp.scale ffn_gate_up_exps ffn_down_exps ffn_down_exps.scale"
# The tensors of a layer, by architecture; a name without an ending is a weight's.
LAYERS = {
    "llama": f"{ATTENTION} {FFN}",
    "llama moe": f"{ATTENTION} ffn_norm {EXPERTS}",
    "llama biases": f"{ATTENTION} {FFN} {QKV_BIASES} attn_output.bias ffn_gate.bias ffn_up.bias ffn_down.bias",
    "mistral3": f"{ATTENTION} {FFN}",
    "qwen2": f"{ATTENTION} {QKV_BIASES} {FFN}",
    "qwen3": f"{ATTENTION} {QK_NORMS} {FFN}",
    "qwen3moe": f"{ATTENTION} {QK_NORMS} ffn_norm {EXPERTS}",
    "olmo2": f"attn_q attn_k attn_v attn_output whole_q_norm whole_k_norm {POST_NORMS} ffn_gate ffn_up ffn_down",
    "granite": f"{ATTENTION} {FFN}",
    "phi3": "attn_norm attn_qkv attn_output ffn_norm fused_up ffn_down",
    "starcoder2": f"{ATTENTION} attn_norm.bias {QKV_BIASES} attn_output.bias"
    " ffn_norm ffn_norm.bias ffn_up ffn_up.bias ffn_down ffn_down.bias",
    "gemma2": f"{ATTENTION} {POST_NORMS} {FFN}",
    "gemma3": f"{ATTENTION} {QK_NORMS} {POST_NORMS} {FFN}",
    "gpt-oss": f"{ATTENTION} {QKV_BIASES} attn_output.bias attn_sinks post_attention_norm {EXPERTS}"
    " ffn_gate_inp.bias ffn_gate_exps.bias ffn_up_exps.bias ffn_down_exps.bias",
    "lfm2": f"{ATTENTION} {QK_NORMS} {FFN}",
    "lfm2moe": f"{ATTENTION} {QK_NORMS} {BIASED_EXPERTS}",
    "deepseek2": f"attn_norm {LOW_RANK_QUERIES} {LATENT} {BIASED_EXPERTS} {SHARED_EXPERTS}",
    "deepseek2 lite": f"attn_norm attn_q {LATENT_WHOLE} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "mistral4": f"attn_norm {LOW_RANK_QUERIES} {LATENT} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "qwen35": f"{GATED_ATTENTION} post_attention_norm ffn_gate ffn_up ffn_down",
    "qwen35moe": f"{GATED_ATTENTION} {SHARED_AND_GATED} {SHARED_EXPERTS}",
    "qwen3next": f"{GATED_ATTENTION} {SHARED_AND_GATED} {SHARED_EXPERTS}",
    "qwen3next joined": f"{GATED_ATTENTION} {SHARED_AND_GATED} {SHARED_EXPERTS}",
    "llama4": f"{ATTENTION} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "smollm3": f"{ATTENTION} {FFN}",
    "internlm2": f"{FUSED_ATTENTION} {FFN}",
    "arcee": f"{ATTENTION} ffn_norm {UNGATED}",
    "seed_oss": f"{ATTENTION} {QKV_BIASES} post_attention_norm {DENSE}",
    "apertus": f"{ATTENTION} {QK_NORMS} ffn_norm {UNGATED}",
    "qwen2vl": f"{ATTENTION} {QKV_BIASES} {FFN}",
    "qwen2moe": f"{ATTENTION} {QKV_BIASES} ffn_norm {EXPERTS} ffn_gate_inp_shexp {SHARED_EXPERTS}",
    "qwen3vl": f"{ATTENTION} {QK_NORMS} {FFN}",
    "qwen3vlmoe": f"{ATTENTION} {QK_NORMS} ffn_norm {EXPERTS}",
    "mellum": f"{ATTENTION} {QK_NORMS} ffn_norm {EXPERTS}",
    "olmoe": f"{ATTENTION} whole_q_norm whole_k_norm ffn_norm {EXPERTS}",
    "granitemoe": f"{ATTENTION} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "minicpm": f"{ATTENTION} {FFN}",
    "phi2": f"{ATTENTION} attn_norm.bias {QKV_BIASES} {UNGATED} {UNGATED_BIASES}",
    "phimoe": f"{ATTENTION} attn_norm.bias {QKV_BIASES} attn_output.bias ffn_norm ffn_norm.bias {EXPERTS}",
    "nemotron": f"{TWO_LAYER_NORMS} attn_q attn_k attn_v attn_output {QKV_BIASES} {UNGATED} {UNGATED_BIASES}",
    "stablelm": f"{ATTENTION} attn_norm.bias {QKV_BIASES} {FFN} ffn_norm.bias",
    "stablelm 12b": f"{PARALLEL} attn_norm.bias heads_q_norm heads_k_norm",
    "falcon": f"{LAYER_NORM} attn_norm_2 attn_norm_2.bias attn_qkv attn_output {UNGATED}",
    "gptneox": f"{TWO_LAYER_NORMS} attn_qkv attn_qkv.bias attn_output {UNGATED} {UNGATED_BIASES}",
    "gpt2": f"{TWO_LAYER_NORMS} attn_qkv attn_qkv.bias attn_output {UNGATED} {UNGATED_BIASES}",
    "starcoder": f"{TWO_LAYER_NORMS} attn_qkv attn_qkv.bias attn_output {UNGATED} {UNGATED_BIASES}",
    "command-r": PARALLEL,
    "command-r normed": f"{PARALLEL} heads_q_norm heads_k_norm",
    "cohere2": PARALLEL,
    "exaone4": f"{NORMED_AFTER} {QK_NORMS}",
    "glm4": f"{ATTENTION} {POST_NORMS} ffn_norm fused_up ffn_down",
    "glm4 fused": f"{FUSED_ATTENTION} attn_qkv.bias {POST_NORMS} ffn_norm fused_up ffn_down",
    "glm4moe": f"{ATTENTION} {QKV_BIASES} post_attention_norm {EXPERTS} exp_probs_b.bias {SHARED_EXPERTS}",
    "ernie4_5": f"{ATTENTION} {QKV_BIASES} {FFN}",
    "ernie4_5-moe": f"{ATTENTION} {BIASED_EXPERTS} {SHARED_EXPERTS}",
    "hunyuan-dense": f"{ATTENTION} {QK_NORMS} {FFN}",
    "hunyuan-moe": f"{ATTENTION} {QK_NORMS} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "minimax-m2": f"{ATTENTION} whole_q_norm whole_k_norm {BIASED_EXPERTS}",
    "bailingmoe2": f"{FUSED_ATTENTION} {QK_NORMS} {BIASED_EXPERTS} {SHARED_EXPERTS}",
    "afmoe": f"{ATTENTION} {QK_NORMS} attn_gate {POST_NORMS} {BIASED_EXPERTS} {SHARED_EXPERTS}",
    "laguna": f"{ATTENTION} {QK_NORMS} heads_gate {BIASED_EXPERTS} {SHARED_EXPERTS}",
    "gemma": f"{ATTENTION} {FFN}",
    "gemma3n": f"{ATTENTION} {QK_NORMS} {POST_NORMS} {FFN} inp_gate proj post_norm {ALTUP} {LAUREL}",
    "gemma4": GEMMA4,
    "gemma4 per layer": f"{GEMMA4} inp_gate proj post_norm",
    "gemma4 moe": f"{GEMMA4} {SCALED_EXPERTS} pre_ffw_norm_2 post_ffw_norm_1 post_ffw_norm_2",
    "granitehybrid": f"{ATTENTION} ffn_norm {EXPERTS} {SHARED_EXPERTS}",
    "granitehybrid dense": f"{ATTENTION} {FFN}",
    "nemotron_h": f"attn_norm {UNGATED}",
    "nemotron_h_moe": f"attn_norm {UNGATED_EXPERTS} ffn_up_exps ffn_down_exps",
    "nemotron_h_moe latent": f"attn_norm {UNGATED_EXPERTS} latent_up_exps latent_down_exps"
    " ffn_latent_down ffn_latent_up",
    "falcon-h1": f"{ATTENTION} {MAMBA} {FFN}",
    "falcon-h1 normed": f"{ATTENTION} {MAMBA} mamba_norm {FFN}",
    "mamba2": MAMBA_LAYER,
}
# What takes the place of attention in the layers of such a family that have none.
DELTA_NETS = {
    "qwen35": DELTA_IN_TURN,
    "qwen35moe": DELTA_IN_TURN,
    "qwen3next": f"attn_norm delta_qkv delta_gate ssm_ba {DELTA_NET}",
    "qwen3next joined": f"attn_norm ssm_in ssm_ba {DELTA_NET}",
}
# The further tensors of a block that predicts a token more and is not run.
PREDICTING = "nextn_proj nextn_enorm nextn_hnorm nextn_head_norm"
# Those of the model, beside token_embd, output_norm and, unless it is tied, output.
EXTRAS = {
    **dict.fromkeys(("starcoder2", "nemotron", "stablelm", "falcon", "gptneox"), "output_norm.bias"),
    **dict.fromkeys(("gpt2", "starcoder"), "output_norm.bias position_embd"),
    "gemma3n": "altup_proj altup_unembd_proj",
    **dict.fromkeys(("phi2", "phimoe"), "output_norm.bias output.bias"),
}
# Letters of `model.__init__`; Q and K: widths of all heads together, P: of q, k and v, N: kv heads, X: width of an
# expert, S: of the experts that every token goes through, U and W: gate and up of a layer and of an expert, L: longest
# context, T: taps of a convolution, G: its two gates and its input, M: two times D.
# Of latents, A and R: ranks of queries and of keys and values, Z: R and the channels that rotate, O: those of a head
# that do not, Y: of a head's value, m: of all heads' values, B: of their keys that do not rotate and values. Of a delta
# net, g: query heads with their gates, I: all values, J: them, queries and keys, l: their gates too, n: value heads,
# b: their betas and alphas, w: channels of a head. Of Mamba-2, n: heads, i: all their channels, c: what is convolved,
# o: what ssm_in gives, u: groups, e: channels of one. k: width in which experts compute, 1: one. Of a second
# embedding, y: width in a layer, z: in all. Of several streams, a: how many, p: their square, x: the others. r: rank of
# a narrow way.
SHAPES = {
    "attn_q": "QD", "attn_k": "KD", "attn_v": "KD", "attn_qkv": "PD", "attn_output": "DQ",
    "attn_q_norm": "C", "attn_k_norm": "C", "whole_q_norm": "Q", "whole_k_norm": "K", "attn_sinks": "H",
    "heads_q_norm": "HC", "heads_k_norm": "NC", "attn_gate": "QD", "heads_gate": "HD",
    "ffn_gate": "FD", "ffn_up": "FD", "fused_up": "UD", "ffn_down": "DF",
    "ffn_gate_inp": "ED", "ffn_gate_exps": "EXD", "ffn_up_exps": "EXD", "ffn_down_exps": "EDX",
    "ffn_gate_up_exps": "EWD", "ffn_gate_shexp": "SD", "ffn_up_shexp": "SD", "ffn_down_shexp": "DS",
    "token_embd": "VD", "output": "VD", "position_embd": "LD", "nextn_proj": "DM",
    "attn_q_a": "AD", "attn_q_a_norm": "A", "attn_q_b": "QA", "attn_kv_a_mqa": "ZD", "attn_kv_a_norm": "R",
    "attn_k_b": "HRO", "attn_v_b": "HYR", "attn_kv_b": "BR",
    "gated_q": "gD", "delta_qkv": "JD", "delta_gate": "ID", "ssm_in": "lD", "ssm_ba": "bD", "ssm_beta": "nD",
    "ssm_alpha": "nD", "ssm_dt": "n", "ssm_a": "n", "ssm_conv1d": "JT", "ssm_norm": "w", "ssm_out": "DI",
    "mamba_in": "oD", "mamba_conv": "cT", "mamba_a": "n1", "mamba_d": "n1", "mamba_norm": "ue", "mamba_out": "Di",
    "latent_up_exps": "EXk", "latent_down_exps": "EkX", "ffn_latent_down": "kD", "ffn_latent_up": "Dk",
    "exp_probs_b": "E", "conv": "DT", "conv_in": "GD", "conv_out": "DD",
    "per_layer_token_embd": "Vz", "per_layer_model_proj": "zD", "per_layer_proj_norm": "y", "inp_gate": "yD",
    "altup_router": "aD", "altup_predict_coef": "pa", "altup_correct_coef": "aa", "altup_proj": "xDD",
    "altup_unembd_proj": "xDD", "laurel_l": "rD", "laurel_r": "Dr",
    "proj": "Dy", "layer_output_scale": "1", "ffn_gate_inp.scale": "D", "ffn_down_exps.scale": "E",
}  # fmt: skip
NEAR_ONE = ("norm", "norm_1", "norm_2", "scale", "ssm_d")
RENAMED = {"whole_q_norm": "attn_q_norm", "whole_k_norm": "attn_k_norm", "fused_up": "ffn_up"}
RENAMED |= {"gated_q": "attn_q", "delta_qkv": "attn_qkv", "delta_gate": "attn_gate"}
RENAMED |= {"heads_q_norm": "attn_q_norm", "heads_k_norm": "attn_k_norm", "heads_gate": "attn_gate"}
RENAMED |= {"conv": "shortconv.conv", "conv_in": "shortconv.in_proj", "conv_out": "shortconv.out_proj"}
RENAMED |= {"nextn_proj": "nextn.eh_proj", "nextn_enorm": "nextn.enorm", "nextn_hnorm": "nextn.hnorm"}
RENAMED |= {f"mamba_{name}": f"ssm_{name}" for name in ("in", "a", "d", "norm", "out")} | {"mamba_conv": "ssm_conv1d"}
RENAMED |= {"latent_up_exps": "ffn_up_exps", "latent_down_exps": "ffn_down_exps"}
RENAMED |= {"nextn_head_norm": "nextn.shared_head_norm"}


def layer_names(recipe: Recipe, layer: int, kv_heads: int, width: int) -> list[str]:
    """Of LAYERS; without kv heads a layer convolves or remembers, and not all layers of a mixture of experts need have
    them. A layer of nemotron_h is attention, or a feed-forward part of some width, or Mamba-2.
    """
    keys, names = recipe.metadata, LAYERS[recipe.layer or recipe.architecture]
    if not kv_heads:
        names = names.replace(f"{ATTENTION} {QK_NORMS}", SHORT_CONVOLUTION).replace(ATTENTION, MAMBA_LAYER)
    if recipe.architecture.startswith("nemotron_h") and not width:
        names = ATTENTION if kv_heads else MAMBA_LAYER
    if (layer + 1) % keys.get("full_attention_interval", 1):
        names = names.replace(GATED_ATTENTION, DELTA_NETS[recipe.layer or recipe.architecture])
    found = names.split()
    every = keys.get("interleave_moe_layer_step", 1)
    if layer < keys.get("leading_dense_block_count", 0) or layer % every != every - 1:
        found = [name for name in found if not re.search("exp|ffn_gate_inp", name)] + DENSE.split()
    if layer >= keys["block_count"] - keys.get("nextn_predict_layers", 0):
        found += PREDICTING.split()
    return found


def sizes(recipe: Recipe, heads: int, kv_heads: int, width: int, layer: int = 0) -> dict[str, int]:
    """The letters of SHAPES in a layer with so many heads and features."""
    keys = recipe.metadata
    D = keys["embedding_length"]
    C = keys.get("attention.key_length", D // heads if heads else 0)
    if "attention.key_length_swa" in keys and keys["attention.sliding_window_pattern"][layer]:
        C = keys["attention.key_length_swa"]
    y = keys.get("embedding_length_per_layer_input", 0)
    X = keys.get("expert_feed_forward_length", width)
    S = keys.get("expert_shared_feed_forward_length", X * keys.get("expert_shared_count", 1))
    Q, K = heads * C, kv_heads * C
    found = {"V": VOCAB, "D": D, "F": width, "C": C, "H": heads, "N": kv_heads, "Q": Q, "K": K, "P": Q + 2 * K, "X": X}
    found |= {"S": S, "U": 2 * width, "W": 2 * X, "G": 3 * D, "M": 2 * D, "L": keys["context_length"]}
    found |= {"E": keys.get("expert_count", 0), "T": keys.get("shortconv.l_cache", 0), "g": 2 * Q}
    found |= {"y": y, "z": keys["block_count"] * y, "1": 1, "a": 4, "p": 16, "x": 3, "r": 64}
    return found | {"k": keys.get("moe_latent_size", 0)} | latent_sizes(recipe) | recurrence_sizes(recipe)


def tensor(name: str, sizes: dict[str, int], recipe: Recipe, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """One of SHAPES, with its scale where its format has one: full names and shapes."""
    base, _, ending = name.partition(".")
    letters = "Dm" if base == "attn_output" and "m" in sizes else SHAPES.get(base, "D")
    if ending and len(letters) > 1:
        letters = SHAPES.get(name, letters[:-1])
    shape = tuple(sizes[letter] for letter in letters)
    full = f"{prefix}{RENAMED.get(base, base)}"
    unsuffixed = full.endswith(("ssm_a", "ssm_d")) or (recipe.architecture, base) == ("falcon-h1", "ffn_norm")
    found = {full if unsuffixed else f"{full}.{ending or 'weight'}": shape}
    if len(shape) > 1 and not ending and recipe.format(full) == "NVFP4":
        found[f"{full}.scale"] = shape[:-2] or (1,)
    return found


def latent_sizes(recipe: Recipe) -> dict[str, int]:
    """The letters of SHAPES that latent attention has, or has another number for."""
    keys = recipe.metadata
    if "attention.kv_lora_rank" not in keys:
        return {}
    H, R, rotated = (keys[name] for name in ("attention.head_count", "attention.kv_lora_rank", "rope.dimension_count"))
    C, Y = (keys.get(f"attention.{name}_length_mla", keys[f"attention.{name}_length"]) for name in ("key", "value"))
    A, O = keys.get("attention.q_lora_rank", 0), C - rotated  # noqa: E741
    return {"Q": H * C, "A": A, "R": R, "Z": R + rotated, "O": O, "Y": Y, "m": H * Y, "B": H * (O + Y)}


def recurrence_sizes(recipe: Recipe) -> dict[str, int]:
    """The letters of SHAPES that a delta net or Mamba-2 has."""
    keys = {key: value for key, value in recipe.metadata.items() if key.startswith("ssm.")}
    if not keys:
        return {}
    taps, w, groups, n, inner = (
        keys[f"ssm.{name}"] for name in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")
    )
    J = 2 * groups * w + inner
    found = {"i": inner, "c": J, "o": J + inner + n, "u": groups, "e": inner // groups}
    return found | {"T": taps, "w": w, "n": n, "I": inner, "J": J, "l": J + inner, "b": 2 * n}


def shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Every tensor, in file order."""
    keys = recipe.metadata
    heads, kv_heads, widths = (
        np.broadcast_to(keys.get(name, 0), keys["block_count"]).tolist()
        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    whole = sizes(recipe, heads[0], kv_heads[0], widths[0])
    found = tensor("token_embd", whole, recipe)
    rotated = keys.get("rope.dimension_count", keys.get("attention.key_length", whole["C"]))
    found |= {f"{name}.weight": (rotated // 2,) for name in recipe.rope}
    for layer, counts in enumerate(zip(heads, kv_heads, widths, strict=True)):
        for name in layer_names(recipe, layer, *counts[1:]):
            if f"blk.{layer}.{name}" not in recipe.lacks:
                found |= tensor(name, sizes(recipe, *counts, layer), recipe, f"blk.{layer}.")
    names = ["token_embd_norm" if recipe.architecture.startswith("lfm2") else "output_norm"]
    names += EXTRAS.get(recipe.architecture, "").split() + ([] if recipe.tied else ["output"])
    names += ["per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"] if whole["y"] else []
    for name in names:
        found |= tensor(name, whole, recipe)
    return found


def write(
    path: str | os.PathLike,
    recipe: Recipe,
    *,
    twin: bool = False,
    neutral: Iterable[str] = (),
) -> pathlib.Path:
    """Writes the model to `path` and returns the path. twin: with every matrix unpacked to F32.

    neutral: base names ("attn_q.bias") of vectors that become what leaves a model as it would be without them.
    """
    arch = recipe.architecture
    pairs = {k: v for k, v in metadata(Shape(1, 64, 64, 4, 4, VOCAB, 64), "by recipe").items() if "llama." not in k}
    pairs["general.architecture"] = ("str", arch)
    pairs |= {
        key if key.startswith("xielu.") else f"{arch}.{key}": typed(value) for key, value in recipe.metadata.items()
    }
    tensors = {}
    for name, shape in shapes(recipe).items():
        base = base_name(name)
        if is_vector(name, shape):
            packed, kind = vector(name, shape, recipe.seed, base in neutral), "F32"
        else:
            packed, kind = matrix(name, shape, recipe.format(name.removesuffix(".weight")), recipe.seed, twin)
        tensors[name] = (shape, format_named(kind), packed)
    return write_gguf(path, pairs, tensors)


def base_name(name: str) -> str:
    """ "attn_q" of "blk.0.attn_q.weight", "attn_q.bias" of its bias."""
    return name.removesuffix(".weight").split(".", 2 * name.startswith("blk."))[-1]


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is no matrix, though heads or experts may have one each: norms, biases, scales."""
    return len(shape) == 1 or name.endswith((".bias", ".scale", "norm.weight", "ssm_a", "ssm_d"))


def matrix(name: str, shape: tuple[int, ...], kind: str, seed: int, twin: bool) -> tuple[np.ndarray, str]:
    """Packed blocks, spread by 1/sqrt(in), and their format."""
    planned = Planned(name, (math.prod(shape[:-1]), shape[-1]), format_named(kind))
    packed = np.concatenate(list(tensor_chunks(planned, seed)))
    if not twin or kind == "F32":
        return packed, kind
    values = gguf.quants.dequantize(packed.reshape(len(packed), -1), gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(values, np.float32).view(np.uint8), "F32"


def vector(name: str, shape: tuple[int, ...], seed: int, neutral: bool) -> np.ndarray:
    """Norms and scales lie near 1, biases near 0; sinks spread by 1; divisors rise from 1; memories fade."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    noise = rng.standard_normal(shape, np.float32) * np.float32(not neutral)
    if "rope_" in name:
        values = 1 + np.abs(noise) * np.float32(4 if "long" in name else 2)
    elif name.endswith("ssm_a"):
        values = -np.exp(noise)
    elif "sinks" in name:
        values = noise - np.float32(30 * neutral)
    else:
        values = np.float32(name.removesuffix(".weight").endswith(NEAR_ONE)) + np.float32(0.2) * noise
    return values.view(np.uint8)
