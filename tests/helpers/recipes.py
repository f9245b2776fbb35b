"""Small random models of every architecture, by recipe: what `arch_goldens.npz` has llama.cpp's numbers of.

It knows keys, formats and seeds; `recipe_files` knows tensors and writes the files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model. keys are named without the architecture and replace those of BASE; None takes one away."""

    architecture: str
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layer: str = ""  # an entry of LAYERS, where it is not the architecture's
    tied: bool = False
    rope: tuple[str, ...] = ()  # tensors of frequency divisors
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)  # as `write_llama`'s; "default" is F32
    seed: int = 0
    lacks: tuple[str, ...] = ()  # tensors of LAYERS that the file does not have, "blk.2.attn_v"

    @property
    def metadata(self) -> dict[str, Any]:
        """The architecture's keys, without its name."""
        return {key: value for key, value in {**BASE, **self.keys}.items() if value is not None}

    def format(self, name: str) -> str:
        """Of a matrix, "blk.0.attn_q" or "output"."""
        base = name.split(".", 2 * name.startswith("blk."))[-1]
        return self.formats.get(name, self.formats.get(base, self.formats.get("default", "F32")))


# The epsilon is large so that another one shows.
BASE: dict[str, Any] = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 0.01,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": None,
}
WIDE = {"embedding_length": 256, "feed_forward_length": 512}  # for formats of 256 weights a block
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
HEAD = {"attention.key_length": 32, "attention.value_length": 32}  # not embedding / heads
EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2}
KV, FFN = "attention.head_count_kv", "feed_forward_length"
GRANITE = {"logit_scale": 0.5, "residual_scale": 0.7, "embedding_scale": 1.5, "attention.scale": 0.11}
# So many layers that llama.cpp takes the model for another one of its family; and narrow ones.
DEEP = {"block_count": 64, "embedding_length": 32, "feed_forward_length": 32, "attention.head_count": 2, KV: 1}
TAPS = "shortconv.l_cache"
# Latent attention: heads of 24 channels, 8 of which rotate, and of 16 for values. Old files state no other widths.
LATENT = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
}
LATENT_WHOLE = {
    "attention.head_count_kv": 4,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8,
    "attention.key_length": 24,
    "attention.value_length": 16,
}
# A gated delta net: key heads, value heads, and of these every n-th layer none but attention that rotates few channels
DELTA = {
    "ssm.state_size": 32,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
    "ssm.conv_kernel": 4,
}
DELTA |= {**HEAD, "rope.freq_base": 1e6, "rope.dimension_count": 12, "full_attention_interval": 2}
IN_TURN = {"rope.dimension_sections": np.array([2, 2, 1, 0], np.int32)}
# Mamba-2: heads, groups of them that read the same, channels of all heads, numbers that each remembers
MAMBA = {
    "ssm.state_size": 16,
    "ssm.group_count": 1,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
    "ssm.conv_kernel": 4,
}
EPSILONS = {"attention.layer_norm_epsilon": 0.01, "attention.layer_norm_rms_epsilon": 0.02}
LAYER_NORMS = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 0.01}
ROTATED, SECTIONS = "rope.dimension_count", "rope.dimension_sections"
NO_ROPE = {"rope.freq_base": None}
DENSE_FIRST, SHARED = "leading_dense_block_count", "expert_shared_count"
SHARED_WIDTH = "expert_shared_feed_forward_length"
NORMED, SCALED, GATING = "expert_weights_norm", "expert_weights_scale", "expert_gating_func"
LONG = {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.19}


def scaling(kind: str, factor: float, original: int = 0, **more: float) -> dict[str, Any]:
    keys = {"type": kind, "factor": factor, "original_context_length": original or None, **more}
    return {f"rope.scaling.{key}": value for key, value in keys.items()}


def routed(experts: int, used: int, key: str = "expert_feed_forward_length") -> dict[str, int]:
    """key: of the width of each expert."""
    return {"expert_count": experts, "expert_used_count": used, key: 32}


