"""Attention over the whole span at once, for GPUs, against the loop over tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV

L, B, K, S, C, H = 2, 3, 2, 384, 16, 6
SPECIAL = {
    "plain": PLAIN,
    "window": Scores(window=40),
    "softcap": Scores(softcap=5.0),
    "sinks": Scores(sinks=jnp.linspace(-2, 3, H, dtype=jnp.float32)),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("span", [256, 384])
def test_equals_tile_after_tile(kind, span):
    rng = np.random.default_rng(0)
    k, v = (rng.normal(size=(L, B, K, S, C)).astype(np.float32) for _ in range(2))
    start = np.array([0, 100, 255], np.int32)
    for slot, end in enumerate(start + 1):  # what lies behind a row's end must not count, whatever it is
        k[:, slot, :, end:], v[:, slot, :, end:] = np.nan, np.inf
    q = rng.normal(size=(B, 1, H, C)).astype(np.float32)
    rows = Rows(jnp.int32(0), jnp.asarray(start), jnp.asarray(start + 1), jnp.ones(B, jnp.bool_))
    cache = KV(jnp.asarray(k), jnp.asarray(v))

    def both(q, cache, rows):
        return [f(q, cache, jnp.int32(1), rows, span, SPECIAL[kind]) for f in (whole_attention, tiled_attention)]

    whole, tiled = jax.jit(both)(q, cache, rows)
    # float32 sums of at most 384 terms of size 1: errors of 384 * 2^-24 of the largest value at most
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole, tiled, atol=S * 2.0**-24 * 4)
    halves = KV(*(x.astype(jnp.bfloat16) for x in cache))
    whole, tiled = jax.jit(both)(q, halves, rows)
    # bfloat16 weights are rounded by 2^-9 in both, relative to tops that may differ; values are below 4
    np.testing.assert_allclose(whole, tiled, atol=2 * 4 * 2.0**-9)
