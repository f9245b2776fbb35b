"""What Mamba-2 remembers, by the C++ kernel of a CPU, `quant/kernels/native/mamba2.cc`."""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.state import Rows
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.quant.kernels import native_ops

LANES = 16  # channels of a head are a multiple of it: kChannels of native/mamba2.h


def has_native(part: Mamba2Part) -> bool:
    """Whether the kernel knows heads of this width."""
    return part.width % LANES == 0


def remember_native(
    memory: jax.Array,
    index: jax.Array,
    new: tuple[jax.Array, ...],  # as `mamba2.Tokens`
    rows: Rows,
    *,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array]:
    """As `mamba2.remember`, token by token, in place and on XLA's own threads.

    Each head of each row is computed alone, so that its bits depend on no neighbour, slot or number of threads. Padding
    and inactive rows answer 0. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    """
    results = [jax.ShapeDtypeStruct(new[0].shape, jnp.float32), jax.ShapeDtypeStruct(memory.shape, jnp.float32)]
    target = native_ops.target("packlight_mamba2")
    call = jax.ffi.ffi_call(target, results, input_output_aliases={len(new): 1})
    y, memory = call(
        *new,
        memory,
        *(index, rows.slot, rows.start, rows.end, rows.active),
        threads=np.int64(threads),
        isa=np.int64(native_ops.ISAS.index(isa)),
    )
    return y, memory
