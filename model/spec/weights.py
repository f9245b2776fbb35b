"""Every tensor of an architecture, declared once: name, shape, and how devices share it. Imports no jax.

`declare` has what the parts of the layers declare (`model.spec.parts`), and the tensors that are of no part. Nothing
else names tensors. The check that a file has all of them and no other, the loader's buffers, each device's part
(`model.spec.sharding`) and the abstract tree that executables are lowered from (`model.weights.params`) all read it.

Layers are stacked by tensor and format: Q4_K_M keeps `attn_v` as Q6_K in some layers and as Q4_K in the others, so
`blk["attention"]["attn_v"]` is two stacks and a table that says where each layer's matrix lies. One loop body then
serves all layers, and the number of XLA kernels does not grow with the depth of the model.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.architectures import Architecture
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import LAYER
from packlight.model.spec.parts import Part
from packlight.model.spec.weight import Segment, Weight

VECTOR_FORMATS = ("F32", "F16", "BF16")


def declare(cfg: ModelConfig) -> tuple[Weight, ...]:
    """Every tensor a model may have. Optional ones are used when the file has them, in all layers that have their part
    or in none.

    A branch of a layer is opened by matrices that devices share by rows, and closed by one that they share by inputs.
    """
    arch = cfg.architecture
    D, V = cfg.embedding_length, cfg.vocab_size
    vocab = (Segment("V", V),)
    norms = [*(["attn_norm", arch.norms.before_ffn] if arch.norms.before else [])]
    norms += ["post_attention_norm", "post_ffw_norm"] if arch.norms.after else []
    rope = ("rope_factors_long", "rope_factors_short") if arch.rope.two_contexts else ("rope_freqs",)
    rotated = cfg.rope_dimension_count // 2
    every = tuple(range(cfg.block_count))
    return (
        Weight("token_embd", (V, D), "rows", vocab),
        *(Weight(name, (rotated,), kind="vector", optional=True) for name in rope),
        *(dataclasses.replace(w, part=LAYER, layers=every) for name in norms for w in _norm(arch, name, D)),
        *(weight for part, layers in _parts(cfg).items() for weight in _of_part(cfg, part, tuple(layers))),
        *_norm(arch, arch.norms.last, D),
        Weight("output", (V, D), "rows", vocab, optional=True),  # absent: the head is token_embd
    )


def _parts(cfg: ModelConfig) -> dict[Part, list[int]]:
    """Each part of the model -> the layers that have it."""
    found: dict[Part, list[int]] = {}
    for number, layer in enumerate(cfg.layers):
        for part in layer.parts:
            found.setdefault(part, []).append(number)
    return found


def _of_part(cfg: ModelConfig, part: Part, layers: tuple[int, ...]) -> Iterator[Weight]:
    """The tensors of a part, and the biases that the family's matrices have."""
    arch = cfg.architecture
    for weight in part.weights(cfg):
        yield (declared := dataclasses.replace(weight, part=part.name, layers=layers))
        if weight.kind == "matrix" and weight.name in (*arch.biases, *arch.optional_biases):
            optional = weight.name not in arch.biases
            changes = {"name": f"{weight.name}.bias", "shape": weight.shape[:-1], "kind": "bias", "optional": optional}
            yield dataclasses.replace(declared, **changes)


def _norm(arch: Architecture, name: str, width: int) -> list[Weight]:
    """A norm's weights, and its biases where the family's norm has them."""
    weights = Weight(name, (width,), kind="vector")
    if arch.norms.kind != "layer":
        return [weights]
    return [weights, Weight(f"{name}.bias", (width,), kind="bias")]


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
        names = weight.tensors
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
            for info in (file.tensors[name] for name in weight.tensors):
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
