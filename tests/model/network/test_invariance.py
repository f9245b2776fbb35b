"""R22 and DESIGN's invariance rule: chunks, padding, slots, neighbours and layers change nothing they should not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama
from steps import load

from packlight.compile.config import CompileConfig
from packlight.compile.plan import Phase, StepKey
from packlight.compile.steps import DecodeArgs
from packlight.model.network.mixers.attention.native import PART, _partial_floats
from packlight.model.sampling.adjust import nothing, table_size
from packlight.model.sampling.chain import slot_sampling
from packlight.model.sampling.config import SamplingConfig
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.model.weights.placement import Placement
from packlight.prepared import prepare

IDS = np.random.default_rng(7).integers(3, 300, 40).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_llama(tmp_path_factory.mktemp("model") / "model.gguf", embed=256, formats={"default": "Q4_K"}))


@pytest.fixture(scope="module")
def whole(model):
    return model.all_logits(IDS)


@pytest.mark.parametrize("size", [1, 7, 8, 16])
def test_chunks_equal_one_prefill(model, whole, size):
    cache, hidden = model.empty_cache(), []
    for start in range(0, len(IDS), size):
        cache, part = model.prefill(cache, IDS[start : start + size], start, slot=2, rows=size)
        hidden.append(part)
    logits = model.logits(jnp.concatenate(hidden))
    assert np.abs(logits - whole).max() <= 1e-4 * whole.std()
    np.testing.assert_array_equal(np.asarray(cache.length), [0, 0, len(IDS), 0])


def test_padding_equals_none(model, whole):
    padded = model.all_logits(IDS, rows=64)
    assert np.abs(padded - whole).max() <= 1e-4 * whole.std()


def test_slots_give_the_same_bits(model):
    hidden = [np.asarray(model.prefill(model.empty_cache(), IDS, slot=slot)[1]) for slot in range(4)]
    for other in hidden[1:]:
        np.testing.assert_array_equal(hidden[0], other)


def decode(model, cache, tokens, active, configs):
    """One decode step of all four slots: (cache, ids)."""
    is_end = np.zeros(model.cfg.vocab_size, np.bool_)
    size = table_size(model.cfg.vocab_size, model.plan.context)
    asked = nothing(4, model.cfg.vocab_size, size), slot_sampling(configs)
    wanted, past_end = np.array(active, np.int32), np.zeros(4, np.bool_)
    args = DecodeArgs(np.int32(0), np.array(tokens, np.int32), wanted, past_end, *asked, is_end)
    cache, picked = model.step(Phase.DECODE, 4)(model.params, cache, args)
    assert np.asarray(picked.finite)[np.array(active)].all()
    return cache, np.asarray(picked.ids)[:, 0]


def test_decode_continues_a_prefill(model, whole):
    """Token by token through decode gives the ids that one long prefill gives."""
    greedy = SamplingConfig(temperature=0, seed=0)
    cache, _ = model.prefill(model.empty_cache(), IDS[:30], slot=1)
    for at in range(30, 40):
        cache, ids = decode(model, cache, [0, IDS[at], 0, 0], [False, True, False, False], [greedy] * 4)
        assert ids[1] == whole[at].argmax()
    np.testing.assert_array_equal(np.asarray(cache.length), [0, 40, 0, 0])


def test_neighbours_change_no_bit(model):
    """One executable: a slot's keys and its drawn ids are the same alone and beside busy neighbours."""
    draw = SamplingConfig(temperature=1.0, seed=11)
    runs = []
    for slot, others in ((0, False), (3, False), (0, True), (2, True)):
        cache = model.empty_cache()
        for other in range(4):
            if other == slot or others:
                ids = IDS[:20] if other == slot else IDS[other : other + 33]
                cache, _ = model.prefill(cache, ids, slot=other, rows=40)
        token, drawn = 5, []
        for _ in range(6):
            tokens = [token if s == slot else 9 for s in range(4)]
            active = [s == slot or others for s in range(4)]
            cache, ids = decode(model, cache, tokens, active, [draw] * 4)
            token = int(ids[slot])
            drawn.append(token)
        runs.append((drawn, *(np.asarray(x[:, slot, :, :26]) for x in cache.state["attention"])))
    for other in runs[1:]:
        assert other[0] == runs[0][0]
        np.testing.assert_array_equal(other[1], runs[0][1])
        np.testing.assert_array_equal(other[2], runs[0][2])


