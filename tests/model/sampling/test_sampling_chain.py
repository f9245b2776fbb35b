"""Every step of the sampling chain against llama.cpp's, and what a request's history does to its logits."""

import json
import math

import jax
import numpy as np
import pytest
import sampler_goldens
from conftest import GOLDENS_FOLDER
from golden_models import shared

from packlight.common.errors import ConfigError
from packlight.model.gguf.reader import open_gguf
from packlight.model.sampling.adjust import Adjustment, adjusted, nothing, table_size
from packlight.model.sampling.chain import (
    _uniforms,
    _weights,
    _whole,
    pick,
    sample,
    slot_sampling,
)
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.penalties import Steering, repetitions, sequence_breakers
from packlight.model.sampling.rank import CAP, clean, ranked
from packlight.model.text.tokenizer import Tokenizer

GOLDENS = json.loads((GOLDENS_FOLDER / "sampler_goldens.json").read_text())
VOCAB = sampler_goldens.VOCAB
DRY_VOCABS = ["demo", *shared(sampler_goldens.VOCABS[1:])]


sample_jit = jax.jit(sample, static_argnames="native")


def config_of(case):
    return SamplingConfig(seed=0, **{**sampler_goldens.OFF, **case})


def steered(logits, steering, prompt, generated=()):
    """One row of logits after a request's adjustment."""
    adjustment = nothing(1, len(logits), table_size(len(logits), 4096))
    steering.fill(Adjustment(*(x[0] for x in adjustment)), prompt, generated)
    return np.asarray(jax.jit(adjusted)(logits[None], adjustment))[0]


@jax.jit
def _ranks(logits, sampling):
    """Weights at every rank, the ids that have them, and whether they are exact: one program for every config."""
    logits = clean(logits)
    values, ids = ranked(logits, logits.shape[1])
    _, chance = _uniforms(sampling.seed, np.zeros(1, np.int32))
    weights, settled = _weights(values, _whole(logits, sampling), sampling, chance, logits.shape[1])
    return weights, ids, settled


def probabilities(logits, config):
    """What the chain gives each token of one row, (V,): the draw's weights at every rank, normalized."""
    weights, ids, settled = _ranks(logits[None], slot_sampling([config]))
    assert np.asarray(settled).all()
    out = np.zeros(len(logits))
    out[np.asarray(ids)[0]] = np.asarray(weights)[0]
    return out / out.sum()


@pytest.mark.parametrize("name", sampler_goldens.CASES)
def test_each_step_is_llama_cpps(name):
    config = config_of(sampler_goldens.CASES[name])
    for row, golden in zip(sampler_goldens.rows(), GOLDENS["cases"][name], strict=True):
        p = probabilities(steered(row, Steering(config), sampler_goldens.TOKENS), config)
        if config.mirostat:  # llama.cpp draws at once, and leaves what it drew from
            assert set(np.flatnonzero(p)) == set(golden["ids"])
        else:
            assert np.flatnonzero(p).tolist() == golden["ids"]
        # float32: an exponent of up to 30 is off by 2^-19 and the sum of 128 terms by less
        np.testing.assert_allclose(p[golden["ids"]], golden["p"], rtol=2e-5)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", sampler_goldens.CASES)
def test_native_draws_are_llama_cpps(name):
    """4096 draws of each row: nothing but what llama.cpp keeps, as often as it says."""
    config = config_of(sampler_goldens.CASES[name])
    positions = np.arange(4096, dtype=np.int32)
    sampling = slot_sampling([config] * len(positions))
    for row, golden in zip(sampler_goldens.rows(), GOLDENS["cases"][name], strict=True):
        logits = np.tile(steered(row, Steering(config), sampler_goldens.TOKENS), (len(positions), 1))
        ids = np.asarray(sample_jit(logits, sampling, positions, native=True)[0])
        counts, expected = np.bincount(ids, minlength=VOCAB), np.zeros(VOCAB)
        expected[golden["ids"]] = golden["p"]
        assert not counts[expected == 0].any()
        # within 5 standard deviations, and one draw: of a right sampler's 2,000 counts 0.001 are not
        spread = np.sqrt(len(positions) * expected * (1 - expected))
        assert (np.abs(counts - len(positions) * expected) <= 5 * spread + 1).all()


