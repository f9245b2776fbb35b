"""The sampler against numpy float64: distribution, kept sets, reproducibility, totality, refusals."""

import dataclasses
import itertools
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packlight.common.errors import ConfigError
from packlight.model.sampling.chain import SlotSampling, _draw, _Whole, sample, slot_sampling
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.rank import CAP, finite

OFF = SamplingConfig(temperature=1, top_k=0, top_p=1, min_p=0, seed=0)
sample_jit = jax.jit(sample, static_argnames=("cap", "native"))


@pytest.fixture(scope="module", params=[False, True], ids=["jnp", "native"])
def native(request):
    """Whether a CPU's native kernels sample."""
    if request.param:
        request.getfixturevalue("native_library")
    return request.param


def ids_of(logits, configs, positions, cap=CAP, native=False):
    logits = np.asarray(logits, np.float32)
    sampling = configs if isinstance(configs, SlotSampling) else slot_sampling(configs)
    positions, cap = np.asarray(positions, np.int32), min(cap, logits.shape[1])
    return np.asarray(sample_jit(logits, sampling, positions, cap=cap, native=native)[0])


def slots_of(config, count):
    return SlotSampling(*(np.repeat(array, count) for array in slot_sampling([config])))


def many(logits, config, draws, cap=CAP, native=False):
    """`draws` ids from one row: one slot per position."""
    rows = np.broadcast_to(np.asarray(logits, np.float32), (draws, len(logits)))
    return ids_of(rows, slots_of(config, draws), np.arange(draws), cap, native)


def reference(logits, config):
    """Kept ids in rank order, their probabilities after temperature, and the distance of any decision from its edge."""
    logits = np.asarray(logits, np.float32).astype(np.float64)
    top_p, min_p = float(np.float32(config.top_p)), float(np.float32(config.min_p))
    kept = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: config.top_k or None]
    edge = math.inf
    weights = np.exp(logits[kept] - logits[kept[0]])
    if top_p < 1:
        reached = np.cumsum(weights) / math.fsum(weights)
        edge = np.min(np.abs(reached - top_p))
        n = 1
        while reached[n - 1] < top_p:
            n += 1
        kept = kept[:n]
    if min_p > 0:
        ratios = np.exp(logits[kept] - logits[kept[0]])
        edge = min(edge, np.min(np.abs(ratios[1:] / min_p - 1), initial=math.inf))
        kept = [i for i, ratio in zip(kept, ratios, strict=True) if ratio >= min_p]
    scaled = np.exp((logits[kept] - logits[kept[0]]) / config.temperature)
    return kept, scaled / math.fsum(scaled), edge


@pytest.mark.parametrize(("cap", "native"), [(16, False), (CAP, False), (CAP, True)], indirect=["native"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.6, "top_k": 40, "top_p": 0.9}, {"temperature": 1.7, "min_p": 0.02}, {"top_k": 10}],
    ids=str,
)
def test_draws_follow_the_softmax(changes, cap, native):
    config = dataclasses.replace(OFF, seed=1, **changes)
    logits = np.random.default_rng(5).normal(size=64) * 1.5
    kept, probabilities, _ = reference(logits, config)
    by_position = many(logits, config, 20000, cap, native)
    seeds = slots_of(config, 20000)._replace(seed=np.arange(20000, dtype=np.uint32))
    by_seed = ids_of(np.broadcast_to(np.float32(logits), (20000, 64)), seeds, np.full(20000, 7), cap, native)
    for ids in (by_position, by_seed):
        counts = np.bincount(ids, minlength=64)[kept]
        assert counts.sum() == 20000
        rare = probabilities * 20000 < 5
        observed = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(probabilities[~rare], probabilities[rare].sum()) * 20000
        some = expected > 0
        # fixed seeds, 24 tests: a right sampler had a chance of 24e-3 to fail when the seeds were chosen
        assert scipy.stats.chisquare(observed[some], expected[some]).pvalue > 1e-3


