"""The files under ../shared whose logits have llama.cpp's goldens beside them."""

FAMILIES = (
    "qwen2", "qwen3", "qwen3moe", "olmo2", "granite", "phi3", "phi3-longrope", "starcoder2", "gemma2", "gemma3",
    "gemma3-scaled", "gpt-oss", "lfm2", "lfm2moe", "deepseek2", "deepseek2-flash", "deepseek2-lite", "mistral4",
    "qwen35", "qwen35moe", "qwen3next",
    "llama4", "smollm3", "internlm2", "arcee", "seed_oss", "apertus", "qwen2vl", "qwen2moe", "qwen3vl", "qwen3vlmoe",
    "mellum", "olmoe", "granite-nope", "granitemoe", "minicpm", "phi2", "phimoe", "nemotron", "stablelm", "falcon",
    "gptneox", "gpt2", "command-r", "cohere2", "exaone4", "exaone4-windows", "glm4", "glm4moe", "ernie4_5",
    "ernie4_5-moe", "hunyuan-dense", "hunyuan-moe", "minimax-m2", "bailingmoe2", "afmoe", "laguna", "gemma",
    "gemma4", "gemma4-e", "gemma4-moe", "gemma3n",
    "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1", "mamba2",
)  # fmt: skip
GOLDENS = [
    *(f"arch/llama-{n}" for n in ("f16", "gqa", "linear", "lowbit", "moe", "rope3", "tied", "yarn")),
    *(f"arch/{n}" for n in FAMILIES),
    "arch/qwen35-mtp",
    *(f"models/stories260K-{n}" for n in ("f32", "k256-f32", "k256-Q8_0", "k256-Q6_K", "k256-Q4_K_M", "k256-Q2_K")),
]
