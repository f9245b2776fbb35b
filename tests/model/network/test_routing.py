"""Routers: which experts are chosen and what they weigh, against a float64 loop written from the papers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.model.network.ffn.moe import LEAST_SUM, route
from packlight.model.spec.parts.moe import Routing

EXPERTS, ROWS = 12, 40


def plain(logits, used, routing, bias):
    """One row at a time, in float64: (chosen experts, their weights)."""
    chosen, weights = [], []
    for row in logits.astype(np.float64):
        scores = 1 / (1 + np.exp(-row)) if routing.scores == "sigmoid" else np.exp(row) / np.exp(row).sum()
        by = scores + bias
        groups = by.reshape(routing.groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(1), kind="stable")[: routing.groups_used]
        allowed = [at for at in range(EXPERTS) if at // groups.shape[1] in best]
        experts = sorted(allowed, key=lambda at: -by[at])[:used]
        share = scores[experts]
        share = share / max(share.sum(), LEAST_SUM) if routing.normed else share
        chosen.append(experts)
        weights.append(share * routing.scale)
    return np.array(chosen), np.array(weights)


@pytest.mark.parametrize(
    ("scores", "normed", "groups", "biased"),
    list(itertools.product(["softmax", "sigmoid"], [True, False], [(1, 1), (4, 2), (12, 5), (3, 1)], [True, False])),
)
def test_a_router_equals_the_plain_loop(scores, normed, groups, biased):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(ROWS, EXPERTS)).astype(np.float32)
    bias = (0.3 * rng.normal(size=EXPERTS) * biased).astype(np.float32)
    routing, used = Routing(scores, normed, 2.5, *groups), 3
    expected, shares = plain(logits, used, routing, bias)
    experts, weights = jax.jit(route, static_argnums=(1, 2))(logits, used, routing, jnp.asarray(bias))
    np.testing.assert_array_equal(np.asarray(experts), expected)
    # A sum of twelve float32 terms and a division: some units in the last place, 2^-24 each.
    np.testing.assert_allclose(np.asarray(weights), shares, rtol=16 * 2**-24)


def test_weights_far_below_one_are_divided_by_the_least_sum():
    """As llama.cpp does: sigmoids that underflow give no infinite weights."""
    experts, weights = route(jnp.full((1, 4), -30.0), 2, Routing("sigmoid"))
    np.testing.assert_array_equal(np.asarray(experts), [[0, 1]])
    np.testing.assert_allclose(np.asarray(weights), np.exp(-30.0) / LEAST_SUM, rtol=1e-6)


def test_biases_choose_and_do_not_weigh():
    """The bias lifts the last expert above the others; it weighs what its own score says."""
    bias = jnp.asarray([0.0, 0.0, 0.0, 5.0])
    experts, weights = route(jnp.asarray([[1.0, 2.0, 3.0, -1.0]]), 2, Routing("sigmoid", normed=False), bias)
    np.testing.assert_array_equal(np.asarray(experts), [[3, 2]])
    np.testing.assert_allclose(np.asarray(weights)[0], 1 / (1 + np.exp([1.0, -3.0])), rtol=1e-6)
