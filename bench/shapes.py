"""The shapes of models that people run, and the tensors of a layer in each architecture. Imports no jax."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Hyperparameters of a model.

    head_dim: 0 stands for embed / heads. window: tokens that a layer with a sliding window sees. attending: the layers
    with attention where the others have a short convolution; None: all.
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

    @property
    def head_size(self) -> int:
        return self.head_dim or self.embed // self.heads

    def attends(self, layer: int) -> bool:
        return self.attending is None or layer in self.attending


SHAPES = {
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 32000, 2048),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 128256, 131072, tied=True, rope_base=500000.0, head_dim=64),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128256, 8192, rope_base=500000.0),
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
}
ENCODERS = ("bert", "nomic-bert")  # whose shapes are tied: they have no head

CONVOLUTION = 3  # tokens that a short convolution sees
ATTENTION = "attn_norm attn_q attn_k attn_v attn_output"
FFN = "ffn_norm ffn_gate ffn_up ffn_down"
SUM_NORMS = [f"{name} {name}.bias" for name in ("attn_output_norm", "layer_output_norm")]
# The tensors of a layer in file order, by architecture and what the layer mixes tokens with.
LAYERS = {
    "llama": f"{ATTENTION} {FFN}",
    "gemma3": f"{ATTENTION} attn_q_norm attn_k_norm post_attention_norm {FFN} post_ffw_norm",
    "lfm2": f"{ATTENTION} attn_q_norm attn_k_norm {FFN}",
    "nomic-bert": f"attn_qkv attn_output {SUM_NORMS[0]} ffn_up ffn_gate ffn_down {SUM_NORMS[1]}",
    "bert": f"attn_q attn_q.bias attn_k attn_k.bias attn_v attn_v.bias attn_output attn_output.bias {SUM_NORMS[0]}"
    f" ffn_up ffn_up.bias ffn_down ffn_down.bias {SUM_NORMS[1]}",
    "lfm2 convolution": f"attn_norm shortconv.conv shortconv.in_proj shortconv.out_proj {FFN}",
}


def layer_shapes(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a layer but optional biases, in file order."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    known = {
        "attn_q": (q, shape.embed),
        "attn_k": (kv, shape.embed),
        "attn_v": (kv, shape.embed),
        "attn_qkv": (q + 2 * kv, shape.embed),
        "attn_output": (shape.embed, q),
        "attn_q_norm": (shape.head_size,),
        "attn_k_norm": (shape.head_size,),
        "shortconv.conv": (shape.embed, CONVOLUTION),
        "shortconv.in_proj": (3 * shape.embed, shape.embed),
        "shortconv.out_proj": (shape.embed, shape.embed),
        "ffn_gate": (shape.ffn, shape.embed),
        "ffn_up": (shape.ffn, shape.embed),
        "ffn_down": (shape.embed, shape.ffn),
    }
    names = LAYERS[shape.architecture + ("" if shape.attends(layer) else " convolution")]
    found = {}
    for name in names.split():
        base, bias, _ = name.partition(".bias")
        found[name] = known.get(base, (shape.embed,))[: 1 if bias else 3]
    return found
