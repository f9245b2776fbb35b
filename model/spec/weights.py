"""Every tensor of an architecture, declared once: name, shape, and how devices share it. Imports no jax.

`declare` has what the parts of the layers declare (`model.spec.parts`), and the tensors that are of no part. Nothing
else names tensors. The check that a file has all of them and no other, the loader's buffers, each device's part
(`model.spec.sharding`) and the abstract tree that executables are lowered from (`model.weights.params`) all read it.

Layers are stacked by tensor and format: Q4_K_M keeps `attn_v` as Q6_K in some layers and as Q4_K in the others, so
`blk["attention"]["attn_v"]` is two stacks and a table that says where each layer's matrix lies. One loop body then
serves all layers, and the number of XLA kernels does not grow with the depth of the model.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile, TensorInfo
from packlight.model.spec.architectures import Architecture
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import LAYER
from packlight.model.spec.parts import Part
from packlight.model.spec.parts.altup import AltUpPart
from packlight.model.spec.parts.attention import KEYS_AND_VALUES, AttentionPart
from packlight.model.spec.parts.perlayer import PerLayerPart
from packlight.model.spec.weight import Segment, Weight

VECTOR_FORMATS = ("F32", "F16", "BF16")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.(.*)", re.ASCII)


def declare(cfg: ModelConfig) -> tuple[Weight, ...]:
    """Every tensor a model may have. Optional ones are used when the file has them, in all layers that have their part
    or in none.

    A branch of a layer is opened by matrices that devices share by rows, and closed by one that they share by inputs.
    """
    arch = cfg.architecture
    D, V = cfg.embedding_length, cfg.vocab_size
    vocab = (Segment("V", V),)
    rope = ("rope_factors_long", "rope_factors_short") if arch.rope.two_contexts else ("rope_freqs",)
    rotated = (cfg.key_length if arch.rope.divided else cfg.rope_dimension_count) // 2
    divided = arch.rope.divided and not all(cfg.slides)
    return (
        Weight("token_embd", (V, D), "rows", vocab, looked_up=True),
        *([Weight("position_embd", (cfg.context_length, D), looked_up=True)] if arch.learned_positions else []),
        *([Weight("token_types", (cfg.token_types, D), looked_up=True)] if arch.token_types else []),
        *_norm(arch, arch.norms.embedding, D),
        *(Weight(name, (rotated,), kind="vector", optional=not divided) for name in rope),
        *(
            dataclasses.replace(weight, part=LAYER, layers=_normed(cfg, name), optional=arch.norms.is_optional(name))
            for name in arch.norms.of_layers
            for weight in _norm(arch, name, D)
        ),
        *(weight for part in _parts(cfg) if isinstance(part, PerLayerPart | AltUpPart) for weight in part.tables(cfg)),
        *([_scale_of_outputs(cfg)] if arch.scaled_outputs else []),
        *(weight for part, layers in _parts(cfg).items() for weight in _of_part(cfg, part, tuple(layers))),
        *_norm(arch, arch.norms.last, D),
        # absent: it is token_embd
        *(_with_vectors(arch, Weight("output", (V, D), "rows", vocab, optional=True)) if arch.causal else []),
        *(made for weight in _pooled(cfg) for made in _with_vectors(arch, weight)),
    )


def _normed(cfg: ModelConfig, name: str) -> tuple[int, ...]:
    """The layers that have a norm."""
    norms = cfg.architecture.norms
    return tuple(range(int(norms.bare_first and name == norms.before_attention), cfg.block_count))


def _pooled(cfg: ModelConfig) -> Iterator[Weight]:
    """What reads a text's one vector: dense layers, and the head of a reranker."""
    D, ranking = cfg.embedding_length, cfg.architecture.ranking
    widths = (D, *cfg.dense_lengths)
    for number, shape in enumerate(zip(widths[1:], widths, strict=False), 2):
        yield Weight(f"dense_{number}", shape)
    if ranking is None:
        return
    may_lack = not cfg.ranks
    yield Weight("cls", (1 if ranking.one else D, D), optional=may_lack or not ranking.one)
    yield Weight("cls.norm", (D,), kind="vector", optional=True)
    if not ranking.one:
        yield Weight("cls.output", (cfg.labels, D), optional=may_lack)


def _parts(cfg: ModelConfig) -> dict[Part, list[int]]:
    """Each part of the model -> the layers that have it."""
    found: dict[Part, list[int]] = {}
    for number, layer in enumerate(cfg.layers):
        for part in layer.parts:
            found.setdefault(part, []).append(number)
    return found


def _scale_of_outputs(cfg: ModelConfig) -> Weight:
    """What each layer's output is multiplied with."""
    layers = tuple(range(cfg.block_count))
    return Weight("layer_output_scale", (1,), kind="vector", part=LAYER, layers=layers, optional=True, fill=1.0)


