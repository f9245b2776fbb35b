"""Native attention: against float64 numpy and against XLA's formulation, for every instruction set of this CPU."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from at_once import assert_eight_devices_finish
from natives import isas

from packlight.model.network.mixers.attention.native import PART, native_attention
from packlight.model.network.mixers.attention.quantized import packed, rounded, unpacked
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.model.spec.state import KV_BLOCK
from packlight.quant.kernels.native_ops import round_activations

pytestmark = pytest.mark.usefixtures("native_library")


U = 2.0**-24  # rounding of one float32 operation
STARTS = (0, 1, 63, 127, 128, 129, 255, 300)
SPAN, CAPACITY = 384, 391  # the cache's length is no multiple of anything
# B, T, K, G, C: decode, few tokens, and more queries than a block has
SHAPES = (
    (1, 1, 2, 1, 32),
    (3, 1, 1, 8, 64),
    (3, 1, 2, 3, 80),
    (1, 2, 2, 8, 128),
    (3, 2, 1, 17, 36),
    (1, 7, 2, 8, 64),
    (1, 7, 1, 3, 100),
    (1, 33, 2, 1, 64),
    (1, 33, 1, 3, 80),
    (1, 33, 1, 8, 64),
    (2, 33, 2, 3, 32),
    (1, 67, 1, 1, 128),
)


class Static(NamedTuple):
    """Scores, hashable for jit: sinks and slopes are numbers."""

    window: int | None = None
    softcap: float = 0.0
    sinks: tuple[float, ...] = ()
    chunked: bool = False
    alibi: tuple[float, ...] = ()

    @property
    def scores(self) -> Scores:
        sinks, alibi = (jnp.asarray(x, jnp.float32) if x else None for x in (self.sinks, self.alibi))
        return Scores(self.window, self.softcap, sinks, self.chunked, alibi)


NOTHING = Static()
ROUNDING = {"int8": rounded, "int4": packed}  # among types of the cache: pairs of numbers and scales
WHOLE_BLOCKS = [shape for shape in SHAPES if shape[-1] % KV_BLOCK == 0]  # as 4 bits take them


def kept(x, dtype):
    return jax.jit(ROUNDING[dtype])(x) if dtype in ROUNDING else jnp.asarray(x, dtype)


def state_of(k, v):
    return QuantizedKV(k[0], v[0], k[1], v[1]) if isinstance(k, tuple) else KV(k, v)


@functools.partial(jax.jit, static_argnames=("span", "special", "threads", "isa"))
def native(q, k, v, index, slot, start, end, span=SPAN, special=NOTHING, threads=0, isa="best"):
    rows = Rows(slot, start, end, jnp.ones(q.shape[0], jnp.bool_))
    return native_attention(q, state_of(k, v), index, rows, span, special.scores, threads=threads, isa=isa)


@functools.partial(jax.jit, static_argnames=("span",))
def tiled(q, k, v, index, slot, start, end, span=SPAN):
    rows = Rows(slot, start, end, jnp.ones(q.shape[0], jnp.bool_))
    return tiled_attention(q, state_of(k, v), index, rows, span)


def case(shape, start=(0,), pad=0, dtype=np.float32, capacity=CAPACITY):
    """Arguments of `native` for layer 1, slot 1 of 2 layers; the last `pad` tokens are padding.

    Whatever no row may look at is NaN in the keys and infinite in the values.
    """
    B, T, K, G, C = shape
    rng = np.random.default_rng(0)
    q = 2 * rng.normal(size=(B, T, K * G, C)).astype(np.float32)
    k, v = (rng.normal(size=(2, B + 2, K, capacity, C)).astype(dtype) for _ in range(2))
    start = np.resize(np.array(start, np.int32), B)
    end = (start + T - pad).astype(np.int32)
    seen = np.zeros(k.shape, np.bool_)
    for b in range(B):
        seen[1, 1 + b, :, : end[b]] = True
    return (
        q,
        np.where(seen, k, np.nan).astype(dtype),
        np.where(seen, v, np.inf).astype(dtype),
        np.int32(1),
        np.int32(1),
        start,
        end,
    )


def oracle(q, k, v, index, slot, start, end, special=PLAIN, rounding=0.0):
    """float64 results and a bound on a float32 kernel's error, both (B, T, H * C); rows of padding are NaN.

    A score is a sum of C products of factors that are each rounded once more: off by (C + 4) U sum |q k|, and by 2 U
    relative when the largest is subtracted. That is the relative error of its weight, next to 2 units of the power. A
    weighted mean of n values moves by twice the weights' error, and by (n + 8) U for the sums above and below. A soft
    cap passes errors on, never larger, with 8 U of its own: of 1 - t and 1 + t, where t = e^(-2 |x| / c). rounding: of
    each weight, which is at most 1, before it is multiplied, relative, and below 2^-14 as in float16.
    """
    B, T, H, C = q.shape
    exact, bound = np.full((2, B, T, H, C), np.nan)
    group = H // k.shape[2]
    for b, t in np.ndindex(B, T):
        if start[b] + t >= end[b]:
            continue
        n = start[b] + t + 1
        first = 0 if special.window is None else max(0, n - special.window)
        first = (n - 1) // special.window * special.window if special.chunked else first
        for h in range(H):
            keys, values = (x[index, slot + b, h // group, first:n].astype(np.float64) for x in (k, v))
            scores = keys @ q[b, t, h].astype(np.float64) / np.sqrt(C)
            size = np.abs(keys) @ np.abs(q[b, t, h]) / np.sqrt(C)
            if special.softcap:
                scores = special.softcap * np.tanh(scores / special.softcap)
            if special.alibi is not None and len(special.alibi):
                apart = float(special.alibi[h]) * (n - 1 - np.arange(first, n))
                scores, size = scores - apart, size + apart
            weights = np.exp(scores - scores.max())
            sinks = special.sinks is not None and len(special.sinks)
            total = weights.sum() + (np.exp(float(special.sinks[h]) - scores.max()) if sinks else 0)
            weights /= total
            error = ((C + 4) * size + 2 * np.abs(scores - scores.max()) + 4 + 8 * special.softcap) * U
            exact[b, t, h] = weights @ values
            bound[b, t, h] = (2 * error * weights) @ np.abs(values) + (2 * error @ weights + (n + 8) * U + rounding) * (
                weights @ np.abs(values)
            )
            if rounding:
                bound[b, t, h] += 2.0**-25 * np.abs(values).sum(0) / total
    return exact.reshape(B, T, H * C), bound.reshape(B, T, H * C)


def assert_near(y, exact, bound):
    y, real = np.asarray(y), ~np.isnan(exact)
    assert y.dtype == np.float32
    assert np.isfinite(y).all()  # padding too
    assert np.all(np.abs(y - exact)[real] <= bound[real])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_equals_float64_and_the_twin(shape, dtype):
    for i in range(len(STARTS)):
        neighbours = np.roll(STARTS, -i)[: shape[0]]
        arguments = case(shape, neighbours, pad=0 if shape[1] == 1 else i % 2, dtype=dtype)
        exact, bound = oracle(*arguments)
        assert bound[~np.isnan(bound)].max() < 2e-3
        for isa in isas():
            assert_near(native(*arguments, isa=isa), exact, bound)
        if dtype == np.float32:
            q, k, v, *rest = arguments
            twin = np.asarray(tiled(q, np.nan_to_num(k), v, *rest))  # the twin's padding sees what is behind the end
            real = ~np.isnan(exact)
            assert np.all(np.abs(np.asarray(native(*arguments)) - twin)[real] <= 2 * bound[real])


def rounded_queries(q):
    """What meets rounded keys, in place of queries."""
    width = q.shape[-1]
    q = np.pad(q, [(0, 0)] * 3 + [(0, -width % KV_BLOCK)])
    return np.asarray(round_activations(q.reshape(-1, q.shape[-1]), KV_BLOCK)).reshape(q.shape)[..., :width]


def rounded_case(dtype, *arguments, **options):
    """As `case`, with rounded keys and values; scales are NaN where no row may look. And what they are in float32."""
    q, k, v, *rest = case(*arguments, **options)
    k, v = (jax.tree.map(np.array, kept(np.where(np.isfinite(x), x, np.nan), dtype)) for x in (k, v))
    return (q, k, v, *rest), tuple(np.asarray(unpacked(*x)) for x in (k, v))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "int8") for shape in (*SHAPES, (1, 1, 1, 1, 5), (1, 40, 1, 2, 7))),
        *((shape, "int4") for shape in (*WHOLE_BLOCKS, (1, 1, 1, 3, 96), (1, 40, 1, 2, 96))),
    ],
    ids=str,
)
def test_rounded_equals_float64_and_the_twin(shape, dtype):
    """Keys and values are exact products, those of rounded queries and keys are added up exactly: what a float32 kernel
    may err by with the same numbers is more than enough.
    """
    for i in range(0, len(STARTS), 2):
        neighbours = np.roll(STARTS, -i)[: shape[0]]
        (q, k, v, *rest), plain = rounded_case(dtype, shape, neighbours, pad=0 if shape[1] == 1 else i // 2 % 2)
        exact, bound = oracle(rounded_queries(q), *plain, *rest)
        for isa in isas():
            assert_near(native(q, k, v, *rest, isa=isa), exact, bound)
        twin = np.asarray(tiled(rounded_queries(q), k, v, *rest))
        real = ~np.isnan(exact)
        assert np.all(np.abs(np.asarray(native(q, k, v, *rest)) - twin)[real] <= 2 * bound[real])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rounded_of_another_shape_is_an_error(dtype):
    (q, k, v, *rest), _ = rounded_case(dtype, (1, 1, 1, 1, 64))
    wrong = [(k[0], k[1][..., :1]), (k[0], k[1].astype(np.float32)), (k[0].astype(np.float16), k[1])]
    for bad in (*wrong, (k[0][..., :16], k[1]), (k[0].view(np.uint8 if dtype == "int8" else np.int8), k[1])):
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="want"):
            native(q, bad, (bad[0], v[1]), *rest).block_until_ready()


@pytest.mark.parametrize("shape", [(3, 1, 1, 20, 96), (1, 33, 1, 3, 80), (2, 7, 2, 4, 100)], ids=str)
@pytest.mark.parametrize("width", [1, 37, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_may_be_the_first_channels_of_keys(shape, width, dtype):
    q, k, _, *rest = case(shape, (300, 0, 129), dtype=dtype)
    B, T, K, G, C = shape
    exact, bound = (x.reshape(B, T, K * G, C)[..., :width].reshape(B, T, -1) for x in oracle(q, k, k, *rest))

    def narrow(kernel, k, **options):
        index, slot, start, end = rest
        rows = Rows(jnp.int32(slot), jnp.asarray(start), jnp.asarray(end), jnp.ones(B, jnp.bool_))
        return jax.jit(lambda k: kernel(q, KV(k, k), index, rows, SPAN, values=width, **options))(k)

    for isa in isas():
        assert_near(narrow(native_attention, k, isa=isa), exact, bound)
    if dtype == np.float32:
        assert_near(narrow(tiled_attention, k), exact, bound)


HEADS = tuple(np.linspace(-1, 2, 24).tolist())
SPECIAL = {
    "window": Static(window=70),
    "window of one part and more": Static(window=300),
    "window of itself": Static(window=1),
    "chunks": Static(window=96, chunked=True),
    "soft cap": Static(softcap=5.0),
    "sinks": Static(sinks=HEADS),
    "slopes": Static(alibi=tuple(2.0**-n for n in range(1, 25))),
    "all": Static(window=100, softcap=3.0, sinks=HEADS, alibi=tuple(2.0**-n for n in range(1, 25))),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("shape", [(3, 1, 2, 3, 80), (2, 7, 1, 8, 64), (1, 67, 2, 12, 20), (1, 33, 1, 1, 320)], ids=str)
def test_what_families_do_to_scores_equals_float64(name, shape):
    """What the windows do not see is no number."""
    heads = shape[2] * shape[3]
    special = SPECIAL[name]._replace(sinks=SPECIAL[name].sinks[:heads], alibi=SPECIAL[name].alibi[:heads])
    for dtype in (np.float32, np.float16):
        q, k, v, *rest = case(shape, (300, 0, 129), pad=shape[1] // 3, dtype=dtype)
        exact, bound = oracle(q, k, v, *rest, special._replace(sinks=special.sinks or None))
        if special.window and not special.chunked:
            for b, start in enumerate(rest[2]):
                unseen = slice(0, max(0, int(start) - special.window + 1))
                k[1, 1 + b, :, unseen], v[1, 1 + b, :, unseen] = np.nan, np.inf
        for isa in isas():
            assert_near(native(q, k, v, *rest, special=special, isa=isa), exact, bound)
    for dtype in ROUNDING if shape[-1] % KV_BLOCK == 0 else ("int8",):
        (q, k, v, *rest), plain = rounded_case(dtype, shape, (300, 0, 129), pad=shape[1] // 3)
        exact, bound = oracle(rounded_queries(q), *plain, *rest, special._replace(sinks=special.sinks or None))
        if special.window and not special.chunked:
            for b, start in enumerate(rest[2]):
                for _, scales in (k, v):
                    scales[1, 1 + b, :, : max(0, int(start) - special.window + 1)] = np.nan
        for isa in isas():
            assert_near(native(q, k, v, *rest, special=special, isa=isa), exact, bound)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("name", ["plain", "window", "all"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, *ROUNDING])
def test_a_querys_bits_do_not_depend_on_how_many_there_are(group, name, dtype):
    """R31: a prompt of 600 tokens at once, in pieces, and single queries; spans and threads of every kind."""
    T, C, S = 600, 32 if dtype == "int4" else 36, 1024
    special = SPECIAL.get(name, NOTHING)
    special = special._replace(sinks=special.sinks[:group], alibi=special.alibi[:group])
    rng = np.random.default_rng(1)
    q = rng.normal(size=(1, T, group, C)).astype(np.float32)
    k, v = (kept(rng.normal(size=(1, 1, 1, S, C)).astype(np.float32), dtype) for _ in range(2))

    def run(first, count, span, threads, isa):
        start, end = (np.array([x], np.int32) for x in (first, first + count))
        part = q[:, first : first + count]
        return np.asarray(native(part, k, v, np.int32(0), np.int32(0), start, end, span, special, threads, isa))

    for isa in isas():
        whole = run(0, T, S, 1, isa)
        for count, span, threads in ((1, S, 2), (1, 640, 1), (5, S, 3), (64, 640, 8), (200, S, 2)):
            for first in (0, 63, 255, 256, 300, T - count):
                if first + count <= T:
                    ours = run(first, count, span, threads, isa)
                    np.testing.assert_array_equal(ours, whole[:, first : first + count], err_msg=f"{count} at {first}")


@pytest.mark.parametrize(("width", "group"), [(5, 1), (21, 2), (36, 8), (80, 4), (80, 7), (96, 7), (256, 3)])
def test_lanes_of_positions_and_of_queries_agree(width, group):
    """The same query alone, where lanes are positions, and among 64 tokens', where they are queries: equal bits.

    An odd width ends in half a word of a key of two bytes, and 5 channels are less than a vector.
    """
    T, S = 64, SPAN
    rng = np.random.default_rng(2)
    q = rng.normal(size=(1, T, group, width)).astype(np.float32)
    first = S - T
    for dtype in (np.float32, np.float16, jnp.bfloat16, *(ROUNDING if width % KV_BLOCK == 0 else ("int8",))):
        k, v = (kept(rng.normal(size=(1, 1, 1, S, width)).astype(np.float32), dtype) for _ in range(2))
        for isa in isas():

            def run(at, count, isa=isa, k=k, v=v):
                start, end = (np.array([x], np.int32) for x in (first + at, first + at + count))
                return np.asarray(native(q[:, at : at + count], k, v, np.int32(0), np.int32(0), start, end, isa=isa))

            among = run(0, T)
            for at in (0, 25, T - 1):
                np.testing.assert_array_equal(run(at, 1), among[:, at : at + 1])


def test_one_position_gives_its_value():
    """Exact: a weight of 1, a total of 1."""
    q, k, v, *rest = case((2, 1, 2, 3, 64))
    for isa in isas():
        y = np.asarray(native(q, k, v, *rest, isa=isa)).reshape(2, 2, 3, 64)
        np.testing.assert_array_equal(y, np.repeat(v[1, 1:3, :, :1], 3, axis=2))


def test_far_scores_weigh_nothing():
    """Scores of +-1e4 and equal ones: powers far below the smallest float are 0, a mean of equals is their mean."""
    q, k, v, *rest = case((1, 1, 1, 4, 32), start=(200,))
    q[:], k[1, 1, :, :201], v[1, 1, :, :201] = 1, 0, np.arange(201)[:, None]
    for isa in isas():
        np.testing.assert_allclose(native(q, k, v, *rest, isa=isa), 100, rtol=220 * U)
    k[1, 1, :, :201] = -2000
    k[1, 1, :, 77] = 2000
    for isa in isas():
        np.testing.assert_array_equal(native(q, k, v, *rest, isa=isa), np.full((1, 1, 128), 77))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    for T in (1, 33):
        q, k, v, *rest = case((1, T, 1, 8, 64), start=(300,))
        k[1, 1, 0, 130, 5] = bad
        q[..., 5] = 1
        for isa in isas():
            assert np.isnan(np.asarray(native(q, k, v, *rest, isa=isa))).all()


@pytest.mark.parametrize(("tokens", "group"), [(1, 8), (1, 3), (7, 3), (33, 8)])
def test_slots_neighbours_and_threads_change_no_bit(tokens, group):
    q, k, v, index, _, _, _ = case((3, tokens, 2, group, 64), start=(300, 300, 300), capacity=1000)
    k, v = np.nan_to_num(k, nan=0.5), np.nan_to_num(v, posinf=0.5)
    k[:, :], v[:, :] = k[1:, 1:2], v[1:, 1:2]  # every slot of every layer holds the same
    q[:] = q[:1]
    for isa in isas():
        want = None
        for threads in (1, 2, 3, 8):
            for slot in (0, 2):
                for start in ((300, 300, 300), (300, 0, 900), (5, 300, 129), (1, 800, 300)):
                    start = np.array(start, np.int32)
                    y = native(q, k, v, index, np.int32(slot), start, start + tokens, 1024, threads=threads, isa=isa)
                    same = np.asarray(y)[start == 300]
                    want = same[0] if want is None else want
                    np.testing.assert_array_equal(same, np.broadcast_to(want, same.shape))


@pytest.mark.parametrize("span", [PART, 32 * PART, 33 * PART])
def test_spans_with_one_part_and_with_the_most(span):
    start = span - 2
    arguments = case((1, 1, 1, 2, 32), start=(start,), capacity=span)
    assert_near(native(*arguments, span=span), *oracle(*arguments))


def test_more_positions_than_the_span_is_an_error():
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="more positions in use than the step's span"):
        native(*case((1, 1, 1, 1, 32), start=(300,)), span=PART).block_until_ready()


@pytest.mark.parametrize(("index", "slot"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_a_place_outside_the_cache_is_an_error(index, slot):
    q, k, v, _, _, start, end = case((1, 1, 1, 1, 32))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="outside the cache"):
        native(q, k, v, np.int32(index), np.int32(slot), start, end).block_until_ready()


@pytest.mark.parametrize("threads", [2, 8])
def test_eight_devices_at_once_finish(threads):
    """Each device's calling thread may be one of the pool's, so a call that waited for its helpers would never end."""
    q, k, v, *rest = case((1, 1, 4, 8, 64), start=(1900,), capacity=2048)
    want = np.asarray(native(q, k, v, *rest, 2048, threads=1))

    @jax.jit
    def steps(q, k, v, *rest):
        def step(_, y):
            return native(q + 0 * y.reshape(q.shape), k, v, *rest, 2048, threads=threads)

        return jax.lax.fori_loop(0, 20, step, jnp.zeros(want.shape))

    assert_eight_devices_finish(steps, (q, k, v, *rest), want)


@pytest.mark.parametrize(("batch", "tokens"), [(4, 1), (1, 16)])
def test_layers_in_a_loop_copy_no_cache(batch, tokens):
    """Scratch is the step's own rows and the parts' sums: far from one layer's keys."""
    (B, T), (K, G, C, S) = (batch, tokens), (4, 8, 64, 4096)
    k, new = jax.ShapeDtypeStruct((6, 4, K, S, C), jnp.float32), jax.ShapeDtypeStruct((B, T, K, C), jnp.float32)
    q, ints = jax.ShapeDtypeStruct((B, T, K * G, C), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.int32)

    def step(k, v, q, new, start):
        rows = Rows(jnp.int32(0), start, start + T, start > 0)

        def layer(i, carry):
            q, state = carry
            state = write(state, i, new + q[:, :, :K], new, rows)
            return native_attention(q, state, i, rows, S).reshape(q.shape), state

        return jax.lax.fori_loop(0, 6, layer, (q, KV(k, v)))

    memory = jax.jit(step, donate_argnums=(0, 1)).lower(k, k, q, new, ints).compile().memory_analysis()
    parts = B * K * (S // PART) * (T * G + 8) * (C + 16) * 4
    assert memory.temp_size_in_bytes <= parts + 20 * q.size * 4
    assert memory.temp_size_in_bytes < 0.01 * 2 * k.size * 4 * 8  # of a full model's cache, 48 layers
