"""From logits to token ids, inside the decode executable. Knows one row of logits per slot; knows no model and no text.

The chain is llama.cpp's default order: top-k, top-p, min-p, temperature, one draw. Top-p and min-p see probabilities
before the temperature. Tokens are ranked by logit, highest first, equal logits by lower id first; every step keeps a
prefix of that order, so the whole chain is one number per row: how many tokens stay.

Two paths give the same ids bit for bit. The short one ranks the `cap` highest logits with `lax.top_k`; the long one
ranks all V. A row takes the long one only where its kept set may reach beyond `cap`: the choice is made from the row
itself, never from its neighbours. Medians in ms, normal logits (sd 3), 2 CPU cores shared with other work, jax 0.10.2;
two scripts, each interleaving its own rows (11 rounds; 15 rounds, 7 for the sort), so compare within a block:

    V, B                                 32000, 1   32000, 4   128256, 1   128256, 4
    `sample`: all greedy                      0.4        0.7         0.6         1.0
    `sample`: defaults (top-k 40), short      0.5        1.3         0.9         2.4
    `sample`: top-k off, short                0.5        1.4         0.9         3.5
    `sample`: top-k off, long                11         43          52         190

    ranking: `lax.top_k(logits, 256)`         0.3        0.8         0.5         2.0
    ranking: groups of 32, then top_k         0.4        1.0         0.6         1.4
    threshold: bisection on the bits          0.5        3.2         4.9         8.7
    ranking: `lax.sort` of values and ids    12         41          53         192
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from model.sampling import SamplingConfig

CAP = 256
TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)

DTYPES = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seed": np.uint32,
    "position": np.int32,
}
Array = jax.Array | np.ndarray


class SlotSampling(NamedTuple):
    """Sampling parameters of all slots: arguments of the executable, so that changing them compiles nothing."""

    temperature: Array  # (B,) f32; not above TINY: greedy
    top_k: Array  # (B,) i32; < 1 or >= V: off
    top_p: Array  # (B,) f32; >= 1: off
    min_p: Array  # (B,) f32; <= 0: off
    seed: Array  # (B,) u32


def slot_sampling(configs: Sequence[SamplingConfig | None]) -> SlotSampling:
    """Parameters of B slots as numpy arrays, without any JAX operation; None is an empty slot, greedy as that is cheap.

    Raises ValueError where a config that draws has no seed: `SamplingConfig.with_seed` picks one, once per request.
    """
    for slot, config in enumerate(configs):
        if config is not None and config.seed is None and config.temperature >= TINY:
            raise ValueError(f"slot {slot}: seed is None; call SamplingConfig.with_seed() once when the request starts")
    filled = [SamplingConfig(temperature=0, seed=0) if config is None else config for config in configs]
    values = {name: [getattr(config, name) or 0 for config in filled] for name in SlotSampling._fields}
    return SlotSampling(**{name: np.array(column, DTYPES[name]) for name, column in values.items()})


def finite(
    logits: Array,  # (B, V) f32
) -> jax.Array:  # (B,) bool
    """True for each row without NaN and infinities. `sample` answers either way; the engine raises on False."""
    return jnp.all(jnp.isfinite(logits), axis=-1)


def sample(
    logits: Array,  # (B, V) f32
    sampling: SlotSampling,  # each (B,)
    position: Array,  # (B,) i32
    *,
    cap: int = CAP,
) -> jax.Array:  # (B,) i32
    """One token id in [0, V) per slot; a pure function of the slot's own logits, parameters, seed and position.

    `position` is that of the token being chosen; the key is fold_in(key(seed), position) (threefry) and gives one
    uniform u in [0, 1) in steps of 2^-23: the draw is the first token in rank order whose cumulative weight exceeds
    u * total. Temperature 0 (below 1.2e-38, negative, NaN) takes the first in rank order, which is argmax. `cap` is
    static and changes time, not ids: cap = V is the reference path.

    Total on any bits. NaN ranks and weighs as -inf, which is never drawn while the row holds anything else. +inf
    wins: the draw is among the +inf tokens, which weigh the same; greedy takes the first. A row of only -inf and NaN
    gives id 0. Magnitudes below 1.2e-38 count as 0, as the CPU's arithmetic would flush some of
    them. An infinite temperature is the largest float32. A top-p or min-p that is NaN keeps one token.

    Raises ValueError, while tracing, for other shapes or dtypes, V < 1 or cap < 1.
    Source: llama.cpp `llama-sampler.cpp`, `llama_sampler_{top_k,top_p,min_p,temp,dist}`.
    """
    _check(logits, sampling, position, cap)
    vocab = logits.shape[1]
    cap = min(cap, vocab)
    greedy = ~(sampling.temperature >= TINY)

    def draw() -> jax.Array:  # (B,) i32
        uniform = _uniforms(sampling.seed, position)
        ranked = _clean(logits)
        values, ids = _ranked(ranked, cap)
        mass = lax.cond(jnp.any(~greedy & (_top_k(sampling, vocab) == vocab)), _mass, _no_mass, ranked)
        rank, settled = _draw(values, mass, sampling, uniform, vocab)
        short = _at(ids, jnp.where(greedy, 0, rank))
        if cap == vocab:
            return short
        unsettled = ~greedy & ~settled

        def long() -> jax.Array:  # (B,) i32
            values, ids = _ranked(ranked, vocab)
            rank, _ = _draw(values, mass, sampling, uniform, vocab)
            return jnp.where(unsettled, _at(ids, rank), short)

        return lax.cond(jnp.any(unsettled), long, lambda: short)

    return lax.cond(jnp.all(greedy), lambda: lax.argmax(_clean(logits), 1, jnp.int32), draw)


def _clean(
    logits: Array,  # (B, V) f32
) -> jax.Array:  # (B, V) f32
    """Logits that every comparison orders alike: NaN is -inf, and -0 and subnormals are 0."""
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    return jnp.where(jnp.abs(logits) < TINY, 0.0, logits)


def _ranked(
    logits: jax.Array,  # (B, V) f32
    n: int,
) -> tuple[jax.Array, jax.Array]:  # values (B, n) f32, ids (B, n) i32
    """The n highest logits and their ids, equal logits by lower id.

    The barrier keeps the fast kernel: XLA:CPU first sees a full sort and a slice, and turns the pair into its TopK
    call only if no consumer slices the result further. Without it (32000, n = 256) takes 12 ms instead of 0.3.
    """
    values, ids = lax.top_k(logits, n)
    return lax.optimization_barrier((values, ids))


def _draw(
    values: jax.Array,  # (B, N) f32: the N highest logits in rank order
    mass: jax.Array,  # (B,) f32: `_mass` of the row; read only where top-k is off
    sampling: SlotSampling,  # each (B,)
    uniform: jax.Array,  # (B,) f32
    vocab: int,
) -> tuple[jax.Array, jax.Array]:  # rank (B,) i32, settled (B,) bool
    """The drawn rank, and whether N logits were enough to know it. Exact for settled rows; N = vocab settles all.

    Bit-equal for every sufficient N: a prefix sum depends on its prefix alone (`_prefix_sums`), and totals are maxima
    of prefix sums, not sums of their own. They are maxima rather than last elements because rounding makes such
    prefix sums dip by an ulp here and there; that is also why a token of weight 0 is masked out rather than trusted
    to add nothing.
    """
    n = values.shape[1]
    rank = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    best = values[:, :1]
    # +inf - +inf is NaN, and -inf must weigh nothing even where it is the best
    below = jnp.where(values == best, 0.0, values - best)
    below = jnp.where(values == -jnp.inf, -jnp.inf, below)

    top_k = _top_k(sampling, vocab)
    sums = _prefix_sums(jnp.exp(below))
    total = jnp.where(top_k == vocab, mass, jnp.max(jnp.where(rank < top_k[:, None], sums, 0.0), axis=1))
    reached = sums >= (sampling.top_p * total)[:, None]
    top_p = jnp.where(jnp.any(reached, axis=1), _first(reached) + 1, vocab)
    top_p = jnp.where(sampling.top_p >= 1, vocab, jnp.where(jnp.isnan(sampling.top_p), 1, top_p))

    fails = ~(values >= best + jnp.log(sampling.min_p)[:, None])  # if all fail (NaN), the draw is rank 0
    min_p = jnp.where((sampling.min_p <= 0) | ~jnp.any(fails, axis=1), vocab, _first(fails))

    kept = jnp.minimum(jnp.minimum(top_k, top_p), min_p)
    total_known = (top_k <= n) | (top_k == vocab) | (sampling.top_p >= 1)
    settled = total_known & (kept <= n)

    temperature = jnp.clip(sampling.temperature, TINY, HUGE)[:, None]
    weights = jnp.where(rank < kept[:, None], jnp.exp(below / temperature), 0.0)
    sums = jnp.where(weights > 0, _prefix_sums(weights), 0.0)
    target = uniform * jnp.max(sums, axis=1)  # u < 1, so it is below the maximum
    return _first(sums > target[:, None]), settled


def _top_k(sampling: SlotSampling, vocab: int) -> jax.Array:  # (B,) i32
    """How many tokens top-k leaves: 1..vocab."""
    return jnp.where(sampling.top_k < 1, vocab, jnp.minimum(sampling.top_k, vocab))


def _mass(
    logits: jax.Array,  # (B, V) f32
) -> jax.Array:  # (B,) f32
    """Sum of exp(logit - best) over the whole row, in id order: top-p's total where top-k is off, on both paths."""
    best = jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.where(logits == best, 1.0, jnp.exp(logits - best))
    return jnp.sum(jnp.where(logits == -jnp.inf, 0.0, weights), axis=1)


