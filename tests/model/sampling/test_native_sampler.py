"""The native sampler against numpy float64 and against its twin, on ragged rows; its bits in any company."""

import functools
import math

import jax
import numpy as np
import pytest
from natives import isas
from test_sampler import random_slots

from packlight.model.sampling.chain import SlotSampling, _uniforms, sample, slot_sampling
from packlight.quant.kernels import native_sampler

pytestmark = pytest.mark.usefixtures("native_library")

TINY = float(np.finfo(np.float32).tiny)
# A weight e^t is off by (2 |t| + 1) 2^-24 of it: t is rounded twice, and the weight. Weighted by themselves the |t| are
# ln V at most on average, so a share of a mass is off by 2 (2 ln V + 1) 2^-24 < 3e-6 for V = 32,000, the twin's by 17
# rounded additions more, 1e-6, twice. What is compared with it is rounded once.
BOUND = 1e-5
# The temperature is off by the entropy's 3e-6 and a power's 1e-6; t by as much of it, |t| <= ln V on average.
DYNAMIC_BOUND = 1e-4
run = jax.jit(sample, static_argnames=("cap", "native"))


def drawn(logits, sampling, positions, native=True):
    return [np.asarray(x) for x in run(logits, sampling, positions, cap=min(256, logits.shape[1]), native=native)]


def shares(t):
    weights = np.exp(t)
    weights[weights < TINY] = 0
    return weights / math.fsum(weights)


def typical(values, p):
    """Ranks that typical-p keeps, and how near it is to keeping others."""
    share = shares(values - values[0])
    known = np.flatnonzero(share)
    surprise = -np.log(share[known])
    distance = np.abs(surprise - math.fsum(share[known] * surprise))
    order = np.argsort(distance, kind="stable")
    sums = np.cumsum(share[known][order])
    last = min(int(np.sum(sums <= p)), len(known) - 1)
    margin = np.min(np.abs(sums - p))
    for i in (last - 1, last):
        if 0 <= i < len(known) - 1 and values[known[order[i]]] != values[known[order[i + 1]]]:
            margin = min(margin, distance[order[i + 1]] - distance[order[i]])
    return np.sort(known[order[: last + 1]]), margin


def kept_ranks(values, s, chance):
    """The ranks that the chain leaves, its temperature, and the least relative distance of a decision from its edge."""
    size, margins = len(values), [math.inf]
    keep = np.arange(min(size, s.top_k) if s.top_k >= 1 else size)
    if s.top_n_sigma > 0:
        finite = values[np.isfinite(values)]
        reach = s.top_n_sigma * finite.std()
        margins.append(np.min(np.abs(values[1:] - values[0] + reach) / (abs(values[0]) + reach + TINY), initial=9))
        keep = keep[values[keep] >= values[0] - reach]
    if s.typical_p < 1:
        keep, margin = typical(values[keep], s.typical_p)
        margins.append(margin)
    whole = keep
    if s.top_p < 1:
        sums = np.cumsum(shares(values[keep] - values[0]))
        margins.append(np.min(np.abs(sums - s.top_p)))
        keep = keep[: np.sum(sums < s.top_p) + 1]
    if s.min_p > 0:
        off = values[whole] - values[whole[0]] - math.log(s.min_p)
        margins.append(np.min(np.abs(off)[1:] / (1 + abs(values[whole[0]])), initial=9) if s.min_p != 1 else 9)
        keep = keep[: max(1, np.sum(off >= 0))]
    if s.xtc_probability > 0 and s.xtc_threshold <= 0.5 and chance <= s.xtc_probability:
        share = shares(values[keep] - values[0])
        margins.append(np.min(np.abs(share / s.xtc_threshold - 1)))
        keep = keep[max(0, np.sum(share >= s.xtc_threshold) - 1) :]
    temperature = s.temperature
    if s.dynatemp_range > 0:
        share = shares(values[keep] - values[keep[0]])
        entropy = -math.fsum(x * math.log(x) for x in share if x)
        low, high = max(temperature - s.dynatemp_range, 0), temperature + s.dynatemp_range
        temperature = low + (high - low) * (entropy / math.log(max(len(keep), 2))) ** s.dynatemp_exponent
    return keep, temperature, min(margins)


def mirostat_ranks(values, s):
    """As `kept_ranks`, of Mirostat."""
    if s.temperature < TINY:
        return np.arange(1), s.temperature, math.inf
    t = (values - values[0]) / s.temperature
    if s.mirostat == 2:
        with np.errstate(divide="ignore"):
            surprise = -np.log2(shares(t))
        margin = np.min(np.abs(surprise - s.mirostat_mu)) / (1 + s.mirostat_mu)
        return np.arange(max(1, np.sum(surprise <= s.mirostat_mu))), s.temperature, margin
    places = np.arange(1, min(100, len(t)))
    falls = np.log((places + 1) / places)
    with np.errstate(all="ignore"):
        steps = -np.diff(t[: len(places) + 1])
        slope = np.sum(falls * np.where(np.isfinite(steps), steps, np.float64(2.0**64))) / np.sum(falls**2)
        k = ((slope - 1) * 2**s.mirostat_mu / (1 - float(len(t)) ** (1 - slope))) ** (1 / slope)
    k = 1.0 if math.isnan(k) else min(max(k, 1.0), len(t))
    margin = math.inf if k in (1, len(t)) else abs(k - round(k)) / k / (1 + 1 / slope)
    return np.arange(int(k)), s.temperature, margin


