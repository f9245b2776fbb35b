"""A cache in int8 or 4 bits: what is written, what XLA's attention makes of it, and what is refused."""

import dataclasses
import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama

import packlight
from packlight.compile.config import MeshShape
from packlight.model.network.mixers.attention import attention
from packlight.model.network.mixers.attention.hadamard import by_butterflies, by_product, hadamard
from packlight.model.network.mixers.attention.quantized import packed, rounded, unpacked
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.model.spec.state import KV_BLOCK, QUANTIZED
from packlight.prepared import prepare
from packlight.quant.kernels.native_ops import round_activations

STEPS = {"q8_0": 127, "q4_0": -8}  # of a block's top
WIDTHS = [*(("q8_0", width) for width in (5, 32, 36, 64, 80)), *(("q4_0", width) for width in (32, 64, 96))]


def by_numpy(x, kind):
    """Each block by itself, in float32 and then float16."""
    numbers, scales, steps = [], [], np.float32(STEPS[kind])
    for at in range(0, x.shape[-1], KV_BLOCK):
        block = x[..., at : at + KV_BLOCK]
        top = np.abs(block).max(-1, keepdims=True)
        if kind == "q4_0":
            top = np.where((block == top).any(-1, keepdims=True), top, -top)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            used = np.isfinite(top) & (np.abs(top) >= np.float32(2.0**-100))
            scaled = block * (steps / np.where(used, top, np.float32(1)))
            numbers.append(np.where(used, np.minimum(np.rint(scaled), np.abs(steps) - (steps < 0)), 0).astype(np.int8))
            scales.append(np.where(np.isfinite(top), top / steps, np.nan).astype(np.float16))
    return np.concatenate(numbers, -1), np.concatenate(scales, -1)


def in_bytes(numbers, kind):
    """Numbers as the cache holds them."""
    if kind == "q8_0":
        return numbers
    low, high = np.split((numbers + 8).astype(np.uint8).reshape(*numbers.shape[:-1], -1, KV_BLOCK), 2, axis=-1)
    return (low | high << 4).reshape(*numbers.shape[:-1], -1)


@functools.cache
def rounding(kind):
    return jax.jit({"q8_0": rounded, "q4_0": packed}[kind])


@pytest.mark.parametrize(("kind", "width"), WIDTHS)
def test_rounding_is_numpys_to_the_bit(kind, width):
    """Of blocks of every size, tiny ones, those whose scale is no normal half, ties, and what is not finite."""
    made = np.random.default_rng(width)
    x = (made.normal(size=(40, width)) * 10.0 ** made.uniform(-12, 4, (40, 1))).astype(np.float32)
    x[0], x[1, 0], x[2, 3], x[3] = 0, np.nan, np.inf, np.float32(2.0**-101)
    x[4] = np.resize(np.array([abs(STEPS[kind]), 0.5, 1.5, -2.5, -0.5], np.float32), width)
    x[5] = np.resize(np.array([-3, 3, 1], np.float32), width)
    numbers, scales = rounding(kind)(x)
    expected, expected_scales = by_numpy(x, kind)
    np.testing.assert_array_equal(numbers, in_bytes(expected, kind))
    np.testing.assert_array_equal(scales, expected_scales)
    y = np.asarray(unpacked(numbers, scales))
    each = np.repeat(expected_scales.astype(np.float32), KV_BLOCK, axis=-1)[:, :width]
    np.testing.assert_array_equal(y, expected.astype(np.float32) * each)
    assert np.isnan(y[1]).any()
    assert np.isnan(y[2]).any()
    # Half a step, or a whole one where 8 steps become 7; and what float16 takes from the scale: 2^-11 of it, or below
    # 2^-14 half of 2^-24.
    real, step = np.isfinite(each) & np.isfinite(x), np.abs(each) * (1 + 2.0**-10) + 2.0**-25
    steps = np.where((kind == "q4_0") & (expected == 7), 1, 0.5)
    bound = step * steps * (1 + 2.0**-16) + np.abs(expected) * np.maximum(np.abs(each) * 2.0**-11, 2.0**-25)
    assert np.all((np.abs(y - x) <= bound)[real])


