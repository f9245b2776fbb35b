"""Latent attention against a float64 forward, token by token, in both of its forms and both shapes of files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import metadata
from packed import random_weights

from packlight.compile.kernels import product_paths
from packlight.model.network.mixers import mla
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.mla import Latent, MlaPart
from packlight.model.spec.positions import RopeScaling, Sharpening
from packlight.model.spec.state import Room
from packlight.model.weights.stack import Stack

LAYERS, LAYER, SLOTS, CAPACITY, T = 2, 1, 3, 256, 150
YARN = RopeScaling("yarn", 8.0, original_context=64, log_multiplier=1.0)
SHARPENING = Sharpening(0.4, 16)
PARTS = {
    "split": MlaPart(4, 64, 32, 16, 48, 24),
    "wide latent": MlaPart(4, 64, 96, 32, 64, 8),
    "whole": MlaPart(4, 0, 64, 16, 48, 40, split=False),
    "more heads": MlaPart(12, 64, 64, 16, 80, 40),
}


@pytest.fixture(scope="module", params=PARTS)
def part(request):
    return PARTS[request.param]


@pytest.fixture(scope="module")
def cfg(part):
    cfg = ModelConfig.from_metadata(metadata("llama-gqa"))
    return dataclasses.replace(cfg, rope_dimension_count=part.rotated, rope_scaling=YARN, sharpening=SHARPENING)


@pytest.fixture(scope="module")
def weights(part, cfg):
    """Layers of two formats where there are several, so that a stack has two groups."""
    found = {}
    for number, weight in enumerate(part.weights(cfg)):
        if weight.is_vector:
            found[weight.name] = jnp.asarray(np.random.default_rng(number).uniform(0.5, 1.5, (LAYERS, *weight.shape)))
        else:
            groups = tuple(random_weights(qtype, 1, *weight.shape, seed=number) for qtype in ("Q8_0", "Q5_0"))
            found[weight.name] = Stack(groups, ((0, 0), (1, 0)))
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, found)


@pytest.fixture(scope="module")
def text(cfg):
    return np.random.default_rng(0).normal(size=(T, cfg.embedding_length)).astype(np.float32)


def run(part, cfg, weights, state, h, slot, start, form=None, kernel="tiled"):
    """(y, state) of h (B, T, D) in slots `slot ..`, each from position `start`, in one of the two forms."""
    numerics = Numerics(product_paths("reference"), jnp.dtype("float32"), CAPACITY, CAPACITY, kernel=kernel)
    rows = Rows(
        jnp.int32(slot),
        *(jnp.full(len(h), at, jnp.int32) for at in (start, start + h.shape[1])),
        jnp.ones(len(h), bool),
    )

    @jax.jit
    def mix(weights, state, h):
        step = Step.of(cfg, numerics, {}, rows, h.shape[1])
        if form is None:
            return mla.mix(step, part, weights, jnp.int32(LAYER), state, h)
        q, new = mla.project(step, part, weights, jnp.int32(LAYER), h)
        state = Latent(mla.put(state.latent, jnp.int32(LAYER), new[:, :, None], rows))
        mixed = form(step, part, weights, jnp.int32(LAYER), state, q)
        return mla.closing(step, mixed, weights, "attn_output", jnp.int32(LAYER), part.mixed), state

    return mix(weights, state, h)


def empty(part, cfg, dtype="float32"):
    (buffer,) = part.state(cfg, LAYERS, Room(SLOTS, CAPACITY, T, dtype))
    return Latent(jnp.full(buffer.shape, jnp.nan, jnp.dtype(dtype)))


@functools.cache
def frequencies(rotated):
    """YaRN's, of 8 times 64 positions: pairs that turn more than 32 times keep theirs, below once they are an 8th."""
    pairs = np.arange(rotated // 2)
    inverse = 10000.0 ** (-2 * pairs / rotated)
    low, high = (rotated * np.log(64 / (turns * 2 * np.pi)) / (2 * np.log(10000.0)) for turns in (32, 1))
    low, high = max(0, np.floor(low)), min(rotated - 1, np.ceil(high))
    keep = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
    return inverse * keep + inverse / 8 * (1 - keep)


def turned(x, position):
    """Pairs (2i, 2i + 1) of the last axis as complex numbers, turned."""
    z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * position * frequencies(x.shape[-1]))
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def oracle(part, cfg, weights, text):
    """float64 (T, D): every token's keys and values, of every head, kept one after the other."""
    H, plain = part.heads, part.plain

    def get(name):
        w = weights[name]
        return np.asarray(w.groups[LAYER].unpack()[0] if isinstance(w, Stack) else w[LAYER]).astype(np.float64)

    def normed(x, name):
        return x / np.sqrt((x * x).mean() + cfg.norm_epsilon) * get(name)

    if part.split:
        of_keys, of_values = get("attn_k_b").transpose(0, 2, 1), get("attn_v_b")
    else:
        both = get("attn_kv_b").reshape(H, plain + part.value_length, part.kv_rank)
        of_keys, of_values = both[:, :plain], both[:, plain:]
    sharper = (1 + 0.1 * np.log(8.0)) ** 2
    keys, values, out = [], [], []
    for at, h in enumerate(text.astype(np.float64)):
        q = get("attn_q_b") @ normed(get("attn_q_a") @ h, "attn_q_a_norm") if part.q_rank else get("attn_q") @ h
        q = q.reshape(H, part.key_length)
        q = np.concatenate([q[:, :plain], turned(q[:, plain:], at)], -1)
        q = q * (1 + SHARPENING.scale * np.log(1 + at // SHARPENING.length))
        new = get("attn_kv_a_mqa") @ h
        latent, shared = normed(new[: part.kv_rank], "attn_kv_a_norm"), turned(new[part.kv_rank :], at)
        keys.append(np.concatenate([of_keys @ latent, np.broadcast_to(shared, (H, part.rotated))], -1))
        values.append(of_values @ latent)
        scores = np.einsum("hc,shc->hs", q, np.array(keys)) * sharper / np.sqrt(part.key_length)
        chosen = np.exp(scores - scores.max(-1, keepdims=True))
        chosen /= chosen.sum(-1, keepdims=True)
        out.append(get("attn_output") @ np.einsum("hs,shv->hv", chosen, np.array(values)).reshape(-1))
    return np.array(out)


@pytest.fixture(scope="module")
def exact(part, cfg, weights, text):
    return oracle(part, cfg, weights, text)


# float32 sums of at most n = 256 terms are off by sqrt(n) 2^-24 of their size, by chance; five products in a row, and
# scores of some tens as powers: 5 * 16 * 2^-24 * 32 of a deviation, about 1.5e-4.
TOLERANCE = 1.5e-4


@pytest.mark.parametrize("form", [mla.absorbed, mla.expanded], ids=["absorbed", "expanded"])
def test_equals_float64(part, cfg, weights, text, exact, form):
    """A ragged prompt in two chunks, in a slot whose neighbours are empty and not finite."""
    state, parts = empty(part, cfg), []
    for begin, end in ((0, 67), (67, T)):
        y, state = run(part, cfg, weights, state, text[None, begin:end], 1, begin, form)
        parts.append(y[0])
    assert np.abs(np.concatenate(parts) - exact).max() <= TOLERANCE * exact.std()


@pytest.mark.parametrize("kernel", ["tiled", "whole", "native"])
def test_single_tokens_equal_float64(part, cfg, weights, text, exact, kernel):
    """Native attention has a head's products one after the other."""
    _, state = run(part, cfg, weights, empty(part, cfg), text[None, :-1], 2, 0)
    y, _ = run(part, cfg, weights, state, text[None, -1:], 2, T - 1, kernel=kernel)
    assert np.abs(y[0, 0] - exact[-1]).max() <= TOLERANCE * exact.std()


def test_forms_agree_where_latents_are_halves(part, cfg, weights, text):
    """A bfloat16 has 8 bits: in a latent both forms see the same ones, and round a query or a key by 2^-9 more."""
    results = []
    for form in (mla.absorbed, mla.expanded):
        y, _ = run(part, cfg, weights, empty(part, cfg, "bfloat16"), text[None], 0, 0, form)
        results.append(np.asarray(y))
    assert np.abs(results[0] - results[1]).max() <= 32 * 2.0**-9 * results[0].std()  # scores of some tens, as above


def test_slots_and_neighbours_change_no_bit_of_a_token(part, cfg, weights, text):
    _, state = run(part, cfg, weights, empty(part, cfg), text[None, :40], 0, 0)
    held = state.latent[:, :1]
    for state in (jnp.concatenate([held] * SLOTS, 1), jnp.concatenate([held, held, held * 3], 1)):
        h = np.stack([text[40:41]] * 2 + [text[41:42]])
        y, _ = run(part, cfg, weights, Latent(state), h, 0, 40)
        np.testing.assert_array_equal(y[0], y[1])


def test_it_expands_where_that_is_less_work():
    flash, v3 = MlaPart(20, 768, 512, 64, 256, 256), MlaPart(128, 1536, 512, 64, 192, 128)
    assert [flash.expands(tokens) for tokens in (1, 256, 398, 399, 512)] == [False, False, False, True, True]
    assert [v3.expands(tokens) for tokens in (1, 170, 171)] == [False, False, True]
