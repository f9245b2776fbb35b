"""What a GGUF file says about its model: `ModelConfig`, read strictly from the metadata. Imports no jax.

It knows hyperparameters and their limits; it does not know tensors' bytes, tokens or executables.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import naming, shown
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.architectures import ARCHITECTURES, Architecture
from packlight.model.spec.layers import MAX_TRACED, Layer, traced
from packlight.model.spec.parts import Mixer, Part
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.dense import DensePart
from packlight.model.spec.parts.moe import MoePart
from packlight.model.spec.parts.shortconv import ShortConvPart

# What the Mosaic attention kernel is made for: tensor cores take whole pieces of 128 bytes, and of float32 they would
# read 11 bits. The registers of a block hold no wider heads.
MOSAIC_WIDTHS = (64, 128, 192, 256)
MOSAIC_CACHES = ("bfloat16", "float16")
MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS: nothing sound is above it


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched. Source: llama.cpp `llama-hparams`, YaRN (2309.00071)."""

    kind: str = "none"  # "none" (with factor 1), "linear" or "yarn"
    factor: float = 1.0  # positions are divided by it
    original_context: int = 0  # positions that the model was first trained with; 0: not known
    attn_factor: float = 1.0  # cos and sin are multiplied by it
    beta_fast: float = 32.0  # YaRN keeps pairs that turn more often than this within the original context
    beta_slow: float = 1.0  # YaRN stretches pairs in full that turn less often than this
    log_multiplier: float = 0.0  # of YaRN's sharpening, which it divides; 0: none


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of one file. Field names follow the GGUF keys, letters follow `model.__init__`."""

    architecture: Architecture
    name: str
    block_count: int  # L
    context_length: int
    embedding_length: int  # D
    feed_forward_length: int  # F
    head_count: int  # H
    head_count_kv: int  # K, the most that a layer has
    key_length: int  # C
    vocab_size: int  # V
    norm_epsilon: float  # of the family's kind of norm
    rope_dimension_count: int  # rot, the channels of a head that are rotated
    rope_freq_base: float
    rope_scaling: RopeScaling
    expert_count: int  # E, 0 for a dense model
    expert_used_count: int  # X
    expert_feed_forward_length: int = 0  # F of each expert
    expert_gating: str = ""  # what the file says of its router, "softmax" or "sigmoid"; "": the family knows
    leading_dense: int = 0  # layers, the first ones, that have no experts
    kv_heads: tuple[int, ...] = ()  # K of each layer, where they differ; 0: the layer has no attention
    taps: int = 0  # positions that a short convolution sees, the present included
    sliding_window: int = 0  # positions that a query of a sliding layer sees, itself included; 0: no layer slides
    slides: tuple[bool, ...] = ()  # for each layer, whether it slides
    rope_freq_base_swa: float = 10000.0  # base of the sliding layers' rotation
    softcaps: tuple[float, float] = (0.0, 0.0)  # of attention scores and of logits; 0: none
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    residual_scale: float = 1.0  # what a branch adds is multiplied by it
    attention_scale: float = 0.0  # attention scores are multiplied by it; 0: 1 / sqrt(C)
    sharpening: float = 0.0  # queries at position p are multiplied with 1 + sharpening * ln(1 + p // original context)
    logit_scale: float = 1.0  # logits are divided by it
    pooling: int = 0  # how embeddings are pooled, by llama.cpp's `llama_pooling_type`; 0: the file does not say
    defaulted: tuple[tuple[str, Any], ...] = ()  # optional keys that the file does not have, with llama.cpp's values
    unread: tuple[str, ...] = ()  # keys of this architecture that nothing here reads, so that none is dropped unseen

    @property
    def plain_attention(self) -> bool:
        """Whether attention is only causal: no windows, soft caps or sinks. The native kernel knows no other."""
        return not any(self.slides) and not self.softcaps[0] and not self.architecture.attention.sinks

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """What every layer is made of."""
        return tuple(Layer((self._mixer(at),), self._ffn(at)) for at in range(self.block_count))

    def _mixer(self, layer: int) -> Mixer:
        heads = self.kv_heads[layer] if self.kv_heads else self.head_count_kv
        if not heads:
            return ShortConvPart(self.taps)
        window = self.sliding_window if self.slides and self.slides[layer] else 0
        name = "window" if window else "attention"
        differ = len(set(self.kv_heads) - {0}) > 1
        return AttentionPart(heads, window, f"{name}_{heads}_kv" if differ else name)

    def _ffn(self, layer: int) -> Part:
        return MoePart() if self.expert_count and layer >= self.leading_dense else DensePart()

    @property
    def routing(self) -> str:
        """How a mixture's router chooses and weighs: a kind of `model.network.ffn.moe.route`."""
        kinds = {"all": "softmax", "chosen": "chosen", "stated": self.expert_gating}
        return kinds[self.architecture.ffn.router]

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
            return cls.from_metadata(file.metadata)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "ModelConfig":
        """As `from_gguf`; the errors name no file."""
        keys = _Keys(metadata)
        arch = keys.architecture
        layers = keys.integer("block_count", high=MAX_LAYERS)
        embed = keys.integer("embedding_length")
        heads = keys.integer("attention.head_count", high=embed, layers=layers)
        kv_heads = _kv_heads(keys, heads, layers)
        head_dim = _head_dim(keys, embed, heads)
        rotated = keys.integer("rope.dimension_count", default=head_dim, high=head_dim)
        if rotated % 2:
            keys.fail("rope.dimension_count", f"{rotated} is odd")
        if rotated != head_dim and not arch.rope.partial:
            keys.fail("rope.dimension_count", f"{rotated} is not the head's width of {head_dim}")
        ffn = keys.integer("feed_forward_length", layers=layers)
        experts, used, expert_ffn = _experts(keys, ffn)
        dense = keys.integer("leading_dense_block_count", 0, low=0, high=layers) if arch.ffn.leading_dense else 0
        gating = _gating(keys) if arch.ffn.router == "stated" else ""
        taps = keys.integer("shortconv.l_cache", low=2, high=1024) if 0 in kv_heads else 0
        window, slides = _windows(keys, layers)
        _refuse_variants(keys, head_dim, rotated)
        # at base 1 every pair would turn alike, and YaRN divide by its logarithm
        base = keys.number("rope.freq_base", default=10000.0, low=1.001, high=1e12)
        sharpens = arch.attention.sharpens
        sharpening = keys.number("attention.temperature_scale", 0.0, low=0.0, high=1e6) if sharpens else 0.0
        norm_key = "attention.layer_norm_epsilon" if arch.norms.kind == "layer" else "attention.layer_norm_rms_epsilon"
        cfg = cls(
            architecture=arch,
            name=keys.model_name,
            block_count=layers,
            context_length=keys.integer("context_length"),
            embedding_length=embed,
            feed_forward_length=ffn,
            expert_feed_forward_length=expert_ffn,
            expert_gating=gating,
            leading_dense=dense,
            head_count=heads,
            head_count_kv=max(kv_heads),
            kv_heads=kv_heads if len(set(kv_heads)) > 1 else (),
            taps=taps,
            key_length=head_dim,
            vocab_size=_vocab_size(keys),
            norm_epsilon=keys.number(norm_key, default=None, low=1e-30, high=1.0),
            rope_dimension_count=rotated,
            rope_freq_base=base,
            rope_freq_base_swa=_sliding_rope_base(keys, base),
            rope_scaling=_rope_scaling(keys),
            expert_count=experts,
            expert_used_count=used,
            sliding_window=window,
            slides=slides,
            softcaps=_softcaps(keys),
            **_scales(keys, embed, heads, layers),
            sharpening=sharpening,
            pooling=keys.integer("pooling_type", low=0) if keys.has("pooling_type") else 0,
            defaulted=tuple(keys.defaulted),  # last: they hold what the lines above read
            unread=keys.unread(),
        )
        if (bodies := traced(cfg.layers)) > MAX_TRACED:
            raise UnsupportedError(
                f"key '{keys.full('block_count')}': its {layers} layers alternate so irregularly that {bodies} of them "
                f"would be compiled one by one; {MAX_TRACED} can be"
            )
        return cfg


