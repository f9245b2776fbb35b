"""Writes the models of `recipes`: their tensors by architecture, and random values that depend on the recipe alone.

The tables are written apart from the product's declaration, and llama.cpp reads what they make. Imports no jax, so
that whoever has llama-cpp-python makes the same files.
"""

import math
import os
import pathlib
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
FFN = "ffn_norm ffn_gate ffn_up ffn_down"
EXPERTS = "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
POST_NORMS = "post_attention_norm post_ffw_norm"
SHORT_CONVOLUTION = "attn_norm conv conv_in conv_out"
GATED_ATTENTION = f"attn_norm gated_q attn_k attn_v attn_output {QK_NORMS}"
DELTA_NET = "ssm_conv1d ssm_dt.bias ssm_a ssm_norm ssm_out"
DELTA_IN_TURN = f"attn_norm delta_qkv delta_gate ssm_beta ssm_alpha {DELTA_NET}"
SHARED_AND_GATED = f"post_attention_norm {EXPERTS} ffn_gate_inp_shexp"
BIASED_EXPERTS = f"ffn_norm {EXPERTS} exp_probs_b.bias"
SHARED_EXPERTS = "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
LOW_RANK_QUERIES = "attn_q_a attn_q_a_norm attn_q_b"
LATENT = "attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b attn_output"
LATENT_WHOLE = "attn_kv_a_mqa attn_kv_a_norm attn_kv_b attn_output"
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
}
# What takes the place of attention in the layers of such a family that have none.
DELTA_NETS = {
    "qwen35": DELTA_IN_TURN,
    "qwen35moe": DELTA_IN_TURN,
    "qwen3next": f"attn_norm delta_qkv delta_gate ssm_ba {DELTA_NET}",
    "qwen3next joined": f"attn_norm ssm_in ssm_ba {DELTA_NET}",
}
# Letters of `model.__init__`; Q and K: widths of all heads together, P: of q, k and v, X: of an expert, U: gate and up,
# T: taps of a convolution, G: its two gates and its input, S: of the experts that every token goes through. Of latents,
# A and R: ranks of queries and of keys and values, Z: R and the channels that rotate, O: those of a head that do not,
# Y: of a head's value, M: of all heads' values, B: of their keys that do not rotate and values. V: of query heads with
# their gates. Of a delta net, I: of all values, J: of them, queries and keys, L: of their gates too, N: value heads,
# b: their betas and alphas, W: channels of a head.
SHAPES = {
    "attn_q": "QD", "attn_k": "KD", "attn_v": "KD", "attn_qkv": "PD", "attn_output": "DQ",
    "attn_q_norm": "C", "attn_k_norm": "C", "whole_q_norm": "Q", "whole_k_norm": "K", "attn_sinks": "H",
    "ffn_gate": "FD", "ffn_up": "FD", "fused_up": "UD", "ffn_down": "DF",
    "ffn_gate_inp": "ED", "ffn_gate_exps": "EXD", "ffn_up_exps": "EXD", "ffn_down_exps": "EDX",
    "ffn_gate_shexp": "SD", "ffn_up_shexp": "SD", "ffn_down_shexp": "DS",
    "attn_q_a": "AD", "attn_q_a_norm": "A", "attn_q_b": "QA", "attn_kv_a_mqa": "ZD", "attn_kv_a_norm": "R",
    "attn_k_b": "HRO", "attn_v_b": "HYR", "attn_kv_b": "BR",
    "gated_q": "VD", "delta_qkv": "JD", "delta_gate": "ID", "ssm_in": "LD", "ssm_ba": "bD", "ssm_beta": "ND",
    "ssm_alpha": "ND", "ssm_dt": "N", "ssm_a": "N", "ssm_conv1d": "JT", "ssm_norm": "W", "ssm_out": "DI",
    "exp_probs_b": "E", "conv": "DT", "conv_in": "GD", "conv_out": "DD",
}  # fmt: skip
RENAMED = {"whole_q_norm": "attn_q_norm", "whole_k_norm": "attn_k_norm", "fused_up": "ffn_up"}
RENAMED |= {"gated_q": "attn_q", "delta_qkv": "attn_qkv", "delta_gate": "attn_gate"}
RENAMED |= {"conv": "shortconv.conv", "conv_in": "shortconv.in_proj", "conv_out": "shortconv.out_proj"}


def layer_names(recipe: Recipe, layer: int, kv_heads: int) -> list[str]:
    """Of LAYERS; without kv heads a layer convolves, and the leading ones of a mixture of experts may be dense."""
    names = LAYERS[recipe.layer or recipe.architecture]
    if not kv_heads:
        names = names.replace(f"{ATTENTION} {QK_NORMS}", SHORT_CONVOLUTION)
    if (layer + 1) % recipe.metadata.get("full_attention_interval", 1):
        names = names.replace(GATED_ATTENTION, DELTA_NETS[recipe.layer or recipe.architecture])
    if layer < recipe.metadata.get("leading_dense_block_count", 0):
        names = f"{names.partition('ffn_norm')[0]}{FFN}"
    return names.split()


