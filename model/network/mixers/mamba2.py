"""Mamba-2: a mixer whose heads remember a matrix that fades. Knows no executables.

A head's memory S takes in its channels x under B, and is asked with C; both are shared by the heads of a group:

    S = e^(dt a) S + dt B^T x;  y = C S + d x

Sources: Mamba-2 (2405.21060) for the formulas and for prompts in chunks, llama.cpp's `build_mamba2_layer` for the rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import gathered, tensor_number
from packlight.model.network.mixers import recurrence
from packlight.model.network.mixers.convolution import convolve, follow
from packlight.model.network.norms import norm
from packlight.model.network.products import closing, linear
from packlight.model.network.state import Rows
from packlight.model.network.step import Step
from packlight.model.spec.parts.mamba2 import Mamba2Part, Scan
from packlight.model.spec.state import has_native_recurrence
from packlight.model.weights.params import Params

CHUNK = 64  # tokens that are brought together at once
EXACT = lax.Precision.HIGHEST  # no TF32 for float32 on a GPU
FADED = -128.0  # e^-128 is 0 in float32
GRAIN = 2.0**-9  # sums of 64 multiples of it down to FADED are exact in float32


class Tokens(NamedTuple):
    """What each token says to every head, float32. U groups of J / U heads, N numbers that a channel remembers."""

    x: jax.Array  # (B, T, J, C), times the step dt
    b: jax.Array  # (B, T, U, N)
    c: jax.Array  # (B, T, U, N)
    fade: jax.Array  # (B, T, J), logarithm of what is left of the memory


def mix(
    step: Step,
    part: Mamba2Part,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: Scan,
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, Scan]:  # float32 (B, T, D)
    """What Mamba-2 adds to a layer's input, and the state with this step's tokens."""
    split, N = step.numerics.split, part.memory
    J, U = split.local_groups(part.heads), split.local_groups(part.groups)
    inner, lead = J * part.width, h.shape[:2]

    def of_layer(name: str) -> jax.Array:
        return weights[name][index].reshape(1, 1, -1)

    opened = linear(h, weights, "ssm_in", index, step.numerics)
    if not split.groups:
        opened = gathered(opened, 2 * inner + 2 * U * N + J, split)
    z, new, dt = jnp.split(opened, [inner, 2 * (inner + U * N)], axis=-1)
    inputs, columns = follow(state.columns, index, new, step.rows)
    mixed = convolve(inputs, weights["ssm_conv1d"][index])
    mixed = jax.nn.silu(mixed + of_layer("ssm_conv1d.bias") if "ssm_conv1d.bias" in weights else mixed)
    x, b, c = jnp.split(mixed, [inner, inner + U * N], axis=-1)
    x, b, c = x.reshape(*lead, J, -1), b.reshape(*lead, U, N), c.reshape(*lead, U, N)
    dt = jax.nn.softplus(dt + of_layer("ssm_dt.bias"))
    tokens = Tokens(x * dt[..., None], b, c, dt * of_layer("ssm_a"))
    native = step.numerics.native and has_native_recurrence(part.width)
    y, memory = (remember_native if native else remember)(state.memory, index, tokens, step.rows)
    y = y + x * of_layer("ssm_d")[..., None]
    y = y.reshape(*lead, inner) * jax.nn.silu(z)
    if "ssm_norm" in weights:
        y = _normed(step, part, y, weights, index)
    return closing(step, y, weights, "ssm_out", index, part.channels), Scan(columns, memory)


def _normed(step: Step, part: Mamba2Part, y: jax.Array, weights: Params, index: jax.Array) -> jax.Array:
    """RMS norm of each group's channels, some of which other devices may have. y (B, T, inner).

    Source: llama.cpp's `build_mamba2_layer`.
    """
    split, number = step.numerics.split, tensor_number(step.numerics.split)
    groups = y.reshape(*y.shape[:2], split.local_groups(part.groups), -1)
    if split.tensor == 1:
        return norm(step, groups, weights, "ssm_norm", index).reshape(y.shape)
    square = jnp.mean(groups * groups, axis=-1, keepdims=True)
    if split.groups and split.tensor > part.groups:  # equal parts of a group lie on consecutive devices
        sharers = split.tensor // part.groups
        of_groups = gathered(square[..., 0], split.tensor, split).reshape(*y.shape[:2], part.groups, sharers)
        square = lax.dynamic_slice_in_dim(jnp.mean(of_groups, axis=-1), number // sharers, 1, axis=2)[..., None]
    y = (groups * lax.rsqrt(square + jnp.float32(step.cfg.norm_epsilon))).reshape(y.shape)
    first = number * y.shape[-1] if split.groups else jnp.int32(0)
    return y * lax.dynamic_slice_in_dim(weights["ssm_norm"][index].reshape(-1), first, y.shape[-1])[None, None]


def remember(memory: jax.Array, index: jax.Array, new: Tokens, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """What the heads answer, (B, T, J, C), and the memory (L, slots, J, N, C) after it."""

    def advance(held: jax.Array, new: Tokens) -> tuple[jax.Array, jax.Array]:
        return one_token(held, new) if new.x.shape[1] == 1 else in_chunks(held, new, jnp.max(rows.end - rows.start))

    return recurrence.remember(memory, index, new, rows, advance)


def remember_native(
    memory: jax.Array, index: jax.Array, new: Tokens, rows: Rows, *, threads: int = 0, isa: str = "best"
) -> tuple[jax.Array, jax.Array]:
    """As `remember`, token by token, by `quant/kernels/native/mamba2.cc`."""
    return recurrence.remember_native("packlight_mamba2", memory, index, new, new.x.shape, rows, threads, isa)


def one_token(memory: jax.Array, new: Tokens) -> tuple[jax.Array, jax.Array]:
    """The formulas as they stand, for T = 1: memory (B, J, N, C) -> answers (B, 1, J, C) and the memory after it."""
    x, b, c, fade = (each[:, 0] for each in new)
    b, c = (jnp.repeat(each, x.shape[1] // each.shape[1], axis=1) for each in (b, c))  # (B, J, N)
    memory = memory * jnp.exp(fade)[..., None, None] + b[..., None] * x[..., None, :]
    return jnp.einsum("bjnc,bjn->bjc", memory, c, precision=EXACT)[:, None], memory


def in_chunks(memory: jax.Array, new: Tokens, most: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for many tokens: memory (B, J, N, C) -> answers (B, T, J, C) and the memory after the last of them.

    most: int32 (), tokens of a row that are no padding, at most. A loop as long as they need is also one that XLA does
    not unroll: what is read of the state it would read late, and copy the state for it.
    """
    B, T, J, C = new.x.shape
    size = min(CHUNK, 1 << (T - 1).bit_length())
    new = Tokens(*(jnp.pad(x, ((0, 0), (0, -T % size), *((0, 0),) * (x.ndim - 2))) for x in new))

    def chunk(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, memory = carry
        first = number * size
        part, memory = one_chunk(memory, Tokens(*(lax.dynamic_slice_in_dim(x, first, size, axis=1) for x in new)))
        return lax.dynamic_update_slice_in_dim(y, part, first, axis=1), memory

    y, memory = lax.fori_loop(0, (most + (size - 1)) // size, chunk, (jnp.zeros_like(new.x), memory))
    return y[:, :T], memory


def one_chunk(memory: jax.Array, new: Tokens) -> tuple[jax.Array, jax.Array]:
    """As `in_chunks`, of a few tokens.

    A token's answer has what earlier tokens of its chunk wrote, as attention has it: scores C_i . B_j, faded from j
    to i, times x_j. The rest is in the memory before the chunk.
    """
    x, b, c, fade = new
    B, size, J, C = x.shape
    U, N = b.shape[2:]
    x = x.reshape(B, size, U, J // U, C)
    since, until = _fades(fade.reshape(B, size, U, J // U))
    memory = memory.reshape(B, U, J // U, N, C)
    # Of each row b: q and k are its tokens, u groups, r heads of one, c channels, s what these remember.
    scores = jnp.einsum("bqus,bkus->buqk", c, b, precision=EXACT)[:, :, None] * since
    y = jnp.einsum("burqk,bkurc->bqurc", scores, x, precision=EXACT)
    y = y + jnp.einsum("bqus,bursc->bqurc", c, memory, precision=EXACT) * until[..., None]
    kept = x * jnp.moveaxis(since[..., -1, :], -1, 1)[..., None]
    memory = memory * until[:, -1, ..., None, None] + jnp.einsum("bkus,bkurc->bursc", b, kept, precision=EXACT)
    return y.reshape(B, size, J, C), memory.reshape(B, J, N, C)


def _fades(fade: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is left at q of what was written at k, 0 where k is later, (B, U, R, q, k); and at q of what was before the
    first token, (B, q, U, R). Of logarithms for each token, (B, T, U, R).

    Sums of coarse parts are exact, and fine parts are small, so that a difference of two sums is as exact between two
    tokens that fade little as if nothing had faded much before them.
    """
    fade = jnp.maximum(fade, jnp.float32(FADED))
    coarse = jnp.round(fade / jnp.float32(GRAIN)) * jnp.float32(GRAIN)
    coarse, fine = jnp.cumsum(coarse, axis=1), jnp.cumsum(fade - coarse, axis=1)

    def between(sums: jax.Array) -> jax.Array:
        sums = jnp.moveaxis(sums, 1, -1)
        return sums[..., :, None] - sums[..., None, :]

    earlier = jnp.tril(jnp.ones((fade.shape[1],) * 2, bool))[None, None, None]
    since = jnp.exp(jnp.where(earlier, between(coarse) + between(fine), jnp.float32(-jnp.inf)))
    return since, jnp.exp(coarse + fine)
