"""What follows an output head, by a CPU's native kernels: a token for each row of logits, and log-probabilities.

A row's bits depend on its own logits and parameters, not on other rows or threads. `model.sampling.chain` says what the
results are and has the twins.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.kernels import native_ops

Array = jax.Array | np.ndarray


def sample(
    logits: Array,  # float32 (B, V)
    parameters: Sequence[Array],  # each (B,), 15 in the order of chain.SlotSampling
    position: Array,  # int32 (B,)
    *,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array]:  # int32 (B,), float32 (B,)
    """A token of each row and Mirostat's next state. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.

    Source: native/sampler.h, which says how it rounds.
    """
    slots = logits.shape[:1]
    call = jax.ffi.ffi_call(
        native_ops.target("packlight_sample"),
        [jax.ShapeDtypeStruct(slots, jnp.int32), jax.ShapeDtypeStruct(slots, jnp.float32)],
    )
    ids, mu = call(logits, *parameters, position, **native_ops.choices(threads, isa))
    return ids, mu


def logprobs(
    logits: Array,  # float32 (B, V)
    ids: Array,  # int32 (B,)
    asked: Array,  # int32 (B,): of a row where it is negative all results are zeros
    count: int,
    *,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array, jax.Array]:  # float32 (B,), float32 (B, count), int32 (B, count)
    """Log-softmax at an id of each row; that of the `count` most probable ones, highest first; and their ids.

    Of a row that holds a NaN, or whose best is infinite, all are NaN. threads 0 takes XLA's pool; isa: one of
    native_ops.ISAS. Raises ValueError for a count that a row has not.
    """
    if not 1 <= count <= logits.shape[1]:
        raise ValueError(f"native log-probabilities: {count} of {logits.shape[1]} numbers")
    slots, shape = logits.shape[:1], (logits.shape[0], count)
    call = jax.ffi.ffi_call(
        native_ops.target("packlight_logprobs"),
        [
            jax.ShapeDtypeStruct(slots, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        ],
    )
    values, top, top_ids = call(logits, ids, asked, **native_ops.choices(threads, isa))
    return values, top, top_ids
