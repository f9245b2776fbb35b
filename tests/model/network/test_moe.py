"""Mixture of experts: the sorted tiles against a plain loop over rows, however the router spreads them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import random_weights

from packlight.compile.kernels import product_paths
from packlight.model.network.ffn import moe as moe_module
from packlight.model.network.ffn.moe import moe, route
from packlight.model.spec.architectures import ARCHITECTURES
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.moe import Routing
from packlight.model.spec.positions import RopeScaling
from packlight.model.weights.stack import Stack

D, F, E = 256, 512, 8
XLA = product_paths("xla")
CFG = ModelConfig(
    ARCHITECTURES["llama"], "", 2, 64, D, F, 4, 4, 64, 300, 1e-5, 64, 1e4, RopeScaling(), E, expert_used_count=2
)


@pytest.fixture(scope="module")
def blk():
    def stack(qtype, *shape):
        return Stack((random_weights(qtype, 2, E, *shape),), ((0, 0), (0, 1)))

    return {
        "ffn_gate_exps": stack("Q4_K", F, D),
        "ffn_up_exps": stack("Q8_0", F, D),
        "ffn_down_exps": stack("Q6_K", D, F),
    }


def plain(x, router, blk, layer, used):
    """The definition, row by row in float64."""
    gate, up, down = (
        np.asarray(blk[f"ffn_{n}_exps"].groups[0].unpack())[layer].astype(float) for n in ("gate", "up", "down")
    )
    out = np.zeros((len(x), D))
    for row, scores in enumerate(router.astype(float)):
        chosen = np.argsort(-scores, kind="stable")[:used]
        share = np.exp(scores[chosen] - scores.max())
        for expert, weight in zip(chosen, share / share.sum(), strict=True):
            g = gate[expert] @ x[row]
            out[row] += weight * (down[expert] @ (g / (1 + np.exp(-g)) * (up[expert] @ x[row])))
    return out


@pytest.mark.parametrize(
    ("rows", "used", "spread"), [(1, 2, 1.0), (5, 1, 1.0), (33, 2, 1.0), (64, 3, 1.0), (20, 2, 0.0)]
)
def test_moe_equals_the_plain_loop(blk, rows, used, spread):
    """spread 0: every row ties on every expert, so all choose the first ones."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    router = (spread * rng.normal(size=(rows, E))).astype(np.float32)
    cfg = dataclasses.replace(CFG, expert_used_count=used)
    y = jax.jit(lambda x, r, b: moe(cfg, x, r, b, jnp.int32(1), XLA))(x, router, blk)
    expected = plain(x, router, blk, 1, used)
    # Sums of D and F float32 terms: K * 2^-24 of the largest partial sums, a few times the result.
    assert np.abs(np.asarray(y) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("rows", "used"), [(1, 2), (7, 3), (64, 2)])
def test_natively_it_is_the_tiles(rows, used, layer):
    """Layers of other formats, and plain numbers, which nothing rounds: sums differ as the plain loop's do."""
    first, second = (random_weights("F16", 1, E, F, D, seed=seed) for seed in (1, 2))
    half, whole = (random_weights(qtype, 1, E, D, F, seed=3) for qtype in ("F16", "F32"))
    both = Stack((random_weights("F32", 2, E, F, D),), ((0, 0), (0, 1)))
    blk = {
        "ffn_gate_exps": Stack((first, second), ((1, 0), (0, 0))),
        "ffn_up_exps": both,
        "ffn_down_exps": Stack((half, whole), ((0, 0), (1, 0))),
    }
    rng = np.random.default_rng(rows)
    x, router = rng.normal(size=(rows, D)).astype(np.float32), rng.normal(size=(rows, E)).astype(np.float32)
    cfg, paths = dataclasses.replace(CFG, expert_used_count=used), product_paths("native")

    def made(native):
        run = jax.jit(lambda x, r, b: moe(cfg, x, r, b, jnp.int32(layer), paths, native=native))
        return np.asarray(run(x, router, blk))

    tiles, native = made(False), made(True)
    assert np.abs(native - tiles).max() <= 1e-4 * np.abs(tiles).max()


@pytest.mark.parametrize("rows", [1, 40])
def test_only_the_chosen_experts_are_computed(blk, rows, monkeypatch):
    """Decode and prefill: as many products run as the chosen experts' rows fill tiles, and none for another expert."""
    ran, real = [], moe_module._expert

    def counted(kind, x, blk, index, expert, paths):
        jax.debug.callback(lambda e: ran.append(int(e)), expert)
        return real(kind, x, blk, index, expert, paths)

    monkeypatch.setattr(moe_module, "_expert", counted)
    rng = np.random.default_rng(rows)
    router = rng.normal(size=(rows, E)).astype(np.float32)
    router[:, [1, 4, 6]] -= 100  # nobody's choice
    x = rng.normal(size=(rows, D)).astype(np.float32)
    jax.jit(lambda x, r, b: moe(CFG, x, r, b, jnp.int32(0), XLA))(x, router, blk)
    jax.effects_barrier()
    chosen = np.argsort(-router, axis=1)[:, :2].ravel()
    tile = min(rows, max(8, chosen.size // E))
    wanted = {e: -(-int((chosen == e).sum()) // tile) for e in set(chosen.tolist())}
    assert {e: ran.count(e) for e in set(ran)} == wanted
    assert not {1, 4, 6} & set(ran)


def test_a_row_does_not_depend_on_its_neighbours(blk):
    rng = np.random.default_rng(0)
    x, router = rng.normal(size=(16, D)).astype(np.float32), rng.normal(size=(16, E)).astype(np.float32)
    step = jax.jit(lambda x, r, b: moe(CFG, x, r, b, jnp.int32(0), XLA))
    y = np.asarray(step(x, router, blk))
    order = rng.permutation(16)
    np.testing.assert_array_equal(np.asarray(step(x[order], router[order], blk)), y[order])


def test_route_takes_the_lower_expert_of_a_tie_and_shares_sum_to_one():
    experts, weights = route(jnp.asarray([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2, Routing())
    np.testing.assert_array_equal(np.asarray(experts), [[1, 2], [0, 1]])
    np.testing.assert_allclose(np.asarray(weights), 0.5)
