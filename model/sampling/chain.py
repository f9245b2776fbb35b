"""From logits to token ids, inside the decode executable. Knows one row of logits per slot; knows no model and no text.

The chain is llama.cpp's default order: top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature (dynamic too), one
draw; or, where asked for, temperature and Mirostat. All but the last see probabilities before the temperature. Bias
and penalties come before: `model.sampling.adjust`. Every step takes tokens out of the order of ranks
(`model.sampling.rank`). All steps but typical-p and XTC keep a prefix of it.

With a CPU's native kernels all of it is one call, `quant.kernels.native_sampler`. What follows is the twin of that, and
what runs elsewhere.

Its two paths give the same ids bit for bit. The short one ranks the `cap` highest logits with `lax.top_k`. The long one
ranks all V, in 20 to 100 times as long (bench/LOG.md). A row takes the long one only where its kept set may reach
beyond `cap`: the choice is made from the row itself, never from its neighbours.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.model.sampling.adjust import Adjustment, adjusted
from packlight.model.sampling.config import MOST_LOGPROBS, PARAMETERS, SamplingConfig
from packlight.model.sampling.rank import (
    CAP,
    HUGE,
    TINY,
    Array,
    asked_log_probabilities,
    below_best,
    best_kept,
    clean,
    deviation,
    finite,
    first_true,
    leading,
    mass,
    prefix_sums,
    ranked,
    total_of,
    value_at,
)
from packlight.quant import division
from packlight.quant.kernels import native_sampler

DTYPES = {parameter.name: np.dtype(parameter.dtype) for parameter in PARAMETERS if parameter.dtype}
DTYPES |= {"mirostat_mu": np.dtype(np.float32)}  # a state, not a parameter
MIROSTAT_TOKENS = 100  # the most probable ones, from which version 1 estimates how probabilities fall


class SlotSampling(NamedTuple):
    """Sampling parameters of all slots: arguments of the executable, so that changing them compiles nothing."""

    temperature: Array  # (B,) f32; not above TINY: greedy
    top_k: Array  # (B,) i32; < 1 or >= V: off
    top_p: Array  # (B,) f32; >= 1: off
    min_p: Array  # (B,) f32; <= 0: off
    seed: Array  # (B,) u32
    top_n_sigma: Array  # (B,) f32; <= 0: off
    typical_p: Array  # (B,) f32; >= 1: off
    xtc_probability: Array  # (B,) f32; <= 0: off
    xtc_threshold: Array  # (B,) f32; > 0.5: off
    dynatemp_range: Array  # (B,) f32; <= 0: off
    dynatemp_exponent: Array  # (B,) f32
    mirostat: Array  # (B,) i32; 0: off
    mirostat_tau: Array  # (B,) f32
    mirostat_eta: Array  # (B,) f32
    mirostat_mu: Array  # (B,) f32, the state: twice tau at first
    logprobs: Array  # (B,) i32; < 0: none


def slot_sampling(configs: Sequence[SamplingConfig | None]) -> SlotSampling:
    """Parameters of B slots as numpy arrays, without any JAX operation; None is an empty slot, greedy as that is cheap.

    Raises ValueError where a config that draws has no seed: `SamplingConfig.with_seed` picks one, once per request.
    """
    for slot, config in enumerate(configs):
        if config is not None and config.seed is None and config.temperature >= TINY:
            raise ValueError(f"slot {slot}: seed is None; call SamplingConfig.with_seed() once when the request starts")
    filled = [SamplingConfig(temperature=0, seed=0) if config is None else config for config in configs]
    values: dict[str, list[Any]] = {"mirostat_mu": [2 * config.mirostat_tau for config in filled]}
    for name, absent in ((parameter.name, parameter.absent) for parameter in PARAMETERS if parameter.dtype):
        given = [getattr(config, name) for config in filled]
        values[name] = [absent if value is None else value for value in given]
    return SlotSampling(**{name: np.array(column, DTYPES[name]) for name, column in values.items()})


class Picked(NamedTuple):
    """What a step says of the next token of each slot."""

    ids: jax.Array  # (B,) i32
    is_end: jax.Array  # (B,) bool: the token ends a generation
    finite: jax.Array  # (B,) bool: the logits hold no NaN and no infinity
    mirostat_mu: jax.Array  # (B,) f32, for the next step
    logprob: jax.Array  # (B,) f32: log-softmax of the logits at the token; 0 where nobody asked
    top_logprobs: jax.Array  # (B, 20) f32, highest first
    top_ids: jax.Array  # (B, 20) i32


def nothing_picked(slots: int, tokens: int, vocab: int) -> Picked:
    """Room for the picks of several tokens: zeros (B, N) and (B, N, 20)."""
    shape, top = (slots, tokens), (slots, tokens, min(MOST_LOGPROBS, vocab))
    numbers, integers, flags = (jnp.zeros(shape, t) for t in (jnp.float32, jnp.int32, jnp.bool_))
    return Picked(integers, flags, flags, numbers, numbers, jnp.zeros(top, jnp.float32), jnp.zeros(top, jnp.int32))


def pick(
    logits: jax.Array,  # (B, V) f32
    adjustment: Adjustment,  # of B slots
    sampling: SlotSampling,  # each (B,)
    position: jax.Array,  # (B,) i32
    is_end: jax.Array,  # (V,) bool
    native: bool = False,  # whether a CPU's native kernels run
) -> Picked:
    """Adjusts the logits, samples, and reports. Log-probabilities are the model's own, before any adjustment."""
    ids, mu = sample(adjusted(logits, adjustment), sampling, position, native=native)

    return Picked(ids, is_end[ids], finite(logits), mu, *logprobs(logits, ids, sampling.logprobs, native))