# The first layer without experts, the others with two that every token goes through; and none without.
DENSE_AND_SHARED = {**routed(6, 2), DENSE_FIRST: 1, SHARED: 2}
SHARED_ONLY = {**routed(6, 2), FFN: None, SHARED_WIDTH: 64}


def gemma4(kinds: str, kv_heads: int, global_kv_heads: int, shared: int = 0, per_layer: int = 0) -> dict[str, Any]:
    """Keys that every file has. kinds: a letter for each layer, "w" for one with a window."""
    heads = np.array([kv_heads if kind == "w" else global_kv_heads for kind in kinds], np.int32)
    return {
        "block_count": len(kinds),
        "attention.head_count_kv": heads,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.key_length_swa": 8,
        "attention.value_length_swa": 8,
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": per_layer,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 5000.0,
        "rope.dimension_count": 16,
        "rope.dimension_count_swa": 8,
        "final_logit_softcapping": 8.0,
        WINDOW: 8,
        PATTERN: [kind == "w" for kind in kinds],
    }


def kv_heads(*by_layer: int) -> dict[str, Any]:
    """As files have them, in int32; 0 stands for a layer without attention."""
    return {"block_count": len(by_layer), "attention.head_count_kv": np.array(by_layer, np.int32)}


K_MIX = {"default": "Q4_K", "blk.0.attn_v": "Q6_K", "ffn_down": "Q5_K", "attn_k": "Q3_K", "blk.1.ffn_up": "Q2_K",
         "output": "Q8_0"}  # fmt: skip
