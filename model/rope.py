"""Rotary position embedding: frequencies from the file's scaling keys, and the rotation. Knows positions, no weights.

Source: RoFormer (2104.09864), YaRN (2309.00071), ggml `ggml_rope_ext` for the conventions GGUF files assume.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig, RopeScaling


def inverse_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Radians per position for each rotated pair, float64 (rot/2,), with linear or YaRN stretching applied."""
    pairs = np.arange(cfg.rope_dimension_count // 2, dtype=np.float64)
    inverse = cfg.rope_freq_base ** (-2.0 * pairs / cfg.rope_dimension_count)
    scaling = cfg.rope_scaling
    stretched = inverse / scaling.factor
    if scaling.kind != "yarn":
        return stretched
    keep = _yarn_keep(cfg, pairs)
    return inverse * keep + stretched * (1.0 - keep)


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
    """What cos and sin are multiplied with; YaRN sharpens attention by 1 + 0.1 ln(factor)."""
    if scaling.kind != "yarn":
        return scaling.attn_factor
    return scaling.attn_factor * (1.0 + 0.1 * math.log(scaling.factor))


def rotation(
    cfg: ModelConfig,
    positions: jax.Array,  # int32 (B, T)
    rope_freqs: jax.Array | None,  # float32 (rot/2,), the file's divisors (Llama 3.1), or None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 (B, T, rot/2)."""
    inverse = jnp.asarray(inverse_frequencies(cfg), jnp.float32)
    if rope_freqs is not None:
        inverse = inverse / rope_freqs
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
