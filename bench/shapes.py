"""The shapes of models that people run, and the tensors of a layer in each architecture. Imports no jax."""

import dataclasses
from typing import NamedTuple


class Latent(NamedTuple):
    """Widths of attention whose keys and values are made of latents."""

    queries: int  # rank
    latent: int
    rotated: int
    key: int  # of a head, its rotated channels included
    value: int  # of a head


class Mixture(NamedTuple):
    """Experts of all layers, or of all but the first and one beside them that every token goes through."""

    experts: int
    used: int
    width: int
    shared: bool = False


class Mamba(NamedTuple):
    """What Mamba-2 has in the layers without attention."""

    heads: int
    groups: int
    width: int  # channels of a head
    states: int  # numbers that each channel remembers

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.groups * self.states


@dataclasses.dataclass(frozen=True)
class Shape:
    """Hyperparameters of a model.

    head_dim: 0 stands for embed / heads. window: tokens that a layer with a sliding window sees. attending: the layers
    with attention where the others have a short convolution or Mamba-2; None: all. rotated: channels of a head that
    rotate, 0 stands for all. delta: value heads, key heads and channels of each in the delta nets of three layers out
    of four.
    """

    layers: int
    embed: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool = False
    rope_base: float = 10000.0
    head_dim: int = 0
    biases: bool = False
    architecture: str = "llama"
    epsilon: float = 1e-5
    window: int = 0
    attending: tuple[int, ...] | None = None
    latent: Latent | None = None
    mixture: Mixture | None = None
    rotated: int = 0
    delta: tuple[int, int, int] | None = None
    mamba: Mamba | None = None

    @property
    def head_size(self) -> int:
        return self.head_dim or self.embed // self.heads

    def attends(self, layer: int) -> bool:
        if self.delta is not None:
            return layer % ATTENDING_EVERY == ATTENDING_EVERY - 1
        return self.attending is None or layer in self.attending


ATTENDING_EVERY = 4  # layers, where there are delta nets
SHAPES = {
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 32000, 2048),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 128256, 131072, tied=True, rope_base=500000.0, head_dim=64),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128256, 8192, rope_base=500000.0),
    "qwen3-4b": Shape(
        *(36, 2560, 9728, 32, 8, 151936, 40960),
        tied=True,
        rope_base=1e6,
        head_dim=128,
        architecture="qwen3",
        epsilon=1e-6,
    ),
    "qwen3-30b-a3b": Shape(
        *(48, 2048, 6144, 32, 4, 151936, 40960),
        rope_base=1e6,
        head_dim=128,
        architecture="qwen3moe",
        epsilon=1e-6,
        mixture=Mixture(128, 8, 768),
    ),
    "gpt-oss-20b": Shape(
        *(24, 2880, 2880, 64, 8, 201088, 131072),
        rope_base=150000.0,
        head_dim=64,
        biases=True,
        architecture="gpt-oss",
        window=128,
        mixture=Mixture(32, 4, 2880),
    ),
    "gemma-3-4b": Shape(
        *(34, 2560, 10240, 8, 4, 262208, 131072),
        tied=True,
        rope_base=1e6,
        head_dim=256,
        architecture="gemma3",
        epsilon=1e-6,
        window=1024,
    ),
    "lfm2-1.2b": Shape(
        *(16, 2048, 8192, 32, 8, 65536, 128000),
        tied=True,
        rope_base=1e6,
        architecture="lfm2",
        attending=(2, 5, 8, 10, 12, 14),
    ),
    "nomic-embed-text": Shape(
        *(12, 768, 3072, 12, 12, 30522, 2048), tied=True, rope_base=1000.0, architecture="nomic-bert", epsilon=1e-12
    ),
    "bert-large": Shape(*(24, 1024, 4096, 16, 16, 30522, 512), tied=True, architecture="bert", epsilon=1e-12),
    "glm-4.7-flash": Shape(
        *(47, 2048, 10240, 20, 1, 154880, 202752),
        rope_base=1e6,
        architecture="deepseek2",
        latent=Latent(768, 512, 64, 256, 256),
        mixture=Mixture(64, 4, 1536, shared=True),
    ),
    "qwen3.5-4b": Shape(
        *(32, 2560, 9216, 16, 4, 248320, 262144),
        tied=True,
        rope_base=1e7,
        head_dim=256,
        architecture="qwen35",
        epsilon=1e-6,
        rotated=64,
        delta=(32, 16, 128),
    ),
    "granite-4.0-h-micro": Shape(
        *(40, 2048, 8192, 32, 8, 100352, 131072),
        tied=True,
        architecture="granitehybrid",
        attending=(5, 15, 25, 35),
        mamba=Mamba(64, 1, 64, 128),
    ),
}
ENCODERS = ("bert", "nomic-bert")  # whose shapes are tied: they have no head

