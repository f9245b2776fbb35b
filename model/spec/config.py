"""What a GGUF file says about its model: `ModelConfig`, read strictly from the metadata. Imports no jax.

It knows hyperparameters and their limits; it does not know tensors' bytes, tokens or executables.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.architectures import Architecture, Ffn, Ranking
from packlight.model.spec.experts import read_experts
from packlight.model.spec.keys import MAX_LAYERS, Keys, unless_equal
from packlight.model.spec.layers import MAX_TRACED, Layer, traced
from packlight.model.spec.parts import Mixer, Part
from packlight.model.spec.parts.altup import AltUpPart, LaurelPart
from packlight.model.spec.parts.attention import AttentionPart, Source
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.dense import DensePart
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.parts.moe import MoePart, Routing
from packlight.model.spec.parts.perlayer import PerLayerPart
from packlight.model.spec.parts.shortconv import ShortConvPart
from packlight.model.spec.positions import (
    RopeScaling,
    Sharpening,
    read_rope_scaling,
    read_rope_sections,
    read_rotating_layers,
    read_sharpening,
    read_sliding_rope_base,
)

# What the Mosaic attention kernel is made for: tensor cores take whole pieces of 128 bytes, and of float32 they would
# read 11 bits. The registers of a block hold no wider heads.
MOSAIC_WIDTHS = (64, 128, 192, 256)
MOSAIC_CACHES = ("bfloat16", "float16")
MEAN, RANK = 1, 4  # `llama_pooling_type`
_ACTIVATIONS: dict[str, Literal["geglu", "swiglu"]] = {
    **{"gelu": "geglu", "geglu": "geglu"},
    **{"silu": "swiglu", "swish": "swiglu", "swiglu": "swiglu"},
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of one file. Field names follow the GGUF keys, letters follow `model.__init__`."""

    architecture: Architecture
    name: str
    block_count: int  # L, without the blocks that only predict further tokens
    context_length: int
    embedding_length: int  # D
    feed_forward_length: int  # F, the most that a layer has
    head_count: int  # H, the most that a layer has
    head_count_kv: int  # K, the most that a layer has
    key_length: int  # C, of the layers that do not slide
    vocab_size: int  # V
    norm_epsilon: float  # of the family's kind of norm
    rope_dimension_count: int  # rot, the channels of a head that are rotated
    rope_freq_base: float
    rope_scaling: RopeScaling
    expert_count: int  # E, 0 for a dense model
    expert_used_count: int  # X
    expert_feed_forward_length: int = 0  # F of each expert
    shared_feed_forward_length: int = 0  # F of the experts that every token goes through, together; 0: there are none
    latent_length: int = 0  # width in which experts compute, where it is not D; 0: it is
    routing: Routing = Routing()  # how experts are chosen and weighed
    with_experts: tuple[bool, ...] = ()  # for each layer, whether it has experts; (): as `expert_count` says
    ffn_lengths: tuple[int, ...] = ()  # F of each layer, where they differ; 0: the layer has no feed-forward part
    heads: tuple[int, ...] = ()  # H of each layer, where they differ
    kv_heads: tuple[int, ...] = ()  # K of each layer, where they differ; 0: the layer has no attention
    key_length_swa: int = 0  # C of the layers that slide, where it is another; 0: it is the same
    shared_kv_layers: int = 0  # the last ones, which attend to keys and values of layers before them
    per_layer_length: int = 0  # P, width of the second embedding in each layer; 0: there is none
    latent: MlaPart | None = None  # the mixer of all layers, where keys and values are made of latents
    delta_net: DeltaNetPart | None = None  # the mixer of layers that remember
    remembers: tuple[bool, ...] = ()  # for each layer, whether it does
    mamba2: Mamba2Part | None = None  # a mixer of some layers or all, as the family says
    taps: int = 0  # positions that a short convolution sees, the present included
    sliding_window: int = 0  # positions that a query of a sliding layer sees, itself included; 0: no layer slides
    slides: tuple[bool, ...] = ()  # for each layer, whether it slides
    rotates: tuple[bool, ...] = ()  # for each layer, whether positions rotate its queries and keys; (): all do
    rope_sections: tuple[int, ...] = ()  # pairs of each kind of positions; (): there is one kind
    rope_dimension_count_swa: int = 0  # of the sliding layers; 0: as of the others
    rope_freq_base_swa: float = 10000.0  # base of the sliding layers' rotation
    rope_scaling_swa: RopeScaling | None = None  # of the sliding layers; None: that of the others
    rope_reach: int = 0  # tokens that stretched positions serve; 0: those of `context_length`
    rope_given: tuple[str, ...] = ()  # arguments that replace what the file says of the rotation
    side_by_side: bool = False  # attention and feed-forward read the same hidden states
    xielu: tuple[tuple[float, float, float, float], ...] = ()  # of each layer: alpha_n, alpha_p, beta, eps
    softcaps: tuple[float, float] = (0.0, 0.0)  # of attention scores and of logits; 0: none
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    residual_scale: float = 1.0  # what a branch adds is multiplied by it
    attention_scale: float = 0.0  # attention scores are multiplied by it; 0: 1 / sqrt(C)
    sharpening: Sharpening = Sharpening()  # of queries, where a file or a family has it
    logit_scale: float = 1.0  # logits are multiplied by it
    skipped_blocks: int = 0  # blocks behind the last layer, which predict further tokens and are not run
    causal: bool = True  # tokens see those before them; False: all of their text
    token_types: int = 0  # rows of `token_types`
    labels: int = 1  # scores that a reranker's head gives
    dense_lengths: tuple[int, ...] = ()  # outputs of `dense_2` and `dense_3`, which follow a pooling
    pooling: int = 0  # how embeddings are pooled, by llama.cpp's `llama_pooling_type`; 0: the file does not say
    defaulted: tuple[tuple[str, Any], ...] = ()  # optional keys that the file does not have, with llama.cpp's values
    unread: tuple[str, ...] = ()  # keys of this architecture that nothing here reads, so that none is dropped unseen

    @property
    def mosaic_attention(self) -> bool:
        """Whether the Mosaic attention kernel knows every layer's heads and what they see."""
        parts = [mixer for mixer in self.mixers if isinstance(mixer, AttentionPart)]
        known = self.latent is None and not self.architecture.windows.chunked
        return known and all(part.width in MOSAIC_WIDTHS for part in parts)

    @property
    def longest_context(self) -> int:
        """The most tokens that a slot may hold: what the file states, or as many as stretched positions serve."""
        return max(self.context_length, self.rope_reach)

    @property
    def generates(self) -> bool:
        """Whether the model predicts tokens."""
        return self.architecture.causal and self.causal

    @property
    def encodes(self) -> bool:
        """Whether texts run whole and without a cache: those of encoders, and of models made for embeddings whose
        attention needs none.
        """
        return not self.generates or (self.needs_no_cache and self.pooling > 0)

    @property
    def needs_no_cache(self) -> bool:
        """Whether every layer is attention that knows a text without a cache: without sinks and chunks."""
        attention = all(isinstance(mixer, AttentionPart) for mixer in self.mixers)
        return attention and not self.architecture.attention.sinks and not self.architecture.windows.chunked

    @property
    def ranks(self) -> bool:
        """Whether the model is a reranker, by what its file says of the pooling."""
        return self.pooling == RANK and self.architecture.ranking is not None

    @property
    def pooled_length(self) -> int:
        """How many numbers a pooled vector has."""
        return (self.embedding_length, *self.dense_lengths)[-1]

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """What every layer is made of."""
        numbers = range(self.block_count)
        own = self.block_count - self.shared_kv_layers
        mixers = _named([self._mixers(at) for at in range(own)])
        mixers += _named([(self._reader(at, mixers),) for at in range(own, self.block_count)])
        ffns = _named([self._ffns(at) for at in numbers])
        per_layer = PerLayerPart(self.per_layer_length) if self.per_layer_length else None
        streams = (LaurelPart(), AltUpPart()) if self.architecture.streams else (None, None)
        bare = [self.architecture.norms.bare_first and at == 0 for at in numbers]
        return tuple(
            Layer(mixed, ffn[0] if ffn else None, first, per_layer, *streams)
            for mixed, ffn, first in zip(mixers, ffns, bare, strict=True)
        )

    def _mixers(self, layer: int) -> tuple[Mixer, ...]:
        if self.latent is not None:
            return (self.latent,)
        if self.delta_net is not None and self.remembers[layer]:
            return (self.delta_net,)
        attention = self._attention(layer)
        if self.mamba2 is None:
            return (attention or ShortConvPart(self.taps),)
        if self.architecture.mamba2 == "one part" and self._ffn_length(layer):
            return ()
        if attention is None:
            return (self.mamba2,)
        return (attention, self.mamba2) if self.architecture.mamba2 == "beside attention" else (attention,)

    def _attention(self, layer: int) -> AttentionPart | None:
        kv_heads = self.kv_heads[layer] if self.kv_heads else self.head_count_kv
        if not kv_heads:
            return None
        heads = self.heads[layer] if self.heads else self.head_count
        window = self.sliding_window if self.slides and self.slides[layer] else 0
        width = self.key_length_swa if window and self.key_length_swa else self.key_length
        rotates = self.rotates[layer] if self.rotates else True
        name = "window" if window else "attention"
        return AttentionPart(heads, kv_heads, width, window, rotates, name)

    def _reader(self, layer: int, before: Sequence[tuple[Mixer, ...]]) -> AttentionPart:
        """Of a layer without keys and values: those of the last layer before, of those with their own, that sees as
        much."""
        part = self._attention(layer)
        assert part is not None
        attention = [each for mixers in before for each in mixers if isinstance(each, AttentionPart)]
        sources = [each for each in attention if each.window == part.window]
        source = Source(sources[-1].name, sources.count(sources[-1]) - 1)
        return dataclasses.replace(part, name=f"shared_{part.name}", reads=source)

    def _ffn_length(self, layer: int) -> int:
        return self.ffn_lengths[layer] if self.ffn_lengths else self.feed_forward_length

    def _ffns(self, layer: int) -> tuple[Part, ...]:
        """The layer's feed-forward part, or none."""
        width = self._ffn_length(layer)
        if not width and self.architecture.may_lack_ffn:
            return ()
        mixed = self.with_experts[layer] if self.with_experts else self.expert_count > 0
        if not mixed:
            sparse = layer < self.architecture.ffn.sparse_layers
            return (DensePart(width, "sparse" if sparse else "dense", sparse=sparse),)
        experts = self.architecture.ffn.experts
        if experts is not None and experts.beside_dense:
            return (MoePart(DensePart(width, "beside")),)
        shared = self.shared_feed_forward_length
        return (MoePart(DensePart(shared, "shared", "_shexp") if shared else None),)

    @property
    def mixers(self) -> dict[Mixer, int]:
        """Each mixer of the model -> how many layers have it."""
        return dict(collections.Counter(mixer for layer in self.layers for mixer in layer.mixers))

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "ModelConfig":
        """Reads every hyperparameter of `file`.

        Raises UnsupportedError for an unknown architecture and GGUFError, naming file and key, for a missing, mistyped
        or impossible value.
        """
        with naming(file.path):
            cfg = cls.from_metadata(file.metadata)
        ffn, up = cfg.architecture.ffn, file.tensors.get("blk.0.ffn_up.weight")
        if not ffn.may_fuse or up is None or up.shape[0] != 2 * cfg.feed_forward_length:
            return cfg
        fused = dataclasses.replace(cfg.architecture, ffn=dataclasses.replace(ffn, fused=True))
        return dataclasses.replace(cfg, architecture=fused)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "ModelConfig":
        """As `from_gguf`; the errors name no file."""
        keys = Keys(metadata)
        arch = dataclasses.replace(keys.architecture, ffn=_feed_forward(keys), ranking=_ranking(keys))
        blocks = keys.integer("block_count", high=MAX_LAYERS)
        skipped = keys.integer("nextn_predict_layers", 0, low=0, high=blocks - 1)
        keys.layers, keys.blocks = blocks - skipped, blocks
        embed = keys.integer("embedding_length")
        attends = arch.mamba2 != "alone"
        heads = keys.integers("attention.head_count", None if attends else 0, int(attends), embed if attends else 0)
        kv_heads = _kv_heads(keys, heads)
        latent = MlaPart.read(keys, max(heads)) if arch.attention.latent else None
        head_dim = latent.key_length if latent else _head_dim(keys, embed, heads)
        sliding_dim = _sliding_head_dim(keys, head_dim)
        rotated = keys.integer("rope.dimension_count", default=head_dim, low=int(attends), high=head_dim)
        if rotated % 2:
            keys.fail("rope.dimension_count", f"{rotated} is odd")
        if rotated != head_dim and arch.rope.whole:
            keys.fail("rope.dimension_count", f"{rotated} is not the head's width of {head_dim}")
        all_experts = keys.has("expert_feed_forward_length") and bool(
            arch.ffn.experts and not arch.ffn.experts.beside_dense
        )
        ffn = _ffn_lengths(keys, all_experts, kv_heads)
        experts = read_experts(keys, ffn)
        window, slides = _windows(keys)
        taps = keys.integer("shortconv.l_cache", low=2, high=1024) if arch.without_kv_heads and 0 in kv_heads else 0
        # at base 1 every pair would turn alike, and YaRN divide by its logarithm
        base = keys.number("rope.freq_base", default=10000.0, low=1.001, high=1e12)
        swa = arch.windows.own_rotation
        rotated_swa = keys.integer("rope.dimension_count_swa", default=rotated, high=sliding_dim) if swa else rotated
        if rotated_swa % 2:
            keys.fail("rope.dimension_count_swa", f"{rotated_swa} is odd")
        _refuse_variants(keys, sliding_dim, rotated_swa)
        made_to_embed = arch.ranking is not None or not arch.causal or keys.has("pooling_type")
        cfg = cls(
            architecture=arch,
            name=keys.model_name,
            block_count=keys.layers,
            skipped_blocks=skipped,
            context_length=keys.integer("context_length"),
            embedding_length=embed,
            feed_forward_length=max(ffn),
            ffn_lengths=unless_equal(ffn),
            **experts,
            head_count=max(heads),
            heads=unless_equal(heads),
            head_count_kv=max(kv_heads),
            kv_heads=unless_equal(kv_heads),
            latent=latent,
            delta_net=DeltaNetPart.read(keys, arch.delta_net == "consecutive") if arch.delta_net else None,
            remembers=_remembers(keys) if arch.delta_net else (),
            mamba2=Mamba2Part.read(keys) if arch.mamba2 else None,
            taps=taps,
            key_length=head_dim,
            key_length_swa=sliding_dim if sliding_dim != head_dim else 0,
            shared_kv_layers=_shared_kv_layers(keys, slides, kv_heads),
            per_layer_length=_per_layer_length(keys),
            vocab_size=_vocab_size(keys),
            norm_epsilon=_norm_epsilon(keys),
            rope_dimension_count=rotated,
            rope_dimension_count_swa=rotated_swa if rotated_swa != rotated else 0,
            rope_freq_base=base,
            rope_freq_base_swa=read_sliding_rope_base(keys, base),
            rope_scaling=(scaling := read_rope_scaling(keys)),
            rope_reach=scaling.reach,
            rope_sections=read_rope_sections(keys, rotated),
            rotates=read_rotating_layers(keys, slides),
            sliding_window=window,
            slides=slides,
            softcaps=_softcaps(keys),
            **_scales(keys, embed, max(heads)),
            sharpening=read_sharpening(keys),
            side_by_side=_side_by_side(keys),
            xielu=_xielu(keys) if arch.ffn.kind == "xielu" else (),
            causal=_causal(keys),
            token_types=keys.token_types if arch.token_types else 0,
            labels=_labels(keys) if arch.ranking and keys.has("pooling_type") else 1,
            dense_lengths=_dense_lengths(keys, embed),
            pooling=keys.integer("pooling_type", 0, low=0) if made_to_embed else 0,
            defaulted=tuple(keys.defaulted),  # last: they hold what the lines above read
            unread=keys.unread(),
        )
        if not cfg.causal and not cfg.needs_no_cache:
            raise UnsupportedError(
                f"key '{keys.full('attention.causal')}': False is not supported in layers that are no attention, or "
                "that have sinks or chunks"
            )
        if (bodies := traced(cfg.layers)) > MAX_TRACED:
            raise UnsupportedError(
                f"key '{keys.full('block_count')}': its {keys.layers} layers alternate so irregularly that {bodies} of "
                f"them would be compiled one by one; {MAX_TRACED} can be"
            )
        return cfg


