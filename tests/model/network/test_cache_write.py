"""Writing to the cache, block after block and by one scatter: the same bits, which are where they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.model.network.mixers.attention.write import in_blocks, put, scattered
from packlight.model.network.state import Rows

LAYERS, SLOTS, HEADS, PLACES, CHANNELS = 3, 5, 2, 16, 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("tokens", "window", "starts"),
    [(1, 0, (0, 3, 15, 7)), (1, 10, (0, 40, 15, 16)), (5, 0, (0, 9, 13, 16)), (5, 12, (0, 14, 13, 47))]
    + [(5, 0, (2,)), (5, 9, (13,)), (16, 0, (0, 4))],
)
def test_a_scatter_writes_what_blocks_do(tokens, window, starts, dtype):
    batch, made = len(starts), np.random.default_rng(5)
    buffer = jnp.asarray(made.normal(size=(LAYERS, SLOTS, HEADS, PLACES, CHANNELS)), dtype)
    new = jnp.asarray(made.normal(size=(batch, tokens, HEADS, CHANNELS)), dtype)
    active = np.arange(batch) != 1
    rows = Rows(jnp.int32(1), jnp.int32(starts), jnp.int32(starts) + tokens, jnp.asarray(active))
    want = np.array(buffer)
    for row, start in enumerate(starts):
        for token in range(tokens) if active[row] else ():
            place = (start + token) % PLACES if window else start + token
            if place < PLACES:
                want[2, 1 + row, :, place] = new[row, token]
    for way in (in_blocks, scattered):
        got = jax.jit(way, static_argnames="wraps")(buffer, jnp.int32(2), new, rows, wraps=window > 0)
        assert np.asarray(got).tobytes() == want.tobytes(), way.__name__
    got = jax.jit(put, static_argnames="window")(buffer, jnp.int32(2), new, rows, window=window)
    assert np.asarray(got).tobytes() == want.tobytes()
