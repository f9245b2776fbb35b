"""What delta nets remember, by the C++ kernel of a CPU, `quant/kernels/native/delta.cc`."""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.state import Rows
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.quant.kernels import native_ops

LANES = 16  # channels of a head are a multiple of it: kWidth of native/delta.h


def has_native(part: DeltaNetPart) -> bool:
    """Whether the kernel knows heads of this width."""
    return part.width % LANES == 0


def remember_native(
    matrices: jax.Array,
    index: jax.Array,
    new: tuple[jax.Array, ...],  # q and k (B, T, G, S), v (B, T, H, S), beta and fade (B, T, H)
    rows: Rows,
    consecutive: bool,
    *,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array]:
    """As `deltanet.remember`, of queries and keys that value heads share, in place and on XLA's own threads.

    Each head of each row is computed alone, so that its bits depend on no neighbour, slot or number of threads. Padding
    and inactive rows answer 0. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    """
    results = [jax.ShapeDtypeStruct(new[2].shape, jnp.float32), jax.ShapeDtypeStruct(matrices.shape, jnp.float32)]
    target = native_ops.target("packlight_delta")
    call = jax.ffi.ffi_call(target, results, input_output_aliases={len(new): 1})
    o, matrices = call(
        *new,
        matrices,
        *(index, rows.slot, rows.start, rows.end, rows.active),
        consecutive=consecutive,
        threads=np.int64(threads),
        isa=np.int64(native_ops.ISAS.index(isa)),
    )
    return o, matrices