class _Keys:
    """Typed reads of one architecture's keys that remember what was read and what was defaulted."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self._read: set[str] = set()
        self.defaulted: list[tuple[str, Any]] = []
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise GGUFError("key 'general.architecture' is missing or no string")
        if name not in ARCHITECTURES:
            supported = ", ".join(ARCHITECTURES)
            raise UnsupportedError(
                f"key 'general.architecture': unknown architecture '{shown(name)}'; supported: {supported}"
            )
        self.architecture = ARCHITECTURES[name]

    def fail(self, key: str, why: str) -> NoReturn:
        raise GGUFError(f"key '{self.full(key)}': {why}")

    def full(self, key: str) -> str:
        return f"{self.architecture.name}.{key}"

    def get(self, key: str, default: Any = None) -> Any:
        """The value at `key`; `default` (recorded as such) when absent; an error when there is no default either."""
        full = self.full(key)
        self._read.add(full)
        if full in self._metadata:
            return self._metadata[full]
        if default is None:
            raise GGUFError(f"mandatory key '{full}' is missing")
        self.defaulted.append((full, default))
        return default

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1, layers: int = 0
    ) -> int:
        """layers: if not 0, the file may have an array instead, with a number for each layer, all equal."""
        if not layers:
            return self._checked(key, self.get(key, default), low, high)
        values = self.integers(key, default, low, high, layers)
        if len(set(values)) > 1:
            raise UnsupportedError(f"key '{self.full(key)}' differs between layers; one value for all is supported")
        return values[0]

    def integers(self, key: str, default: int | None, low: int, high: int, layers: int) -> tuple[int, ...]:
        """A number for each layer, from an array or from one number for all."""
        value = self.get(key, default)
        if not isinstance(value, np.ndarray):
            return (self._checked(key, value, low, high),) * layers
        if len(value) != layers:
            self.fail(key, f"has {len(value)} elements for {layers} layers")
        return tuple(self._checked(key, each, low, high) for each in value.tolist())

    def _checked(self, key: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int:
            self.fail(key, f"is {_kind(value)}, an integer is needed")
        if not low <= value <= high:
            self.fail(key, f"{value} is outside {low}..{high}")
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        value = self.get(key, default)
        if type(value) is not float:
            self.fail(key, f"is {_kind(value)}, a floating-point number is needed")
        if not low <= value <= high:  # NaN is not either
            self.fail(key, f"{value} is outside {low}..{high}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {_kind(value)}, a string is needed")
        return value

    def has(self, key: str) -> bool:
        return self.full(key) in self._metadata

    @property
    def tokens(self) -> Any:
        return self._metadata.get("tokenizer.ggml.tokens")

    @property
    def model_name(self) -> str:
        """The model's own name, "" if it has none: nothing depends on it."""
        name = self._metadata.get("general.name")
        return name if isinstance(name, str) else ""

    def unread(self) -> tuple[str, ...]:
        prefix = self.full("")
        return tuple(sorted(k for k in self._metadata if k.startswith(prefix) and k not in self._read))