RECIPES = {
    "llama": Recipe("llama", {"attention.head_count_kv": 4}),
    "llama-gqa": Recipe("llama", WIDE, formats=K_MIX),
    "llama-tied": Recipe(
        "llama",
        {"attention.head_count_kv": 1, **WIDE},
        "llama biases",
        tied=True,
        formats={"default": "Q4_0", "attn_q": "Q4_1", "attn_v": "Q5_0", "ffn_up": "Q5_1", "token_embd": "Q8_0"},
        seed=50,
    ),
    "llama-moe": Recipe(
        "llama",
        {**WIDE, "feed_forward_length": 256, **EXPERT_KEYS},
        "llama moe",
        formats={"default": "Q4_K", "ffn_gate_inp": "F32", "ffn_down_exps": "Q6_K", "output": "Q8_0"},
        seed=1,
    ),
    "llama-lowbit": Recipe(
        "llama",
        WIDE,
        formats={
            "default": "IQ1_S",
            "attn_v": "TQ1_0",
            "attn_output": "TQ2_0",
            "ffn_down": "IQ1_M",
            "token_embd": "F16",
            "output": "BF16",
        },
        seed=1,
    ),
    "llama-iq": Recipe(
        "llama",
        WIDE,
        formats={
            "default": "IQ4_XS",
            "attn_q": "IQ2_XXS",
            "attn_k": "IQ2_XS",
            "attn_v": "IQ4_NL",
            "attn_output": "IQ2_S",
            "ffn_gate": "IQ3_XXS",
            "ffn_up": "IQ3_S",
            "output": "Q6_K",
        },
    ),
    "llama-linear": Recipe("llama", scaling("linear", 4.0)),
    # llama.cpp reads the betas of YaRN in mistral3 alone.
    "llama-yarn": Recipe("llama", scaling("yarn", 4.0, 16, attn_factor=1.3)),
    "llama-rope3": Recipe("llama", {"rope.freq_base": 500000.0}, rope=("rope_freqs",)),
    # Nemo: heads whose width is not embedding / heads, a large base
    "nemo": Recipe("llama", {**HEAD, "rope.dimension_count": 32, "rope.freq_base": 1e6}),
    # 7B v0.1: a window that the tag llama does not have in llama.cpp
    "window": Recipe("llama", {WINDOW: 8}, seed=1),
    # Ministral 3: YaRN with its sharpening taken back, queries sharpened beyond the original context
    "ministral3": Recipe(
        "mistral3",
        {
            **scaling("yarn", 16.0, 16, yarn_beta_fast=0.25, yarn_beta_slow=0.06, yarn_log_multiplier=0.7),
            "attention.temperature_scale": 0.4,
        },
        tied=True,
    ),
    "qwen2": Recipe("qwen2", {"rope.freq_base": 1e6, "block_count": 3}, seed=18),
    "qwen3": Recipe("qwen3", {**HEAD, "rope.freq_base": 1e6}),
    "qwen3moe": Recipe(
        "qwen3moe",
        {
            **HEAD,
            "embedding_length": 256,
            **EXPERT_KEYS,
            "expert_count": 8,
            "expert_used_count": 3,
            "expert_feed_forward_length": 256,
        },
        formats={"default": "Q4_K", "ffn_gate_inp": "F32", "ffn_up_exps": "IQ4_XS", "attn_output": "Q8_0"},
        seed=1,
    ),
    "olmo2": Recipe("olmo2", {"rope.freq_base": 500000.0, "block_count": 3}, seed=1),
    # OLMo 3: windows in some layers, which do not stretch; an array says which
    "olmo3": Recipe(
        "olmo2",
        {WINDOW: 8, PATTERN: [True, False, True], "block_count": 3, **scaling("yarn", 8.0, 16, attn_factor=1.2)},
    ),
    "granite": Recipe("granite", GRANITE, tied=True, seed=45),
    "phi3": Recipe(
        "phi3",
        {
            WINDOW: 511,
            "rope.scaling.original_context_length": 512,
            "rope.dimension_count": 16,
            "attention.head_count_kv": 4,
        },
    ),
    "phi3-longrope": Recipe(
        "phi3",
        {
            **HEAD,
            "embedding_length": 128,
            "rope.dimension_count": 24,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": 1.19,
        },
        rope=("rope_factors_long", "rope_factors_short"),
    ),
    # Phi 3 in its original context: the short divisors
    "phi3-short": Recipe(
        "phi3",
        {
            **HEAD,
            "embedding_length": 128,
            "rope.dimension_count": 24,
            "rope.scaling.original_context_length": 512,
            "rope.scaling.attn_factor": 1.19,
        },
        rope=("rope_factors_long", "rope_factors_short"),
    ),
    "starcoder2": Recipe(
        "starcoder2",
        {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 0.01, "rope.freq_base": 1e5},
        seed=2,
    ),
    "gemma2": Recipe(
        "gemma2",
        {**HEAD, WINDOW: 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "block_count": 4},
        tied=True,
    ),
    # Without a pattern each sixth layer sees everything, and the others turn at base 10000.
    "gemma3": Recipe(
        "gemma3",
        {**HEAD, WINDOW: 12, "rope.freq_base": 1e6, "block_count": 7, "attention.head_count_kv": 1},
        tied=True,
        seed=30,
    ),
    "gemma3-scaled": Recipe(
        "gemma3",
        {
            **HEAD,
            WINDOW: 16,
            PATTERN: 3,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "block_count": 3,
            "final_logit_softcapping": 6.0,
            **scaling("linear", 8.0),
        },
        tied=True,
    ),
    "gpt-oss": Recipe(
        "gpt-oss",
        {
            **HEAD,
            "embedding_length": 256,
            WINDOW: 16,
            "rope.freq_base": 150000.0,
            "block_count": 4,
            **EXPERT_KEYS,
            "expert_feed_forward_length": 256,
            **scaling("yarn", 4.0, 16),
        },
        formats={
            "default": "Q8_0",
            "ffn_gate_inp": "F32",
            "ffn_gate_exps": "MXFP4",
            "ffn_up_exps": "MXFP4",
            "ffn_down_exps": "MXFP4",
            "attn_q": "Q5_1",
            "attn_v": "Q4_1",
        },
        seed=6,
    ),
    # LFM2: without kv heads a layer is a short convolution
    "lfm2": Recipe("lfm2", {**kv_heads(0, 0, 2, 0, 1), "rope.freq_base": 1e6, TAPS: 3}, tied=True),
    "lfm2-taps": Recipe(
        "lfm2",
        {**WIDE, **kv_heads(2, 0, 0, 2), "rope.freq_base": 1e6, TAPS: 4},
        formats={
            "default": "Q4_K",
            "shortconv.conv": "F32",
            "shortconv.out_proj": "Q5_0",
            "blk.1.shortconv.in_proj": "Q6_K",
            "attn_k": "Q4_0",
            "attn_v": "Q6_K",
            "ffn_down": "Q5_K",
            "output": "Q8_0",
        },
        seed=2,
    ),
    "lfm2moe": Recipe(
        "lfm2moe",
        {
            **kv_heads(0, 2, 0, 1),
            **routed(6, 2),
            "rope.freq_base": 1e6,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
            TAPS: 3,
        },
        tied=True,
        formats={
            "default": "Q4_0",
            "shortconv.conv": "F32",
            "shortconv.in_proj": "Q4_1",
            "ffn_gate_inp": "F32",
            "ffn_up_exps": "Q4_1",
            "ffn_down_exps": "Q5_0",
            "token_embd": "Q5_0",
        },
    ),
    # DeepSeek V3, GLM 4.7 Flash, DeepSeek V2 Lite in an old file, Mistral Small 4
    "deepseek2": Recipe(
        "deepseek2",
        {
            **LATENT,
            **DENSE_AND_SHARED,
            "block_count": 3,
            "attention.q_lora_rank": 48,
            "expert_count": 8,
            "expert_used_count": 3,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            **scaling("yarn", 8.0, 16, yarn_log_multiplier=0.0707),
        },
    ),
    "deepseek2-flash": Recipe(
        "deepseek2",
        {
            **LATENT,
            **DENSE_AND_SHARED,
            "block_count": 3,
            "attention.q_lora_rank": 64,
            "attention.kv_lora_rank": 64,
            "attention.key_length": 80,
            "attention.value_length": 64,
            "rope.dimension_count": 16,
            "attention.key_length_mla": 48,
            "attention.value_length_mla": 24,
            "rope.freq_base": 1e6,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.8,
        },
        tied=True,
        formats={
            "default": "Q4_0",
            "attn_q_b": "Q5_0",
            "attn_kv_a_mqa": "Q8_0",
            "blk.1.attn_k_b": "Q8_0",
            "attn_v_b": "Q5_0",
            "ffn_gate_inp": "F32",
            "ffn_up_exps": "Q4_1",
            "ffn_down_exps": "Q5_0",
            "ffn_up_shexp": "Q5_1",
            "token_embd": "Q5_0",
        },
        seed=3,
    ),
    "deepseek2-lite": Recipe(
        "deepseek2",
        {
            **LATENT_WHOLE,
            **DENSE_AND_SHARED,
            "block_count": 27,
            "expert_count": 3,
            **scaling("yarn", 8.0, 16, yarn_log_multiplier=0.0707),
        },
        "deepseek2 lite",
        seed=4,
    ),
    "mistral4": Recipe(
        "mistral4",
        {
            **LATENT,
            **routed(6, 2),
            "attention.q_lora_rank": 48,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.5,
            "attention.temperature_scale": 0.4,
            "attention.temperature_length": 8,
            **scaling("yarn", 8.0, 16, yarn_log_multiplier=0.1),
        },
        seed=5,
    ),
    "lfm2moe-softmax": Recipe(
        "lfm2moe",
        {
            **kv_heads(1, 0, 0, 2),
            **routed(6, 2),
            "rope.freq_base": 1e6,
            "leading_dense_block_count": 2,
            "expert_gating_func": 1,
            TAPS: 3,
        },
        seed=5,
    ),
    # Qwen 3.5: delta nets but for every n-th layer, whose last pair does not rotate
    "qwen35": Recipe("qwen35", {**DELTA, **IN_TURN, "block_count": 4}),
    "qwen35-packed": Recipe(
        "qwen35",
        {**WIDE, **DELTA, **IN_TURN, "block_count": 3, "full_attention_interval": 3}
        | {"ssm.group_count": 4, "ssm.time_step_rank": 8, "ssm.inner_size": 256, "ssm.conv_kernel": 3},
        tied=True,
        formats={
            "default": "Q4_K",
            "attn_gate": "Q6_K",
            "ssm_beta": "Q5_K",
            "ssm_conv1d": "F32",
            "ssm_out": "Q6_K",
            "attn_output": "Q5_0",
            "blk.1.attn_qkv": "Q8_0",
        },
    ),
    "qwen35moe": Recipe("qwen35moe", {**DELTA, **IN_TURN, **SHARED_ONLY, "block_count": 4}),
    # Qwen 3 Next: value heads of a key head are consecutive
    "qwen3next": Recipe("qwen3next", {**DELTA, **SHARED_ONLY, "ssm.time_step_rank": 6, "ssm.inner_size": 192}),
    "qwen3next-joined": Recipe("qwen3next", {**DELTA, **SHARED_ONLY}, "qwen3next joined", seed=1),
    # The second of each two layers has experts; the fourth layer does not rotate.
    "llama4": Recipe("llama4", {"block_count": 4, **routed(5, 2), "interleave_moe_layer_step": 2}),
    "smollm3": Recipe("smollm3", {"block_count": 5, "rope.freq_base": 5e6}, tied=True),
    "internlm2": Recipe("internlm2", {KV: 1, "rope.freq_base": 1e6, "block_count": 3}),
    "arcee": Recipe("arcee", scaling("yarn", 4.0, 16)),
    "seed_oss": Recipe("seed_oss", {**HEAD, "rope.freq_base": 1e7}, seed=3),
    "apertus": Recipe(
        "apertus",
        {
            "xielu.alpha_n": [0.8, 0.3],
            "xielu.alpha_p": [0.9, 0.5],
            "xielu.beta": [0.4, 0.7],
            "xielu.eps": [-0.5, -0.2],
        },
        rope=("rope_freqs",),
    ),
    # The last pair belongs to the kind of positions that are 0 in a text. llama.cpp takes an epsilon of 0.
    "qwen2vl": Recipe("qwen2vl", {SECTIONS: [2, 3, 2, 1], "attention.layer_norm_rms_epsilon": 1e-12, KV: 1}),
    "qwen2moe": Recipe(
        "qwen2moe",
        {**routed(5, 3), SHARED_WIDTH: 64, "rope.freq_base": 1e6},
        formats={"default": "Q4_0", "ffn_gate_inp": "F32", "ffn_down_exps": "Q5_0", "ffn_up_shexp": "Q8_0"},
        seed=2,
    ),
    "qwen3vl": Recipe("qwen3vl", {**HEAD, SECTIONS: [3, 4, 4, 5], "rope.freq_base": 5e6}, tied=True),
    "qwen3vlmoe": Recipe("qwen3vlmoe", {**HEAD, **routed(5, 3), SECTIONS: [4, 6, 5, 1]}),
    # NVFP4: matrices have a scale each, those of experts too, which llama.cpp reads in few families.
    "mellum": Recipe(
        "mellum",
        {"block_count": 4, **routed(5, 3), "expert_feed_forward_length": 64, WINDOW: 8, **scaling("yarn", 4.0, 16)},
        formats={"default": "NVFP4", "ffn_gate_inp": "F32", "token_embd": "Q8_0", "output": "Q4_0"},
    ),
    "olmoe": Recipe("olmoe", {KV: 4, **routed(6, 3, FFN)}),
    "granitemoe": Recipe("granitemoe", {KV: 1, **GRANITE, **routed(5, 3, FFN), SHARED_WIDTH: 48}, tied=True, seed=7),
    # Granite without rotation
    "granite-nope": Recipe("granite", {**GRANITE, **NO_ROPE, "rope.scaling.finetuned": False}, "llama biases"),
    # Without keys of scales, which then are MiniCPM's
    "minicpm": Recipe("minicpm", {KV: 1}, seed=1),
    "minicpm4": Recipe(
        "minicpm",
        {**LONG, "rope.scaling.type": "longrope", "embedding_scale": 6.0, "residual_scale": 0.4, "logit_scale": 0.5},
        rope=("rope_factors_long", "rope_factors_short"),
    ),
    "phi2": Recipe("phi2", {**LAYER_NORMS, ROTATED: 8}, seed=5),
    "phimoe": Recipe("phimoe", {**LONG, **routed(5, 3, FFN)}, rope=("rope_factors_long", "rope_factors_short"), seed=9),
    "nemotron": Recipe("nemotron", {**LAYER_NORMS, KV: 1, ROTATED: 8}, seed=3),
    "stablelm": Recipe("stablelm", {**LAYER_NORMS, ROTATED: 4}),
    # 12B: attention and feed-forward on one norm, queries and keys normed by head
    "stablelm-12b": Recipe("stablelm", {**LAYER_NORMS, ROTATED: 4}, "stablelm 12b", seed=2),
    # 40B: a norm for attention and one for the feed-forward part
    "falcon": Recipe("falcon", LAYER_NORMS, tied=True, seed=4),
    "gptneox": Recipe("gptneox", {**LAYER_NORMS, KV: 4, ROTATED: 8, "use_parallel_residual": False}, seed=21),
    "gpt2": Recipe("gpt2", {**LAYER_NORMS, **NO_ROPE, KV: 4}, tied=True),
    "starcoder": Recipe("starcoder", {**LAYER_NORMS, **NO_ROPE, KV: 1}, seed=20),
    "command-r": Recipe("command-r", {**LAYER_NORMS, "logit_scale": 0.25, "rope.freq_base": 8e6}, tied=True, seed=1),
    # Plus: queries and keys are normed by head, which llama.cpp knows by the 64 layers.
    "command-r-plus": Recipe(
        "command-r", {**LAYER_NORMS, **DEEP, "logit_scale": 0.8}, "command-r normed", tied=True, seed=1
    ),
    "cohere2": Recipe("cohere2", {**LAYER_NORMS, "block_count": 4, WINDOW: 8, "logit_scale": 0.25}, tied=True),
    "exaone4": Recipe("exaone4", {KV: 1}, rope=("rope_freqs",)),
    # 32B: llama.cpp knows by the 64 layers that three of four slide and rotate, and the fourth does neither.
    "exaone4-windows": Recipe("exaone4", {**DEEP, WINDOW: 8}),
    "glm4": Recipe("glm4", {ROTATED: 8}, "glm4 fused"),
    # GLM 4.1V: kinds of positions; halves rotate
    "glm4-sections": Recipe("glm4", {ROTATED: 12, SECTIONS: [1, 2, 1, 1]}),
    # The last block is for another token and not run.
    "glm4moe": Recipe(
        "glm4moe",
        {
            **routed(5, 3),
            "block_count": 4,
            "nextn_predict_layers": 1,
            ROTATED: 8,
            DENSE_FIRST: 1,
            SHARED: 2,
            NORMED: True,
            SCALED: 1.7,
        },
    ),
    "ernie4_5": Recipe("ernie4_5", {KV: 1, "rope.freq_base": 5e5}, tied=True, seed=7),
    "ernie4_5-moe": Recipe(
        "ernie4_5-moe",
        {**routed(5, 3), "block_count": 3, "interleave_moe_layer_step": 1, DENSE_FIRST: 1, SHARED_WIDTH: 48},
    ),
    "hunyuan-dense": Recipe("hunyuan-dense", {**HEAD, KV: 1}),
    "hunyuan-moe": Recipe("hunyuan-moe", {FFN: 32, **routed(5, 3), SHARED_WIDTH: 48, KV: 1}, tied=True),
    "minimax-m2": Recipe("minimax-m2", {FFN: 32, **routed(5, 3), GATING: 1, ROTATED: 8}, seed=2),
    # The best groups of experts are chosen from, and weights of the chosen ones not made to sum to 1.
    "bailingmoe2": Recipe(
        "bailingmoe2",
        {
            **routed(12, 3),
            "block_count": 3,
            ROTATED: 8,
            DENSE_FIRST: 1,
            SHARED: 2,
            NORMED: False,
            SCALED: 2.5,
            GATING: 2,
            "expert_group_count": 3,
            "expert_group_used_count": 2,
        },
    ),
    "afmoe": Recipe(
        "afmoe",
        {
            **routed(5, 3),
            "block_count": 5,
            WINDOW: 8,
            DENSE_FIRST: 2,
            SHARED: 2,
            NORMED: False,
            SCALED: 1.5,
        },
    ),
    # The first of each four layers sees everything, and has fewer heads, another base and YaRN on some channels.
    "laguna": Recipe(
        "laguna",
        {
            **routed(5, 3),
            **HEAD,
            "block_count": 5,
            "attention.head_count": np.array([2, 4, 4, 4, 2], np.int32),
            WINDOW: 8,
            ROTATED: 8,
            "rope.dimension_count_swa": 12,
            "rope.freq_base": 5e5,
            "rope.freq_base_swa": 5000.0,
            **scaling("yarn", 8.0, 16),
            DENSE_FIRST: 1,
            SHARED: 1,
            NORMED: True,
            SCALED: 2.5,
            GATING: 2,
        },
    ),
    "gemma": Recipe("gemma", {**HEAD, KV: 1}, tied=True),
    # Gemma 4: layers that see everything have wider heads, fewer of keys, and take keys as values
    "gemma4": Recipe(
        "gemma4",
        gemma4("wwa", 2, 1),
        tied=True,
        rope=("rope_freqs",),
        formats={"default": "Q4_0", "attn_k": "Q5_0", "ffn_up": "Q4_1", "ffn_down": "Q8_0", "token_embd": "Q5_0"},
        seed=18,
        lacks=("blk.2.attn_v",),
    ),
    # E2B: a second embedding; the last layers attend to keys and values of others, and their MLPs are wider
    "gemma4-e": Recipe(
        "gemma4",
        {
            **gemma4("wawa", 1, 1, shared=2, per_layer=36),
            FFN: np.array([96, 96, 160, 160], np.int32),
        },
        "gemma4 per layer",
        tied=True,
        rope=("rope_freqs",),
        formats={
            "default": "Q4_0",
            "attn_v": "Q4_1",
            "per_layer_token_embd": "F16",
            "per_layer_model_proj": "F16",
            "inp_gate": "Q5_0",
            "proj": "F16",
        },
        seed=26,
        lacks=tuple(f"blk.{layer}.{name}" for layer in (2, 3) for name in ("attn_k", "attn_v", "attn_k_norm")),
    ),
    # 26B: experts beside a dense MLP
    "gemma4-moe": Recipe(
        "gemma4",
        {**gemma4("wwa", 2, 1), **routed(6, 2)},
        "gemma4 moe",
        tied=True,
        rope=("rope_freqs",),
        formats={"default": "Q4_0", "ffn_gate_inp": "F32", "ffn_gate_up_exps": "Q4_1", "ffn_down_exps": "Q5_0"},
        seed=22,
        lacks=("blk.2.attn_v",),
    ),
    # Gemma 3n: four streams, sparse gates in ten layers, a second embedding of 256. Layers beyond 20 would share keys
    # and values, but so many amplify what ggml's table of GELU rounds beyond what tests allow.
    "gemma3n": Recipe(
        "gemma3n",
        {
            "block_count": 11,
            "feed_forward_length": 100,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "embedding_length_per_layer_input": 256,
            WINDOW: 8,
        },
        tied=True,
        seed=1,
    ),
    "granitehybrid": Recipe(
        "granitehybrid",
        {
            **kv_heads(0, 0, 2, 0),
            **MAMBA,
            **GRANITE,
            **NO_ROPE,
            "rope.scaling.finetuned": False,
            **routed(5, 3, FFN),
            SHARED_WIDTH: 48,
        },
        tied=True,
    ),
    # Without experts, and with rotation, which is what llama.cpp takes where nothing is stated
    "granitehybrid-dense": Recipe(
        "granitehybrid",
        {**kv_heads(0, 0, 1), **MAMBA, **GRANITE, "ssm.group_count": 2},
        "granitehybrid dense",
        formats={"default": "Q4_0", "ssm_conv1d": "F32", "ssm_in": "Q8_0", "blk.1.ssm_out": "Q5_0"},
        seed=1,
    ),
    # Each layer is one part. The epsilon of RMS norms counts, where a file has it.
    "nemotron_h": Recipe(
        "nemotron_h",
        {
            **kv_heads(0, 0, 0, 2, 0, 0),
            **MAMBA,
            **EPSILONS,
            **HEAD,
            **NO_ROPE,
            FFN: np.array([0, 96, 0, 0, 64, 0], np.int32),
            "ssm.group_count": 2,
            "ssm.time_step_rank": 6,
            "ssm.inner_size": 192,
        },
    ),
    "nemotron_h-epsilon": Recipe(
        "nemotron_h",
        {**kv_heads(0, 2, 0), **MAMBA, **LAYER_NORMS, **NO_ROPE, FFN: np.array([0, 0, 64], np.int32)},
        seed=1,
    ),
    "nemotron_h_moe": Recipe(
        "nemotron_h_moe",
        {
            **kv_heads(0, 0, 2, 0, 0),
            **MAMBA,
            **EPSILONS,
            **NO_ROPE,
            **routed(5, 3),
            FFN: np.array([0, 32, 0, 0, 32], np.int32),
            SHARED_WIDTH: 48,
            SHARED: 1,
            NORMED: True,
            SCALED: 2.5,
        },
    ),
    # Super: experts compute in fewer channels
    "nemotron_h_moe-latent": Recipe(
        "nemotron_h_moe",
        {
            **kv_heads(0, 0, 1),
            **MAMBA,
            **EPSILONS,
            **NO_ROPE,
            **routed(5, 2),
            FFN: np.array([0, 32, 0], np.int32),
            SHARED_WIDTH: 48,
            SHARED: 1,
            NORMED: False,
            "moe_latent_size": 32,
        },
        "nemotron_h_moe latent",
        seed=2,
    ),
    "falcon-h1": Recipe(
        "falcon-h1", {**MAMBA, **HEAD, "ssm.time_step_rank": 3, "ssm.inner_size": 96, "rope.freq_base": 1e11}
    ),
    # 34B: with a norm
    "falcon-h1-normed": Recipe("falcon-h1", {**MAMBA, **HEAD, "ssm.group_count": 2}, "falcon-h1 normed", seed=1),
    "mamba2": Recipe(
        "mamba2",
        {**MAMBA, **NO_ROPE, "attention.head_count": 0, KV: None, FFN: 0, "ssm.group_count": 4, "block_count": 3},
        tied=True,
    ),
}
