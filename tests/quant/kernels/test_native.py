"""Native CPU kernels: every format against the same rounding of activations in jnp, and against full precision."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from at_once import assert_eight_devices_finish
from blocks import plant
from gguf import GGMLQuantizationType, quants
from tiers import tiered

from packlight.bench.blocks import SCALES, random_blocks
from packlight.common.errors import UnsupportedError
from packlight.compile.aot import host_features
from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels import native_build, native_ops
from packlight.quant.kernels.native_ops import ISAS, QTYPES
from packlight.quant.layouts import FIELDS, LANES, pack, unpack
from packlight.quant.qtensor import QTensor, gather_rows

# Against the twin. Integer sums are exact, so what is left is the f32 sum over N = K / block blocks of d * x_d times an
# integer, and its like for minimums: (N + 6) 2^-24 of the terms' magnitudes (Higham, 3.1), 4e-6 at N = 64. A minimum's
# term is about the size of the scale's, so that the norms of terms and sum differ by less than a factor of 2.
TWIN = 1e-5
KEPT = ("Q4_0", "Q4_K")  # a legacy format and a K format: what is proven of a path once is proven on these
# Rows of x, rows of w, and width in blocks: every tail of a tile of 4 tokens, 8 rows, 4 or 32 blocks.
SIZES = ((1, 130, 2), (2, 9, 9), (3, 37, 3), (5, 7, 5), (8, 1, 7), (9, 8, 4), (17, 37, 5), (33, 9, 33))


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        HERE[:] = [isa for isa in ISAS[1:] if native_ops.has(isa)]
    except native_build.NativeBuildError as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.skipif(not pathlib.Path("/proc/cpuinfo").exists(), reason="nobody else says what the CPU has")
def test_the_library_names_the_best_instruction_set_of_this_cpu():
    features = set(host_features().split())
    avx2 = {"avx2", "fma", "f16c"} <= features
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= features
    neon = "asimddp" in features
    assert [native_ops.has(isa) for isa in ISAS] == [True, True, avx2, avx512, neon]
    best = "avx512-vnni" if avx512 else "avx2" if avx2 else "neon" if neon else "portable"
    assert native_build.running().instructions == best
    assert native_build.running_if_built() == native_build.running()


def random_matrix(qtype: str, out: int, blocks: int, seed: int = 0) -> np.ndarray:
    """uint8 (out, blocks, block_bytes) in ggml's layout."""
    fmt = FORMATS[qtype]
    return random_blocks(fmt, out * blocks, 0.05, np.random.default_rng(seed)).reshape(out, blocks, fmt.bytes)


