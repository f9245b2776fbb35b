"""Mamba-2 against its recurrence, token by token in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_part import EPSILON, OnePart, equals_float64

from packlight.model.network.mixers import mamba2
from packlight.model.network.state import Rows
from packlight.model.spec.parts.mamba2 import Mamba2Part

PARTS = {
    "one group": Mamba2Part(6, 1, 32, 48, 4),
    "groups": Mamba2Part(6, 3, 64, 16, 3),
    "a group each": Mamba2Part(4, 4, 32, 32, 5),
}


def silu(x):
    return x / (1 + np.exp(-x))


def expected(part, weights, x):
    """What the part gives for a text x (T, D), in float64, and the memory it ends with."""
    J, groups, C, N = part.heads, part.groups, part.width, part.memory
    inner, each = J * C, groups * N
    z, late, dt = np.split(x @ weights["ssm_in"].T, [inner, 2 * inner + 2 * each], axis=1)
    late = np.concatenate([np.zeros((part.taps - 1, late.shape[1])), late])
    memory, out = np.zeros((J, N, C)), []
    for t in range(len(x)):
        mixed = (late[t : t + part.taps] * weights["ssm_conv1d"].T).sum(0) + weights.get("ssm_conv1d.bias", 0)
        mixed = silu(mixed)
        step = np.log1p(np.exp(dt[t] + weights["ssm_dt.bias"]))
        y = np.zeros((J, C))
        for h in range(J):
            group = h // (J // groups)
            u, b, c = mixed[h * C :][:C], mixed[inner + group * N :][:N], mixed[inner + each + group * N :][:N]
            memory[h] = memory[h] * np.exp(step[h] * weights["ssm_a"][h, 0]) + step[h] * np.outer(b, u)
            y[h] = c @ memory[h] + weights["ssm_d"][h, 0] * u
        y = y.reshape(-1) * silu(z[t])
        if "ssm_norm" in weights:
            y = y.reshape(groups, -1)
            y = y / np.sqrt((y**2).mean(1, keepdims=True) + EPSILON) * weights["ssm_norm"]
        out.append(y.reshape(-1))
    return np.array(out) @ weights["ssm_out"].T, memory


@pytest.mark.parametrize("chunks", [(1,) * 20, (131,), (64, 3, 1, 65)], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_it_equals_float64(name, chunks):
    equals_float64(OnePart(PARTS[name]), expected, chunks)


@pytest.mark.parametrize("without", ["ssm_norm", "ssm_conv1d.bias"])
def test_a_file_may_lack_the_norm_and_the_bias(without):
    equals_float64(OnePart(PARTS["groups"], (without,)), expected, (70,))


def recurrence(x, b, c, fade):
    """Of one head, in float64: answers (T, C)."""
    memory, out = np.zeros((b.shape[1], x.shape[1])), []
    for t in range(len(x)):
        memory = memory * np.exp(fade[t]) + np.outer(b[t], x[t])
        out.append(c[t] @ memory)
    return np.array(out)


@pytest.mark.parametrize("often", [0, 5], ids=["always alike", "once in a while"])
@pytest.mark.parametrize("fading", [0.0, -1e-3, -30.0, -1e4, -1e30], ids=str)
def test_chunks_bear_any_fading(fading, often):
    """Exponents beyond float32's; and tokens that forget all, behind which others hardly fade: a difference of plain
    float32 sums would be off by 1e4 * 2^-24 = 6e-4."""
    rng = np.random.default_rng(0)
    T, S = 100, 32
    x, b, c = rng.normal(size=(3, T, S))
    fade = fading * rng.random(T)
    if often:
        fade = np.where(np.arange(T) % often, -0.01 * rng.random(T), fade)
    wanted = recurrence(x, b, c, fade)
    new = mamba2.Tokens(*(jnp.asarray(each, jnp.float32)[None, :, None] for each in (x, b, c, fade)))
    y, _ = jax.jit(mamba2.in_chunks)(jnp.zeros((1, 1, S, S), jnp.float32), new, jnp.int32(T))
    # Sums of 32, then 64 products: 96 * 2^-24 = 6e-6 of what they add up, a few deviations of a result.
    assert np.abs(y[0, :, 0] - wanted).max() <= 3e-5 * wanted.std()


def test_single_tokens_are_the_same_bits_in_any_slot_beside_any_others():
    """Products with matrices have their own test."""
    rng = np.random.default_rng(0)
    J, U, C, N, remember = 6, 2, 64, 48, jax.jit(mamba2.remember)
    shapes = ((J, C), (U, N), (U, N), (J,))

    def after(slots, slot, active):
        """Answers of the token below in a slot among others, and the memory that it leaves there."""
        memory = rng.normal(size=(2, slots + 1, J, N, C))
        new = [rng.normal(size=(slots, 1, *shape)) for shape in shapes]
        memory[1, slot + 1] = held
        for x, y in zip(new, token, strict=True):
            x[slot] = y
        start = np.full(slots, 7, np.int32)
        rows = Rows(jnp.int32(1), jnp.asarray(start), jnp.asarray(start + 1), jnp.asarray(active))
        new = mamba2.Tokens(*(jnp.asarray(x, jnp.float32) for x in new))
        y, memory = remember(jnp.asarray(memory, jnp.float32), jnp.int32(1), new, rows)
        return y[slot], memory[1, slot + 1]

    held = rng.normal(size=(J, N, C))
    token = [rng.normal(size=(1, *shape)) for shape in shapes]
    alone = after(1, 0, [True])
    assert np.abs(alone[0]).min() > 0
    for slots, slot in ((2, 1), (4, 0), (5, 2), (8, 5)):
        beside = after(slots, slot, [at == slot or at % 2 == 0 for at in range(slots)])
        jax.tree.map(np.testing.assert_array_equal, beside, alone)
