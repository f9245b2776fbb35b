"""Mixtures natively: against products one by one, the XLA form of routers and activations, and in any company."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from natives import isas
from packed import random_weights

from packlight.model.network.ffn.moe import LEAST_SUM, route
from packlight.model.spec.parts.moe import Routing
from packlight.quant.kernels import native_build, native_experts, native_ops
from packlight.quant.kernels.native_experts import KINDS, Experts
from packlight.quant.layouts import LANES, pack
from packlight.quant.qtensor import QTensor

pytestmark = pytest.mark.usefixtures("native_library")

D, F, L = 256, 512, 2
run = jax.jit(native_experts.experts, static_argnames=("kind", "scales_input", "threads", "isa"))
product = jax.jit(native_ops.matmul, static_argnames=("qtype", "layout", "out", "threads", "isa"))
STATIC = ("used", "scores", "normed", "scale", "groups", "groups_used", "least_sum", "threads", "isa")
choose = jax.jit(native_experts.route, static_argnames=STATIC)
jax.tree_util.register_dataclass(Experts, ["matrices", "place", "scales", "biases"], [])


def tensors(count, formats, fused=False, vectors=False, seed=0):
    """Matrices of two layers' experts: gate and up, or both in one, or up alone, and down."""
    rng = np.random.default_rng(seed)
    shapes = [(2 * F, D) if fused else (F, D)] * (len(formats) - 1) + [(D, F)]

    def one(qtype, out, width, seed):
        scales = rng.normal(1, 0.1, (L, count)).astype(np.float32) if vectors else None
        biases = rng.normal(0, 0.1, (L, count, out)).astype(np.float32) if vectors else None
        return Experts(random_weights(qtype, L, count, out, width, seed=seed), np.int32(1), scales, biases)

    return [one(qtype, *shape, seed=i) for i, (qtype, shape) in enumerate(zip(formats, shapes, strict=True))]