def activations(rows: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


HERE: list[str] = []  # the instruction sets of this CPU, filled by the fixture below


def layouts_of(isa: str) -> list[str]:
    return {
        "portable": list(LANES),
        "avx2": ["ggml", "rows8"],
        "avx512": ["ggml", "rows16"],
        "neon": ["ggml", "rows4"],
    }[isa]


@functools.partial(jax.jit, static_argnames=("qtype", "layout", "out", "threads", "isa"))
def product(x, blocks, qtype, layout="ggml", out=None, threads=0, isa="best"):
    return native_ops.matmul(x, blocks, qtype, layout, out, threads=threads, isa=isa)


round_activations = jax.jit(native_ops.round_activations, static_argnums=1)


def rounded(x: np.ndarray, qtype: str) -> np.ndarray:
    """float64 (rows, K), what the kernels should multiply with."""
    return np.asarray(round_activations(x, FORMATS[qtype].elements)).astype(np.float64)


def weights(blocks: np.ndarray, qtype: str) -> np.ndarray:
    """float64 (out, K) by gguf-py, which shares no code with ours."""
    values = quants.dequantize(blocks.reshape(len(blocks), -1), GGMLQuantizationType[qtype])
    return values.astype(np.float64)


def assert_near(y, exact: np.ndarray) -> None:
    assert y.dtype == jnp.float32
    assert y.shape == exact.shape
    assert np.linalg.norm(np.asarray(y) - exact) <= TWIN * np.linalg.norm(exact)


@pytest.mark.parametrize("qtype", QTYPES)
def test_equals_the_twin_and_full_precision(qtype):
    elements = FORMATS[qtype].elements
    for rows, out, blocks in SIZES:
        matrix, x = random_matrix(qtype, out, blocks), activations(rows, blocks * elements)
        w = weights(matrix, qtype)
        exact = rounded(x, qtype) @ w.T
        results = [
            product(x, pack(matrix, qtype, layout), qtype, layout, out, isa=isa)
            for isa in HERE
            for layout in layouts_of(isa)
        ]
        for y in results:
            assert_near(y, exact)
        # Rounding moves an activation by at most half a step of max / 127, plus 2^-23 * 127 of a step for x * (127 /
        # max) in f32; the f32 sum is TWIN as above.
        step = np.abs(x).reshape(rows, -1, elements).max(-1, keepdims=True).astype(np.float64) / 127
        half = np.broadcast_to(0.5001 * step, (rows, blocks, elements)).reshape(rows, -1)
        bound = half @ np.abs(w).T + TWIN * np.linalg.norm(exact)
        assert np.all(np.abs(np.asarray(results[0]) - x.astype(np.float64) @ w.T) <= bound)


@pytest.mark.parametrize("qtype", tiered(QTYPES, KEPT))
def test_layouts_and_numbers_of_rows_give_the_same_bits(qtype):
    """A row's product depends on nothing but that row of x: not its neighbours, the tile, the layout or the threads."""
    matrix, x = random_matrix(qtype, 21, 40), activations(14, 40 * FORMATS[qtype].elements)
    for isa in HERE:
        y = np.asarray(product(x, matrix, qtype, isa=isa))
        for layout in layouts_of(isa):
            packed = pack(matrix, qtype, layout)
            for rows in (1, 2, 3, 7, 14):
                np.testing.assert_array_equal(product(x[-rows:], packed, qtype, layout, 21, isa=isa), y[-rows:])


@pytest.mark.parametrize("qtype", QTYPES)
def test_largest_quants_do_not_saturate(qtype):
    """Every integer at its end, activations all +-127: the worst case of the 16-bit sums inside a kernel."""
    fmt = FORMATS[qtype]
    for fill in (0x00, 0x7F, 0x80, 0xFF, 0x3F, 0xF8):
        matrix = np.full((8, 2, fmt.bytes), fill, np.uint8)
        if qtype == "MXFP4":
            matrix[..., 0] = 120
        elif qtype == "IQ1_M":
            plant(qtype, matrix.reshape(-1, fmt.bytes), 0x3400)
        else:
            for at in (SCALES[qtype].at, SCALES[qtype].minimum):
                if at is not None:
                    matrix[..., at : at + 2] = np.array([0.25], "<f2").view(np.uint8)
        x = np.full((5, 2 * fmt.elements), 3.0, np.float32)
        x[1] = -3
        x[2, ::2] = -3
        x[3] *= np.where(weights(matrix, qtype)[0] < 0, -1, 1)
        x[4] = -x[3]
        exact = rounded(x, qtype) @ weights(matrix, qtype).T
        terms = np.abs(rounded(x, qtype)) @ np.abs(weights(matrix, qtype)).T + 1e-30
        for isa in HERE:
            y = np.asarray(product(x, matrix, qtype, isa=isa))
            # minimums may cancel: to the size of the largest scale's terms, 64 * 64 / 4 per weight at most
            assert np.all(np.abs(y - exact) <= TWIN * np.maximum(terms, 16 * 3 * x.shape[1]))


def test_what_is_not_finite_shows():
    matrix = random_matrix("Q4_K", 16, 3)
    for qtype, bad in (("Q4_K", np.nan), ("Q4_K", np.inf), ("Q8_0", -np.inf)):
        matrix = random_matrix(qtype, 16, 3)
        x = activations(10, 3 * FORMATS[qtype].elements)
        x[4, 5] = bad
        for isa in HERE:
            y = np.asarray(product(x, matrix, qtype, isa=isa))
            assert np.isnan(y[4]).all()
            assert np.isfinite(np.delete(y, 4, axis=0)).all()


def test_empty_matrices():
    """No rows of either; and no columns, whose products are zeros rather than what the buffer held."""
    for rows, out, blocks in ((0, 8, 1), (2, 0, 1), (3, 300, 0)):
        for isa in HERE:
            x = activations(rows, 256 * blocks)
            jax.device_put(np.full((rows, out), np.nan, np.float32)).delete()  # a buffer to be used again
            y = product(x, np.zeros((out, blocks, 144), np.uint8), "Q4_K", isa=isa)
            np.testing.assert_array_equal(y, np.zeros((rows, out)))
    x = activations(3, 256)
    matrices = [random_matrix("Q4_K", out, 1) for out in (0, 9, 0, 7, 0)]
    ys = jax.jit(lambda x, bs: native_ops.matmul_many(x, bs, ["Q4_K"] * 5))(x, matrices)
    for y, matrix in zip(ys, matrices, strict=True):
        np.testing.assert_array_equal(y, product(x, matrix, "Q4_K") if len(matrix) else np.zeros((3, 0)))


def test_zeros_and_tiny_activations_give_zeros():
    matrix = random_matrix("Q6_K", 9, 2)
    x = np.zeros((2, 512), np.float32)
    x[1] = 1e-38
    np.testing.assert_array_equal(product(x, matrix, "Q6_K"), np.zeros((2, 9)))


def test_activations_round_half_to_even_as_the_kernel_does():
    """Unit weights read the rounded activations back, ties included: Q8_0 with d = 1 and one quant of 1 per row."""
    x = activations(3, 32)
    x[0] = np.arange(32) - 0.5
    x[0, 0] = 127
    matrix = np.zeros((32, 1, 34), np.uint8)
    matrix[:, 0, :2] = np.array([1.0], "<f2").view(np.uint8)
    matrix[np.arange(32), 0, 2 + np.arange(32)] = 1
    for isa in HERE:
        y = product(x, matrix, "Q8_0", isa=isa)
        np.testing.assert_array_equal(y, round_activations(x, 32))
    assert y[0, 3] == 2.0  # 2.5
    assert y[0, 4] == 4.0  # 3.5


def test_many_products_share_one_call():
    x = activations(6, 512)
    qtypes = ["Q4_K", "Q8_0", "Q6_K", "Q4_0"]
    outs = [40, 9, 17, 8]
    matrices = [random_matrix(q, out, 512 // FORMATS[q].elements) for q, out in zip(qtypes, outs, strict=True)]
    rows = next(name for name, lanes in LANES.items() if lanes == native_build.lanes())
    layouts = [rows, "ggml", rows, rows]
    packed = [pack(m, q, at) for m, q, at in zip(matrices, qtypes, layouts, strict=True)]
    ys = jax.jit(lambda x, bs: native_ops.matmul_many(x, bs, qtypes, layouts, outs))(x, packed)
    for y, matrix, qtype in zip(ys, matrices, qtypes, strict=True):
        np.testing.assert_array_equal(y, product(x, matrix, qtype))


@pytest.mark.parametrize("qtype", ["Q5_0", "Q4_K"])
@pytest.mark.parametrize(("rows", "out", "width"), [(1, 40, 256), (3, 17, 512), (9, 300, 512)])
def test_each_matrix_multiplies_its_own_rows(qtype, rows, out, width):
    """Three of a stack of five, from the second on, with rows that are no whole tile."""
    x = activations(3 * rows, width)
    matrices = [random_matrix(qtype, out, width // FORMATS[qtype].elements, seed) for seed in range(5)]
    for isa in HERE:
        for layout in layouts_of(isa):
            stack = np.stack([pack(matrix, qtype, layout) for matrix in matrices])

            def run(x, stack, layout=layout, isa=isa):
                how = {"indices": [1], "each": 3, "threads": 2, "isa": isa}
                return native_ops.matmul_many(x, [stack], [qtype], [layout], [out], **how)[0]

            y = jax.jit(run)(x, stack).reshape(3, rows, out)
            for i in range(3):
                mine = x[i * rows : (i + 1) * rows]
                np.testing.assert_array_equal(y[i], product(mine, stack[1 + i], qtype, layout, out, isa=isa))


@functools.partial(jax.jit, static_argnames=("qtype", "layout", "out", "isa"))
def by_threads(x, blocks, qtype, layout, out, isa):
    return [
        native_ops.matmul(x, blocks, qtype, layout, out, threads=threads, isa=isa, index=0) for threads in (1, 2, 3, 8)
    ]


@pytest.mark.parametrize("qtype", tiered(QTYPES, KEPT))
def test_any_number_of_threads_gives_the_same_bits(qtype):
    """One token and several, ragged rows; large enough that the threads get chunks (2^19 products)."""
    out, width = 533, 1024
    matrix = random_matrix(qtype, out, width // FORMATS[qtype].elements)
    w = weights(matrix, qtype)
    for rows in (1, 11):
        x = activations(rows, width)
        assert rows * out * width >= 1 << 19
        for isa in HERE:
            layout = layouts_of(isa)[-1]
            packed = pack(matrix, qtype, layout)
            for _ in range(3):
                one, *others = by_threads(x, packed, qtype, layout, out, isa)
                assert_near(one, rounded(x, qtype) @ w.T)
                for other in others:
                    np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("threads", [2, 8])
def test_eight_devices_at_once_finish(threads):
    """Each device's calling thread may be one of the pool's, so a call that waited for its helpers would never end."""
    matrix, x = random_matrix("Q4_K", 2048, 4), activations(3, 1024)
    want = np.asarray(product(x, matrix, "Q4_K", threads=1))
    steps = jax.jit(
        lambda x, b: jax.lax.fori_loop(
            0, 30, lambda _, y: native_ops.matmul(x + 0 * y[:, :1], b, "Q4_K", threads=threads), jnp.zeros((3, 2048))
        )
    )
    assert_eight_devices_finish(steps, (x, matrix), want)


@pytest.mark.parametrize("layout", tiered(["rows4", "rows8", "rows16"], ["rows8"]))
@pytest.mark.parametrize("qtype", QTYPES)
def test_rows_side_by_side_are_a_permutation_of_bytes(qtype, layout):
    fields, lanes = FIELDS[qtype], LANES[layout]
    assert [at for at, _, _ in fields] == list(np.cumsum([0, *(n for _, n, _ in fields)])[:-1])
    assert sum(n for _, n, _ in fields) == FORMATS[qtype].bytes
    for out in (1, 7, 16, 37):
        matrix = random_matrix(qtype, out, 3)
        packed = pack(matrix, qtype, layout)
        assert packed.dtype == np.uint8
        assert packed.shape == (-(-out // lanes), 3, lanes * FORMATS[qtype].bytes)
        np.testing.assert_array_equal(unpack(packed, qtype, layout, out), matrix)
        in_cpp = np.ones_like(packed)
        native_build.pack_into(matrix, FORMATS[qtype].type_id, lanes, in_cpp)
        np.testing.assert_array_equal(in_cpp, packed)
        ids = jnp.array([[0, out - 1], [out // 2, 0]], jnp.int32)
        np.testing.assert_array_equal(
            gather_rows(QTensor.of(packed, qtype, layout, out, 3 * FORMATS[qtype].elements), ids),
            gather_rows(QTensor.of(matrix, qtype), ids),
        )
        if out % lanes == 0:
            np.testing.assert_array_equal(np.sort(packed, axis=None), np.sort(matrix, axis=None))


def test_scratch_is_the_rounded_activations():
    x = jax.ShapeDtypeStruct((16, 2048), jnp.float32)
    blocks = jax.ShapeDtypeStruct((512, 8, 144), jnp.uint8)
    memory = product.lower(x, blocks, "Q4_K").compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 16 * 2048 * 21 / 16 + 256


def test_refusals():
    x = jnp.ones((2, 512))
    matrix = jnp.asarray(random_matrix("Q4_K", 8, 2))
    with pytest.raises(UnsupportedError, match="no native kernel for Q8_K; there are: Q4_0, "):
        native_ops.matmul(x, matrix, "Q8_K")
    with pytest.raises(ValueError, match="want uint8"):
        native_ops.matmul(x[:, :256], matrix, "Q4_K")
    with pytest.raises(ValueError, match="want uint8"):
        native_ops.matmul(x, matrix, "Q4_K", "rows8")
    with pytest.raises(ValueError, match="do not hold 9 rows"):
        native_ops.matmul(x, matrix, "Q4_K", "ggml", 9)
    with pytest.raises(ValueError, match="unknown layout 'rows3'"):
        native_ops.matmul(x, matrix, "Q4_K", "rows3")
    with pytest.raises(ValueError, match="float32"):
        native_ops.matmul(x.astype(jnp.bfloat16), matrix, "Q4_K")
    for each, said in ((3, "shared out evenly"), (2, "outside the stack")):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(native_ops.matmul_many(x, [matrix], ["Q4_K"], each=each))
    if "avx2" in HERE:
        with pytest.raises(jax.errors.JaxRuntimeError, match="interleaved by 16, and these kernels take 8"):
            product(x, pack(np.asarray(matrix), "Q4_K", "rows16"), "Q4_K", "rows16", 8, isa="avx2").block_until_ready()
