"""The gated short convolution of LFM2: a mixer whose state is the last inputs. Knows no executables.

Source: LFM2 (2511.23404), llama.cpp's `build_shortconv_block`.
"""

import jax
import jax.numpy as jnp

from packlight.model.network.mixers.convolution import convolve, follow
from packlight.model.network.products import closing, linear
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
    inputs, columns = follow(state.columns, index, gate_in * x, step.rows)
    y = gate_out * convolve(inputs, weights["shortconv.conv"][index])
    y = closing(step, y, weights, "shortconv.out_proj", index, Segment("D", step.cfg.embedding_length))
    return y, Columns(columns)
