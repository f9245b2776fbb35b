"""Products with packed weights: every path against float64 on unpacked weights, non-square and ragged, every format."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from packed import random_weights
from tiers import product, tiered

from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels import native_build
from packlight.quant.layouts import LANES, pack
from packlight.quant.matmul import matmul, matmul_each, tile_rows, unpacked
from packlight.quant.qtensor import QTensor, gather_rows

# To first order |fl(x·w) - x·w| <= K 2^-24 sum |x_i w_i|, whatever the order of a float32 sum of K terms (Higham, 3.1).
pytestmark = pytest.mark.shipped
UNIT = 2.0**-24
PATHS = ("reference", "xla")  # in float32; test_native has the other


def check(x: np.ndarray, values: np.ndarray, y: jax.Array) -> None:
    """`y` is x @ values.T within the rounding of a float32 sum."""
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    bound = x.shape[1] * UNIT * (np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T)
    assert y.shape == exact.shape
    assert y.dtype == jnp.float32
    np.testing.assert_array_less(np.abs(np.asarray(y) - exact), bound + 1e-30)


SOME = ("Q4_0", "Q4_K", "F16")
EVERY = [(path, qtype) for path in PATHS for qtype in FORMATS]
EACH = [(path, qtype) for path, qtype in EVERY if path == "xla" or qtype in SOME]


@pytest.mark.parametrize(("path", "qtype"), [each if each in EACH else product(*each) for each in EVERY])
def test_every_format_on_every_path(path, qtype):
    w = random_weights(qtype, 48, 512)  # not square: a transposed read cannot pass
    x = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
    check(x, np.asarray(w.unpack()), jax.jit(matmul, static_argnums=2)(x, w, path))


@pytest.mark.parametrize(
    ("rows", "out", "width"), [(1, 17, 256), (2, 37, 768), (5, 4097, 256), (9, 130, 5632), (33, 1, 512)]
)
def test_ragged_sizes(rows, out, width):
    w = random_weights("Q4_K", out, width)
    x = np.random.default_rng(2).normal(size=(rows, width)).astype(np.float32)
    for path in PATHS:
        check(x, np.asarray(w.unpack()), jax.jit(matmul, static_argnums=2)(x, w, path))


@pytest.mark.parametrize("path", PATHS)
def test_each_of_several_matrices_multiplies_its_own_rows(path):
    w = random_weights("Q8_0", 2, 3, 40, 64)
    x = np.random.default_rng(1).normal(size=(3, 5, 64)).astype(np.float32)
    y = jax.jit(lambda x, w: matmul_each(x, w, path, (jnp.int32(1),)))(x, w)
    for i in range(3):
        check(x[i], np.asarray(w.unpack())[1, i], y[i])


@pytest.mark.parametrize(("qtype", "out"), [("Q4_K", 40), ("Q5_0", 1500), ("F16", 7)])
def test_a_stack_of_matrices_is_unpacked_as_it_is(qtype, out):
    """In one tile, in several of which the last is ragged, and in rows that are no tile."""
    w = random_weights(qtype, 2, 3, out, 256)
    whole = np.asarray(w.unpack())
    for picked in ((), (1,), (1, 2)):
        found = jax.jit(lambda w, at: unpacked(w, at, jnp.dtype("float32")))(w, tuple(map(jnp.int32, picked)))
        np.testing.assert_array_equal(found, whole[picked])


@pytest.mark.parametrize("path", PATHS)
def test_index_picks_the_matrix(path):
    w = random_weights("Q6_K", 2, 3, 40, 256)
    x = np.random.default_rng(3).normal(size=(2, 256)).astype(np.float32)
    step = jax.jit(lambda x, w, i, j: matmul(x, w, path, (i, j)))
    for i in range(2):
        for j in range(3):
            check(x, np.asarray(w.unpack())[i, j], step(x, w, np.int32(i), np.int32(j)))


def test_bfloat16_activations_round_the_weights_once():
    w = random_weights("Q8_0", 32, 256)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 256)), jnp.bfloat16)
    rounded = np.asarray(w.unpack().astype(jnp.bfloat16).astype(jnp.float32))
    for path in PATHS:
        check(np.asarray(x.astype(jnp.float32)), rounded, jax.jit(matmul, static_argnums=2)(x, w, path))


def test_tiles_cover_the_rows_and_stay_small():
    for out in (1, 15, 16, 17, 32, 255, 2048, 5632, 32000, 128256, 32001):
        for width in (32, 256, 2048, 11008):
            rows = tile_rows(out, width)
            assert 1 <= rows <= out
            assert rows <= max(16, 2**19 // width)
            assert out % rows == 0 or out % 16  # multiples of 16 never need a ragged tile


def test_scratch_is_a_tile_not_the_matrix():
    w = random_weights("Q4_K", 5632, 2048)
    for rows in (1, 128):
        x = jax.ShapeDtypeStruct((rows, 2048), jnp.float32)
        memory = jax.jit(matmul, static_argnums=2).lower(x, w, "xla").compile().memory_analysis()
        assert memory.temp_size_in_bytes < w.nbytes  # 6.5 MB packed; unpacked it would be 46 MB


@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_a_prompt_unpacks_each_weight_once(qtype):
    """R9: 128 rows take at most 1.25 of a float32 product with unpacked weights plus one unpacking; medians of
    processor time in turn, as a busy machine would stretch a clock's.
    """
    w = random_weights(qtype, 5632, 2048)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(128, 2048)), jnp.float32)
    values = jax.jit(lambda w: w.unpack())(w)
    fused = jax.jit(matmul, static_argnums=2)
    runs = {
        "product": functools.partial(jax.jit(lambda x, v: lax.dot_general(x, v, (((1,), (1,)), ((), ())))), x, values),
        "unpack": functools.partial(jax.jit(lambda w: w.unpack()), w),
        "xla": functools.partial(fused, x, w, "xla"),
    }
    if native_build.is_likely():
        name = next(name for name, lanes in LANES.items() if lanes == native_build.lanes())
        packed = jnp.asarray(pack(np.asarray(w.blocks), qtype, name))
        runs["native"] = functools.partial(fused, x, QTensor.of(packed, qtype, name, 5632, 2048), "native")
    seconds = {name: [] for name in runs}
    for _ in range(8):
        for name, run in runs.items():
            began = time.process_time()
            run().block_until_ready()
            seconds[name].append(time.process_time() - began)
    took = {name: statistics.median(every[1:]) for name, every in seconds.items()}  # the first of each compiles
    for name in runs.keys() & {"xla", "native"}:
        assert took[name] <= 1.25 * (took["product"] + took["unpack"]), took


@pytest.mark.parametrize("qtype", tiered(FORMATS, SOME))
def test_no_row_of_a_prompt_unpacks_on_its_own(qtype):
    """R9, in the program: 127 rows more cost their products, 2 operations a weight of a tile, and nothing else.

    XLA counts a loop's body once, so a tile is what it counts; half an operation a weight is the least that unpacking
    in every row would add.
    """
    w = random_weights(qtype, 96, 512)
    tile = tile_rows(96, 512) * 512

    def operations(rows):
        x = jax.ShapeDtypeStruct((rows, 512), jnp.float32)
        return jax.jit(matmul, static_argnums=2).lower(x, w, "xla").compile().cost_analysis()["flops"]

    assert (operations(128) - operations(1)) / 127 == pytest.approx(2 * tile, abs=tile / 2)


def test_weights_enter_the_program_packed():
    w = random_weights("Q4_K", 64, 512)
    compiled = jax.jit(matmul, static_argnums=2).lower(np.ones((1, 512), np.float32), w, "xla").compile()
    assert compiled.memory_analysis().argument_size_in_bytes == w.nbytes + 512 * 4


def test_unknown_path_and_wrong_shape_are_refused():
    w = random_weights("Q8_0", 8, 64)
    with pytest.raises(ValueError, match="unknown kernel path 'fast'; there are: reference, xla, native"):
        matmul(jnp.ones((1, 64)), w, "fast")
    with pytest.raises(ValueError, match="does not fit"):
        matmul(jnp.ones((1, 32)), w, "xla")
    with pytest.raises(ValueError, match="does not fit"):
        matmul(jnp.ones((1, 64)), w, "xla", (0,))


def test_tied_head_equals_embedding_times_hidden():
    """R15: the head over the packed embedding gives E @ h, with the rows that the look-up gives."""
    w = random_weights("Q4_K", 96, 256)
    h = np.random.default_rng(5).normal(size=(1, 256)).astype(np.float32)
    table = np.asarray(jax.jit(gather_rows)(w, jnp.arange(96, dtype=jnp.int32)))
    check(h, table, jax.jit(matmul, static_argnums=2)(h, w, "xla"))
