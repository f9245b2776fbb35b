"""The gated short convolution of LFM2: a mixer whose state is the last inputs. Knows no executables.

Source: LFM2 (2511.23404), llama.cpp's `build_shortconv_block`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.products import closing, linear
from packlight.model.network.state import Rows
from packlight.model.network.step import Step
from packlight.model.spec.parts.shortconv import Columns, ShortConvPart
from packlight.model.spec.weight import Segment
from packlight.model.weights.params import Params


def mix(
    step: Step,
    part: ShortConvPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: Columns,
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, Columns]:  # float32 (B, T, D)
    """What the convolution adds to a layer's input, and the state with this step's inputs.

    gate_out * conv(gate_in * x), where both gates and x are projections of h.
    """
    gate_in, gate_out, x = jnp.split(linear(h, weights, "shortconv.in_proj", index, step.numerics), 3, axis=-1)
    inputs, state = follow(state, index, gate_in * x, step.rows)
    y = gate_out * convolve(inputs, weights["shortconv.conv"][index])
    return closing(step, y, weights, "shortconv.out_proj", index, Segment("D", step.cfg.embedding_length)), state


def convolve(inputs: jax.Array, taps: jax.Array) -> jax.Array:
    """Each channel with its own taps, the last one on the present: (B, taps - 1 + T, D), (D, taps) -> (B, T, D)."""
    count = taps.shape[1]
    T = inputs.shape[1] - count + 1
    return sum((inputs[:, at : at + T] * taps[None, None, :, at] for at in range(count)), jnp.float32(0))


def follow(state: Columns, index: jax.Array, new: jax.Array, rows: Rows) -> tuple[jax.Array, Columns]:
    """New inputs (B, T, D) behind those that each row kept, zeros where it begins a text: (B, taps - 1 + T, D); and the
    state with the last real ones of each active row.

    A loop that reads and writes row by row: what is read outside of it XLA may read late, and copies the state for it.
    """
    _, _, count, D = state.columns.shape

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
    columns, inputs = lax.fori_loop(0, new.shape[0], row, (state.columns, inputs))
    return inputs, Columns(columns)