def _no_mass(
    logits: jax.Array,  # (B, V) f32
) -> jax.Array:  # (B,) f32
    return jnp.zeros(logits.shape[0], jnp.float32)


def _prefix_sums(
    x: jax.Array,  # (B, N) f32
) -> jax.Array:  # (B, N) f32
    """Inclusive prefix sums by doubling; the additions behind element i are the same for every N > i.

    (A larger N adds steps that add 0.) `jnp.cumsum` leaves the order to the backend, so it may vary with N.
    `associative_scan` is 3 times as fast at N = 128256 (long path only: 2 of 190 ms), and 0.4-1.3 s slower to compile.
    """
    n = x.shape[1]
    zeros = jnp.zeros_like(x)

    def double(step: jax.Array, x: jax.Array) -> jax.Array:
        shift = jnp.left_shift(jnp.int32(1), step)
        return x + lax.dynamic_slice_in_dim(jnp.concatenate([zeros, x], axis=1), n - shift, n, axis=1)

    return lax.fori_loop(0, (n - 1).bit_length(), double, x)


def _first(
    mask: jax.Array,  # (B, N) bool
) -> jax.Array:  # (B,) i32
    """Index of the first True, 0 where there is none."""
    return lax.argmax(mask, 1, jnp.int32)


def _at(
    ids: jax.Array,  # (B, N) i32
    rank: jax.Array,  # (B,) i32
) -> jax.Array:  # (B,) i32
    return jnp.take_along_axis(ids, rank[:, None], axis=1)[:, 0]


def _uniforms(
    seed: Array,  # (B,) u32
    position: Array,  # (B,) i32
) -> jax.Array:  # (B,) f32
    def one(seed: Array, position: Array) -> jax.Array:  # scalars
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        return jax.random.uniform(key, (), jnp.float32)

    return jax.vmap(one)(seed, position)


def _check(logits: Array, sampling: SlotSampling, position: Array, cap: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or logits.dtype != np.float32:
        raise ValueError(f"logits must be float32 (B, V) with V > 0, not {logits.dtype} {logits.shape}")
    if cap < 1:
        raise ValueError(f"cap must be positive, not {cap}")
    slots = logits.shape[:1]
    for name, array in {**sampling._asdict(), "position": position}.items():
        dtype = DTYPES[name]
        if array.shape != slots or array.dtype != dtype:
            raise ValueError(f"{name} must be {np.dtype(dtype)} {slots}, not {array.dtype} {array.shape}")
