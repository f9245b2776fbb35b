"""Every tensor of an architecture, declared once: name, shape, axes. Imports no jax.

`declare` is the only place that names tensors. The check that a file has all of them and no other, the loader's
buffers and the abstract tree that executables are lowered from (`model.weights.params`) all read it.

Layers are stacked by tensor and format: Q4_K_M keeps `attn_v` as Q6_K in some layers and as Q4_K in the others, so
`blk["attn_v"]` is two stacks and a table that says where each layer's matrix lies. One loop body then serves all
layers, and the number of XLA kernels does not grow with the depth of the model.
"""

import dataclasses
from collections.abc import Mapping

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.architectures import Architecture
from packlight.model.spec.config import ModelConfig
from packlight.quant import layouts
from packlight.quant.formats.table import FORMATS

VECTOR_FORMATS = ("F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor, or one per layer: GGUF name without its `.weight`, shape `(out, in)`, letters of `model.__init__`."""

    name: str
    shape: tuple[int, ...]
    axes: str
    per_layer: bool = True
    optional: bool = False

    def __post_init__(self):
        assert len(self.axes) == len(self.shape), self

    @property
    def is_vector(self) -> bool:
        """Kept as float32 rather than packed: norms, biases (of experts too), sinks, frequencies."""
        return len(self.shape) == 1 or self.name.endswith(".bias")

    def tensors(self, layers: int) -> list[str]:
        """Full names in the file, one per layer or just one."""
        suffix = "" if self.name.endswith(".bias") else ".weight"
        prefixes = [f"blk.{layer}." for layer in range(layers)] if self.per_layer else [""]
        return [f"{prefix}{self.name}{suffix}" for prefix in prefixes]

    def blocks_shape(self, qtype: str, layout: str = "ggml") -> tuple[int, ...]:
        """(..., out, N, block_bytes) of one such matrix in format `qtype`, or the last three axes of another layout."""
        fmt, (*lead, out, width) = FORMATS[qtype], self.shape
        return (*lead, *layouts.blocks_shape(out, width // fmt.elements, fmt.bytes, layout, qtype))


def declare(cfg: ModelConfig) -> tuple[Weight, ...]:
    """Every tensor a model may have. Optional ones are used when the file has them, in all layers or in none."""
    arch = cfg.architecture
    D, F, V, E = cfg.embedding_length, cfg.feed_forward_length, cfg.vocab_size, cfg.expert_count
    Q, KV, C = cfg.head_count * cfg.key_length, cfg.head_count_kv * cfg.key_length, cfg.key_length
    if arch.fused:
        projections = (Weight("attn_qkv", (Q + 2 * KV, D), "HD"),)
    else:
        projections = (Weight("attn_q", (Q, D), "HD"), Weight("attn_k", (KV, D), "KD"), Weight("attn_v", (KV, D), "KD"))
    matrices = [*projections, Weight("attn_output", (D, Q), "DH")]
    if E:
        X = cfg.expert_feed_forward_length
        matrices += [
            Weight("ffn_gate_inp", (E, D), "ED"),
            Weight("ffn_gate_exps", (E, X, D), "EFD"),
            Weight("ffn_up_exps", (E, X, D), "EFD"),
            Weight("ffn_down_exps", (E, D, X), "EDF"),
        ]
    else:
        gates = () if arch.fused or arch.ffn == "gelu" else (Weight("ffn_gate", (F, D), "FD"),)
        up = Weight("ffn_up", (2 * F if arch.fused else F, D), "FD")
        matrices += [*gates, up, Weight("ffn_down", (D, F), "DF")]
    biases = [
        Weight(f"{m.name}.bias", m.shape[:-1], m.axes[:-1], optional=m.name not in arch.biases)
        for m in matrices
        if m.name in arch.biases or m.name in arch.optional_biases
    ]
    norms = [*(["attn_norm", arch.ffn_norm] if arch.pre_norms else [])]
    norms += ["post_attention_norm", "post_ffw_norm"] if arch.post_norms else []
    vectors = [part for name in norms for part in _norm(arch, name, D)]
    if arch.qk_norm:
        widths = (C, C) if arch.qk_norm == "head" else (Q, KV)
        vectors += [Weight("attn_q_norm", widths[:1], "C"), Weight("attn_k_norm", widths[1:], "C")]
    if arch.sinks:
        vectors.append(Weight("attn_sinks", (cfg.head_count,), "H"))
    rope = ("rope_factors_long", "rope_factors_short") if arch.long_rope else ("rope_freqs",)
    return (
        Weight("token_embd", (V, D), "VD", per_layer=False),
        *(Weight(name, (cfg.rope_dimension_count // 2,), "C", per_layer=False, optional=True) for name in rope),
        *vectors,
        *matrices,
        *biases,
        *_norm(arch, "output_norm", D, per_layer=False),
        Weight("output", (V, D), "VD", per_layer=False, optional=True),  # absent: the head is token_embd
    )


def _norm(arch: Architecture, name: str, width: int, per_layer: bool = True) -> list[Weight]:
    """A norm's weights, and its biases where the family's norm has them."""
    names = [name, f"{name}.bias"] if arch.norm == "layer" else [name]
    return [Weight(name, (width,), "D", per_layer) for name in names]


def ignored_tensors(cfg: ModelConfig) -> frozenset[str]:
    """Tensors that old converters wrote and nobody reads: the rotation's own frequencies, per layer."""
    return frozenset(f"blk.{layer}.attn_rot_embd.weight" for layer in range(cfg.block_count))


def formats(file: GGUFFile) -> dict[str, str]:
    """Tensor name -> format name, in file order."""
    return {name: info.format.name for name, info in file.tensors.items()}


def used_weights(cfg: ModelConfig, formats: Mapping[str, str]) -> tuple[Weight, ...]:
    """The declared weights that a file with tensors `formats` (name -> format) has.

    Raises GGUFError naming the tensor when a mandatory one is missing, an optional one is in some layers only, or a
    tensor of the file is neither declared nor ignored.
    """
    used, known = [], set(ignored_tensors(cfg))
    for weight in declare(cfg):
        names = weight.tensors(cfg.block_count)
        missing = [name for name in names if name not in formats]
        if missing and not (weight.optional and len(missing) == len(names)):
            raise GGUFError(f"tensor '{missing[0]}' is missing")
        if not missing:
            used.append(weight)
            known.update(names)
    for name in formats:
        if name not in known:
            raise GGUFError(f"tensor '{shown(name)}' is not part of a {cfg.architecture.name} model of this shape")
    return tuple(used)


def check(file: GGUFFile, cfg: ModelConfig) -> tuple[Weight, ...]:
    """The declared weights that the file has, after checking that names, shapes and formats fit. Reads no data.

    Raises GGUFError or UnsupportedError naming file and tensor.
    """
    with naming(file.path):
        used = used_weights(cfg, formats(file))
        for weight in used:
            for info in (file.tensors[name] for name in weight.tensors(cfg.block_count)):
                if info.shape != weight.shape:
                    raise GGUFError(f"tensor '{info.name}' has shape {info.shape}, {weight.shape} is needed")
                if weight.is_vector and info.format.name not in VECTOR_FORMATS:
                    raise UnsupportedError(
                        f"tensor '{info.name}': a vector in {info.format.name}; supported: {', '.join(VECTOR_FORMATS)}"
                    )
    return used


def is_tied(used: tuple[Weight, ...]) -> bool:
    """Whether the output head is the embedding."""
    return all(weight.name != "output" for weight in used)


def layout_of(weight: Weight, qtype: str, layout: str, tied: bool) -> str:
    """The layout a matrix is kept in when kernels read `layout`: ggml's where no product does, or none for the format.

    tied: whether the embedding is also the output head.
    """
    multiplied = weight.name != "token_embd" or tied
    return layout if multiplied and layouts.has_layout(qtype, layout) else "ggml"


def group_by_format(qtypes: list[str]) -> tuple[list[str], tuple[tuple[int, int], ...]]:
    """Formats per layer -> distinct formats in order of appearance, and each layer's (group, index in the group)."""
    order = list(dict.fromkeys(qtypes))
    return order, tuple((order.index(q), qtypes[:layer].count(q)) for layer, q in enumerate(qtypes))
