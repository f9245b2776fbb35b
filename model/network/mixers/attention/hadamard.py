"""The Walsh-Hadamard rotation of a head's channels, which spreads what is large in one of them over all.

Source: QuaRot (2404.00456); Sylvester's construction of the matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.model.spec.state import turned_width


def hadamard(x: jax.Array) -> jax.Array:
    """float32 (..., C), each w channels that follow each other times the w x w Walsh-Hadamard matrix over sqrt(w).

    w is `turned_width(C)`. The matrix is symmetric and orthogonal: the rotation is its own inverse, and leaves the
    product of two vectors as it is. A CPU adds up in one order whatever the shape, so that the bits of a token do not
    depend on its neighbours; elsewhere it is a product that matrix units take.
    """
    return lax.platform_dependent(x, cpu=by_butterflies, default=by_product)


def by_butterflies(x: jax.Array) -> jax.Array:
    """`hadamard` by sums and differences of pairs, log2(w) times.

    They are stacked, before which XLA:CPU ends a fusion. As a sum of pairs and flipped pairs all passes become one,
    where each number is w numbers added up: 512 tokens with 32 heads of 128 channels take 28 ms, not 3.3, on a Zen 4.
    """
    width, apart = turned_width(x.shape[-1]), 1
    y = x
    while apart < width:
        pairs = y.reshape(-1, 2, apart)
        first, second = pairs[:, 0], pairs[:, 1]
        y = jnp.stack((first + second, first - second), 1)
        apart *= 2
    return y.reshape(x.shape) * np.float32(width**-0.5)


def by_product(x: jax.Array) -> jax.Array:
    """`hadamard` by a product with the matrix."""
    width = turned_width(x.shape[-1])
    signs = np.ones((1, 1), np.float32)
    while len(signs) < width:
        signs = np.block([[signs, signs], [signs, -signs]])
    runs = x.reshape(*x.shape[:-1], -1, width)
    return jnp.dot(runs, signs * np.float32(width**-0.5), precision=lax.Precision.HIGHEST).reshape(x.shape)
