"""Rotary position embedding: frequencies from the file's scaling keys, and the rotation. Knows positions, no weights.

Source: RoFormer (2104.09864), YaRN (2309.00071), ggml `ggml_rope_ext` for the conventions GGUF files assume.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.positions import RopeScaling
from packlight.model.weights.params import Params


def inverse_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Radians per position for each rotated pair, float64 (rot/2,), with linear or YaRN stretching applied."""
    pairs = np.arange(cfg.rope_dimension_count // 2, dtype=np.float64)
    inverse = cfg.rope_freq_base ** (-2.0 * pairs / cfg.rope_dimension_count) * _turns_with_text(cfg)
    scaling = cfg.rope_scaling
    stretched = inverse / scaling.factor
    if scaling.kind != "yarn":
        return stretched
    keep = scaling.extrapolation * _yarn_keep(cfg, pairs)
    return inverse * keep + stretched * (1.0 - keep)


def _turns_with_text(cfg: ModelConfig) -> np.ndarray:
    """1 for pairs that a text's positions turn, 0 for those of M-RoPE's last kind, whose positions are 0 in a text.

    Pairs are dealt out in runs, the first ones to the first kind, or in turn, to three kinds as long as each has some
    left. Source: ggml's `ggml_mrope_cache_init`, llama.cpp for the positions of a text.
    """
    pairs = np.arange(cfg.rope_dimension_count // 2)
    if not cfg.rope_sections:
        return np.ones(len(pairs))
    sections = np.array(cfg.rope_sections)
    at = pairs % sections.sum()
    if cfg.architecture.rope.sections == "in turn":
        return (at < 3 * sections[at % 3]).astype(np.float64)
    return (at < sections[:3].sum()).astype(np.float64)


def _yarn_keep(cfg: ModelConfig, pairs: np.ndarray) -> np.ndarray:
    """1 for pairs that turn so often within the original context that they stay, 0 for those fully stretched."""
    scaling = cfg.rope_scaling

    def pair_with_turns(turns: float) -> float:
        wavelength = scaling.original_context / (turns * 2 * math.pi)
        return cfg.rope_dimension_count * math.log(wavelength) / (2 * math.log(cfg.rope_freq_base))

    low = max(0.0, math.floor(pair_with_turns(scaling.beta_fast)))
    high = min(cfg.rope_dimension_count - 1.0, math.ceil(pair_with_turns(scaling.beta_slow)))
    return 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)


def magnitude(scaling: RopeScaling) -> float:
    """What cos and sin are multiplied with; YaRN sharpens attention by 1 + 0.1 ln(factor), or takes it back."""
    if scaling.kind != "yarn":
        return scaling.attn_factor
    sharper, back = (1.0 + 0.1 * m * math.log(scaling.factor) for m in (scaling.sharpening, scaling.log_multiplier))
    return scaling.attn_factor * sharper / back


def rope_divisors(cfg: ModelConfig, params: Params, context: int) -> jax.Array | None:
    """The file's divisors of the frequencies, float32 (rot/2,): Llama 3.1's, phi3's long or short ones, or those that
    turn a share of Gemma 4's channels only, (C/2,).

    Which of phi3's two is chosen by the context the cache has, as llama.cpp does it, not by a prompt's length.
    """
    if "rope_factors_long" in params:
        long = context > cfg.rope_scaling.original_context
        return params["rope_factors_long" if long else "rope_factors_short"]
    return params.get("rope_freqs")


class Turns:
    """Rotations at some positions, of the layers that see everything and of those with a sliding window."""

    def __init__(self, cfg: ModelConfig, positions: jax.Array, divisors: jax.Array | None):
        # M-RoPE rotates halves, whatever the family does otherwise. Source: ggml's `ggml_mrope_cache_init`.
        self._style = "halves" if cfg.rope_sections else cfg.architecture.rope.style
        self._turn = rotation(cfg, positions, divisors)
        self._sharper = None
        if cfg.sharpening.scale:
            scale, length, offset = cfg.sharpening
            self._sharper = 1.0 + scale * jnp.log1p(((positions + offset) // length).astype(jnp.float32))
        scaling = RopeScaling() if cfg.architecture.windows.unstretched else cfg.rope_scaling_swa or cfg.rope_scaling
        sliding = dataclasses.replace(
            cfg,
            rope_freq_base=cfg.rope_freq_base_swa,
            rope_scaling=scaling,
            rope_dimension_count=cfg.rope_dimension_count_swa or cfg.rope_dimension_count,
        )
        self._own = any(cfg.slides) and sliding != cfg
        if self._own:
            divisors = None if cfg.architecture.windows.unstretched else divisors
            self._sliding = rotation(sliding, positions, divisors)

    def rotate(self, x: jax.Array, slides: bool) -> jax.Array:
        """x (B, T, heads, C) rotated, as layers with a sliding window do it or as the others do."""
        return rotate(x, *(self._sliding if slides and self._own else self._turn), self._style)

    def sharpen(self, q: jax.Array) -> jax.Array:
        """Queries (B, T, heads, C), scaled by how far beyond the original context they are, where the model does it."""
        return q if self._sharper is None else q * self._sharper[:, :, None, None]


def rotation(
    cfg: ModelConfig,
    positions: jax.Array,  # int32 (B, T)
    divisors: jax.Array | None,  # float32 (rot/2 or more,), of the frequencies
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 (B, T, rot/2)."""
    inverse = jnp.asarray(inverse_frequencies(cfg), jnp.float32)
    if divisors is not None:
        inverse = inverse / divisors[: len(inverse)]
    angles = positions.astype(jnp.float32)[..., None] * inverse[None, None, :]
    scale = np.float32(magnitude(cfg.rope_scaling))
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: jax.Array,  # float32 (B, T, heads, C)
    cos: jax.Array,  # float32 (B, T, rot/2)
    sin: jax.Array,  # float32 (B, T, rot/2)
    style: str,
) -> jax.Array:  # float32 (B, T, heads, C)
    """Rotates the first `rot` of C channels: "adjacent" pairs (2i, 2i+1), or "halves" (i, i + rot/2)."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    match style:
        case "adjacent":
            pairs = turned.reshape(*turned.shape[:-1], half, 2)
            a, b = pairs[..., 0], pairs[..., 1]
            out = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(turned.shape)
        case "halves":
            a, b = turned[..., :half], turned[..., half:]
            out = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
        case _:
            raise ValueError(f"unknown rope style {style!r}")
    return jnp.concatenate([out, rest], -1) if rest.shape[-1] else out
