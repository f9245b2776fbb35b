"""Norms and dot products of rows by a CPU's native kernels. Knows no models.

Every sum goes over a row in one order, whatever other rows there are and whoever computes them: XLA's own sums change
their order with the shape. `model.network.norms` has the twins.
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.kernels import native_ops


def norm(
    x: jax.Array,  # float32 (M, W)
    weights: jax.Array | None,  # float32 (L, P, W): row m takes number m % P of layer `index`; None: ones
    biases: jax.Array | None,  # as the weights; None: zeros
    index: jax.Array | int = 0,
    *,
    epsilon: float,
    centered: bool = False,
    divisor: int = 0,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:  # float32 (M, W)
    """(x - mean) / sqrt(squares / divisor + epsilon) * weights + biases, of each row; without the mean if not centered.

    divisor: what the sum of squares is divided by; 0: W. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    Source: native/norm_kernel.h.
    """
    none = jnp.zeros((0,), jnp.float32)
    call = jax.ffi.ffi_call(native_ops.target("packlight_norm"), jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return call(
        x,
        none if weights is None else weights,
        none if biases is None else biases,
        jnp.asarray(index, jnp.int32),
        period=np.int64(1 if weights is None else weights.shape[1]),
        centered=np.bool_(centered),
        divisor=np.float32(divisor or x.shape[1]),
        epsilon=np.float32(epsilon),
        **native_ops.choices(threads, isa),
    )


def dots(
    a: jax.Array,  # float32 (M, W)
    b: jax.Array,  # float32 (M, W), or (1, W) for all rows
    *,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:  # float32 (M,)
    """Each row of a times b's. threads 0 takes XLA's pool; isa: one of native_ops.ISAS."""
    call = jax.ffi.ffi_call(native_ops.target("packlight_dots"), jax.ShapeDtypeStruct(a.shape[:1], jnp.float32))
    return call(a, b, **native_ops.choices(threads, isa))