def _kind(value: Any) -> str:
    kinds = {bool: "a bool", int: "an integer", float: "a floating-point number", str: "a string"}
    return kinds.get(type(value), "an array")


def _head_dim(keys: _Keys, embed: int, heads: int) -> int:
    """C: `attention.key_length`, or embed / heads as the file format defines it."""
    if not keys.has("attention.key_length") and embed % heads:
        keys.fail(
            "embedding_length", f"{embed} is not a multiple of {heads} heads and 'attention.key_length' is absent"
        )
    head_dim = keys.integer("attention.key_length", default=embed // heads, high=65536)
    value_length = keys.integer("attention.value_length", default=head_dim, high=65536)
    if value_length != head_dim:
        raise UnsupportedError(f"key '{keys.full('attention.value_length')}': {value_length} differs from {head_dim}")
    return head_dim


def _kv_heads(keys: _Keys, heads: int, layers: int) -> tuple[int, ...]:
    """K of each layer; 0 where the family has something else than attention in layers without kv heads."""
    key, may_lack = "attention.head_count_kv", bool(keys.architecture.without_kv_heads)
    if may_lack:
        found = keys.integers(key, default=heads, low=0, high=heads, layers=layers)
    else:
        found = (keys.integer(key, default=heads, high=heads, layers=layers),) * layers
    for each in found:
        if each and heads % each:
            keys.fail(key, f"{each} does not divide {heads} query heads")
    return found


def _gating(keys: _Keys) -> str:
    """The function of the router's logits. Source: llama.cpp's `llama_expert_gating_func_type`."""
    known = {1: "softmax", 2: "sigmoid"}
    stated = keys.integer("expert_gating_func", low=0)
    if stated not in known:
        said = ", ".join(f"{number} ({name})" for number, name in known.items())
        raise UnsupportedError(f"key '{keys.full('expert_gating_func')}': unknown function {stated}; supported: {said}")
    return known[stated]


def _experts(keys: _Keys, ffn: int) -> tuple[int, int, int]:
    """E, X and F of an expert; zeros for a dense model. ffn: F where experts have no width of their own (llama)."""
    kind = keys.architecture.ffn.experts
    if kind == "never":
        return 0, 0, 0
    must = kind == "must"
    count = keys.integer("expert_count", default=None if must else 0, low=int(must), high=1024)
    used = keys.integer("expert_used_count", default=None if count else 0, low=min(count, 1), high=count)
    if not count:
        return 0, 0, 0
    return count, used, keys.integer("expert_feed_forward_length", default=None) if must else ffn


def _windows(keys: _Keys, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The sliding window's width, and which layers have it: all but every n-th, or as an array says.

    Source: llama.cpp `load_swa_pattern`.
    """
    windows, key = keys.architecture.windows, "attention.sliding_window_pattern"
    none = 0, (False,) * layers
    if windows.period is None:
        return none
    width = keys.integer("attention.sliding_window", default=windows.width, low=0 if windows.width == 0 else 1)
    if not width:
        return none
    pattern = keys.get(key, default=windows.period)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers or pattern.dtype.kind not in "biu":
            keys.fail(key, f"is no array of {layers} truth values, one for each layer")
        return width, tuple(bool(slides) for slides in pattern)
    period = keys.integer(key, default=windows.period, low=0, high=MAX_LAYERS)
    return width, tuple(not period or layer % period < period - 1 for layer in range(layers))


def _sliding_rope_base(keys: _Keys, base: float) -> float:
    """The base of the sliding layers' rotation, by default `base`, the model's, or the family's own."""
    windows = keys.architecture.windows
    default = windows.rope_base or base
    return keys.number("rope.freq_base_swa", default, low=1.001, high=1e12) if windows.period is not None else base


def _softcaps(keys: _Keys) -> tuple[float, float]:
    """The soft caps of attention scores and of logits, 0 for none."""

    def read(name: str, default: float | None) -> float:
        return 0.0 if default is None else keys.number(name, default, low=0.0, high=1e6)

    arch = keys.architecture
    attention = read("attn_logit_softcapping", arch.attention.softcap)
    return attention, read("final_logit_softcapping", arch.logit_softcap)


def _refuse_variants(keys: _Keys, head_dim: int, rotated: int) -> None:
    """Raises UnsupportedError for keys that change what is computed, unless they have the family's usual value.

    Source: the keys that llama.cpp's `load_hparams` reads for every family, and its granite.
    """
    neutral: dict[str, tuple[Any, ...]] = {
        "attention.causal": (True,),
        "attention.key_length_swa": (head_dim,),
        "attention.value_length_swa": (head_dim,),
        "rope.dimension_count_swa": (rotated,),
        "expert_group_count": (0, 1),
        "nextn_predict_layers": (0,),
    }
    if keys.architecture.scales:
        neutral["rope.scaling.finetuned"] = (True,)  # granite's way to ask for no rotation
    for key, values in neutral.items():
        if keys.has(key) and (type(value := keys.get(key)), value) not in [(type(known), known) for known in values]:
            raise UnsupportedError(f"key '{keys.full(key)}': {shown(str(value))} is not supported; only {values[0]} is")


def _scales(keys: _Keys, embed: int, heads: int, layers: int) -> dict[str, float]:
    """Embedding, residual, attention and logit scales.

    Source: llama.cpp; gemma's 27B models, known by their depth, scale attention by the embedding's share of a head.
    """
    arch = keys.architecture
    if arch.scales:
        names = {"embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": 0.0, "logit_scale": 1.0}
        read = {name: keys.number(name, default=value, low=0.0, high=1e6) for name, value in names.items()}
        if not read["logit_scale"]:
            keys.fail("logit_scale", "is 0, and logits are divided by it")
        return {name.replace(".", "_"): value for name, value in read.items()}
    scales = {"embedding_scale": math.sqrt(embed) if arch.scale_embedding else 1.0}
    if {"gemma2": 46, "gemma3": 62}.get(arch.name) == layers:
        scales["attention_scale"] = (embed / heads) ** -0.5
    return scales


def _vocab_size(keys: _Keys) -> int:
    """V: the number of tokens; a `vocab_size` key must agree with it, as the tensors' shapes must later."""
    tokens = keys.tokens
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError("key 'tokenizer.ggml.tokens' is missing, empty or no array of strings")
    if keys.has("vocab_size"):
        stated = keys.integer("vocab_size")
        if stated != len(tokens):
            keys.fail("vocab_size", f"{stated} differs from the {len(tokens)} tokens of the file")
    return len(tokens)


def _rope_scaling(keys: _Keys) -> RopeScaling:
    """The `rope.scaling.*` keys, with llama.cpp's defaults: a type left out is linear; the factor has an older name."""
    stated = keys.has("rope.scaling.type")
    kind = keys.text("rope.scaling.type", default="linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"key '{keys.full('rope.scaling.type')}': unknown scaling '{shown(kind)}'; supported: none, linear, yarn"
        )
    attn_factor = keys.number("rope.scaling.attn_factor", default=1.0, low=1e-6, high=1e6)
    context = keys.integer("context_length")
    original = 0
    if kind == "yarn" or keys.architecture.attention.sharpens or keys.architecture.rope.two_contexts:
        original = keys.integer("rope.scaling.original_context_length", default=context)
    if kind == "none":
        return RopeScaling(attn_factor=attn_factor, original_context=original)
    older = keys.has("rope.scale_linear") and not keys.has("rope.scaling.factor")
    factor_key = "rope.scale_linear" if older else "rope.scaling.factor"
    factor = keys.number(factor_key, default=None if stated else 1.0, low=1e-6, high=1e6)
    if kind == "linear":
        return RopeScaling("none" if factor == 1.0 else kind, factor, original, attn_factor)
    return RopeScaling(
        kind,
        factor,
        original_context=original,
        attn_factor=attn_factor,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, low=1e-6, high=1e6),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, low=1e-6, high=1e6),
        log_multiplier=keys.number("rope.scaling.yarn_log_multiplier", default=0.0, low=0.0, high=1e6)
        if keys.architecture.attention.sharpens
        else 0.0,
    )