def test_mirostat_follows_its_rule():
    """mu' = mu - eta * (surprise of the drawn token among those kept - tau), and the next set is drawn by mu'."""
    config = config_of({"mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.3})
    s = slot_sampling([config])
    row = sampler_goldens.rows()[2]
    for position in range(20):
        p = probabilities_at(row, s)
        token, mu = (np.asarray(x)[0] for x in sample(row[None], s, np.array([position], np.int32)))
        assert p[token] > 0
        assert mu == pytest.approx(s.mirostat_mu[0] - 0.3 * (-math.log2(p[token]) - 2.0), abs=1e-4)
        s = s._replace(mirostat_mu=np.array([mu]))
    raw = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    assert set(np.flatnonzero(probabilities_at(row, s))) == set(np.flatnonzero(-np.log2(raw) <= mu))


def probabilities_at(row, s):
    p = np.exp(row.astype(np.float64) - row.max())
    p /= p.sum()
    kept = -np.log2(p) <= s.mirostat_mu[0]
    kept[p.argmax()] = True
    return np.where(kept, p, 0) / p[kept].sum()


def test_xtc_triggers_as_often_as_asked():
    row = np.broadcast_to(np.float32([3, 2.5, 2, -3]), (4000, 4))
    s = slot_sampling([config_of({"xtc_probability": 0.3, "xtc_threshold": 0.1})] * 4000)
    ids = np.asarray(sample(row, s, np.arange(4000, dtype=np.int32))[0])
    kept = np.exp(row[0]) / np.exp(row[0]).sum()
    # 0.7 of the time token 0 has its own probability, else none: within 4 standard deviations
    expected = 0.7 * kept[0]
    assert abs((ids == 0).mean() - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_greedy_takes_the_best_of_what_is_kept():
    row = np.float32([5, 4.9, 1, 0])
    for changes, token in (({}, 0), ({"xtc_probability": 1.0}, 1), ({"mirostat": 1}, 0), ({"mirostat": 2}, 0)):
        config = SamplingConfig(temperature=0, seed=0, min_p=0, top_p=1, top_k=0, **changes)
        for cap in (2, CAP):
            assert np.asarray(sample(row[None], slot_sampling([config]), np.zeros(1, np.int32), cap=cap)[0]) == [token]


@pytest.mark.parametrize("vocab", DRY_VOCABS)
def test_dry_is_llama_cpps(vocab):
    tokenizer = Tokenizer.from_gguf(sampler_goldens.vocabulary_file(vocab))
    golden = GOLDENS["dry"][vocab]
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    breakers = sequence_breakers(
        SamplingConfig().dry_sequence_breakers, pieces, lambda text: tokenizer.encode(text, add_special=False)
    )
    ids = tokenizer.encode(sampler_goldens.DRY_TEXT, add_special=False)
    assert ids == golden["ids"]
    steering = Steering(config_of(sampler_goldens.DRY), breakers=breakers)
    seen = 0
    for cut, expected in zip(range(3, len(ids) + 1), golden["taken"], strict=True):
        logits = steered(np.zeros(tokenizer.vocab_size, np.float32), steering, ids[: cut - 1], ids[cut - 1 : cut])
        taken = {str(i): -float(logits[i]) for i in np.flatnonzero(logits)}
        assert taken == pytest.approx(expected, rel=1e-5)
        seen += len(taken)
    assert seen > 5


def test_repetitions_by_hand():
    a, b, c, y = 1, 2, 3, 4
    assert repetitions([a, b, c, c, b, c, y, a, b, c], 2, {}) == {c: 3, y: 2}
    assert repetitions([a, b, c, c, b, c, y, a, b, c], 3, {}) == {c: 3}
    assert repetitions([a, b, a, b], 2, {}) == {a: 2}
    assert repetitions([a, b, a, b], 2, {b: [()]}) == {}  # nothing reaches over a breaker
    assert repetitions([y, a, b, c, y, a, b], 2, {y: [()]}) == {c: 2}
    assert repetitions([y, a, b, y, a, b], 2, {y: [()]}) == {}  # what would extend it is a breaker itself
    assert repetitions([y, c, a, b, a, y, c, a, b], 1, {y: [(c,)]}) == {a: 2}  # a breaker of two tokens
    assert repetitions([a] * 2000, 2, {}) == {a: 1999}  # linear: no second of its own
    assert repetitions([a, a], 2, {}) == {}


def test_breakers_reach_over_tokens():
    pieces = [b"a", b"x:", b"\nend", b"ab\n", b"\n", b": b"]
    encode = {"b": [90], "": []}.get
    assert sequence_breakers(["\n"], pieces, encode) == {2: [()], 3: [()], 4: [()]}
    assert sequence_breakers([":b"], pieces, encode) == {1: [(90,)]}


def test_bias_and_end_tokens():
    row = np.float32([0, 1, 2, 3])
    config = SamplingConfig(seed=0, logit_bias={1: 5, 3: -math.inf}, ignore_eos=True)
    steering = Steering(config, end_ids=[2])
    assert steered(row, steering, [0]).tolist() == [0, 6, -math.inf, -math.inf]
    assert not steering.idle
    assert Steering(SamplingConfig(repeat_last_n=0, repeat_penalty=2.0)).idle
    assert Steering(SamplingConfig(mirostat=2, repeat_penalty=2.0)).idle  # as llama.cpp: Mirostat replaces the chain


def test_a_mask_forbids_what_it_does_not_allow():
    class Even:
        def allowed(self, generated):
            return np.full(3, 0x55555555, np.uint32)

    row = np.arange(70, dtype=np.float32)
    out = steered(row, Steering(SamplingConfig(seed=0), constraint=Even()), [0])
    np.testing.assert_array_equal(out, np.where(np.arange(70) % 2 == 0, row, -np.inf))


@pytest.mark.parametrize("native", [False, True])
def test_logprobs_equal_a_full_log_softmax(native, request):
    if native:
        request.getfixturevalue("native_library")
    rows = sampler_goldens.rows()[:4]
    configs = [SamplingConfig(seed=1, logprobs=n) for n in (0, 5, 20)] + [SamplingConfig(seed=1)]
    adjustment = nothing(4, VOCAB, 10)
    adjustment.ids[0, 0], adjustment.bias[0, 0] = 3, 50.0  # an adjustment changes what is drawn, not what is reported
    is_end = np.zeros(VOCAB, np.bool_)
    args = rows, adjustment, slot_sampling(configs), np.arange(4, dtype=np.int32), is_end
    picked = jax.tree.map(lambda x: np.asarray(x)[:3], jax.jit(pick, static_argnums=5)(*args, native))
    rows = rows[:3]  # nobody asked for the last one's
    full = np.asarray(jax.nn.log_softmax(rows, axis=1))
    ids = np.asarray(picked.ids)
    assert ids[0] == 3
    np.testing.assert_allclose(np.asarray(picked.logprob), full[np.arange(3), ids], rtol=1e-6)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(np.asarray(picked.top_ids), order)
    np.testing.assert_allclose(
        np.asarray(picked.top_logprobs), np.take_along_axis(full, order, 1), rtol=1e-5, atol=1e-6
    )


BAD = [
    ({"logit_bias": {-1: 1}}, "token id must be between 0"),
    ({"logit_bias": {1: math.nan}}, "logit_bias must be finite"),
    ({"logit_bias": {1: math.inf}}, "logit_bias must be finite"),
    ({"logit_bias": 3}, "logit_bias must map token ids to numbers"),
    ({"logit_bias": [(1, 2, 3)]}, "logit_bias must map token ids to numbers"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias has 1025 tokens"),
    ({"repeat_penalty": 0}, "repeat_penalty must be finite in float32 and positive"),
    ({"top_n_sigma": -2}, "top_n_sigma must be finite in float32 and at least -1"),
    ({"typical_p": 1.5}, "typical_p must be between 0 and 1"),
    ({"mirostat": 3}, "mirostat must be between 0 and 2"),
    ({"logprobs": 21}, "logprobs must be between 0 and 20"),
    ({"repeat_last_n": -2}, "repeat_last_n must be between -1"),
    ({"ignore_eos": 1}, "ignore_eos must be true or false"),
    ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers must be a list"),
    ({"regex": 5}, "regex must be a text"),
    ({"json_schema": {"a": {1}}}, "json_schema is not JSON"),
    ({"regex": "a", "grammar": "b"}, "json_schema, regex and grammar exclude each other"),
]


@pytest.mark.parametrize(("fields", "words"), BAD, ids=str)
def test_config_refuses(fields, words):
    with pytest.raises(ConfigError, match=words):
        SamplingConfig(**fields)


@pytest.mark.parametrize("vocab", DRY_VOCABS)
def test_breakers_come_from_real_pieces(vocab):
    """A token that holds a colon holds one."""
    tokenizer = Tokenizer.from_file(open_gguf(sampler_goldens.vocabulary_file(vocab)))
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    found = sequence_breakers([":"], pieces, lambda text: tokenizer.encode(text, add_special=False))
    assert set(found) == {i for i, piece in enumerate(pieces) if b":" in piece}
    assert len(found) > 1
