"""The GPU's attention as pallas interprets it on a CPU, against float64 numpy and against XLA's formulation."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_native_attention import SPAN, assert_near, case, oracle

from packlight.model.network.mixers.attention import attention, mosaic
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV

ROUNDING = {jnp.bfloat16: 2.0**-8, np.float16: 2.0**-11}  # to nearest, of 8 and 11 significant bits
# (B, T, K, G, C), starts, padding at the end, dtype of the cache, scores: blocks of rows that are ragged, that are all
# padding, whose groups straddle them; tiles that are seen whole, in part, by some rows only
CASES = {
    "two rows": ((2, 33, 2, 4, 64), (0, 100), 3, jnp.bfloat16, PLAIN),
    "far along": ((1, 70, 1, 1, 128), (300,), 0, np.float16, PLAIN),
    "to the end of a tile": ((1, 64, 1, 8, 64), (64,), 0, jnp.bfloat16, PLAIN),
    "window": ((1, 40, 1, 8, 64), (150,), 30, jnp.bfloat16, Scores(window=70)),
    "softcap": ((1, 20, 1, 3, 256), (50,), 0, jnp.bfloat16, Scores(softcap=5.0)),
    "sinks": ((1, 30, 2, 5, 64), (20,), 1, np.float16, Scores(window=7, sinks=jnp.linspace(-2, 3, 10))),
}


@pytest.fixture(scope="module")
def interpreter():
    """The mode in which pallas simulates threads, barriers and copies; no public name gives it, hence the import."""
    return pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params").InterpretGPUParams()


def run(function, q, k, v, index, slot, start, end, special, **how):
    rows = Rows(jnp.int32(slot), jnp.asarray(start), jnp.asarray(end), jnp.ones(q.shape[0], jnp.bool_))
    cache = KV(jnp.asarray(k), jnp.asarray(v))
    return np.asarray(function(jnp.asarray(q), cache, jnp.int32(index), rows, SPAN, special, **how))


@pytest.mark.parametrize("name", CASES)
def test_equals_float64_and_the_twin(name, interpreter):
    shape, starts, pad, dtype, special = CASES[name]
    q, *rest = case(shape, starts, pad, dtype)
    width = np.float32(shape[-1] ** -0.5)
    rounded = (q * width).astype(dtype).astype(np.float64) * np.sqrt(shape[-1])  # as both formulations round it
    exact, bound = oracle(rounded, *rest, special, ROUNDING[dtype])
    real = ~np.isnan(exact)
    assert bound[real].max() < 0.05  # of values of size 1
    y = run(mosaic.mosaic_attention, q, *rest, special, interpret=interpreter)
    assert_near(y, exact, bound)
    assert np.all(np.abs(y - run(tiled_attention, q, *rest, special))[real] <= 2 * bound[real])


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("window", [None, 1, 65, 130])
def test_only_tiles_that_a_row_sees_are_fetched(group, window):
    """Against the positions that each row sees, for blocks of rows, starts and ends around the edges of tiles."""
    rows, tile = mosaic.ROWS, mosaic.TILE
    for start in (0, 1, 62, 63, 64, 65, 200):
        for tokens in (1, 64, 100):
            for begin in range(0, tokens * group, rows):
                place = (np.int32(x) for x in (begin, start, start + tokens))
                first, whole, tiles = map(
                    int, mosaic.tiles_of(*place, None if window is None else np.int32(window), group)
                )
                last = start + np.arange(begin, min(begin + rows, tokens * group)) // group
                lowest = np.zeros_like(last) if window is None else np.maximum(0, last + 1 - window)
                assert (first, tiles) == (lowest.min() // tile, last.max() // tile + 1)
                assert first <= whole <= tiles
                assert whole * tile <= last.min() + 1
                assert window is not None or whole == (last.min() + 1) // tile


def test_blocks_of_padding_fetch_nothing():
    assert list(map(int, mosaic.tiles_of(np.int32(64), np.int32(100), np.int32(108), None, 8))) == [0, 0, 0]
    assert list(map(int, mosaic.tiles_of(np.int32(64), np.int32(900), np.int32(908), np.int32(9), 8))) == [0, 0, 0]


@pytest.mark.parametrize(("width", "dtype"), [(80, jnp.bfloat16), (96, np.float16), (64, np.float32)])
def test_what_the_kernel_is_not_made_for_is_an_error(width, dtype):
    with pytest.raises(ValueError, match=f"attention 'mosaic' takes heads of .*, not {width} in {np.dtype(dtype)}"):
        run(mosaic.mosaic_attention, *case((1, 2, 1, 2, width), dtype=dtype), PLAIN)


def test_no_kernel_stands_in_for_another():
    q, k, v, index, slot, start, end = case((1, 2, 1, 2, 64))
    cache, rows = KV(k, v), Rows(slot, start, end, np.ones(1, np.bool_))
    with pytest.raises(ValueError, match="attention 'mosaic_gpu' is unknown"):
        attention(jnp.asarray(q), cache, index, rows, SPAN, "mosaic_gpu", PLAIN)
    with pytest.raises(ValueError, match="attention 'mosaic' is unknown, or does not know narrow or rounded values"):
        attention(jnp.asarray(q), cache, index, rows, SPAN, "mosaic", PLAIN, 32)
