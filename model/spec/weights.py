"""Every tensor of an architecture, declared once: name, shape, and how devices share it. Imports no jax.

`declare` is the only place that names tensors. The check that a file has all of them and no other, the loader's
buffers, each device's part (`model.spec.sharding`) and the abstract tree that executables are lowered from
(`model.weights.params`) all read it.

Layers are stacked by tensor and format: Q4_K_M keeps `attn_v` as Q6_K in some layers and as Q4_K in the others, so
`blk["attn_v"]` is two stacks and a table that says where each layer's matrix lies. One loop body then serves all
layers, and the number of XLA kernels does not grow with the depth of the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.architectures import Architecture
from packlight.model.spec.config import ModelConfig
from packlight.quant import layouts
from packlight.quant.formats.table import FORMATS

VECTOR_FORMATS = ("F32", "F16", "BF16")

Axis = Literal["", "rows", "inputs", "experts"]
Kind = Literal["matrix", "bias", "vector"]


class Segment(NamedTuple):
    """Consecutive rows, inputs or experts of a weight that lie on one logical axis."""

    axis: Literal["E", "F", "H", "K", "V"]  # a letter of `model.__init__`
    length: int  # rows, inputs or experts: for heads, their number times the width of one


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor, or one per layer: a row of `declare`."""

    name: str  # as in the file, without its `.weight`
    shape: tuple[int, ...]  # (out, in), experts before
    cut: Axis = ""  # the axis that devices share; "": each of them holds all of it. A bias states its matrix's
    segments: tuple[Segment, ...] = ()  # what lies along that axis, in order
    kind: Kind = "matrix"  # a matrix stays packed; biases, and vectors such as norms or sinks, become float32
    per_layer: bool = True
    optional: bool = False  # a file may lack it, then in all layers

    def __post_init__(self):
        if self.cut and not (self.is_vector and self.cut == "inputs"):
            assert self.shape[self.position(self.cut)] == sum(segment.length for segment in self.segments), self

    @property
    def is_vector(self) -> bool:
        """Whether it is kept as float32 rather than packed."""
        return self.kind != "matrix"

    def position(self, axis: Axis) -> int:
        """Where in the shape `axis` is. The rows of a bias are its last axis, and it has no inputs."""
        match axis:
            case "experts":
                return 0
            case "rows":
                return len(self.shape) - (1 if self.is_vector else 2)
            case _:
                return len(self.shape) - 1

    def tensors(self, layers: int) -> list[str]:
        """Full names in the file, one per layer or just one."""
        suffix = "" if self.kind == "bias" else ".weight"
        prefixes = [f"blk.{layer}." for layer in range(layers)] if self.per_layer else [""]
        return [f"{prefix}{self.name}{suffix}" for prefix in prefixes]

    def blocks_shape(self, qtype: str, layout: str = "ggml") -> tuple[int, ...]:
        """(..., out, N, block_bytes) of one such matrix in format `qtype`, or the last three axes of another layout."""
        fmt, (*lead, out, width) = FORMATS[qtype], self.shape
        return (*lead, *layouts.blocks_shape(out, width // fmt.elements, fmt.bytes, layout, qtype))


def declare(cfg: ModelConfig) -> tuple[Weight, ...]:
    """Every tensor a model may have. Optional ones are used when the file has them, in all layers or in none.

    A branch of a layer is opened by matrices that devices share by rows, and closed by one that they share by inputs.
    """
    arch = cfg.architecture
    D, V = cfg.embedding_length, cfg.vocab_size
    vocab = (Segment("V", V),)
    matrices = [*_attention_matrices(cfg), *_ffn_matrices(cfg)]
    biases = [
        Weight(f"{m.name}.bias", m.shape[:-1], m.cut, m.segments, "bias", optional=m.name not in arch.biases)
        for m in matrices
        if m.name in arch.biases or m.name in arch.optional_biases
    ]
    norms = [*(["attn_norm", arch.norms.before_ffn] if arch.norms.before else [])]
    norms += ["post_attention_norm", "post_ffw_norm"] if arch.norms.after else []
    rope = ("rope_factors_long", "rope_factors_short") if arch.rope.two_contexts else ("rope_freqs",)
    rotated = cfg.rope_dimension_count // 2
    return (
        Weight("token_embd", (V, D), "rows", vocab, per_layer=False),
        *(Weight(name, (rotated,), kind="vector", per_layer=False, optional=True) for name in rope),
        *(weight for name in norms for weight in _norm(arch, name, D)),
        *_attention_vectors(cfg),
        *matrices,
        *biases,
        *_norm(arch, "output_norm", D, per_layer=False),
        Weight("output", (V, D), "rows", vocab, per_layer=False, optional=True),  # absent: the head is token_embd
    )


def _head_segments(cfg: ModelConfig) -> tuple[Segment, Segment]:
    """The query heads' rows and the kv heads'."""
    return Segment("H", cfg.head_count * cfg.key_length), Segment("K", cfg.head_count_kv * cfg.key_length)


def _attention_matrices(cfg: ModelConfig) -> list[Weight]:
    D = cfg.embedding_length
    heads, kv_heads = _head_segments(cfg)
    Q, KV = heads.length, kv_heads.length
    closing = Weight("attn_output", (D, Q), "inputs", (heads,))
    if cfg.architecture.attention.fused:
        return [Weight("attn_qkv", (Q + 2 * KV, D), "rows", (heads, kv_heads, kv_heads)), closing]
    return [
        Weight("attn_q", (Q, D), "rows", (heads,)),
        Weight("attn_k", (KV, D), "rows", (kv_heads,)),
        Weight("attn_v", (KV, D), "rows", (kv_heads,)),
        closing,
    ]


def _attention_vectors(cfg: ModelConfig) -> list[Weight]:
    arch, vectors = cfg.architecture, []
    heads, kv_heads = _head_segments(cfg)
    if arch.attention.qk_norm == "head":
        vectors += [Weight(name, (cfg.key_length,), kind="vector") for name in ("attn_q_norm", "attn_k_norm")]
    elif arch.attention.qk_norm == "whole":
        vectors.append(Weight("attn_q_norm", (heads.length,), "rows", (heads,), "vector"))
        vectors.append(Weight("attn_k_norm", (kv_heads.length,), "rows", (kv_heads,), "vector"))
    if arch.attention.sinks:
        vectors.append(Weight("attn_sinks", (cfg.head_count,), "rows", (Segment("H", cfg.head_count),), "vector"))
    return vectors


def _ffn_matrices(cfg: ModelConfig) -> list[Weight]:
    arch, D, F, E = cfg.architecture, cfg.embedding_length, cfg.feed_forward_length, cfg.expert_count
    if E:
        X, experts = cfg.expert_feed_forward_length, (Segment("E", E),)
        return [
            Weight("ffn_gate_inp", (E, D)),
            Weight("ffn_gate_exps", (E, X, D), "experts", experts),
            Weight("ffn_up_exps", (E, X, D), "experts", experts),
            Weight("ffn_down_exps", (E, D, X), "experts", experts),
        ]
    features = Segment("F", F)
    closing = Weight("ffn_down", (D, F), "inputs", (features,))
    up = Weight("ffn_up", (F, D), "rows", (features,))
    if arch.ffn.fused:
        return [Weight("ffn_up", (2 * F, D), "rows", (features, features)), closing]
    if arch.ffn.kind == "gelu":
        return [up, closing]
    return [Weight("ffn_gate", (F, D), "rows", (features,)), up, closing]


def _norm(arch: Architecture, name: str, width: int, per_layer: bool = True) -> list[Weight]:
    """A norm's weights, and its biases where the family's norm has them."""
    weights = Weight(name, (width,), kind="vector", per_layer=per_layer)
    if arch.norms.kind != "layer":
        return [weights]
    return [weights, Weight(f"{name}.bias", (width,), kind="bias", per_layer=per_layer)]


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


def group_by_format(qtypes: list[str]) -> tuple[list[str], tuple[tuple[int, int], ...]]:
    """Formats per layer -> distinct formats in order of appearance, and each layer's (group, index in the group)."""
    order = list(dict.fromkeys(qtypes))
    return order, tuple((order.index(q), qtypes[:layer].count(q)) for layer, q in enumerate(qtypes))