def test_four_bits_are_ggmls():
    """Where neither a tie of two halves nor one of two tops decides: Q4_0's blocks by gguf-py."""
    x = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    blocks = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q4_0).view(np.uint8).reshape(500, 18)
    numbers, scales = rounding("q4_0")(x)
    np.testing.assert_array_equal(numbers, blocks[:, 2:])
    np.testing.assert_array_equal(np.asarray(scales).view(np.uint8), blocks[:, :2])


@functools.cache
def turned_by_numpy(width):
    """The rotation's matrix in float64, from its definition: the sign is the parity of the bits two numbers share."""
    block = width & -width
    at = np.arange(block)
    signs = np.array([[1 - 2 * ((int(i) & int(j)).bit_count() % 2) for j in at] for i in at])
    return np.kron(np.eye(width // block), signs) / np.sqrt(block)


@pytest.mark.parametrize("width", [32, 96, 128])
def test_the_rotation_is_its_matrix(width):
    x = np.random.default_rng(width).normal(size=(7, 3, width)).astype(np.float32)
    exact = x.astype(np.float64) @ turned_by_numpy(width)
    # Each of w terms, a product with a rounded root, is off by 2 units, and a sum of w by w at most.
    bound = (width + 3) * 2.0**-24 * (np.abs(x) @ np.abs(turned_by_numpy(width)))
    for way in (by_butterflies, by_product):
        assert np.all(np.abs(np.asarray(jax.jit(way)(x)) - exact) <= bound)
    assert np.array_equal(jax.jit(hadamard)(x), jax.jit(by_butterflies)(x))  # on a CPU


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 2), (5, 1, 3)])
def test_a_tokens_bits_are_its_own(shape):
    """R31: alone, where one number divides all, and among others."""
    x = np.random.default_rng(0).normal(size=(*shape, 32)).astype(np.float32)
    turned = jax.jit(lambda x: packed(hadamard(x)))
    for rounds in (rounding("q8_0"), turned):
        together = rounds(x)
        for at in np.ndindex(shape):
            for whole, alone in zip(together, rounds(x[at]), strict=True):
                np.testing.assert_array_equal(whole[at], alone)


L, B, K, S, G = 2, 3, 2, 384, 3
SPECIAL = {"plain": PLAIN, "window": Scores(window=70)}