def inputs(rows, count, used, spread="free", seed=0):
    """Rows, what each chose and their shares. spread "one": all chose the same; "few": none the second half."""
    rng = np.random.default_rng(seed)
    x, shares = rng.normal(size=(rows, D)).astype(np.float32), rng.random((rows, used)).astype(np.float32)
    some = {"free": count, "few": max(used, count // 2), "one": used}[spread]
    chosen = np.stack([rng.permutation(some)[:used] for _ in range(rows)]).astype(np.int32)
    return x, chosen, shares


def interleaved(w):
    """The same matrices in the layout that this CPU's kernels read fastest."""
    layout = next(name for name, lanes in LANES.items() if lanes == native_build.lanes())
    flat = np.asarray(w.blocks).reshape(-1, *w.blocks.shape[2:])
    blocks = np.stack([pack(one, w.qtype, layout) for one in flat])
    return QTensor.of(blocks.reshape(*w.blocks.shape[:2], *blocks.shape[1:]), w.qtype, layout, *w.shape[-2:])


def identity(width):
    eye = np.eye(width, dtype=np.float32).reshape(1, 1, width, width, 1)
    return QTensor.of(jnp.asarray(eye.view(np.uint8).reshape(1, 1, width, width, 4)), "F32")


def activated(kind, gate, up, isa):
    """The activation alone: an expert that picks gate and up out of a row and gives their product as it is."""
    width = gate.shape[-1]
    both = np.concatenate([gate, up], axis=1)
    eye = identity(2 * width).blocks.reshape(1, 1, 2 * width, 2 * width, 4)
    if kind in ("gelu", "relu2"):
        eye = eye[:, :, :width]
    opening, closing = Experts(QTensor.of(eye, "F32"), 0), Experts(identity(width), 0)
    ones = np.ones((len(gate), 1), np.float32)
    return np.asarray(run(both, np.zeros_like(ones, np.int32), ones, [opening], closing, 0, kind=kind, isa=isa))


def plain(x, chosen, shares, matrices, kind, scales_input, isa):
    """Every row's experts one after the other, each product a call of its own."""

    def times(x, one, expert):
        w = one.matrices
        at = int(one.place) * w.shape[1] + expert
        y = np.asarray(product(x, w.blocks, w.qtype, w.layout, w.shape[-2], at, isa=isa))
        y = y if one.scales is None else y * one.scales[1, expert]
        return y if one.biases is None else y + one.biases[1, expert]

    out = np.zeros((len(x), matrices[-1].matrices.shape[-2]), np.float32)
    for row in range(len(x)):
        for at in np.argsort(chosen[row]):
            share = shares[row, at]
            read = x[row : row + 1] * share if scales_input else x[row : row + 1]
            opened = np.concatenate([times(read, one, int(chosen[row, at])) for one in matrices[:-1]], axis=1)
            gate, up = (opened, opened) if kind in ("gelu", "relu2") else np.split(opened, 2, axis=1)
            y = times(activated(kind, gate, up, isa), matrices[-1], int(chosen[row, at]))[0]
            out[row] += y if scales_input else y * share
    return out


CASES = {  # rows, experts, chosen ones, how these spread, formats, further
    "one row": (1, 8, 2, "free", ("Q4_K", "Q4_K", "Q6_K"), {}),
    "two rows, biases": (2, 4, 3, "free", ("MXFP4", "MXFP4", "MXFP4"), {"kind": "swiglu_oai", "vectors": True}),
    "gate and up in one": (7, 16, 4, "few", ("Q5_K", "Q8_0"), {"kind": "geglu", "fused": True}),
    "two roundings": (7, 128, 8, "free", ("Q4_0", "Q4_K", "NVFP4"), {"vectors": True}),
    "everybody's": (40, 4, 1, "one", ("Q4_K", "Q4_K", "Q4_K"), {}),
    "no gate": (5, 6, 2, "few", ("Q8_0", "IQ4_XS"), {"kind": "relu2"}),
    "shares of what is read": (9, 4, 1, "free", ("Q4_K", "Q4_K", "Q6_K"), {"scales_input": True}),
    "plain numbers": (5, 4, 2, "free", ("F16", "F32", "F32"), {}),
    "plain numbers in one": (5, 4, 2, "free", ("F16", "F16"), {"fused": True}),
    "plain and not": (6, 4, 2, "free", ("BF16", "Q4_0", "BF16"), {"scales_input": True}),
}


@functools.cache
def case(name):
    rows, count, used, spread, formats, more = CASES[name]
    how = {"kind": more.get("kind", "swiglu"), "scales_input": more.get("scales_input", False)}
    matrices = tensors(count, formats, more.get("fused", False), more.get("vectors", False))
    return inputs(rows, count, used, spread), matrices, how


@pytest.mark.parametrize("name", CASES)
def test_a_mixture_is_its_products_one_by_one(name):
    """To the bit."""
    rows, matrices, how = case(name)
    for isa in isas():
        y = run(*rows, matrices[:-1], matrices[-1], 1, isa=isa, **how)
        np.testing.assert_array_equal(y, plain(*rows, matrices, *how.values(), isa), isa)


@pytest.mark.parametrize("qtype", ["Q4_K", "MXFP4", "F16"])
def test_a_row_has_the_same_bits_in_any_company(qtype):
    """Alone, among a few, and where experts have so many rows that these are cut into tiles, on 1, 2 and 3 threads."""
    (x, chosen, shares), matrices = inputs(300, 3, 2), tensors(3, (qtype,) * 3)

    def of(rows, **how):
        return np.asarray(run(x[rows], chosen[rows], shares[rows], matrices[:-1], matrices[-1], 1, "swiglu", **how))

    for isa in isas():
        whole = of(slice(None), threads=1, isa=isa)
        for threads in (1, 2, 3):
            for rows in (slice(None), slice(5, 6), slice(100, 107), slice(180, 244)):
                np.testing.assert_array_equal(
                    of(rows, threads=threads, isa=isa), whole[rows], f"{isa} {threads} {rows}"
                )


def test_rows_side_by_side_are_the_same_experts():
    rows, matrices, how = case("one row")
    expected = run(*rows, matrices[:-1], matrices[-1], 1, **how)
    packed = [dataclasses.replace(one, matrices=interleaved(one.matrices)) for one in matrices]
    np.testing.assert_array_equal(run(*rows, packed[:-1], packed[-1], 1, **how), expected)


def test_experts_of_others_are_left_out():
    """Numbers outside 0..E-1 are another device's; a row that has no other gives 0."""
    (x, chosen, shares), matrices, how = case("gate and up in one")
    chosen = chosen - 3
    chosen[2] = -1
    y = np.asarray(run(x, chosen, shares, matrices[:-1], matrices[-1], 1, **how))
    kept = np.where((chosen >= 0) & (chosen < 16), shares, 0)
    expected = np.asarray(run(x, np.maximum(chosen, 0), kept, matrices[:-1], matrices[-1], 1, **how))
    np.testing.assert_array_equal(y, expected)
    assert not y[2].any()


def float64s(kind, gate, up):
    """The activation by its definition, and what its sigmoid is taken of."""
    if kind == "relu2":
        return np.maximum(gate, 0) ** 2, np.zeros_like(gate)
    if kind == "swiglu_oai":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
    elif kind == "gelu":
        up = 1
    cubic = 2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    argument = {"swiglu": gate, "swiglu_oai": 1.702 * gate}.get(kind, cubic)
    return gate * up / (1 + np.exp(-np.maximum(argument, -700))), argument


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_float64s(kind):
    """Their sigmoid is off by some units of 2^-24: of e^x, of the sum, of the quotient, and of its argument, of which 4
    times that argument. Four products follow. e^x below 2^-126 is 0, and multiplied by 2^9 at most.
    """
    rng = np.random.default_rng(1)
    gate = np.concatenate([rng.normal(0, 4, 1000), np.linspace(-30, 30, 1009), [0.0, -0.0]]).astype(np.float32)
    up = rng.normal(0, 4, len(gate)).astype(np.float32)
    exact, argument = float64s(kind, gate.astype(np.float64), up.astype(np.float64))
    bound = np.abs(exact) * (8 + np.abs(argument) * 4) * 2.0**-24 + 2.0**-117
    for isa in isas():
        for first in (0, 3):  # another number of them: the last ones are in no whole vector
            y = activated(kind, gate[None, first:], up[None, first:], isa)[0]
            off = np.abs(y - exact[first:])
            at = np.argmax(off - bound[first:])
            assert (off <= bound[first:]).all(), (isa, gate[first:][at], up[first:][at], y[at], exact[first:][at])
    spoilt = activated(kind, np.full((1, 5), np.nan, np.float32), np.ones((1, 5), np.float32), isas()[-1])
    assert np.isnan(spoilt).all()


ROUTINGS = [
    Routing(scores, normed, scale, groups, used)
    for scores, normed, scale in (
        ("softmax", True, 1.0),
        ("softmax", False, 2.5),
        ("sigmoid", True, 1.0),
        ("chosen", True, 1.0),
    )
    for groups, used in ((1, 1), (4, 2), (32, 5))
    if scores != "chosen" or groups == 1
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda r: f"{r.scores}-{r.groups}")
@pytest.mark.parametrize("biased", [False, True])
def test_routes_are_xlas(routing, biased):
    """The same choices; weights differ by the roundings of a sum of E numbers, of e^x and of a few products."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (40, 64)).astype(np.float32)
    bias = rng.normal(0, 0.3, 64).astype(np.float32) if biased else None
    experts, weights = jax.jit(route, static_argnums=(1, 2))(logits, 6, routing, bias)
    how = dataclasses.asdict(routing) | {"least_sum": LEAST_SUM}
    for isa in isas():
        chosen, shares = choose(logits, 6, bias, isa=isa, **how)
        np.testing.assert_array_equal(chosen, experts)
        np.testing.assert_allclose(shares, weights, rtol=(64 + 16) * 2.0**-24)
        for rows in (slice(3, 4), slice(10, 17)):
            for threads in (1, 2, 3):
                part = choose(logits[rows], 6, bias, isa=isa, threads=threads, **how)
                for some, all_ in zip(part, (chosen, shares), strict=True):
                    np.testing.assert_array_equal(some, all_[rows])


def test_routers_take_the_lower_expert_of_a_tie_and_show_what_is_no_number():
    how = dataclasses.asdict(Routing()) | {"least_sum": LEAST_SUM}
    logits = np.array([[1, 3, 3, 2], [0, 0, 0, 0], [0, 1, np.nan, 2]], np.float32)
    experts, weights = choose(logits, 2, None, **how)
    np.testing.assert_array_equal(experts[:2], [[1, 2], [0, 1]])
    np.testing.assert_array_equal(weights[:2], 0.5)
    assert np.isnan(weights[2]).all()
    by_themselves = how | {"scores": "sigmoid", "normed": False}
    experts, weights = choose(logits, 2, None, **by_themselves)
    np.testing.assert_array_equal(experts[2], [2, 3])
    assert np.isnan(weights[2, 0])


def test_what_does_not_fit_is_refused():
    (x, chosen, shares), matrices, how = case("one row")
    opening, closing = matrices[:-1], matrices[-1]
    for spoilt, match in (
        (dataclasses.replace(closing, place=np.int32(2)), "outside the stack"),
        (dataclasses.replace(closing, biases=np.zeros((1, 8, D), np.float32)), "outside the vectors"),
    ):
        with pytest.raises(Exception, match=match):
            jax.block_until_ready(run(x, chosen, shares, opening, spoilt, 1, **how))
    with pytest.raises(Exception, match="do not fit"):
        jax.block_until_ready(run(x, chosen, shares, opening, closing, 1, "relu2"))
    with pytest.raises(ValueError, match="want uint8"):
        run(x[:, :32], chosen, shares, opening, closing, 1, **how)