def latent_sizes(recipe: Recipe) -> dict[str, int]:
    """The letters of SHAPES that latent attention has, or has another number for."""
    keys = recipe.metadata
    if "attention.kv_lora_rank" not in keys:
        return {}
    H, R, rotated = (keys[name] for name in ("attention.head_count", "attention.kv_lora_rank", "rope.dimension_count"))
    C, Y = (keys.get(f"attention.{name}_length_mla", keys[f"attention.{name}_length"]) for name in ("key", "value"))
    A, O = keys.get("attention.q_lora_rank", 0), C - rotated  # noqa: E741
    return {"Q": H * C, "A": A, "R": R, "Z": R + rotated, "O": O, "Y": Y, "M": H * Y, "B": H * (O + Y)}


def delta_sizes(recipe: Recipe) -> dict[str, int]:
    """The letters of SHAPES that a delta net has."""
    keys = {key: value for key, value in recipe.metadata.items() if key.startswith("ssm.")}
    if not keys:
        return {}
    taps, W, groups, N, inner = (
        keys[f"ssm.{name}"] for name in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")
    )
    J = 2 * groups * W + inner
    return {"T": taps, "W": W, "N": N, "I": inner, "J": J, "L": J + inner, "b": 2 * N}


def shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Every tensor, in file order."""
    keys = recipe.metadata
    D, H, F = keys["embedding_length"], keys["attention.head_count"], keys.get("feed_forward_length", 0)
    C = keys.get("attention.key_length", D // H)
    Q = H * C
    rotated = keys.get("rope.dimension_count", C)
    X = keys.get("expert_feed_forward_length", F)
    sizes = {"D": D, "H": H, "F": F, "C": C, "Q": Q, "U": 2 * F, "X": X, "G": 3 * D}
    sizes |= {"E": keys.get("expert_count", 0), "T": keys.get("shortconv.l_cache", 0)}
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, D)}
    found |= {f"{name}.weight": (rotated // 2,) for name in recipe.rope}
    sizes |= {"S": keys.get("expert_shared_feed_forward_length", X * keys.get("expert_shared_count", 1))}
    kv_heads = np.broadcast_to(keys["attention.head_count_kv"], keys["block_count"]).tolist()
    for layer, heads in enumerate(kv_heads):
        K = heads * C
        sizes |= {"K": K, "P": Q + 2 * K, "V": 2 * Q} | latent_sizes(recipe) | delta_sizes(recipe)
        for name in layer_names(recipe, layer, heads):
            base, _, ending = name.partition(".")
            letters = "DM" if base == "attn_output" and "M" in sizes else SHAPES.get(base, "D")
            shape = tuple(sizes[letter] for letter in (letters[:-1] if ending and len(letters) > 1 else letters))
            ending = "" if base == "ssm_a" else f".{ending or 'weight'}"
            found[f"blk.{layer}.{RENAMED.get(base, base)}{ending}"] = shape
    found["token_embd_norm.weight" if recipe.architecture.startswith("lfm2") else "output_norm.weight"] = (D,)
    if recipe.architecture == "starcoder2":
        found["output_norm.bias"] = (D,)
    if not recipe.tied:
        found["output.weight"] = (VOCAB, D)
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
    pairs |= {f"{arch}.{key}": typed(value) for key, value in recipe.metadata.items()}
    tensors = {}
    for name, shape in shapes(recipe).items():
        base = base_name(name)
        if len(shape) == 1 or name.endswith(".bias"):
            packed, kind = vector(name, shape, recipe.seed, base in neutral), "F32"
        else:
            kind = recipe.formats.get(
                name.removesuffix(".weight"), recipe.formats.get(base, recipe.formats.get("default", "F32"))
            )
            packed, kind = matrix(name, shape, kind, recipe.seed, twin)
        tensors[name] = (shape, format_named(kind), packed)
    return write_gguf(path, pairs, tensors)


def base_name(name: str) -> str:
    """ "attn_q" of "blk.0.attn_q.weight", "attn_q.bias" of its bias."""
    return name.removesuffix(".weight").split(".", 2 * name.startswith("blk."))[-1]


def matrix(name: str, shape: tuple[int, ...], kind: str, seed: int, twin: bool) -> tuple[np.ndarray, str]:
    """Packed blocks, spread by 1/sqrt(in), and their format."""
    planned = Planned(name, (math.prod(shape[:-1]), shape[-1]), format_named(kind))
    packed = np.concatenate(list(tensor_chunks(planned, seed)))
    if not twin or kind == "F32":
        return packed, kind
    values = gguf.quants.dequantize(packed.reshape(len(packed), -1), gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(values, np.float32).view(np.uint8), "F32"


def vector(name: str, shape: tuple[int, ...], seed: int, neutral: bool) -> np.ndarray:
    """Norms lie near 1, biases near 0, sinks spread by 1, divisors of frequencies rise from 1, memories fade."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    noise = rng.standard_normal(shape, np.float32) * np.float32(not neutral)
    if "rope_" in name:
        values = 1 + np.abs(noise) * np.float32(4 if "long" in name else 2)
    elif name.endswith("ssm_a"):
        values = -np.exp(noise)
    elif "sinks" in name:
        values = noise - np.float32(30 * neutral)
    else:
        values = np.float32(name.endswith("norm.weight")) + np.float32(0.2) * noise
    return values.view(np.uint8)