def test_an_inactive_slot_keeps_its_cache(model):
    cache, _ = model.prefill(model.empty_cache(), IDS, slot=1)
    before = jax.tree.map(np.asarray, cache)
    after, _ = decode(model, cache, [3, 4, 5, 6], [False] * 4, [None] * 4)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    np.testing.assert_array_equal(np.asarray(after.length), [0, 40, 0, 0])


def compiled(path, phase, rows, tokens=1, **config):
    """(compiled step, abstract parameters, abstract cache) of a file, nothing loaded."""
    prepared = prepare(path, CompileConfig(**{"cpu_kernels": "native", **config}))
    placement = Placement.on(jax.devices())
    params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
    steps = prepared.steps(placement)
    lowered = steps.lower(StepKey(phase, rows, prepared.plan.capacity, tokens), params)
    return lowered.compile(), params, steps.cache()


@pytest.mark.parametrize(
    ("phase", "rows", "tokens", "kv_dtype"),
    [
        (Phase.DECODE, 4, 1, "float32"),
        (Phase.DECODE, 4, 8, "float32"),
        (Phase.PREFILL, 16, 1, "float32"),
        (Phase.DECODE, 4, 1, "q8_0"),
        (Phase.DECODE, 4, 1, "q4_0"),
    ],
)
def test_cache_is_updated_in_place_and_weights_stay_packed(tmp_path, phase, rows, tokens, kv_dtype):
    """R7: scratch under one layer's packed bytes, and but for attention's sums under 0.1 % of the cache; weights are
    arguments, as packed bytes.
    """
    path = write_llama(
        tmp_path / "m.gguf", layers=4, embed=2048, heads=32, kv_heads=8, ffn=5632, context=32768,
        formats={"default": "Q4_K"},
    )  # fmt: skip
    step, params, cache = compiled(path, phase, rows, tokens, context=32768, decode_batch=(4,), kv_dtype=kv_dtype)
    memory = step.memory_analysis()
    cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    packed = [x for x in jax.tree.leaves(params) if x.dtype == jnp.uint8]
    layer = sum(x.size for x in jax.tree.leaves(params["blk"]) if x.dtype == jnp.uint8) // 4
    texts, queries = (
        (1, 4 * rows) if phase is Phase.PREFILL else (rows, 4)
    )  # queries of each of 8 kv heads of 64 channels
    sums = 4 * texts * 8 * (32768 // PART) * _partial_floats(queries, 64)
    assert memory.temp_size_in_bytes - sums < 0.001 * cache_bytes
    assert memory.temp_size_in_bytes < layer
    assert memory.alias_size_in_bytes >= cache_bytes  # donated
    if phase is Phase.PREFILL:  # which has no head
        packed.remove(params["output"].blocks)
    rest = memory.argument_size_in_bytes - cache_bytes - sum(x.size for x in packed)
    assert 0 <= rest < 200_000  # norms, tokens, sampling


def test_kernels_do_not_multiply_with_layers(tmp_path):
    """Two signatures in 3 layers and in 9: the same program but for the loop's bound and the tables of places."""

    def size(layers):
        mix = {f"blk.{i}.attn_v": "Q6_K" for i in range(0, layers, 2)} | {"default": "Q4_K"}
        path = write_llama(tmp_path / f"{layers}.gguf", layers=layers, embed=256, formats=mix)
        return compiled(path, Phase.PREFILL, 16)[0].as_text().count(" fusion(")

    assert abs(size(3) - size(9)) <= 2  # of more than a hundred; one kernel per layer would add six times seven


def test_bfloat16_cache_is_half_and_close(tmp_path):
    path = write_llama(tmp_path / "m.gguf")
    full, half = load(path), load(path, kv_dtype="bfloat16")
    assert half.steps.cache_shape.device_bytes < 0.51 * full.steps.cache_shape.device_bytes
    a, b = full.all_logits(IDS), half.all_logits(IDS)
    assert 0 < np.sqrt(np.mean((a - b) ** 2)) / a.std() <= 2**-8 * np.sqrt(14)