def test_kept_sets_equal_the_reference(native):
    """A huge temperature makes the draw uniform over the kept set (of at most 48, so 1536 draws miss none: 48 e^-32).

    Edges: a weight exp(d), |d| < 40, is off by at most 40 * 2^-24 + 2 ulp < 3e-6; a prefix sum by 6 roundings more;
    the min-p threshold by 2 ulp of 20, 4e-6. Rows with a decision within 1e-5 of its edge are drawn again.
    """
    rng = np.random.default_rng(11)
    sizes = set()
    for top_k, top_p, min_p in itertools.product([0, 3, 17, 48], [0, 0.3, 0.95, 1], [0, 0.02, 0.3, 1]):
        config = SamplingConfig(temperature=1e6, top_k=top_k, top_p=top_p, min_p=min_p, seed=3)
        edge = 0.0
        while edge < 1e-5:
            logits = (rng.normal(size=48) * rng.choice([0.3, 1.5, 4])).astype(np.float32)
            kept, _, edge = reference(logits, config)
        sizes.add(len(kept))
        for cap in (CAP,) if native else (8, CAP):
            assert set(many(logits, config, 1536, cap, native).tolist()) == set(kept), (config, cap)
    assert {1, 3, 17, 48} <= sizes
    assert len(sizes) > 8  # the cases are not all alike


def test_equal_logits_rank_by_lower_id(native):
    tied = np.array([1, 2, 2, 2, -0.0, 0.0, 1e-40, 2], np.float32)
    hot = SamplingConfig(temperature=1e6, top_k=2, top_p=1, min_p=0, seed=0)
    assert set(many(tied, hot, 200, native=native).tolist()) == {1, 2}
    assert set(many(tied, dataclasses.replace(hot, top_k=0, top_p=0.01), 200, native=native).tolist()) == {1}
    zeros = np.array([-1, -0.0, 0, 1e-40, -1, -1, -1, -1], np.float32)  # -0, 0 and a subnormal are equal
    for config in (dataclasses.replace(hot, top_k=1), SamplingConfig(temperature=0)):
        assert set(many(zeros, config, 200, native=native).tolist()) == {1}
        assert set(many(zeros[::-1], config, 200, native=native).tolist()) == {4}


def random_slots(rng, slots, vocab):
    """Rows and configs that reach every branch: flat and peaked, tied, masked; each step on, off and at its ends."""
    logits = rng.normal(size=(slots, vocab)) * rng.choice([0.01, 1, 3, 10], size=(slots, 1))
    logits = np.where(rng.random((slots, 1)) < 0.3, np.round(logits), logits)
    logits = np.where(rng.random((slots, vocab)) < rng.choice([0, 0.5], size=(slots, 1)), -np.inf, logits)
    configs = [
        SamplingConfig(
            temperature=float(rng.choice([0, 0.3, 1, 5])),
            top_k=int(rng.choice([0, 1, 5, 40, 300, 2 * vocab])),
            top_p=float(rng.choice([0, 0.5, 0.95, 0.9999999, 1])),
            min_p=float(rng.choice([0, 0.001, 0.05, 1])),
            seed=int(rng.integers(2**32)),
            top_n_sigma=float(rng.choice([-1, -1, 0.3, 2])),
            typical_p=float(rng.choice([1, 1, 0.2, 0.9])),
            xtc_probability=float(rng.choice([0, 0, 0.5, 1])),
            xtc_threshold=float(rng.choice([0.01, 0.1, 0.6])),
            dynatemp_range=float(rng.choice([0, 0, 0.3, 2])),
            mirostat=int(rng.choice([0, 0, 0, 1, 2])),
            mirostat_tau=float(rng.choice([0.5, 3, 8])),
        )
        for _ in range(slots)
    ]
    return logits.astype(np.float32), configs, rng.integers(0, 4096, size=slots)


@pytest.mark.parametrize(("vocab", "caps"), [(1, [1]), (701, [9, CAP])])
def test_short_path_equals_the_full_sort(vocab, caps):
    rng = np.random.default_rng(vocab)
    for _ in range(8):
        slots = random_slots(rng, 64, vocab)
        full = ids_of(*slots, cap=vocab)
        for cap in caps:
            np.testing.assert_array_equal(ids_of(*slots, cap=cap), full)


def test_a_slot_depends_on_nothing_but_itself():
    rng = np.random.default_rng(2)
    logits, configs, positions = random_slots(rng, 24, 501)
    ids = ids_of(logits, configs, positions, cap=32)
    for _ in range(5):
        order = rng.permutation(24)
        moved = ids_of(logits[order], [configs[i] for i in order], positions[order], cap=32)
        np.testing.assert_array_equal(moved, ids[order])
        others, other_configs, other_positions = random_slots(rng, 24, 501)
        others[3], other_configs[3], other_positions[3] = logits[3], configs[3], positions[3]
        assert ids_of(others, other_configs, other_positions, cap=32)[3] == ids[3]
    # B = 1 is another executable: equal here, though promised only away from a CDF edge
    alone = [ids_of(logits[[i]], [configs[i]], positions[[i]], cap=32) for i in range(24)]
    np.testing.assert_array_equal(np.concatenate(alone), ids)