CONVOLUTION = 3  # tokens that a short convolution sees
TAPS = 4  # tokens that the convolution of a delta net or Mamba-2 sees
EXACT = ("ssm_a", "ssm_d", "ssm_dt.bias")  # tensors without `.weight` behind their name
ATTENTION = "attn_norm attn_q attn_k attn_v attn_output"
FFN = "ffn_norm ffn_gate ffn_up ffn_down"
SUM_NORMS = [f"{name} {name}.bias" for name in ("attn_output_norm", "layer_output_norm")]
LATENT = "attn_norm attn_q_a attn_q_a_norm attn_q_b attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b attn_output"
ROUTED = "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
EXPERTS = " ".join(f"ffn_{name}_{ending}" for ending in ("exps", "shexp") for name in ("gate", "up", "down"))
# Matrices that no quantizer touches
UNTOUCHED = ("shortconv.conv", "ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "ffn_gate_inp")
# The tensors of a layer in file order, by architecture and what the layer mixes tokens with, or that it has no experts.
LAYERS = {
    "llama": f"{ATTENTION} {FFN}",
    "qwen3": f"{ATTENTION} attn_q_norm attn_k_norm {FFN}",
    "qwen3moe": f"{ATTENTION} attn_q_norm attn_k_norm ffn_norm {ROUTED}",
    "gpt-oss": f"{ATTENTION} attn_sinks post_attention_norm "
    + " ".join(f"{name} {name}.bias" for name in ROUTED.split()),
    "gemma3": f"{ATTENTION} attn_q_norm attn_k_norm post_attention_norm {FFN} post_ffw_norm",
    "lfm2": f"{ATTENTION} attn_q_norm attn_k_norm {FFN}",
    "nomic-bert": f"attn_qkv attn_output {SUM_NORMS[0]} ffn_up ffn_gate ffn_down {SUM_NORMS[1]}",
    "bert": f"attn_q attn_q.bias attn_k attn_k.bias attn_v attn_v.bias attn_output attn_output.bias {SUM_NORMS[0]}"
    f" ffn_up ffn_up.bias ffn_down ffn_down.bias {SUM_NORMS[1]}",
    "deepseek2": f"{LATENT} ffn_norm ffn_gate_inp exp_probs_b.bias {EXPERTS}",
    "deepseek2 dense": f"{LATENT} {FFN}",
    "qwen35": f"{ATTENTION} attn_q_norm attn_k_norm post_attention_norm ffn_gate ffn_up ffn_down",
    "qwen35 mixing": "attn_norm attn_qkv attn_gate ssm_conv1d ssm_dt.bias ssm_a ssm_beta ssm_alpha ssm_norm ssm_out"
    " post_attention_norm ffn_gate ffn_up ffn_down",
    "granitehybrid": f"{ATTENTION} {FFN}",
    "granitehybrid mixing": "attn_norm ssm_in ssm_conv1d ssm_conv1d.bias ssm_dt.bias ssm_a ssm_d ssm_norm ssm_out"
    f" {FFN}",
    "lfm2 mixing": f"attn_norm shortconv.conv shortconv.in_proj shortconv.out_proj {FFN}",
}


def layer_shapes(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a layer but optional biases, in file order."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    values, keys, width = shape.delta or (0, 0, 0)
    channels, inner = (2 * keys + values) * width, values * width
    known = {
        "attn_q": (q if shape.delta is None else 2 * q, shape.embed),  # with gates
        "attn_k": (kv, shape.embed),
        "attn_v": (kv, shape.embed),
        "attn_output": (shape.embed, q),
        "attn_q_norm": (shape.head_size,),
        "attn_k_norm": (shape.head_size,),
        "attn_sinks": (shape.heads,),
        "shortconv.conv": (shape.embed, CONVOLUTION),
        "shortconv.in_proj": (3 * shape.embed, shape.embed),
        "shortconv.out_proj": (shape.embed, shape.embed),
        "attn_qkv": (q + 2 * kv if shape.delta is None else channels, shape.embed),
        "attn_gate": (inner, shape.embed),
        "ssm_conv1d": (channels, TAPS),
        "ssm_dt.bias": (values,),
        "ssm_a": (values,),
        "ssm_beta": (values, shape.embed),
        "ssm_alpha": (values, shape.embed),
        "ssm_norm": (width,),
        "ssm_out": (shape.embed, inner),
        "ffn_gate": (shape.ffn, shape.embed),
        "ffn_up": (shape.ffn, shape.embed),
        "ffn_down": (shape.embed, shape.ffn),
    }
    if shape.latent is not None:
        known |= _latent_shapes(shape, shape.latent)
    if shape.mamba is not None:
        known |= _mamba_shapes(shape, shape.mamba)
    if shape.mixture is not None:
        known |= _expert_shapes(shape, shape.mixture)
    leads = shape.mixture is not None and shape.mixture.shared and not layer
    kind = " dense" if leads else "" if shape.attends(layer) else " mixing"
    names = LAYERS[shape.architecture + kind]
    found = {}
    for name in names.split():
        base, bias, _ = name.partition(".bias")
        found[name] = known.get(name, known.get(base, (shape.embed,))[: 1 if bias else 3])
    return found


def _latent_shapes(shape: Shape, widths: Latent) -> dict[str, tuple[int, ...]]:
    queries, latent, rotated, key, value = widths
    return {
        "attn_q_a": (queries, shape.embed),
        "attn_q_a_norm": (queries,),
        "attn_q_b": (shape.heads * key, queries),
        "attn_kv_a_mqa": (latent + rotated, shape.embed),
        "attn_kv_a_norm": (latent,),
        "attn_k_b": (shape.heads, latent, key - rotated),
        "attn_v_b": (shape.heads, value, latent),
        "attn_output": (shape.embed, shape.heads * value),
    }


def _mamba_shapes(shape: Shape, mamba: Mamba) -> dict[str, tuple[int, ...]]:
    return {
        "ssm_in": (mamba.inner + mamba.convolved + mamba.heads, shape.embed),
        "ssm_conv1d": (mamba.convolved, TAPS),
        "ssm_dt.bias": (mamba.heads,),
        "ssm_a": (mamba.heads, 1),
        "ssm_d": (mamba.heads, 1),
        "ssm_norm": (mamba.groups, mamba.inner // mamba.groups),
        "ssm_out": (shape.embed, mamba.inner),
    }


def _expert_shapes(shape: Shape, mixture: Mixture) -> dict[str, tuple[int, ...]]:
    D, (E, _, X, _) = shape.embed, mixture
    found: dict[str, tuple[int, ...]] = {"ffn_gate_inp": (E, D), "exp_probs_b.bias": (E,)}
    for name in ("gate", "up", "down"):
        one = (D, X) if name == "down" else (X, D)
        found |= {f"ffn_{name}_exps": (E, *one), f"ffn_{name}_exps.bias": (E, one[0]), f"ffn_{name}_shexp": one}
    return found
