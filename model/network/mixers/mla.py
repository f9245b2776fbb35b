"""Multi-head latent attention: a mixer that keeps one narrow latent of each position for all heads. No executables.

Two forms compute the same. Absorbed: a head's key matrix is multiplied into its query, and its value matrix with what
attention mixed, so that attention looks at latents themselves, as if all heads shared one key of R + rot channels whose
first R are also the value. Expanded: each tile of latents becomes every head's keys and values.

Source: DeepSeek-V2 (2405.04434), llama.cpp's graph of deepseek2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import gathered
from packlight.model.network.mixers.attention import attention
from packlight.model.network.mixers.attention.scores import PLAIN
from packlight.model.network.mixers.attention.tiled import attention_in_tiles
from packlight.model.network.mixers.attention.write import put
from packlight.model.network.norms import norm
from packlight.model.network.products import closing, linear, linears
from packlight.model.network.rope import magnitude
from packlight.model.network.step import Step
from packlight.model.spec.parts.attention import KV
from packlight.model.spec.parts.mla import Latent, MlaPart
from packlight.model.spec.positions import RopeScaling
from packlight.model.spec.state import CACHE_TILE
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_matmul_each, stacked_unpacked


def mix(
    step: Step,
    part: MlaPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: Latent,
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, Latent]:  # float32 (B, T, D)
    """What attention adds to a layer's input, and the state with this step's latents."""
    q, new = project(step, part, weights, index, h)
    state = Latent(put(state.latent, index, new[:, :, None], step.rows))
    by_native_kernels = step.numerics.kernel == "native"  # which know the absorbed form
    form = expanded if part.expands(h.shape[1]) and not by_native_kernels else absorbed
    mixed = form(step, part, weights, index, state, q)
    return closing(step, mixed, weights, "attn_output", index, part.mixed), state


def project(step: Step, part: MlaPart, weights: Params, index: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries (B, T, H, key_length), rotated and scaled such that their products with keys are the scores; and what
    the state keeps of the same tokens, (B, T, R + rot). Of normed inputs (B, T, D).
    """
    cfg, numerics, turns = step.cfg, step.numerics, step.turns
    heads = numerics.split.local_heads(part.heads)
    first = "attn_q_a" if part.q_rank else "attn_q"
    q, new = linears(h, weights, (first, "attn_kv_a_mqa"), index, numerics)
    if part.q_rank:
        q = linear(norm(step, q, weights, "attn_q_a_norm", index), weights, "attn_q_b", index, numerics)
    if not numerics.split.heads:
        q = gathered(q, heads * part.key_length, numerics.split)
    q = q.reshape(*q.shape[:-1], heads, part.key_length)
    q = jnp.concatenate([q[..., : part.plain], turns.rotate(q[..., part.plain :], False)], -1)
    latent, rotated = new[..., : part.kv_rank], turns.rotate(new[..., None, part.kv_rank :], False)[..., 0, :]
    new = jnp.concatenate([norm(step, latent, weights, "attn_kv_a_norm", index), rotated], -1)
    return turns.sharpen(q) * jnp.float32(score_scale(part, cfg.rope_scaling)), new


def score_scale(part: MlaPart, scaling: RopeScaling) -> float:
    """What products of queries and keys are multiplied with.

    YaRN's sharpening is of the whole product, not of its rotated part: there, `magnitude` has taken it back.
    """
    sharper = 1.0
    if scaling.kind == "yarn":
        sharper = magnitude(scaling) * (1.0 + 0.1 * scaling.log_multiplier * math.log(scaling.factor))
    return sharper**2 / part.key_length**0.5


def absorbed(
    step: Step,
    part: MlaPart,
    weights: Params,
    index: jax.Array,
    state: Latent,
    q: jax.Array,  # float32 (B, T, H, key_length), scaled
) -> jax.Array:  # float32 (B, T, H * value_length)
    """Attention to the latents themselves."""
    numerics, R = step.numerics, part.kv_rank
    to_latents, to_values = _head_products(step, part, weights, index)
    q = jnp.concatenate([to_latents(q[..., : part.plain]), q[..., part.plain :]], -1)
    q = q * jnp.float32(part.width**0.5)  # attention divides by it
    both = KV(state.latent, state.latent)
    mixed = attention(q, both, index, step.rows, numerics.span, numerics.kernel, PLAIN, R)
    y = to_values(mixed.reshape(*q.shape[:3], R))
    return y.reshape(*y.shape[:2], -1)