def test_seed_and_position_choose_the_draw():
    flat = np.zeros((64, 701))
    fixed = ids_of(flat, [OFF] * 64, np.full(64, 9))
    assert len(set(fixed.tolist())) == 1
    assert len(set(ids_of(flat, [OFF] * 64, np.arange(64)).tolist())) > 40
    seeds = [dataclasses.replace(OFF, seed=seed) for seed in [0, 1, 2**31, 2**32 - 1] * 16]
    assert len(set(ids_of(flat, seeds, np.full(64, 9)).tolist())) == 4


def test_the_draw_is_the_inverse_cdf_of_the_folded_key(native):
    """Pins the stream: a change of key, fold or order would change every user's seeded text."""
    logits = np.log(np.arange(1, 101))[np.random.default_rng(0).permutation(100)].astype(np.float32)
    order, probabilities, _ = reference(logits, OFF)
    for seed, position in itertools.product([0, 5, 2**32 - 1], [0, 77]):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed), impl="threefry2x32"), position)
        rank = np.searchsorted(np.cumsum(probabilities), float(jax.random.uniform(key)), side="right")
        assert ids_of(logits[None], [dataclasses.replace(OFF, seed=seed)], [position], native=native).tolist() == [
            order[rank]
        ]


def test_greedy_is_argmax(native):
    logits = np.round(np.random.default_rng(1).normal(size=(64, 701)), 1).astype(np.float32)  # rounded: many ties
    for other in (SamplingConfig(temperature=0), OFF):  # both branches of the outer cond
        ids = ids_of(logits, [SamplingConfig(temperature=0)] * 63 + [other], np.arange(64), native=native)
        np.testing.assert_array_equal(ids[:63], logits.argmax(1)[:63])


def test_parameters_never_retrace():
    traces = []
    step = jax.jit(lambda *args: traces.append(1) or sample(*args, cap=20))
    rng = np.random.default_rng(0)
    for _ in range(5):
        logits, configs, positions = random_slots(rng, 4, 20)
        step(logits, slot_sampling(configs), positions.astype(np.int32))
    assert len(traces) == 1


def test_greedy_batches_skip_the_ranking_and_others_keep_the_fast_kernel():
    args = (np.zeros((2, 4096), np.float32), slot_sampling([None, OFF]), np.zeros(2, np.int32))
    outside_conds = {eqn.primitive.name for eqn in jax.make_jaxpr(sample)(*args).eqns}
    assert "cond" in outside_conds
    assert not outside_conds & {"top_k", "sort", "while", "argmax", "random_bits"}
    if jax.default_backend() == "cpu":  # lost without the barrier in `_ranked`: 40 times slower
        assert 'custom_call_target="TopK"' in sample_jit.lower(*args).compile().as_text()


wild_floats = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45, 1.2e-38]),
    st.floats(width=32),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    logits=hnp.arrays(np.float32, (3, 9), elements=wild_floats),
    reals=hnp.arrays(np.float32, (12, 3), elements=wild_floats),
    integers=hnp.arrays(np.int32, (3, 3)),
    seed=hnp.arrays(np.uint32, 3),
    position=hnp.arrays(np.int32, 3),
)
def test_total_on_any_bits(native, logits, reals, integers, seed, position):
    wild = iter(reals)
    given = {"top_k": integers[0], "mirostat": integers[1], "logprobs": integers[2], "seed": seed}
    sampling = SlotSampling(**{name: given[name] if name in given else next(wild) for name in SlotSampling._fields})
    ids = np.asarray(sample_jit(logits, sampling, position, native=native)[0])
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < 9)).all()
    np.testing.assert_array_equal(ids, sample_jit(logits, sampling, position, cap=2, native=native)[0])
    np.testing.assert_array_equal(jax.jit(finite)(logits), np.isfinite(logits).all(1))
    for row, token in zip(logits, ids, strict=True):
        ranked = np.where(np.isnan(row), -np.inf, row)
        if ranked.max() == np.inf:
            assert row[token] == np.inf
        elif ranked.max() == -np.inf:
            assert token == 0
        else:
            assert np.isfinite(row[token])


