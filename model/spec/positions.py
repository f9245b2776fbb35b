"""What a GGUF file says of positions: how they rotate queries and keys, and sharpen them. Imports no jax."""

import dataclasses
from typing import NamedTuple

import numpy as np

from packlight.common.errors import UnsupportedError
from packlight.common.text import shown
from packlight.model.spec.keys import Keys


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched. Source: llama.cpp `llama-hparams`, YaRN (2309.00071)."""

    kind: str = "none"  # "none" (with factor 1), "linear" or "yarn"
    factor: float = 1.0  # positions are divided by it
    original_context: int = 0  # positions that the model was first trained with; 0: not known
    attn_factor: float = 1.0  # cos and sin are multiplied by it
    beta_fast: float = 32.0  # YaRN keeps pairs that turn more often than this within the original context
    beta_slow: float = 1.0  # YaRN stretches pairs in full that turn less often than this
    sharpening: float = 1.0  # multiplier of YaRN's sharpening, which is 1 + 0.1 * multiplier * ln(factor)
    log_multiplier: float = 0.0  # multiplier of what it is divided by; 0: nothing
    extrapolation: float = 1.0  # share of what YaRN keeps of the pairs that turn often; llama.cpp's `ext_factor`

    def __str__(self) -> str:
        """How positions are stretched, in words."""
        match self.kind:
            case "none":
                return "not stretched"
            case "linear":
                return f"stretched {self.factor:g} times"
        return f"stretched {self.factor:g} times {self.original_context:,} by YaRN"

    @property
    def reach(self) -> int:
        """Tokens that YaRN stretches the original context to; 0 for other kinds, which a file's length includes."""
        return round(self.original_context * self.factor) if self.kind == "yarn" else 0


class Sharpening(NamedTuple):
    """Queries at position p are multiplied with 1 + scale * ln(1 + (p + offset) // length)."""

    scale: float = 0.0  # 0: no query is
    length: int = 1
    offset: int = 0


def read_rope_scaling(keys: Keys) -> RopeScaling:
    """The `rope.scaling.*` keys, with llama.cpp's defaults: a type left out is linear; the factor has an older name.

    "longrope" says of a file that it divides frequencies by numbers of its own, and stretches them no other way.
    """
    stated = keys.has("rope.scaling.type")
    kind = keys.text("rope.scaling.type", default="linear")
    known = ("none", "linear", "yarn", *(["longrope"] if keys.architecture.rope.two_contexts else []))
    if kind not in known:
        raise UnsupportedError(
            f"key '{keys.full('rope.scaling.type')}': unknown scaling '{shown(kind)}'; supported: {', '.join(known)}"
        )
    latent = keys.architecture.attention.latent
    attn_factor = keys.number("rope.scaling.attn_factor", default=1.0, low=1e-6, high=1e6)
    context = keys.integer("context_length")
    original = 0
    sharpens = keys.architecture.attention.sharpens == "stated"
    if kind == "yarn" or sharpens or keys.architecture.rope.two_contexts:
        original = keys.integer("rope.scaling.original_context_length", default=context)
    if kind == "none":
        return RopeScaling(attn_factor=attn_factor, original_context=original)
    older = keys.has("rope.scale_linear") and not keys.has("rope.scaling.factor")
    factor_key = "rope.scale_linear" if older else "rope.scaling.factor"
    needed = stated and kind != "longrope"
    factor = keys.number(factor_key, default=None if needed else 1.0, low=1e-6, high=1e6)
    if kind in ("linear", "longrope"):
        if latent and factor != 1.0:
            raise UnsupportedError(
                f"key '{keys.full(factor_key)}': {factor} is not supported; with latent attention only YaRN's is"
            )
        return RopeScaling("none" if factor == 1.0 else "linear", factor, original, attn_factor)
    key, log_multiplier = "rope.scaling.yarn_log_multiplier", 0.0
    if sharpens or latent:
        log_multiplier = keys.number(key, default=0.0, low=0.0, high=1e6) / (0.1 if latent else 1.0)
    back = log_multiplier if keys.architecture.rope.takes_all_back else 0.0
    return RopeScaling(
        kind,
        factor,
        original_context=original,
        attn_factor=attn_factor,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, low=1e-6, high=1e6),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, low=1e-6, high=1e6),
        sharpening=back or 1.0,
        log_multiplier=log_multiplier,
    )


def read_sliding_rope_base(keys: Keys, base: float) -> float:
    """The base of the sliding layers' rotation, by default `base`, the model's, or the family's own."""
    windows = keys.architecture.windows
    if (windows.period is None and not windows.stated) or windows.rope_base is None:
        return base
    return keys.number("rope.freq_base_swa", windows.rope_base or base, low=1.001, high=1e12)


def read_rotating_layers(keys: Keys, slides: tuple[bool, ...]) -> tuple[bool, ...]:
    """For each layer whether positions rotate its queries and keys, () where they do in all."""
    match keys.architecture.rope.layers:
        case "none":
            found = (False,) * keys.layers
        case "stated":
            found = (keys.boolean("rope.scaling.finetuned", default=True),) * keys.layers
        case "sliding" if any(slides):
            found = slides
        case "three of four" if not (keys.architecture.windows.chunked and not any(slides)):
            found = tuple(layer % 4 < 3 for layer in range(keys.layers))
        case _:
            found = ()
    return () if all(found) else found


def read_rope_sections(keys: Keys, rotated: int) -> tuple[int, ...]:
    """How many pairs each of four kinds of positions rotates; () where the file knows one kind."""
    key, kind = "rope.dimension_sections", keys.architecture.rope.sections
    if not kind:
        return ()
    if kind == "may" and not keys.has(key):
        return keys.get(key, default=())
    found = keys.get(key)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or not 3 <= len(found) <= 4:
        keys.fail(key, "is no array of 3 or 4 integers")
    sections = (*found.tolist(), 0)[:4]
    if kind == "may" and not any(sections):
        return ()
    if min(sections) < 0 or not 0 < sum(sections) <= rotated // 2:
        keys.fail(key, f"{sections} are not shares of {rotated // 2} pairs")
    return sections


def read_sharpening(keys: Keys) -> Sharpening:
    """How queries far into a text are scaled. Source: llama.cpp's `build_inp_attn_scale`."""
    key = "attention.temperature_scale"
    match keys.architecture.attention.sharpens:
        case "stated":
            scale = keys.number(key, 0.0, low=0.0, high=1e6)
            original = keys.integer("rope.scaling.original_context_length", default=keys.integer("context_length"))
            return Sharpening(scale, original)
        case "stated with length":
            scale = keys.number(key, 0.0, low=0.0, high=1e6)
            if scale and not keys.has("attention.temperature_length"):
                keys.fail(key, "is stated without 'attention.temperature_length'")
            return Sharpening(scale, keys.integer("attention.temperature_length")) if scale else Sharpening()
        case "llama4":
            return Sharpening(0.1, 8192, 1)
        case _:
            return Sharpening()
