"""A causal convolution of each channel over a few positions, and the last inputs that it keeps. Knows no family."""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.state import Rows


def convolve(inputs: jax.Array, taps: jax.Array) -> jax.Array:
    """Each channel with its own taps, the last one on the present: (B, taps - 1 + T, D), (D, taps) -> (B, T, D)."""
    count = taps.shape[1]
    T = inputs.shape[1] - count + 1
    return sum((inputs[:, at : at + T] * taps[None, None, :, at] for at in range(count)), jnp.float32(0))


def follow(columns: jax.Array, index: jax.Array, new: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """New inputs (B, T, D) behind those that each row kept in `columns` (L, B, taps - 1, D), zeros where it begins a
    text: (B, taps - 1 + T, D); and `columns` with the last real ones of each active row.

    A loop that reads and writes row by row: what is read outside of it XLA may read late, and copies the state for it.
    """
    _, _, count, D = columns.shape

    def row(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        columns, inputs = carry
        at = (index, rows.slot + b, jnp.int32(0), jnp.int32(0))
        held = lax.dynamic_slice(columns, at, (1, 1, count, D))
        before = jnp.where(rows.start[b] == 0, jnp.float32(0), held)[0]
        inputs = lax.dynamic_update_slice(inputs, before, (b, jnp.int32(0), jnp.int32(0)))
        real = rows.end[b] - rows.start[b]
        last = lax.dynamic_slice(inputs, (b, real, jnp.int32(0)), (1, count, D))[None]
        return lax.dynamic_update_slice(columns, jnp.where(rows.active[b], last, held), at), inputs

    inputs = jnp.pad(new, ((0, 0), (count, 0), (0, 0)))
    columns, inputs = lax.fori_loop(0, new.shape[0], row, (columns, inputs))
    return inputs, columns
