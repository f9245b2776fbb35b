"""Native CPU kernels: every format against the same rounding of activations in jnp, and against full precision."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from at_once import assert_eight_devices_finish
from blocks import SPECIAL_HALVES, plant
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
# Plain numbers: chains of 256 products, whose roundings are independent: sqrt(256) 2^-24 = 1e-6.
TWIN = 1e-5
PLAIN = tuple(qtype for qtype in QTYPES if FORMATS[qtype].elements == 1)
# one of each kind of block, and plain numbers: what is proven of a path once is proven on these
KEPT = ("Q4_0", "Q4_K", "TQ1_0", "NVFP4", "F16", "BF16")
# Rows of x, rows of w, and width in blocks: every tail of a tile of 4 tokens, 8 rows, 4 or 32 blocks.
SIZES = ((1, 130, 2), (2, 9, 9), (3, 37, 3), (5, 7, 5), (8, 1, 7), (9, 8, 4), (17, 37, 5), (33, 9, 33))
# The same of plain numbers: 6 tokens, 16 to 64 rows, 256 columns, pairs of columns.
PLAIN_SIZES = (
    (1, 130, 31),
    (2, 67, 512),
    (3, 37, 80),
    (5, 7, 1),
    (6, 65, 257),
    (9, 8, 256),
    (17, 7, 600),
    (40, 129, 99),
)


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
    bf16 = avx512 and "avx512_bf16" in features
    assert [native_ops.has(isa) for isa in ISAS] == [True, True, avx2, avx512, neon, bf16]
    names = {"avx512-vnni-bf16": bf16, "avx512-vnni": avx512, "avx2": avx2, "neon": neon, "portable": True}
    best = next(name for name, there in names.items() if there)
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
        "avx512bf16": ["ggml", "rows16"],
    }[isa]


@functools.partial(jax.jit, static_argnames=("qtype", "layout", "out", "threads", "isa"))
def product(x, blocks, qtype, layout="ggml", out=None, threads=0, isa="best"):
    return native_ops.matmul(x, blocks, qtype, layout, out, threads=threads, isa=isa)


round_activations = jax.jit(native_ops.round_activations, static_argnums=1)


def rounded(x: np.ndarray, qtype: str, isa: str = "best") -> np.ndarray:
    """float64 (rows, K), what the kernels should multiply with."""
    return np.asarray(round_activations(x, native_ops.activation_block(qtype, isa))).astype(np.float64)


def width_of(qtype: str, blocks: int) -> int:
    """Elements in so many blocks; of plain numbers, whose blocks have one, 7 times as many."""
    return blocks * (7 if qtype in PLAIN else FORMATS[qtype].elements)


def weights(blocks: np.ndarray, qtype: str) -> np.ndarray:
    """float64 (out, K) by gguf-py, which shares no code with ours; of the formats that it lacks, by our reference."""
    if qtype in ("Q1_0", "Q2_0"):
        return np.asarray(FORMATS[qtype].unpack(jnp.asarray(blocks))).reshape(len(blocks), -1).astype(np.float64)
    values = quants.dequantize(blocks.reshape(len(blocks), -1), GGMLQuantizationType[qtype])
    return values.astype(np.float64)


def assert_near(y, exact: np.ndarray) -> None:
    assert y.dtype == jnp.float32
    assert y.shape == exact.shape
    assert np.linalg.norm(np.asarray(y) - exact) <= TWIN * np.linalg.norm(exact)


@pytest.mark.parametrize("qtype", QTYPES)
def test_equals_the_twin_and_full_precision(qtype):
    elements = FORMATS[qtype].elements
    for rows, out, blocks in PLAIN_SIZES if qtype in PLAIN else SIZES:
        matrix, x = random_matrix(qtype, out, blocks), activations(rows, blocks * elements)
        w = weights(matrix, qtype)
        for isa in HERE:
            exact = rounded(x, qtype, isa) @ w.T
            for layout in layouts_of(isa):
                y = product(x, pack(matrix, qtype, layout), qtype, layout, out, isa=isa)
                assert_near(y, exact)
            # Rounding to int8 moves an activation by at most half a step of max / 127, plus 2^-23 * 127 of a step for
            # x * (127 / max) in f32, rounding to bfloat16 by half of 2^-7; the f32 sum is TWIN as above.
            match native_ops.activation_block(qtype, isa):
                case 1:
                    moved = np.zeros(x.shape)
                case native_ops.PAIRS:
                    moved = 2.0**-8 * np.abs(x)
                case block:
                    step = np.abs(x).reshape(rows, -1, block).max(-1, keepdims=True).astype(np.float64) / 127
                    moved = np.repeat(0.5001 * step[..., 0], block, axis=1)
            bound = moved @ np.abs(w).T + TWIN * np.linalg.norm(exact)
            assert np.all(np.abs(np.asarray(y) - x.astype(np.float64) @ w.T) <= bound)


@pytest.mark.parametrize("qtype", tiered(QTYPES, KEPT))
def test_layouts_and_numbers_of_rows_give_the_same_bits(qtype):
    """A row's product depends on nothing but that row of x: not its neighbours, the tile, the layout or the threads."""
    width = width_of(qtype, 41)
    matrix, x = random_matrix(qtype, 21, width // FORMATS[qtype].elements), activations(14, width)
    for isa in HERE:
        y = np.asarray(product(x, matrix, qtype, isa=isa))
        for layout in layouts_of(isa):
            packed = pack(matrix, qtype, layout)
            for rows in (1, 2, 3, 7, 14):
                np.testing.assert_array_equal(product(x[-rows:], packed, qtype, layout, 21, isa=isa), y[-rows:])


@pytest.mark.parametrize("qtype", [qtype for qtype in QTYPES if qtype not in PLAIN])
def test_largest_quants_do_not_saturate(qtype):
    """Every integer at its end, activations all +-127: the worst case of the 16-bit sums inside a kernel."""
    fmt = FORMATS[qtype]
    for fill in (0x00, 0x7F, 0x80, 0xFF, 0x3F, 0xF8):
        matrix = np.full((8, 2, fmt.bytes), fill, np.uint8)
        if qtype == "MXFP4":
            matrix[..., 0] = 120
        elif qtype == "NVFP4":
            matrix[..., :4] = 0x38
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


SCALED = [q for q in QTYPES if q not in PLAIN and (q not in SCALES or SCALES[q].minimum is None)]


@pytest.mark.parametrize("qtype", SCALED)
def test_scales_at_their_ends(qtype):
    """A row of w for each: zeros, subnormal, smallest and largest halves; of the others every byte. Minimums cancel,
    and their formats are left out."""
    if halves := qtype not in ("MXFP4", "NVFP4"):
        matrix = np.repeat(random_matrix(qtype, 1, 2), len(SPECIAL_HALVES), axis=0)
        plant(qtype, matrix[:, 0], SPECIAL_HALVES)
        plant(qtype, matrix[:, 1], SPECIAL_HALVES)
    else:
        matrix = np.repeat(random_matrix(qtype, 1, 2), 256, axis=0)
        matrix[..., : 1 if qtype == "MXFP4" else 4] = np.arange(256).reshape(-1, 1, 1)
    if qtype == "MXFP4":
        matrix = matrix[10:240]  # of the others products may be subnormal, or none
    x = activations(3, matrix.shape[1] * FORMATS[qtype].elements)
    w, by = weights(matrix, qtype), rounded(x, qtype)
    assert halves or qtype == "MXFP4" or not w[[0, 0x7F]].any()
    for isa in HERE:
        y = np.asarray(product(x, matrix, qtype, isa=isa))
        assert np.all(np.abs(y - by @ w.T) <= TWIN * (np.abs(by) @ np.abs(w).T))


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


@pytest.mark.parametrize("qtype", PLAIN)
def test_plain_numbers_that_are_not_finite_show_and_tiny_ones_count(qtype):
    """A weight moves its own row alone, an activation its own token. float16's subnormals are exact; those of float32,
    which XLA flushes, are zeros or themselves."""
    dtype = {"F32": np.uint32}.get(qtype, np.uint16)
    infinite, nan, tiny = {
        "F32": (0x7F800000, 0x7FC00000, 0x400000),
        "F16": (0x7C00, 0x7E00, 0x0001),
        "BF16": (0x7F80, 0x7FC0, 0x0040),
    }[qtype]
    matrix = random_matrix(qtype, 40, 35)
    numbers = matrix.view(dtype)
    numbers[3, 7], numbers[18, 34], numbers[20] = infinite, nan, 0
    numbers[20, 2] = tiny
    x = np.ones((9, 35), np.float32)
    x[4, 5], x[8, 0] = np.inf, np.nan
    for isa in HERE:
        layout = layouts_of(isa)[-1]
        y = np.asarray(product(x, pack(matrix, qtype, layout), qtype, layout, 40, isa=isa))
        assert not np.isfinite(y[[4, 8]]).any()
        fine = np.delete(y, [4, 8], axis=0)
        assert np.isposinf(fine[:, 3]).all()
        assert np.isnan(fine[:, 18]).all()
        assert np.isfinite(np.delete(fine, [3, 18], axis=1)).all()
        assert (fine[:, 20] == 2.0**-24).all() if qtype == "F16" else (np.abs(fine[:, 20]) <= 2.0**-126).all()


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
    qtypes = ["Q4_K", "Q8_0", "F16", "Q6_K", "BF16", "Q4_0", "F32"]
    outs = [40, 9, 50, 17, 21, 8, 1]
    matrices = [random_matrix(q, out, 512 // FORMATS[q].elements) for q, out in zip(qtypes, outs, strict=True)]
    rows = next(name for name, lanes in LANES.items() if lanes == native_build.lanes())
    layouts = [rows, "ggml", rows, rows, rows, rows, "ggml"]
    packed = [pack(m, q, at) for m, q, at in zip(matrices, qtypes, layouts, strict=True)]
    ys = jax.jit(lambda x, bs: native_ops.matmul_many(x, bs, qtypes, layouts, outs))(x, packed)
    for y, matrix, qtype in zip(ys, matrices, qtypes, strict=True):
        np.testing.assert_array_equal(y, product(x, matrix, qtype))


@pytest.mark.parametrize("qtype", ["Q5_0", "Q4_K", "F16", "BF16"])
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
                assert_near(one, rounded(x, qtype, isa) @ w.T)
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
    assert memory.temp_size_in_bytes <= 16 * 2048 * 11 / 8 + 256
    plain = jax.ShapeDtypeStruct((512, 2048, 2), jnp.uint8)
    for qtype, size in (("F16", 0), ("BF16", 2)):
        memory = product.lower(x, plain, qtype).compile().memory_analysis()
        assert memory.temp_size_in_bytes <= 16 * 2048 * size + 256


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
