"""What the sampler's steps are made of: ranks, prefix sums and totals of rows of logits. Knows no parameters.

Tokens are ranked by logit, highest first, equal logits by lower id first. Steps run on the N highest ranks only, or on
all V, and must decide alike on both: what is summed here is summed in an order that does not depend on N.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.quant.division import over

CAP = 256  # ranks that the short path looks at
TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)
Array = jax.Array | np.ndarray


def finite(
    logits: Array,  # (B, V) f32
) -> jax.Array:  # (B,) bool
    """True for each row without NaN and infinities. `sample` answers either way; the engine raises on False."""
    return jnp.all(jnp.isfinite(logits), axis=-1)


def clean(
    logits: Array,  # (B, V) f32
) -> jax.Array:  # (B, V) f32
    """Logits that every comparison orders alike: NaN is -inf, and -0 and subnormals are 0."""
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    return jnp.where(jnp.abs(logits) < TINY, 0.0, logits)


def ranked(
    logits: jax.Array,  # (B, V) f32, of `clean`
    n: int,
) -> tuple[jax.Array, jax.Array]:  # values (B, n) f32, ids (B, n) i32
    """The n highest logits and their ids, equal logits by lower id.

    The barrier keeps XLA's fast kernel: XLA:CPU first sees a full sort and a slice, and turns the pair into its TopK
    call only if no consumer slices the result further. Without it (32000, n = 256) takes 12 ms instead of 0.3. One for
    each result: around both, XLA aborts when it partitions the step (it takes the pair for the call's own tuple).
    """
    values, ids = lax.top_k(logits, n)
    return lax.optimization_barrier(values), lax.optimization_barrier(ids)


def prefix_sums(
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


def total_of(
    x: jax.Array,  # (B, N) f32, zero behind what an N of `cap` would hold
) -> jax.Array:  # (B, 1) f32
    """The sum of each row, in one order for every B, and N: in pieces of CAP, of which a longer row adds zeros.

    `jnp.sum` leaves the order to the backend, which chooses it by the shape.
    """
    pieces = max(1, -(-x.shape[1] // CAP))
    x = jnp.pad(x, ((0, 0), (0, pieces * CAP - x.shape[1])))

    def add(number: jax.Array, sums: jax.Array) -> jax.Array:
        return sums + lax.dynamic_slice_in_dim(x, number * CAP, CAP, axis=1)

    sums = lax.fori_loop(0, pieces, add, jnp.zeros((len(x), CAP), x.dtype))
    return prefix_sums(sums)[:, -1:]


def first_true(
    mask: jax.Array,  # (B, N) bool
) -> jax.Array:  # (B,) i32
    """Index of the first True, 0 where there is none. XLA:CPU takes many integers at once for a minimum, one by one for
    an argmax.
    """
    n = mask.shape[1]
    first = jnp.min(jnp.where(mask, jnp.arange(n, dtype=jnp.int32), n), axis=1)
    return jnp.where(first == n, 0, first)


def value_at(
    x: jax.Array,  # (B, N)
    rank: jax.Array,  # (B,) i32
) -> jax.Array:  # (B,)
    return jnp.take_along_axis(x, rank[:, None], axis=1)[:, 0]


def best_kept(values: jax.Array, keep: jax.Array) -> jax.Array:  # (B, 1) f32
    """The highest logit that is kept."""
    return value_at(values, first_true(keep))[:, None]


def below_best(
    values: jax.Array,  # (B, N) f32
    best: jax.Array,  # (B, 1) f32
) -> jax.Array:  # (B, N) f32
    """How far each logit is below the best: 0 for the best, even if infinite, -inf for -inf."""
    below = jnp.where(values == best, 0.0, values - best)  # +inf - +inf is NaN
    return jnp.where(values == -jnp.inf, -jnp.inf, below)  # which must weigh nothing even where it is the best


def leading(mask: jax.Array, vocab: int) -> jax.Array:  # (B,) i32
    """How many elements are True before the first False; vocab where none is seen to be False."""
    return jnp.where(jnp.all(mask, axis=1), vocab, first_true(~mask))


def mass(
    logits: jax.Array,  # (B, V) f32
    best: jax.Array,  # (B, 1) f32, the highest of each row
    temperature: jax.Array,  # (B,) f32
) -> jax.Array:  # (B,) f32
    """The sum of exp((logit - best) / temperature)."""
    weights = jnp.where(logits == best, 1.0, jnp.exp(over(logits - best, temperature[:, None])))
    return total_of(jnp.where(logits == -jnp.inf, 0.0, weights))[:, 0]


def deviation(
    logits: jax.Array,  # (B, V) f32
) -> jax.Array:  # (B,) f32
    """The standard deviation of the finite logits."""
    known = jnp.isfinite(logits)
    count = jnp.maximum(jnp.sum(known, axis=1, keepdims=True, dtype=jnp.int32), 1).astype(jnp.float32)
    mean = total_of(jnp.where(known, logits, 0.0)) / count
    return jnp.sqrt(total_of(jnp.where(known, (logits - mean) ** 2, 0.0)) / count)[:, 0]


def log_probabilities(
    logits: jax.Array,  # (B, V) f32
) -> jax.Array:  # (B, V) f32
    """The log-softmax of each row."""
    below = logits - jnp.max(logits, axis=1, keepdims=True)
    return below - jnp.log(total_of(jnp.exp(below)))


def asked_log_probabilities(
    logits: jax.Array,  # (B, V) f32
    ids: jax.Array,  # (B,) i32
    asked: Array,  # (B,) i32; < 0: nobody does
    count: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # (B,) f32, (B, count) f32, (B, count) i32
    """`log_probabilities` at an id, at the `count` highest, and the ids of these; zeros where nobody asks."""

    def reported() -> tuple[jax.Array, jax.Array, jax.Array]:
        _, top = ranked(clean(logits), count)
        values = jnp.take_along_axis(log_probabilities(logits), jnp.concatenate([ids[:, None], top], axis=1), axis=1)
        return values[:, 0], values[:, 1:], top

    def nothing() -> tuple[jax.Array, jax.Array, jax.Array]:
        shape = len(logits), count
        return jnp.zeros(shape[0], jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)

    return lax.cond(jnp.any(asked >= 0), reported, nothing)