def _named(layers: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The parts of all layers, with the fields in which those of one name differ added to the name."""
    fields: dict[str, dict[str, set[Any]]] = {}
    for part in itertools.chain(*layers):
        for field in dataclasses.fields(part):
            fields.setdefault(part.name, {}).setdefault(field.name, set()).add(getattr(part, field.name))

    def named(part: Any) -> Any:
        differing = [(name, getattr(part, name)) for name, values in fields[part.name].items() if len(values) > 1]
        words = [
            f"no_{name}" if value is False else f"{value}_{name}" for name, value in differing if value is not True
        ]
        return dataclasses.replace(part, name="_".join((part.name, *words)))

    return [tuple(map(named, parts)) for parts in layers]


def _norm_epsilon(keys: Keys) -> float:
    """Of the family's kind of norm, or of the kind for which a file has it."""
    norms, rms, layer = keys.architecture.norms, "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    key = layer if norms.kind == "layer" or norms.either_epsilon else rms
    found = keys.number(key, default=None, low=1e-30, high=1.0)
    return keys.number(rms, found, low=1e-30, high=1.0) if norms.either_epsilon else found


def _ffn_lengths(keys: Keys, all_experts: bool, kv_heads: Sequence[int]) -> tuple[int, ...]:
    """F of each layer; 0: it has no feed-forward part, or experts with a width of their own."""
    arch, key = keys.architecture, "feed_forward_length"
    if arch.mamba2 == "alone":
        return keys.integers(key, default=0, low=0, high=0)
    may_lack = all_experts or arch.may_lack_ffn
    found = keys.integers(key, default=0 if all_experts else None, low=0 if may_lack else 1)
    if arch.mamba2 == "one part":
        for layer, (width, heads) in enumerate(zip(found, kv_heads, strict=True)):
            if width and heads:
                keys.fail(key, f"layer {layer} has {heads} kv heads and {width} features, and may be one part only")
    return found


def _head_dim(keys: Keys, embed: int, heads: Sequence[int]) -> int:
    """C: `attention.key_length`, or embed / heads as the file format defines it; 0 where nothing attends."""
    if not any(heads):
        return 0
    if not keys.has("attention.key_length") and (embed % heads[0] or len(set(heads)) > 1):
        keys.fail(
            "embedding_length", f"{embed} is not a multiple of {heads[0]} heads and 'attention.key_length' is absent"
        )
    head_dim = keys.integer("attention.key_length", default=embed // heads[0], high=65536)
    value_length = keys.integer("attention.value_length", default=head_dim, high=65536)
    if value_length != head_dim:
        raise UnsupportedError(f"key '{keys.full('attention.value_length')}': {value_length} differs from {head_dim}")
    return head_dim


def _sliding_head_dim(keys: Keys, head_dim: int) -> int:
    """C of the layers with a sliding window."""
    if not keys.architecture.windows.own_heads:
        return head_dim
    sliding = keys.integer("attention.key_length_swa", default=head_dim, high=65536)
    values = keys.integer("attention.value_length_swa", default=sliding, high=65536)
    if values != sliding:
        raise UnsupportedError(f"key '{keys.full('attention.value_length_swa')}': {values} differs from {sliding}")
    return sliding


def _shared_kv_layers(keys: Keys, slides: tuple[bool, ...], kv_heads: tuple[int, ...]) -> int:
    """How many layers, the last ones, attend to keys and values of the last layer before them that sees as much."""
    key = "attention.shared_kv_layers"
    match keys.architecture.attention.shares:
        case "stated":
            count = keys.integer(key, 0, low=0, high=keys.layers - 1)
        case "beyond 20":
            count = max(0, keys.layers - 20)
        case _:
            return 0
    own = keys.layers - count
    sources = {slides[layer]: kv_heads[layer] for layer in range(own)}
    for layer in range(own, keys.layers):
        if sources.get(slides[layer]) != kv_heads[layer]:
            what = "that slides" if slides[layer] else "that sees everything"
            keys.fail(key, f"{count}: layer {layer} needs one {what} among the first {own}, with as many kv heads")
    return count


def _per_layer_length(keys: Keys) -> int:
    """P, 0 where there is no second embedding."""
    default = keys.architecture.per_layer_inputs
    return 0 if default is None else keys.integer("embedding_length_per_layer_input", default, low=0, high=65536)


def _kv_heads(keys: Keys, heads: Sequence[int]) -> tuple[int, ...]:
    """K of each layer; 0 where the family has something else than attention in layers without kv heads."""
    key, may_lack = "attention.head_count_kv", keys.architecture.may_lack_kv_heads
    found = keys.integers(key, default=max(heads), low=0 if may_lack else 1, high=max(heads))
    for each, queries in zip(found, heads, strict=True):
        if each and queries % each:
            keys.fail(key, f"{each} does not divide {queries} query heads")
    return found


def _windows(keys: Keys) -> tuple[int, tuple[bool, ...]]:
    """The sliding window's width, and which layers have it: all but one of n, or as an array says.

    Source: llama.cpp `load_swa_pattern`.
    """
    windows, key, layers = keys.architecture.windows, "attention.sliding_window_pattern", keys.layers
    none = 0, (False,) * layers
    if (windows.period is None and not windows.stated) or windows.layers not in (0, layers):
        return none
    width_key = "attention.sliding_window"
    if windows.chunked:
        width = windows.width if not keys.has(width_key) or keys.integer(width_key, low=0) else 0
    else:
        width = keys.integer(width_key, default=windows.width, low=0 if windows.width == 0 else 1)
    if not width:
        return none
    if windows.stated or isinstance(keys.get(key, default=windows.period), np.ndarray):
        return width, keys.truths(key)
    period = keys.integer(key, default=windows.period, low=0, high=MAX_LAYERS)
    whole = 0 if windows.global_first else period - 1
    return width, tuple(not period or layer % period != whole for layer in range(layers))


def _remembers(keys: Keys) -> tuple[bool, ...]:
    """For each layer whether it has a delta net: as an array says, or all but the last of each n."""
    key = "attention.recurrent_layers"
    if keys.has(key):
        return keys.truths(key)
    interval = keys.integer("full_attention_interval", default=4, high=MAX_LAYERS)
    return tuple((layer + 1) % interval != 0 for layer in range(keys.layers))


def _side_by_side(keys: Keys) -> bool:
    match keys.architecture.side_by_side:
        case "stated":
            return keys.boolean("use_parallel_residual")
        case known:
            return known == "always"


def _xielu(keys: Keys) -> tuple[tuple[float, float, float, float], ...]:
    """alpha_n, alpha_p, beta and eps of each layer, from keys without the architecture's name."""
    alpha_n, alpha_p, beta, eps = (keys.numbers(f"xielu.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps"))
    return tuple(zip(alpha_n, alpha_p, beta, eps, strict=True))


def _softcaps(keys: Keys) -> tuple[float, float]:
    """The soft caps of attention scores and of logits, 0 for none."""

    def read(name: str, default: float | None) -> float:
        return 0.0 if default is None else keys.number(name, default, low=0.0, high=1e6)

    arch = keys.architecture
    attention = read("attn_logit_softcapping", arch.attention.softcap)
    if not arch.softcap_stated:
        return attention, arch.logit_softcap or 0.0
    return attention, read("final_logit_softcapping", arch.logit_softcap)


def _refuse_variants(keys: Keys, head_dim: int, rotated: int) -> None:
    """Raises UnsupportedError for keys that change what is computed, unless they have the family's usual value.

    Source: the keys that llama.cpp's `load_hparams` reads for every family, and its granite.
    """
    neutral: dict[str, tuple[Any, ...]] = {
        "attention.key_length_swa": (head_dim,),
        "attention.value_length_swa": (head_dim,),
        "rope.dimension_count_swa": (rotated,),
    }
    experts = keys.architecture.ffn.experts
    if not (experts and experts.grouped):
        neutral["expert_group_count"] = (0, 1)
    for key, values in neutral.items():
        if keys.has(key) and (type(value := keys.get(key)), value) not in [(type(known), known) for known in values]:
            raise UnsupportedError(f"key '{keys.full(key)}': {shown(str(value))} is not supported; only {values[0]} is")


def _scales(keys: Keys, embed: int, heads: int) -> dict[str, Any]:
    """Embedding, residual, attention and logit scales.

    Source: llama.cpp; gemma's 27B models, known by their depth, scale attention by the embedding's share of a head.
    """
    arch = keys.architecture
    match arch.scales:
        case "stated" | "minicpm":
            minicpm = {"embedding_scale": 12.0, "residual_scale": 1.4 / keys.layers**0.5, "logit_scale": 256 / embed}
            names = {"embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": 0.0, "logit_scale": 1.0}
            names |= minicpm if arch.scales == "minicpm" else {}
            read = {name: keys.number(name, default=value, low=0.0, high=1e6) for name, value in names.items()}
            if not read["logit_scale"]:
                keys.fail("logit_scale", "is 0, and logits are divided by it")
            read["logit_scale"] = 1 / read["logit_scale"]
            return {name.replace(".", "_"): value for name, value in read.items()}
        case "logits":
            return {"logit_scale": keys.number("logit_scale", default=None, low=0.0, high=1e6)}
        case _:
            scales = {"attention_scale": arch.attention_scale}
            if arch.scales == "embedding":
                scales["embedding_scale"] = math.sqrt(embed)
            if {"gemma2": 46, "gemma3": 62}.get(arch.name) == keys.layers:
                scales["attention_scale"] = (embed / heads) ** -0.5
            return scales


def _causal(keys: Keys) -> bool:
    """Whether tokens see those before them alone. Encoders see all of a text, whatever their files say."""
    if not keys.architecture.causal:
        keys.boolean("attention.causal", default=False)
        return False
    return keys.boolean("attention.causal", default=True)


def _feed_forward(keys: Keys) -> Ffn:
    """The family's feed-forward part, with the activation that the file states, where it may."""
    family, key = keys.architecture.ffn, "hidden_activation"
    if not family.stated:
        return family
    stated = keys.text(key, default="gelu")
    if stated not in _ACTIVATIONS:
        raise UnsupportedError(
            f"key '{keys.full(key)}': unknown activation '{shown(stated)}'; supported: {', '.join(_ACTIVATIONS)}"
        )
    return dataclasses.replace(family, kind=_ACTIVATIONS[stated])


def _ranking(keys: Keys) -> Ranking | None:
    """The family's head of a reranker, which reads what the file says."""
    family, key = keys.architecture.ranking, "classifier.pooling_type"
    if family is None or not keys.has(key):
        return family
    stated = keys.integer(key, low=0, high=RANK)
    return dataclasses.replace(family, of="mean" if stated == MEAN else "cls" if family.of == "mean" else family.of)


def _labels(keys: Keys) -> int:
    """How many scores a reranker's head gives: one for each label that the file has, or one."""
    key = "classifier.output_labels"
    labels = keys.get(key, default=("",))
    if not isinstance(labels, list | tuple) or not 1 <= len(labels) <= 1024:
        keys.fail(key, "is no array of 1 to 1024 strings")
    return len(labels)


def _dense_lengths(keys: Keys, embed: int) -> tuple[int, ...]:
    """The outputs of the layers that follow a pooling, each of which reads what the one before it gives."""
    found = [embed]
    for layer in (2, 3):
        key_in, key_out = f"dense_{layer}_feat_in", f"dense_{layer}_feat_out"
        if not (keys.has(key_in) or keys.has(key_out)):
            break
        if (width := keys.integer(key_in, high=65536)) != found[-1]:
            keys.fail(key_in, f"{width} is not the {found[-1]} numbers that come in")
        found.append(keys.integer(key_out, high=65536))
    return tuple(found[1:])


def _vocab_size(keys: Keys) -> int:
    """V: the number of tokens; a `vocab_size` key must agree with it, as the tensors' shapes must later."""
    tokens = keys.tokens
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError("key 'tokenizer.ggml.tokens' is missing, empty or no array of strings")
    if keys.has("vocab_size"):
        stated = keys.integer("vocab_size")
        if stated != len(tokens):
            keys.fail("vocab_size", f"{stated} differs from the {len(tokens)} tokens of the file")
    return len(tokens)