def is_explained(row, s, token, mu, uniform, chance):
    """Whether a token is what float64 draws, up to the bound; None where a decision is too near its edge to say."""
    values = np.where(np.abs(row) < TINY, 0, row).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    values = values[order]
    if values[0] == -np.inf:
        return token == 0
    keep, temperature, margin = mirostat_ranks(values, s) if s.mirostat else kept_ranks(values, s, chance)
    bound = DYNAMIC_BOUND if s.dynatemp_range > 0 else BOUND
    if margin < bound:
        return None
    place = np.flatnonzero(order[keep] == token)
    if not len(place):
        return False
    if temperature < TINY:
        return place[0] == 0
    share = shares((values[keep] - values[keep[0]]) / temperature)
    sums, at = np.append(0, np.cumsum(share)), place[0]
    next_mu = s.mirostat_mu - s.mirostat_eta * (-math.log2(share[at] + TINY) - s.mirostat_tau)
    drawn_right = share[at] > 0 and sums[at] - bound <= uniform <= sums[at + 1] + bound
    return drawn_right and (not s.mirostat or math.isclose(mu, next_mu, rel_tol=1e-5, abs_tol=1e-5))


@functools.cache
def draws(vocab):
    """Slots of one vocabulary, and what the native sampler draws for them."""
    rng = np.random.default_rng(vocab)
    logits, configs, positions = random_slots(rng, 16 if vocab > 1000 else 64, vocab)
    sampling, positions = slot_sampling(configs), positions.astype(np.int32)
    return logits, sampling, positions, drawn(logits, sampling, positions)


@pytest.mark.parametrize("vocab", [1, 2, 3, 255, 256, 257, 1000, 32000])
def test_draws_are_float64s(vocab):
    logits, sampling, positions, (ids, mu) = draws(vocab)
    uniform, chance = (np.asarray(x) for x in _uniforms(sampling.seed, positions))
    told = [
        is_explained(logits[i], SlotSampling(*(x[i] for x in sampling)), ids[i], mu[i], uniform[i], chance[i])
        for i in range(len(ids))
    ]
    assert False not in told, told.index(False)
    assert told.count(True) >= len(told) / 2


@pytest.mark.parametrize("vocab", [3, 257, 1000])
def test_draws_are_the_twins(vocab):
    """Where float64 says that both are right, they may differ."""
    logits, sampling, positions, (ids, mu) = draws(vocab)
    theirs, their_mu = drawn(logits, sampling, positions, native=False)
    differ = np.flatnonzero((ids != theirs) & (sampling.mirostat != 1))  # whose k is float32's there
    uniform, chance = (np.asarray(x) for x in _uniforms(sampling.seed, positions))
    for i in differ:
        s = SlotSampling(*(x[i] for x in sampling))
        assert is_explained(logits[i], s, theirs[i], their_mu[i], uniform[i], chance[i]) is not False
    assert len(differ) <= 2
    same = ids == theirs
    np.testing.assert_allclose(mu[same], their_mu[same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocab", [3, 257, 32000])
def test_a_row_has_the_same_bits_in_any_company(vocab):
    logits, sampling, positions, whole = draws(vocab)
    parameters = sampling[:-1]
    sampler = jax.jit(native_sampler.sample, static_argnames=("threads", "isa"))
    reporter = jax.jit(native_sampler.logprobs, static_argnames=("count", "threads", "isa"))
    asked, count = np.zeros(len(logits), np.int32), min(20, vocab)
    reported = reporter(logits, whole[0], asked, count)
    for rows in range(1, 6):
        for threads, isa in [(1, "best"), (3, "best"), *((1, isa) for isa in isas())]:
            some = slice(rows, 2 * rows)
            mine = sampler(logits[some], [x[some] for x in parameters], positions[some], threads=threads, isa=isa)
            told = reporter(logits[some], whole[0][some], asked[some], count, threads=threads, isa=isa)
            for ours, theirs in zip([*mine, *told], [*whole, *reported], strict=True):
                np.testing.assert_array_equal(ours, np.asarray(theirs)[some])


def test_uniforms_are_jaxs_to_the_bit():
    """A chance acts exactly from the probability that equals it on; a draw among equal logits tells 12 bits."""
    rng = np.random.default_rng(0)
    seed = rng.integers(2**32, size=64, dtype=np.uint32)
    position = rng.integers(-(2**31), 2**31, size=64).astype(np.int32)
    uniform, chance = (np.asarray(x) for x in _uniforms(seed, position))
    config = slot_sampling([None] * 64)._replace(seed=seed, xtc_threshold=np.full(64, 0.1, np.float32))
    rows = np.tile(np.float32([2, 1]), (64, 1))
    for probability, token in ((chance, 1), (np.nextafter(chance, np.float32(0)), 0)):
        assert (drawn(rows, config._replace(xtc_probability=probability), position)[0] == token).all()
    free = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
    flat = config._replace(**{name: np.full(64, x, getattr(config, name).dtype) for name, x in free.items()})
    np.testing.assert_array_equal(drawn(np.zeros((64, 4096), np.float32), flat, position)[0], np.floor(uniform * 4096))


def test_what_is_not_finite_has_no_log_probability():
    inf, nan = math.inf, math.nan
    rows = np.array([[1, nan, 0], [inf, 0, 1], [-inf] * 3, [1, -inf, 1]], np.float32)
    zeros = np.zeros(4, np.int32)
    values, top, ids = (
        np.asarray(x) for x in jax.jit(native_sampler.logprobs, static_argnums=3)(rows, zeros, zeros, 3)
    )
    assert np.isnan(values[:3]).all()
    assert np.isnan(top[:3]).all()
    assert ids.tolist() == [[0, 2, 1], [0, 2, 1], [0, 1, 2], [0, 2, 1]]
    np.testing.assert_allclose(top[3], [-math.log(2), -math.log(2), -inf], rtol=1e-7)
    with pytest.raises(ValueError, match="4 of 3 numbers"):
        native_sampler.logprobs(rows, zeros, zeros, 4)
