"""What the heads of a recurrence remember: a matrix each, which tokens fade and write to. Knows no family."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.state import Rows
from packlight.quant.kernels import native_ops


def remember(
    memory: jax.Array,  # float32 (L, slots, heads, ...)
    index: jax.Array,  # int32 (), the layer
    new: Any,  # a NamedTuple of what each token says, (B, T, ...)
    rows: Rows,
    advance: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """What the heads answer, and the memory with what they remember of each active row's real tokens, from zeros where
    it begins a text.

    advance: (memory (B, heads, ...), new) -> (answers (B, T, ...), the memory after it). Padding is zeros in `new`.
    """
    B, T = new[0].shape[:2]
    at = (index, rows.slot, *(jnp.int32(0),) * 3)
    # A barrier, because what is read of the state later than it is written XLA copies the state for.
    held = lax.optimization_barrier(lax.dynamic_slice(memory, at, (1, B, *memory.shape[2:]))[0])

    def each(x: jax.Array, ndim: int) -> jax.Array:
        return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))

    real = rows.start[:, None] + jnp.arange(T, dtype=jnp.int32)[None] < rows.end[:, None]
    new = type(new)(*(jnp.where(each(real, x.ndim), x, jnp.float32(0)) for x in new))
    before = jnp.where(each(rows.start == 0, 4), jnp.float32(0), held)
    answers, after = advance(before, new)
    after = jnp.where(each(rows.active, 4), after, held)
    return answers, lax.dynamic_update_slice(memory, after[None], at)


def remember_native(
    target: str,
    memory: jax.Array,
    index: jax.Array,
    new: tuple[jax.Array, ...],
    answers: tuple[int, ...],
    rows: Rows,
    threads: int,
    isa: str,
    **attributes: Any,
) -> tuple[jax.Array, jax.Array]:
    """As `remember`, in place and on XLA's own threads, by the C++ handler `target` with its own `attributes`.

    Each head of each row is computed alone, so that its bits depend on no neighbour, slot or number of threads. Padding
    and inactive rows answer 0. answers: their shape. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    """
    results = [jax.ShapeDtypeStruct(answers, jnp.float32), jax.ShapeDtypeStruct(memory.shape, jnp.float32)]
    call = jax.ffi.ffi_call(native_ops.target(target), results, input_output_aliases={len(new): 1})
    made, memory = call(
        *new,
        memory,
        *(index, rows.slot, rows.start, rows.end, rows.active),
        **native_ops.choices(threads, isa),
        **attributes,
    )
    return made, memory