def _of_part(cfg: ModelConfig, part: Part, layers: tuple[int, ...]) -> Iterator[Weight]:
    """The tensors of a part, and what goes with its matrices, unless the part has a tensor of that name."""
    own = [dataclasses.replace(weight, part=part.name, layers=layers) for weight in part.weights(cfg)]
    names = {weight.name for weight in own}
    for weight in own:
        added = _with_vectors(cfg.architecture, weight)
        yield from (each for each in added if each is weight or each.name not in names)


def _with_vectors(arch: Architecture, weight: Weight) -> Iterator[Weight]:
    """A tensor and, if it is a matrix, its biases, which some families must have and any file may, and the scale that
    multiplies its products, of each expert where there are experts (NVFP4).
    """
    yield weight
    if weight.kind != "matrix":
        return
    name, *experts, rows, _ = weight.name, *weight.shape
    optional = weight.name not in arch.biases
    bias = {"shape": (*experts, rows), "kind": "bias", "optional": optional, "suffix": "", "replaces": ()}
    yield dataclasses.replace(weight, name=f"{name}.bias", **bias)
    cut = {"cut": weight.cut, "segments": weight.segments} if experts else {"cut": "", "segments": ()}
    scale = {"shape": tuple(experts) or (1,), "kind": "vector", "optional": True, "suffix": "", "replaces": ()}
    yield dataclasses.replace(weight, name=f"{name}.scale", fill=1.0, **scale, **cut)


def _norm(arch: Architecture, name: str, width: int) -> list[Weight]:
    """A norm's weights, and its biases where the family's norm has them; of no norm none."""
    if not name:
        return []
    weights = Weight(name, (width,), kind="vector", suffix="" if name == arch.norms.unsuffixed else ".weight")
    return [weights, Weight(f"{name}.bias", (width,), kind="bias", suffix="")] if arch.norms.biases else [weights]


def is_ignored(cfg: ModelConfig, name: str) -> bool:
    """Whether nobody reads a tensor: the rotation's own frequencies, which old converters wrote for each layer; what is
    of blocks that only predict further tokens; what makes keys and values in layers that attend to those of others; and
    what NVFP4's activations may be multiplied with.
    """
    if name.endswith(".input_scale"):
        return True
    block = _BLOCK.fullmatch(name)
    if not block or int(block[1]) >= cfg.block_count + cfg.skipped_blocks:
        return False
    if int(block[1]) >= cfg.block_count or block[2] == "attn_rot_embd.weight":
        return True
    mixers, of = cfg.layers[int(block[1])].mixers, block[2].partition(".")[0]
    return of in KEYS_AND_VALUES and any(isinstance(mixer, AttentionPart) and mixer.reads for mixer in mixers)


def read_tensors(file: GGUFFile, cfg: ModelConfig) -> list[TensorInfo]:
    """The tensors of the file that a model reads, in file order."""
    return [info for info in file.tensors.values() if not is_ignored(cfg, info.name)]


def formats(file: GGUFFile) -> dict[str, str]:
    """Tensor name -> format name, in file order."""
    return {name: info.format.name for name, info in file.tensors.items()}


def used_weights(cfg: ModelConfig, formats: Mapping[str, str]) -> tuple[Weight, ...]:
    """The declared weights that a file with tensors `formats` (name -> format) has.

    Raises GGUFError naming the tensor when a mandatory one is missing, an optional one is in some layers only, or a
    tensor of the file is neither declared nor ignored.
    """
    used, known, absent = [], set(), set()
    for weight in declare(cfg):
        names, of = weight.tensors, weight.name.removesuffix(".bias").removesuffix(".scale")
        present = [name for name in names if name in formats]
        if (weight.part, of) in absent or (not present and (weight.optional or weight.replaces)):
            absent.add((weight.part, weight.name))
            continue
        if len(present) < len(names) and weight.fill is None:
            missing = next(name for name in names if name not in formats)
            raise GGUFError(f"tensor '{missing}' is missing")
        used.append(weight)
        known.update(present)
        absent.update((weight.part, name) for name in weight.replaces)
    for name in formats:
        if name not in known and not is_ignored(cfg, name):
            raise GGUFError(f"tensor '{shown(name)}' is not part of a {cfg.architecture.name} model of this shape")
    return tuple(used)


def check(file: GGUFFile, cfg: ModelConfig) -> tuple[Weight, ...]:
    """The declared weights that the file has, after checking that names, shapes and formats fit. Reads no data.

    Raises GGUFError or UnsupportedError naming file and tensor.
    """
    with naming(file.path):
        used = used_weights(cfg, formats(file))
        for weight in used:
            for info in (file.tensors[name] for name in weight.tensors if name in file.tensors):
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
