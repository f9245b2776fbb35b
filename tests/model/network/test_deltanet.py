"""The gated delta net against its recurrence, token by token in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_part import EPSILON, OnePart, equals_float64

from packlight.model.network.mixers import deltanet
from packlight.model.network.state import Rows
from packlight.model.spec.parts.deltanet import DeltaNetPart

PARTS = {
    "in turn": DeltaNetPart(6, 2, 32, 4),
    "consecutive": DeltaNetPart(6, 2, 32, 4, consecutive=True),
    "one value head each": DeltaNetPart(3, 3, 64, 2),
    "one key head": DeltaNetPart(4, 1, 32, 5),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(part, weights, x):
    """What the part gives for a text x (T, D), in float64, and the matrices it ends with."""
    H, G, S, T = part.heads, part.groups, part.width, len(x)
    of = [h // (H // G) if part.consecutive else h % G for h in range(H)]
    shared = H // G
    if "ssm_in" in weights:
        each = (x @ weights["ssm_in"].T).reshape(T, G, -1)
        q, k, v, z = np.split(each, np.cumsum([S, S, shared * S]), axis=-1)
        qkv, z = np.concatenate([a.reshape(T, -1) for a in (q, k, v)], -1), z.reshape(T, H, S)
    else:
        qkv, z = x @ weights["attn_qkv"].T, (x @ weights["attn_gate"].T).reshape(T, H, S)
    if part.consecutive:
        both = (x @ weights["ssm_ba"].T).reshape(T, G, 2, shared)
        b, a = both[:, :, 0].reshape(T, H), both[:, :, 1].reshape(T, H)
    else:
        b, a = x @ weights["ssm_beta"].T, x @ weights["ssm_alpha"].T
    rate = np.log1p(np.exp(a + weights["ssm_dt.bias"])) * weights["ssm_a"]
    late = np.concatenate([np.zeros((part.taps - 1, qkv.shape[1])), qkv])
    mixed = np.array([(late[t : t + part.taps] * weights["ssm_conv1d"].T).sum(0) for t in range(T)])
    mixed = mixed * sigmoid(mixed)
    memory, out = np.zeros((H, S, S)), np.zeros((T, H, S))
    for t in range(T):
        for h in range(H):
            q, k = mixed[t, of[h] * S :][:S], mixed[t, (G + of[h]) * S :][:S]
            v = mixed[t, (2 * G + h) * S :][:S]
            q, k = (each / np.sqrt(each @ each + EPSILON) for each in (q, k))
            faded = memory[h] * np.exp(rate[t, h])
            memory[h] = faded + sigmoid(b[t, h]) * np.outer(k, v - k @ faded)
            out[t, h] = q @ memory[h] / np.sqrt(S)
    out /= np.sqrt((out**2).mean(-1, keepdims=True) + EPSILON)
    return (out * weights["ssm_norm"] * z * sigmoid(z)).reshape(T, -1) @ weights["ssm_out"].T, memory


@pytest.mark.parametrize("chunks", [(1,) * 20, (131,), (64, 3, 1, 65)], ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_it_equals_float64(name, chunks):
    equals_float64(OnePart(PARTS[name], ("ssm_in",)), expected, chunks)


def test_an_old_file_has_one_tensor_for_each_key_heads_channels():
    net = OnePart(PARTS["consecutive"], ("attn_qkv", "attn_gate"))
    assert "ssm_in" in net.weights
    equals_float64(net, expected, (70,))


def recurrence(q, k, v, beta, fade):
    """Of one head, in float64: answers (T, S)."""
    memory, out = np.zeros((v.shape[1], k.shape[1])), []
    for t in range(len(q)):
        memory *= np.exp(fade[t])
        memory += beta[t] * np.outer(v[t] - memory @ k[t], k[t])
        out.append(memory @ q[t])
    return np.array(out)


@pytest.mark.parametrize("fading", [0.0, -1e-3, -30.0, -1e4], ids=str)
def test_chunks_bear_repeated_keys_and_any_fading(fading):
    """One key again and again, which powers of the triangle would make 1e18 of, and exponents beyond float32's."""
    rng = np.random.default_rng(0)
    T, S = 100, 32
    q, k, v = rng.normal(size=(3, T, S))
    k[:] = k[0] / np.linalg.norm(k[0])
    beta, fade = np.full(T, 0.999), fading * rng.random(T)
    wanted = recurrence(q, k, v, beta, fade)
    new = deltanet.Tokens(*(jnp.asarray(x, jnp.float32)[None, :, None] for x in (q, k, v, beta, fade)))
    o, _ = jax.jit(deltanet.in_chunks)(jnp.zeros((1, 1, S, S), jnp.float32), new)
    assert np.abs(o[0, :, 0] - wanted).max() <= 1e-4 * wanted.std()


def test_single_tokens_are_the_same_bits_in_any_slot_beside_any_others():
    """Products with matrices have their own test."""
    rng = np.random.default_rng(0)
    H, S, remember = 3, 64, jax.jit(deltanet.remember)

    def after(slots, slot, active):
        """Answers of the token below in a slot among others, and the memory that it leaves there."""
        memory = rng.normal(size=(2, slots + 1, H, S, S))
        new = [rng.normal(size=(slots, 1, H, *each)) for each in ((S,), (S,), (S,), (), ())]
        memory[1, slot + 1] = held
        for x, y in zip(new, token, strict=True):
            x[slot] = y
        start = np.full(slots, 7, np.int32)
        rows = Rows(jnp.int32(1), jnp.asarray(start), jnp.asarray(start + 1), jnp.asarray(active))
        new = deltanet.Tokens(*(jnp.asarray(x, jnp.float32) for x in new))
        o, memory = remember(jnp.asarray(memory, jnp.float32), jnp.int32(1), new, rows)
        return o[slot], memory[1, slot + 1]

    held = rng.normal(size=(H, S, S))
    token = [rng.normal(size=(1, H, *each)) for each in ((S,), (S,), (S,), (), ())]
    alone = after(1, 0, [True])
    assert np.abs(alone[0]).min() > 0
    for slots, slot in ((2, 1), (4, 0), (5, 2), (8, 5)):
        beside = after(slots, slot, [at == slot or at % 2 == 0 for at in range(slots)])
        jax.tree.map(np.testing.assert_array_equal, beside, alone)
