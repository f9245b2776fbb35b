"""Random packed weights for tests of products."""

import jax.numpy as jnp
import numpy as np

from packlight.bench.blocks import random_blocks
from packlight.quant.formats.table import FORMATS
from packlight.quant.qtensor import QTensor


def random_weights(qtype: str, *shape: int, seed: int = 0) -> QTensor:
    """A QTensor of logical `shape` with valid random blocks."""
    fmt = FORMATS[qtype]
    count = int(np.prod(shape)) // fmt.elements
    blocks = random_blocks(fmt, count, 0.05, np.random.default_rng(seed))
    return QTensor.of(jnp.asarray(blocks.reshape(*shape[:-1], shape[-1] // fmt.elements, fmt.bytes)), qtype)