def logprobs(
    logits: jax.Array,  # (B, V) f32
    ids: jax.Array,  # (B,) i32
    asked: Array,  # (B,) i32; < 0: nobody wants a row's, which then means nothing
    native: bool = False,  # whether a CPU's native kernels run
) -> tuple[jax.Array, jax.Array, jax.Array]:  # (B,) f32, (B, 20) f32, (B, 20) i32
    """Log-softmax at a token of each row; that of the most probable tokens, highest first; and their ids.

    Where the token is the most probable one, both are the same bits.
    """
    reported = native_sampler.logprobs if native else asked_log_probabilities
    return reported(logits, ids, asked, min(MOST_LOGPROBS, logits.shape[1]))


def sample(
    logits: Array,  # (B, V) f32
    sampling: SlotSampling,  # each (B,)
    position: Array,  # (B,) i32
    *,
    cap: int = CAP,
    native: bool = False,
) -> tuple[jax.Array, jax.Array]:  # ids (B,) i32, the next mirostat_mu (B,) f32
    """One token id in [0, V) per slot; a pure function of the slot's own logits, parameters, seed and position.

    `position` is that of the token being chosen; the key is fold_in(key(seed), position) (threefry) and gives one
    uniform u in [0, 1) in steps of 2^-23: the draw is the first token in rank order whose cumulative weight exceeds
    u * total; the key's second uniform is XTC's decision. Temperature 0 (below 1.2e-38, negative, NaN) takes
    the first in rank order of what is kept, which is argmax unless typical-p or XTC took that out. `cap` is static and
    changes time, not ids: cap = V is the reference path. `native` takes a CPU's native kernels, which look at as many
    ranks as they need and not at `cap`. They round sums once, from doubles, so a draw may differ where its target is
    within the rounding of a prefix sum, and a kept set where a sum or an exponential decides within theirs.

    Total on any bits. NaN ranks and weighs as -inf, which is never drawn while the row holds anything else. +inf
    wins: the draw is among the +inf tokens, which weigh the same; greedy takes the first. A row of only -inf and NaN
    gives id 0. Magnitudes below 1.2e-38 count as 0, as the CPU's arithmetic would flush some of
    them. An infinite temperature is the largest float32. A top-p or min-p that is NaN keeps one token.

    Raises ValueError, while tracing, for other shapes or dtypes, V < 1 or cap < 1.
    Source: llama.cpp `llama-sampler.cpp`, `llama_sampler_{top_n_sigma,top_k,typical,top_p,min_p,xtc,temp_ext,dist,
    mirostat,mirostat_v2}`.
    """
    _check(logits, sampling, position, cap)
    if native:
        parameters = [array for name, array in sampling._asdict().items() if name != "logprobs"]
        return native_sampler.sample(logits, parameters, position)
    vocab = logits.shape[1]
    cap = min(cap, vocab)
    s = sampling
    takes_first = (s.typical_p < 1) | (s.xtc_probability > 0) | (s.dynatemp_range > 0) | (s.mirostat > 0)
    greedy = ~(s.temperature >= TINY) & ~takes_first

    def draw() -> tuple[jax.Array, jax.Array]:
        uniform, chance = _uniforms(s.seed, position)
        cleaned = clean(logits)
        whole = lax.cond(jnp.any(~greedy), lambda x: _whole(x, s), _no_whole, cleaned)

        def at(n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
            values, ids = ranked(cleaned, n)
            rank, mu, settled = _draw(values, whole, s, uniform, chance, vocab)
            return value_at(ids, jnp.where(greedy, 0, rank)), jnp.where(s.mirostat > 0, mu, s.mirostat_mu), settled

        ids, mu, settled = at(cap)
        if cap == vocab:
            return ids, mu
        unsettled = ~greedy & ~settled

        def long() -> tuple[jax.Array, jax.Array]:
            long_ids, long_mu, _ = at(vocab)
            return jnp.where(unsettled, long_ids, ids), jnp.where(unsettled, long_mu, mu)

        return lax.cond(jnp.any(unsettled), long, lambda: (ids, mu))

    def best() -> tuple[jax.Array, jax.Array]:
        return lax.argmax(clean(logits), 1, jnp.int32), jnp.asarray(s.mirostat_mu)

    return lax.cond(jnp.all(greedy), best, draw)


class _Whole(NamedTuple):
    """What steps must know of a whole row, in id order so that both paths agree."""

    mass: jax.Array  # (B,) f32: sum of exp(logit - best); top-p's total where nothing was cut before
    heated: jax.Array  # (B,) f32: the same at the row's temperature; Mirostat's total
    deviation: jax.Array  # (B,) f32: standard deviation of the finite logits; top-n-sigma's


def _draw(
    values: jax.Array,  # (B, N) f32: the N highest logits in rank order
    whole: _Whole,  # each (B,)
    s: SlotSampling,  # each (B,)
    uniform: jax.Array,  # (B,) f32
    chance: jax.Array,  # (B,) f32
    vocab: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # rank (B,) i32, mu (B,) f32, settled (B,) bool
    """The drawn rank, Mirostat's next state, and whether N logits were enough to know them. N = vocab settles all.

    Bit-equal for every sufficient N: a prefix sum depends on its prefix alone (`prefix_sums`), and where a total is
    compared with prefix sums it is the largest of them, not a sum of its own. Largest rather than last, because
    rounding makes such prefix sums dip by an ulp here and there; that is also why a token of weight 0 is masked out
    rather than trusted to add nothing. Other totals are sums whose order does not depend on N (`total_of`).
    """
    weights, settled = _weights(values, whole, s, chance, vocab)
    sums = jnp.where(weights > 0, prefix_sums(weights), 0.0)
    total = jnp.max(sums, axis=1)
    chosen = first_true(sums > (uniform * total)[:, None])  # u < 1, so the target is below the maximum
    surprise = jnp.where(total > 0, -jnp.log2(value_at(weights, chosen) / total), s.mirostat_tau)
    mu = s.mirostat_mu - s.mirostat_eta * (surprise - s.mirostat_tau)
    return chosen, jnp.asarray(mu), settled


def _weights(
    values: jax.Array,  # (B, N) f32
    whole: _Whole,  # each (B,)
    s: SlotSampling,  # each (B,)
    chance: jax.Array,  # (B,) f32
    vocab: int,
) -> tuple[jax.Array, jax.Array]:  # (B, N) f32, settled (B,) bool
    """How likely each rank is to be drawn, not normalized: 0 for what a step took out."""
    rank = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    keep, temperature, settled = _chain(values, rank, whole, s, chance, vocab)
    mirostat = lax.cond(
        jnp.any(s.mirostat > 0), lambda: _mirostat(values, rank, whole, s, vocab), lambda: (keep, settled)
    )
    keep = jnp.where(s.mirostat[:, None] > 0, mirostat[0], keep)
    settled = jnp.where(s.mirostat > 0, mirostat[1], settled)
    temperature = jnp.where(s.mirostat > 0, s.temperature, temperature)
    weights = jnp.where(
        keep,
        jnp.exp(division.over(below_best(values, best_kept(values, keep)), jnp.clip(temperature, TINY, HUGE)[:, None])),
        0.0,
    )
    weights = jnp.where(temperature[:, None] >= TINY, weights, (rank == first_true(keep)[:, None]).astype(jnp.float32))
    return weights, settled | (values.shape[1] == vocab)


def _chain(
    values: jax.Array,  # (B, N) f32
    rank: jax.Array,  # (B, N) i32
    whole: _Whole,
    s: SlotSampling,
    chance: jax.Array,  # (B,) f32
    vocab: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # keep (B, N) bool, temperature (B,) f32, settled (B,) bool
    """What the steps before the draw leave."""
    n = values.shape[1]
    none, every = jnp.zeros(values.shape, jnp.bool_), rank >= 0
    below = below_best(values, values[:, :1])

    cut, sigma = _top_n_sigma_and_top_k(values, whole, s, vocab)
    keep = rank < cut[:, None]
    complete = cut <= n  # all that top-n-sigma and top-k leave is here

    typical = s.typical_p < 1
    keep &= lax.cond(jnp.any(typical), lambda: _typical(below, rank, keep, s.typical_p), lambda: every)

    top_p, uncut = _top_p(below, keep, cut, typical, whole, s, vocab)
    min_p = _min_p(values, keep, s, vocab)
    kept = jnp.maximum(jnp.minimum(jnp.minimum(cut, top_p), min_p), first_true(keep) + 1)  # all fail (NaN): one stays
    keep &= rank < kept[:, None]
    settled = (complete | (uncut & ~sigma) | ((s.top_p >= 1) & ~typical)) & (kept <= n) & (complete | ~typical)

    xtc = (s.xtc_probability > 0) & (s.xtc_threshold <= 0.5) & (chance <= s.xtc_probability)
    keep &= ~lax.cond(jnp.any(xtc), lambda: _xtc(below, rank, keep, s.xtc_threshold), lambda: none) | ~xtc[:, None]

    dynamic = s.dynatemp_range > 0
    temperature = lax.cond(jnp.any(dynamic), lambda: _dynamic(values, keep, s), lambda: jnp.asarray(s.temperature))
    return keep, jnp.where(dynamic, temperature, s.temperature), settled


def _top_n_sigma_and_top_k(
    values: jax.Array,  # (B, N) f32
    whole: _Whole,
    s: SlotSampling,
    vocab: int,
) -> tuple[jax.Array, Array]:  # (B,) i32, (B,) bool
    """How many ranks both leave, vocab for all that there are, and whether top-n-sigma is on."""
    sigma = s.top_n_sigma > 0
    within = values >= values[:, :1] - (s.top_n_sigma * whole.deviation)[:, None]
    top_k = jnp.where(s.top_k < 1, vocab, jnp.minimum(s.top_k, vocab))
    return jnp.minimum(top_k, jnp.where(sigma, leading(within, vocab), vocab)), sigma


def _typical(below: jax.Array, rank: jax.Array, keep: jax.Array, p: Array) -> jax.Array:  # (B, N) bool
    """The tokens whose surprise is nearest the expected one, until their probabilities exceed p."""
    weights = jnp.where(keep, jnp.exp(below), 0.0)
    total = total_of(weights)
    probability, surprise = division.over(weights, total), jnp.log(total) - below
    expected = total_of(jnp.where(weights > 0, probability * surprise, 0.0))
    distance = jnp.where(weights > 0, jnp.abs(surprise - expected), jnp.inf)
    _, by_rank, probability = lax.sort((distance, rank, probability), dimension=1, is_stable=True, num_keys=1)
    over = prefix_sums(probability) > p[:, None]
    last = jnp.where(jnp.any(over, axis=1), first_true(over), rank.shape[1])
    chosen = rank <= last[:, None]  # positions in the order of distance
    chosen = jax.vmap(lambda ranks, c: jnp.zeros(c.shape, jnp.bool_).at[ranks].set(c))(by_rank, chosen)
    return jnp.where((p < 1)[:, None], chosen & (weights > 0), keep)


def _top_p(
    below: jax.Array,  # (B, N) f32
    keep: jax.Array,  # (B, N) bool
    cut: jax.Array,  # (B,) i32: how many ranks top-n-sigma and top-k leave
    typical: Array,  # (B,) bool: typical-p is on
    whole: _Whole,
    s: SlotSampling,
    vocab: int,
) -> tuple[jax.Array, jax.Array]:  # (B,) i32, (B,) bool
    """How many ranks top-p leaves, vocab where it is off, and whether no step before it took anything out."""
    sums = prefix_sums(jnp.where(keep, jnp.exp(below), 0.0))
    uncut = (cut == vocab) & ~typical
    total = jnp.where(uncut, whole.mass, jnp.max(sums, axis=1))
    reached = keep & (sums >= (s.top_p * total)[:, None])
    top_p = jnp.where(jnp.any(reached, axis=1), first_true(reached) + 1, vocab)
    return jnp.where(s.top_p >= 1, vocab, jnp.where(jnp.isnan(s.top_p), first_true(keep) + 1, top_p)), uncut


def _min_p(values: jax.Array, keep: jax.Array, s: SlotSampling, vocab: int) -> jax.Array:  # (B,) i32
    """How many ranks min-p leaves, vocab where it is off or takes nothing out."""
    best = best_kept(values, keep)
    fails = keep & ~(values >= best + jnp.log(s.min_p)[:, None])
    return jnp.where((s.min_p <= 0) | ~jnp.any(fails, axis=1), vocab, first_true(fails))


def _xtc(below: jax.Array, rank: jax.Array, keep: jax.Array, threshold: Array) -> jax.Array:  # (B, N) bool
    """The tokens that XTC drops: all at least as probable as the threshold but the least probable of them."""
    weights = jnp.where(keep, jnp.exp(below), 0.0)
    above = keep & (weights >= threshold[:, None] * total_of(weights))
    last = jnp.max(jnp.where(above, rank, -1), axis=1, keepdims=True)
    return above & (rank < last)


def _dynamic(values: jax.Array, keep: jax.Array, s: SlotSampling) -> jax.Array:  # (B,) f32
    """The temperature between temperature -/+ range that the entropy of what is kept asks for; one token needs none."""
    weights = jnp.where(keep, jnp.exp(below_best(values, best_kept(values, keep))), 0.0)
    p = division.over(weights, total_of(weights))
    entropy = total_of(jnp.where(p > 0, -p * jnp.log(p), 0.0))[:, 0]
    share = entropy / jnp.log(jnp.maximum(jnp.sum(keep, axis=1, dtype=jnp.int32), 2).astype(jnp.float32))
    low, high = jnp.maximum(s.temperature - s.dynatemp_range, 0.0), s.temperature + s.dynatemp_range
    return low + (high - low) * share**s.dynatemp_exponent


def _mirostat(
    values: jax.Array, rank: jax.Array, whole: _Whole, s: SlotSampling, vocab: int
) -> tuple[jax.Array, jax.Array]:  # keep (B, N) bool, settled (B,) bool
    """What Mirostat keeps: version 1 the k that its estimate of the falling probabilities asks for, version 2 the
    tokens whose surprise is at most mu. Source: 2007.14966.
    """
    n = values.shape[1]
    heated = division.over(below_best(values, values[:, :1]), jnp.clip(s.temperature, TINY, HUGE)[:, None])
    surprise = (jnp.log(whole.heated)[:, None] - heated) / jnp.log(jnp.float32(2))
    within = jnp.maximum(leading(surprise <= s.mirostat_mu[:, None], vocab), 1)

    m = min(MIROSTAT_TOKENS, n)
    t = jnp.log((jnp.arange(m - 1, dtype=jnp.float32) + 2) / (jnp.arange(m - 1, dtype=jnp.float32) + 1))
    falls = heated[:, : m - 1] - heated[:, 1:m]
    slope = total_of(t[None, :] * jnp.where(jnp.isfinite(falls), falls, HUGE**0.5))[:, 0] / jnp.sum(t * t)
    epsilon = slope - 1
    k = ((epsilon * 2**s.mirostat_mu) / (1 - vocab**-epsilon)) ** (1 / slope)
    k = jnp.clip(jnp.where(jnp.isnan(k), 1.0, k), 1, vocab).astype(jnp.int32)  # NaN: a slope of 0 or 1
    kept = jnp.where(s.mirostat == 1, k, within)
    known = (s.mirostat == 2) | (n >= MIROSTAT_TOKENS) | (n == vocab)
    greedy = ~(s.temperature >= TINY)
    return rank < jnp.where(greedy, 1, kept)[:, None], ((kept <= n) & known) | greedy


def _whole(
    logits: jax.Array,  # (B, V) f32
    s: SlotSampling,
) -> _Whole:
    """Facts of the rows, each computed only where a slot needs it."""
    best = jnp.max(logits, axis=1, keepdims=True)

    def heated() -> jax.Array:
        return mass(logits, best, jnp.clip(s.temperature, TINY, HUGE))

    zeros = jnp.zeros(logits.shape[0], jnp.float32)
    uncut = (s.top_k < 1) | (s.top_k >= logits.shape[1])
    return _Whole(
        lax.cond(jnp.any(uncut), lambda: mass(logits, best, zeros + 1), lambda: zeros),
        lax.cond(jnp.any(s.mirostat > 0), heated, lambda: zeros),
        lax.cond(jnp.any(s.top_n_sigma > 0), lambda: deviation(logits), lambda: zeros),
    )


def _no_whole(logits: jax.Array) -> _Whole:
    zeros = jnp.zeros(logits.shape[0], jnp.float32)
    return _Whole(zeros, zeros, zeros)


def _uniforms(
    seed: Array,  # (B,) u32
    position: Array,  # (B,) i32
) -> tuple[jax.Array, jax.Array]:  # (B,) f32, twice
    def one(seed: Array, position: Array) -> tuple[jax.Array, jax.Array]:  # scalars
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        draw, chance = jax.random.uniform(key, (2,), jnp.float32)
        return draw, chance

    return jax.vmap(one)(seed, position)


def _check(logits: Array, sampling: SlotSampling, position: Array, cap: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or logits.dtype != np.float32:
        raise ValueError(f"logits must be float32 (B, V) with V > 0, not {logits.dtype} {logits.shape}")
    if cap < 1:
        raise ValueError(f"cap must be positive, not {cap}")
    slots = logits.shape[:1]
    dtypes = DTYPES | {"position": np.dtype(np.int32)}
    for name, array in {**sampling._asdict(), "position": position}.items():
        if array.shape != slots or array.dtype != dtypes[name]:
            raise ValueError(f"{name} must be {dtypes[name]} {slots}, not {array.dtype} {array.shape}")
