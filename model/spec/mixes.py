"""Which format each tensor of a quantized file gets: llama.cpp's mixes, which spare the tensors that matter most.

Source: `llama_tensor_get_type` and `tensor_allows_quantization` in llama.cpp's `llama-quant.cpp`, without importance
matrix. Imports no jax.
"""

from collections.abc import Sequence

from packlight.quant.formats.table import FORMATS, format_named

# The mixes that give some tensors more bits, and what the rest is in.
K_MIXES = {"Q2_K": "Q2_K", "Q3_K_M": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"}
EMBEDDINGS = ("token_embd", "per_layer_token_embd")  # of a tied model, which spares them as it would a head
# What takes a K format's place where rows are not a multiple of 256.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def more_bits(layer: int, layers: int) -> bool:
    """The layers whose attn_v and ffn_down a _M mix gives more bits: the first and last eighth, a third of the rest.

    Source: `use_more_bits`.
    """
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


VALUES = ("attn_v", "attn_qkv", "attn_kv_b")  # matrices that make values, and may make more


def counted(base: str, layer: int, layers: int, with_values: Sequence[int]) -> tuple[int, int]:
    """A matrix's number among those that a mix tells apart by their place, and how many there are: of VALUES only the
    layers that have one count.
    """
    return (with_values.index(layer), len(with_values)) if base in VALUES else (layer, layers)


def mixed_format(
    mix: str,
    base: str,
    layer: int,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    tied: bool,
    experts: int = 0,
    falcon: bool = False,
) -> str:
    """The format that llama-quantize gives matrix `base` of `layer` in a file of type `mix`, if its rows fit it;
    `pure-X` is X everywhere.

    Beside K_MIXES any format's name is a mix: that format with a Q6_K head (llama-quantize spares more for IQ types).
    Raises UnsupportedError for any other name.
    """
    if mix.startswith("pure-"):
        return format_named(mix[5:]).name
    main = format_named(K_MIXES.get(mix, mix)).name
    if FORMATS[main].elements == 1:
        return main
    if base == "output" or (base in EMBEDDINGS and tied):
        return main if main == "Q8_0" else "Q6_K"
    value, down = base in VALUES, base.startswith("ffn_down")
    if experts == 8 and base in ("attn_v", "attn_k"):
        return "Q8_0"
    if experts == 8 and base == "attn_output" and mix in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M"):
        return "Q5_K"
    match mix:
        case "Q4_K_M" if down and falcon:
            return "Q6_K" if layer < layers // 16 else "Q5_K" if more_bits(layer, layers) else main
        case "Q4_K_M" | "Q5_K_M" if (value or down) and more_bits(layer, layers):
            return "Q6_K"
        case "Q4_K_S" if (value and layer < 4) or (down and layer < layers // 8):
            return "Q5_K"
        case "Q3_K_M" if (value and layer < 2) or (down and layer < layers // 16):
            return "Q5_K"
        case "Q3_K_M" if value or down or base == "attn_output":
            return "Q4_K"
        case "Q2_K" if value and heads >= 4 * kv_heads:
            return "Q4_K"
        case "Q2_K" if value or down or base == "attn_output":
            return "Q3_K"
    if value and layers == 80 and main == "Q4_K":  # the 70B models share eight query heads' values
        return "Q5_K"
    return main


def fitting_format(name: str, base: str, width: int) -> str:
    """`name`, or what takes its place for rows of `width` weights."""
    if base in ("output", *EMBEDDINGS) and name == "Q6_K" and width % 256:
        name = "Q8_0"
    if width % FORMATS[name].elements:
        name = FALLBACKS.get(name, "F16")
    return name if width % FORMATS[name].elements == 0 else "F16"


# Routers, taps of convolutions, tables of positions and token types, small matrices: llama-quantize leaves them alone.
SPARED = ("_norm.weight", "ffn_gate_inp.weight", "shortconv.conv.weight", "ssm_conv1d", "position_embd.weight")
SPARED += ("token_types.weight", "altup", "laurel", "per_layer_model_proj")


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a quantizer touches the tensor: matrices, but none of SPARED, nor what norms and biases are."""
    return len(shape) > 1 and name.endswith("weight") and not any(part in name for part in SPARED)