def test_the_largest_uniform_stays_inside_the_kept_set():
    """Rounded prefix sums may rise by an ulp after the last kept token; such a token must not be drawn."""
    values = -np.sort(np.random.default_rng(0).exponential(size=(4096, 48)).astype(np.float32), axis=1)
    sampling = slots_of(dataclasses.replace(OFF, top_k=21), 4096)
    ones = np.ones(4096, np.float32)
    rank, _, settled = jax.jit(_draw, static_argnums=5)(
        values, _Whole(ones, ones, ones), sampling, np.full(4096, 1 - 2**-23, np.float32), ones, 48
    )
    assert np.asarray(settled).all()
    assert np.asarray(rank).max() == 20


@pytest.mark.parametrize("temperature", [0, 1e-44, 1.2e-38, 1e-6, 1, 1e6, 3.4e38, math.inf])
def test_masked_rows_at_every_temperature(temperature, native):
    sampling = slot_sampling([OFF] * 4)._replace(temperature=np.full(4, temperature, np.float32))
    inf, nan = math.inf, math.nan
    rows = np.array([[-inf] * 4, [nan] * 4, [-inf, nan, 5, -inf], [3, nan, inf, 3.4e38]], np.float32)
    ids = sample_jit(rows, sampling, np.arange(4, dtype=np.int32), native=native)[0]
    assert np.asarray(ids).tolist() == [0, 0, 2, 2]


def test_slot_sampling_is_numpy():
    slots = slot_sampling([SamplingConfig(seed=2**32 - 1), None, SamplingConfig(temperature=0)])
    assert all(type(array) is np.ndarray and array.shape == (3,) for array in slots)
    kinds = {"top_k": np.int32, "seed": np.uint32, "mirostat": np.int32, "logprobs": np.int32}
    assert all(array.dtype == kinds.get(name, np.float32) for name, array in slots._asdict().items())
    assert slots.seed.tolist() == [2**32 - 1, 0, 0]
    assert slots.temperature.tolist() == [np.float32(0.8), 0, 0]
    with pytest.raises(ValueError, match="slot 1: seed is None"):
        slot_sampling([None, SamplingConfig()])


def test_wrong_shapes_and_dtypes_are_refused():
    logits, slots, position = np.zeros((2, 5), np.float32), slot_sampling([None] * 2), np.zeros(2, np.int32)
    for args, name in [
        ((logits.astype(np.float16), slots, position), "logits"),
        ((logits[:, :0], slots, position), "logits"),
        ((logits[0], slots, position), "logits"),
        ((logits, slots, position[:1]), "position"),
        ((logits, slot_sampling([None]), position), "temperature"),
        ((logits, slots._replace(seed=slots.seed.astype(np.int32)), position), "seed"),
    ]:
        with pytest.raises(ValueError, match=name):
            sample(*args)
    with pytest.raises(ValueError, match="cap"):
        sample(logits, slots, position, cap=0)


BAD = [
    *(("temperature", value) for value in (-0.1, math.nan, math.inf, -math.inf, 1e39, 10**400, True, "0.8", None, 1j)),
    *(("top_k", value) for value in (-1, 1.0, 2**31, True, "40", None, math.nan)),
    *((name, value) for name in ("top_p", "min_p") for value in (-0.01, 1.01, math.nan, math.inf, False, "1", None)),
    *(("seed", value) for value in (-1, 2**32, 1.0, True, "1")),
    *(("max_tokens", value) for value in (-1, 1.5, False, "8")),
    *(("stop", value) for value in ("end", ("",), ("a", 1), None, (b"x",), ("\ud800",))),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:20])
def test_config_refuses_naming_field_and_value(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must ") as caught:
        SamplingConfig(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    shown = value[-1] if isinstance(value, tuple) else value
    assert repr(shown)[:12] in message


def test_config_accepts_and_normalises():
    config = SamplingConfig(
        temperature=np.float32(0.5), top_k=np.int64(0), top_p=1, min_p=0, seed=2**32 - 1, max_tokens=0, stop=["a", "\n"]
    )
    assert config == SamplingConfig(0.5, 0, 1.0, 0.0, 2**32 - 1, 0, ("a", "\n"))
    assert [type(value) for value in dataclasses.astuple(config)][:7] == [float, int, float, float, int, int, tuple]
    default = SamplingConfig()
    assert (default.temperature, default.top_k, default.top_p, default.min_p) == (0.8, 40, 0.95, 0.05)
    assert math.copysign(1, SamplingConfig(temperature=-0.0).temperature) == 1
    assert config.with_seed() is config
    assert len({default.with_seed().seed for _ in range(4)}) > 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 1


def test_config_imports_no_jax():
    code = "import sys, packlight.model.sampling.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
