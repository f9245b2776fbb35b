"""Attention over a window whose places go round, by every kernel that knows windows, against all positions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.model.network.mixers.attention import mosaic
from packlight.model.network.mixers.attention.native import native_attention
from packlight.model.network.mixers.attention.scores import Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV

L, SLOTS, K, G, C = 2, 3, 2, 3, 64
WINDOW, KEPT, ALL = 50, 256, 1024  # positions: what a query sees, what is kept, what there is
STARTS = (3, 255, 256, 700)
KERNELS = {
    "tiled": tiled_attention,
    "whole": whole_attention,
    "mosaic": mosaic.mosaic_attention,
    "native": native_attention,
}


def filled(dtype):
    """Keys and values of every position, and those that are kept when each slot is at its own end."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(L, SLOTS, K, ALL, C)).astype(dtype) for _ in "kv")


def round_the_places(whole, ends):
    """Where position p lies at p % KEPT; what was never written is no number."""
    kept = np.full((*whole.shape[:3], KEPT, C), np.nan, whole.dtype)
    for slot, end in enumerate(ends):
        for position in range(max(0, end - KEPT), end):
            kept[:, slot, :, position % KEPT] = whole[:, slot, :, position]
    return jnp.asarray(kept)


@pytest.mark.parametrize(
    ("kernel", "tokens", "dtype"),
    [
        ("tiled", 1, np.float32),
        ("tiled", 30, np.float32),
        ("whole", 1, np.float32),
        ("mosaic", 30, np.float16),
        ("native", 1, np.float32),
        ("native", 30, np.float32),
    ],
)
@pytest.mark.parametrize("start", STARTS)
def test_a_kernel_finds_what_the_window_sees(kernel, tokens, dtype, start):
    """Three rows at ends of their own; the twin has a place for every position."""
    starts = np.array([start, max(0, start - 40), 90], np.int32)[: SLOTS if tokens == 1 else 1]
    ends = starts + tokens
    whole = filled(dtype)
    kept = KV(*(round_the_places(x, ends) for x in whole))
    rng = np.random.default_rng(start)
    q = jnp.asarray(rng.normal(size=(len(starts), tokens, K * G, C)), jnp.float32)
    rows = Rows(jnp.int32(0), jnp.asarray(starts), jnp.asarray(ends), jnp.ones(len(starts), bool))
    how, keywords = KERNELS[kernel], {}
    if kernel == "mosaic":
        interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params").InterpretGPUParams()
        keywords = {"interpret": interpreter}
    scores = Scores(WINDOW, sinks=jnp.linspace(-1, 1, K * G))
    got = how(q, kept, jnp.int32(1), rows, ALL, scores, **keywords)
    twin = tiled_attention(q, KV(*map(jnp.asarray, whole)), jnp.int32(1), rows, ALL, scores)
    # Sums of 50 products, and weights that are rounded to the type of the values: 2^-11 of float16's.
    np.testing.assert_allclose(got, twin, atol=1e-5 if dtype == np.float32 else 4 * 2.0**-11)


@pytest.mark.parametrize("size", [1, 16, 100, 200])
@pytest.mark.parametrize("window", [0, WINDOW])
def test_positions_are_written_where_they_are_read(size, window):
    """Chunk after chunk, the last one padded: with a window round and round, without one up to the last place and no
    further, whatever padding there is.
    """
    length = 230 if not window else 900
    k, v = (x[0, 1].transpose(1, 0, 2)[:length] for x in filled(np.float32))  # (length, K, C)
    state = KV(*(jnp.full((L, SLOTS, K, KEPT, C), 7.0) for _ in "kv"))
    step = jax.jit(write, static_argnames="window")
    for at in range(0, length, size):
        new = [np.pad(x[at : at + size], ((0, max(0, at + size - length)), (0, 0), (0, 0)), constant_values=np.nan)
               for x in (k, v)]  # fmt: skip
        rows = Rows(jnp.int32(1), jnp.int32([at]), jnp.int32([min(at + size, length)]), jnp.ones(1, bool))
        state = step(state, jnp.int32(0), *(jnp.asarray(x[None]) for x in new), rows, window=window)
    seen = range(length - WINDOW + 1 if window else 0, length)
    for buffer, x in zip(state, (k, v), strict=True):
        for position in seen:
            np.testing.assert_array_equal(buffer[0, 1, :, position % KEPT], x[position])
        assert (np.asarray(buffer)[1] == 7).all()
        assert (np.asarray(buffer)[0, [0, 2]] == 7).all()