def filled(width, window, tokens, kind):
    """A cache that was written step by step: rounded, and the same numbers in float32."""
    made = np.random.default_rng(width)
    shape = (L, B, K, S)
    like = jnp.full((*shape, width), 99, jnp.int8) if kind == "q8_0" else jnp.full((*shape, width // 2), 99, jnp.uint8)
    state = QuantizedKV(
        *(like, like),
        *(jnp.full((*shape, -(-width // KV_BLOCK)), jnp.nan, jnp.float16) for _ in "kv"),
    )
    starts = np.array([0, 100, 255], np.int32)
    step = jax.jit(functools.partial(write, window=window or 0))
    for slot, end in enumerate(starts + tokens):
        k, v = (made.normal(size=(1, end, K, width)).astype(np.float32) for _ in "kv")
        at = jnp.array([0], jnp.int32)
        rows = Rows(jnp.int32(slot), at, at + end, jnp.array([True]))
        state = step(state, jnp.int32(1), k, v, rows)
    q = made.normal(size=(B, tokens, K * G, width)).astype(np.float32)
    rows = Rows(jnp.int32(0), jnp.asarray(starts), jnp.asarray(starts + tokens), jnp.ones(B, jnp.bool_))
    return q, state, KV(unpacked(state.k, state.k_scales), unpacked(state.v, state.v_scales)), rows


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize(
    ("kernel", "tokens", "width", "kind"),
    [
        (tiled_attention, 1, 64, "q8_0"),
        (tiled_attention, 7, 36, "q8_0"),
        (whole_attention, 1, 64, "q8_0"),
        (tiled_attention, 1, 96, "q4_0"),
        (tiled_attention, 7, 32, "q4_0"),
        (whole_attention, 1, 64, "q4_0"),
    ],
)
def test_attention_by_xla_is_that_of_the_unpacked_numbers(kernel, tokens, width, kind, special):
    """What was never written has NaN for a scale, so that it would show."""
    q, state, plain, rows = filled(width, SPECIAL[special].window, tokens, kind)
    run = jax.jit(lambda q, state: kernel(q, state, jnp.int32(1), rows, S, SPECIAL[special]))
    ours, expected = np.asarray(run(q, state)), np.asarray(run(q, plain))
    assert np.isfinite(ours).all()
    # Keys and values are the same numbers; only the order of sums of up to S terms below 4 may differ.
    np.testing.assert_allclose(ours, expected, atol=S * 2.0**-24 * 4)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize(("kernel", "tokens"), [("tiled", 7), ("whole", 1), ("native", 7), ("native", 1)])
def test_what_was_turned_is_turned_back(kernel, tokens):
    """Attention with plain queries to what a cache in 4 bits stands for, its keys and values turned back in float64."""
    width = 64
    q, state, plain, rows = filled(width, None, tokens, "q4_0")
    run = jax.jit(lambda q, state: attention(q, state, jnp.int32(1), rows, S, kernel, PLAIN))
    ours = np.asarray(run(q, state)).reshape(q.shape)
    back = turned_by_numpy(width)
    queries = q.astype(np.float64)
    if kernel == "native":  # which rounds queries that were turned
        turned = np.asarray(jax.jit(hadamard)(q)).reshape(-1, width)
        queries = np.asarray(round_activations(turned, KV_BLOCK)).astype(np.float64).reshape(q.shape) @ back
    keys, values = (np.asarray(x[1], np.float64) @ back for x in plain)  # (B, K, S, C)
    for b, t, h in np.ndindex(q.shape[:3]):
        n = int(rows.start[b]) + t + 1
        scores = keys[b, h // G, :n] @ queries[b, t, h] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        seen = values[b, h // G, :n]
        # A turned number is a sum of C terms: off by C + 3 units of at most its vector's length, so a vector by
        # sqrt(C) times as much. A score is a sum of C products of vectors that are off by so much.
        unit = 2.0**-24
        turning = (width + 3) * np.sqrt(width) * unit
        longest = np.linalg.norm(keys[b, h // G, :n], axis=-1).max() * np.linalg.norm(q[b, t, h])
        error = (width + 8 + turning / unit) * unit * longest / np.sqrt(width)
        length = np.linalg.norm(seen, axis=-1).max()
        bound = (2 * error + (n + 16) * unit + turning) * length
        assert bound < 0.01
        assert np.abs(ours[b, t, h] - weights @ seen).max() <= bound


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("name", ["own/deepseek2-lite", "own/mamba2"])
def test_a_model_without_keys_and_values_is_refused(name, kind, tmp_path):
    from golden_models import model  # here: only this test makes models

    path, reason = model(name, tmp_path), {"own/deepseek2-lite": "latents", "own/mamba2": "only mamba2"}[name]
    refused(path, kind, f"the model.*{reason}")


def refused(path, kind, reason):
    """By the key, and by the flag, before anything is loaded."""
    with pytest.raises(packlight.ConfigError, match=f"config key 'kv_dtype' is '{kind}'; {reason}"):
        prepare(path, packlight.CompileConfig(kv_dtype=kind))
    with pytest.raises(packlight.ConfigError, match=f"kv_type={kind}: {reason}"):
        prepare(path, packlight.CompileConfig(), kv_type=kind)


@pytest.mark.parametrize("width", [16, 80])
def test_heads_that_cannot_be_turned_are_refused(width, tmp_path):
    path = write_llama(tmp_path / "m.gguf", heads=2, kv_heads=1, embed=2 * width)
    refused(path, "q4_0", f"the model has heads of {width} channels, and only those of a multiple of 32 can be turned")
    assert prepare(path, packlight.CompileConfig(), kv_type="q8_0").config.kv_dtype == "q8_0"


@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_the_plan_counts_numbers_and_scales(kind, bits, tmp_path):
    """Where heads have a multiple of 32 channels."""
    path = write_llama(tmp_path / "m.gguf", heads=4, kv_heads=2, embed=256)
    config = packlight.CompileConfig(cpu_kernels="xla", decode_batch=(3,), kv_dtype="float32")
    full = prepare(path, config).memory.cache
    few = prepare(path, config, kv_type=kind).memory.cache
    assert (few - 3 * 4) * 32 == (full - 3 * 4) * bits
    halved = dataclasses.replace(config, mesh=MeshShape(1, 2))
    assert prepare(path, halved, kv_type=kind).memory.cache - 3 * 4 == (few - 3 * 4) // 2