def expanded(
    step: Step,
    part: MlaPart,
    weights: Params,
    index: jax.Array,
    state: Latent,
    q: jax.Array,  # float32 (B, T, H, key_length), scaled
) -> jax.Array:  # float32 (B, T, H * value_length)
    """Attention to keys and values that are made of the latents, a tile of positions at a time."""
    numerics, B = step.numerics, q.shape[0]
    of_keys, of_values = head_matrices(step, part, weights, index)

    def fetch(place: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = (index, step.rows.slot, jnp.int32(0), place, jnp.int32(0))
        kept = lax.dynamic_slice(state.latent, at, (1, B, 1, CACHE_TILE, part.width))[0, :, 0].astype(numerics.dtype)
        latent, rotated = kept[..., : part.kv_rank], kept[:, None, :, part.kv_rank :]
        keys = _product(f"bsr,{_of_keys(part)}->bhsn", latent, of_keys).astype(numerics.dtype)
        values = _product("bsr,hvr->bhsv", latent, of_values).astype(numerics.dtype)
        rotated = jnp.broadcast_to(rotated, (*keys.shape[:3], part.rotated))
        return jnp.concatenate([keys, rotated], -1), values

    q = q * jnp.float32(part.key_length**0.5)  # attention divides by it
    return attention_in_tiles(q, fetch, state.latent.shape[3], step.rows, numerics.span)


def head_matrices(step: Step, part: MlaPart, weights: Params, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A layer's matrices from latents to each head's keys and values (H, value_length, R), unpacked.

    That of keys is (H, R, plain) as files have it in a tensor of its own, elsewhere (H, plain, R): `_of_keys`.
    """
    dtype = step.numerics.dtype
    if part.split:
        keys, values = (stacked_unpacked(weights[name], index, dtype) for name in ("attn_k_b", "attn_v_b"))
        return keys, values
    both = stacked_unpacked(weights["attn_kv_b"], index, dtype)
    both = both.reshape(-1, part.plain + part.value_length, part.kv_rank)
    return both[:, : part.plain], both[:, part.plain :]


def _head_products(
    step: Step, part: MlaPart, weights: Params, index: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Two functions of (B, T, H, in) -> (B, T, H, out), which multiply what each head has with its own matrix: from
    channels that are not rotated to R, and from R to value_length.

    Native kernels read the packed matrices. Elsewhere a layer's are unpacked, and multiplied at once.
    """
    numerics = step.numerics
    if numerics.kernel == "native" and part.split:

        def product(name: str, x: jax.Array) -> jax.Array:
            B, T, H, width = x.shape
            each = x.transpose(2, 0, 1, 3).reshape(H, B * T, width).astype(numerics.dtype)
            y = stacked_matmul_each(each, weights[name], index, numerics.paths)
            return y.reshape(H, B, T, y.shape[-1]).transpose(1, 2, 0, 3)

        return lambda x: product("attn_k_b", x), lambda x: product("attn_v_b", x)
    of_keys, of_values = head_matrices(step, part, weights, index)
    return (
        lambda x: _product(f"bthn,{_of_keys(part)}->bthr", x.astype(numerics.dtype), of_keys),
        lambda x: _product("bthr,hvr->bthv", x.astype(numerics.dtype), of_values),
    )


def _of_keys(part: MlaPart) -> str:
    """The axes of the matrix of keys, in the letters of this file's products: of heads, R, and channels that do not
    rotate. A transposed copy would be as large as the matrix, and keep a GPU from unpacking it inside the product.
    """
    return "hrn" if part.split else "hnr"


def _product(letters: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """float32, with the precision of `quant.matmul`."""
    return jnp.einsum(letters, x, w, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
