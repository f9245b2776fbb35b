"""A cache in int8: what is written, what XLA's attention makes of it, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama

import packlight
from packlight.compile.config import MeshShape
from packlight.model.network.mixers.attention.quantized import rounded, unpacked
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.tiled import tiled_attention
from packlight.model.network.mixers.attention.whole import whole_attention
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.model.spec.state import Q8_0_BLOCK
from packlight.prepared import prepare

WIDTHS = (5, 32, 36, 64, 80)


def by_numpy(x):
    """Each block by itself, in float32 and then float16."""
    numbers, scales = [], []
    for at in range(0, x.shape[-1], Q8_0_BLOCK):
        block = x[..., at : at + Q8_0_BLOCK]
        top = np.abs(block).max(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            used = np.isfinite(top) & (top >= np.float32(2.0**-100))
            scaled = block * (np.float32(127) / np.where(used, top, np.float32(1)))
            numbers.append(np.where(used, np.rint(scaled), 0).astype(np.int8))
            scales.append(np.where(np.isfinite(top), top / np.float32(127), np.nan).astype(np.float16))
    return np.concatenate(numbers, -1), np.concatenate(scales, -1)


@functools.cache
def rounding():
    return jax.jit(rounded)


@pytest.mark.parametrize("width", WIDTHS)
def test_rounding_is_numpys_to_the_bit(width):
    """Of blocks of every size, tiny ones, those whose scale is no normal half, ties, and what is not finite."""
    made = np.random.default_rng(width)
    x = (made.normal(size=(40, width)) * 10.0 ** made.uniform(-12, 4, (40, 1))).astype(np.float32)
    x[0], x[1, 0], x[2, 3], x[3] = 0, np.nan, np.inf, np.float32(2.0**-101)
    x[4] = np.resize(np.array([127, 0.5, 1.5, -2.5, -0.5], np.float32), width)
    numbers, scales = rounding()(x)
    expected, expected_scales = by_numpy(x)
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(scales, expected_scales)
    y = np.asarray(unpacked(numbers, scales))
    each = np.repeat(expected_scales.astype(np.float32), Q8_0_BLOCK, axis=-1)[:, :width]
    np.testing.assert_array_equal(y, expected.astype(np.float32) * each)
    assert np.isnan(y[1]).any()
    assert np.isnan(y[2]).any()
    # Half a step, and what float16 takes from the scale: 2^-11 of it, or below 2^-14 half of 2^-24.
    real, step = np.isfinite(each) & np.isfinite(x), np.abs(each) * (1 + 2.0**-10) + 2.0**-25
    bound = step / 2 * (1 + 2.0**-16) + np.abs(expected) * np.maximum(np.abs(each) * 2.0**-11, 2.0**-25)
    assert np.all((np.abs(y - x) <= bound)[real])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 2), (5, 1, 3)])
def test_a_tokens_bits_are_its_own(shape):
    """R31: alone, where one number divides all, and among others."""
    x = np.random.default_rng(0).normal(size=(*shape, 32)).astype(np.float32)
    together = rounding()(x)
    for at in np.ndindex(shape):
        for whole, alone in zip(together, rounding()(x[at]), strict=True):
            np.testing.assert_array_equal(whole[at], alone)


L, B, K, S, G = 2, 3, 2, 384, 3
SPECIAL = {"plain": PLAIN, "window": Scores(window=70)}


def filled(width, window, tokens):
    """A cache that was written step by step: in int8, and the same numbers in float32."""
    made = np.random.default_rng(width)
    shape = (L, B, K, S)
    state = QuantizedKV(
        *(jnp.full((*shape, width), 99, jnp.int8) for _ in "kv"),
        *(jnp.full((*shape, -(-width // Q8_0_BLOCK)), jnp.nan, jnp.float16) for _ in "kv"),
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


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    ("kernel", "tokens", "width"), [(tiled_attention, 1, 64), (tiled_attention, 7, 36), (whole_attention, 1, 64)]
)
def test_attention_by_xla_is_that_of_the_unpacked_numbers(kernel, tokens, width, kind):
    """What was never written has NaN for a scale, so that it would show."""
    q, state, plain, rows = filled(width, SPECIAL[kind].window, tokens)
    run = jax.jit(lambda q, state: kernel(q, state, jnp.int32(1), rows, S, SPECIAL[kind]))
    ours, expected = np.asarray(run(q, state)), np.asarray(run(q, plain))
    assert np.isfinite(ours).all()
    # Keys and values are the same numbers; only the order of sums of up to S terms below 4 may differ.
    np.testing.assert_allclose(ours, expected, atol=S * 2.0**-24 * 4)


@pytest.mark.parametrize("name", ["own/deepseek2-lite", "own/mamba2"])
def test_a_model_without_keys_and_values_is_refused(name, tmp_path):
    from golden_models import model  # here: only this test makes models

    path, reason = model(name, tmp_path), {"own/deepseek2-lite": "latents", "own/mamba2": "only mamba2"}[name]
    with pytest.raises(packlight.ConfigError, match=f"config key 'kv_dtype' is 'q8_0'; the model.*{reason}"):
        prepare(path, packlight.CompileConfig(kv_dtype="q8_0"))
    with pytest.raises(packlight.ConfigError, match=f"kv_type=q8_0: the model.*{reason}"):
        prepare(path, packlight.CompileConfig(), kv_type="q8_0")


def test_the_plan_counts_numbers_and_scales(tmp_path):
    """8.5 bits a number where heads have a multiple of 32 channels."""
    path = write_llama(tmp_path / "m.gguf", heads=4, kv_heads=2, embed=256)
    config = packlight.CompileConfig(cpu_kernels="xla", decode_batch=(3,), kv_dtype="float32")
    full = prepare(path, config).memory.cache
    packed = prepare(path, config, kv_type="q8_0").memory.cache
    assert (packed - 3 * 4) * 32 == (full - 3 * 4) * 8.5
    halved = dataclasses.replace(config, mesh=MeshShape(1, 2))
    assert prepare(path, halved, kv_type="q8_0").memory.cache - 3 * 4 == (packed - 3 * 4) // 2
