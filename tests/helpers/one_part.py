"""One recurrent mixer with random weights of two layers, the last of which runs on the reference path: what float64
twins compare with.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from golden_models import metadata
from packed import random_weights

from packlight.compile.kernels import product_paths
from packlight.model.network.forward import MIXERS
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.state import Room
from packlight.model.weights.stack import Stack

EPSILON = 1e-3  # large, so that another one shows
D = 256


class OnePart:
    """A part, without the weights that a file may lack or have others for: names in `left_out`."""

    def __init__(self, part, left_out=()):
        self.part = part
        self.cfg = dataclasses.replace(ModelConfig.from_metadata(metadata("llama-gqa")), norm_epsilon=EPSILON)
        assert self.cfg.embedding_length == D
        self.weights = {}
        for number, weight in enumerate(each for each in part.weights(self.cfg) if each.name not in left_out):
            if weight.is_vector:
                values = np.random.default_rng(number).normal(size=(2, *weight.shape)).astype(np.float32)
                self.weights[weight.name] = jnp.asarray(-np.abs(values) if weight.name == "ssm_a" else values)
            else:
                packed = random_weights("F32", 2, *weight.shape, seed=number)
                self.weights[weight.name] = Stack((packed,), ((0, 0), (0, 1)))
        self.step = jax.jit(self._step)

    def _step(self, state, h, rows):
        numerics = Numerics(product_paths("reference"), jnp.dtype("float32"), 512, 512)
        step = Step.of(self.cfg, numerics, {}, rows, h.shape[1])
        return MIXERS[type(self.part)](step, self.part, self.weights, jnp.int32(1), state, h)

    def run(self, x, chunks):
        """A text x (T, D) in pieces of so many tokens: results (T, D) and the state."""
        buffers = self.part.state(self.cfg, 2, Room(1, 512, 256, "float32"))
        state, at, parts = jax.tree.map(lambda b: jnp.zeros(b.shape, jnp.float32), buffers), 0, []
        for size in chunks:
            rows = Rows(jnp.int32(0), jnp.int32([at]), jnp.int32([at + size]), jnp.asarray([True]))
            y, state = self.step(state, x[None, at : at + size], rows)
            parts.append(y[0])
            at += size
        return np.concatenate(parts), state

    @property
    def exact(self):
        """The running layer's weights in float64."""
        unpacked = {name: w.groups[0].unpack()[1] if isinstance(w, Stack) else w[1] for name, w in self.weights.items()}
        return {name: np.asarray(w, np.float64) for name, w in unpacked.items()}


def text(tokens):
    return np.random.default_rng(0).normal(size=(tokens, D)).astype(np.float32)


def equals_float64(net, expected, chunks):
    """A sum of 256 float32 products is off by 256 * 2^-24 = 1.5e-5 of what it adds up at most, and some five such sums
    follow each other: 1e-4 of a deviation.

    expected: (part, weights, x) -> results and the memory after them, which is the last array of the state.
    """
    x = text(sum(chunks))
    y, state = net.run(x, chunks)
    wanted, memory = expected(net.part, net.exact, x.astype(np.float64))
    assert np.abs(y - wanted).max() <= 1e-4 * wanted.std()
    assert np.abs(state[-1][1, 0] - memory).max() <= 1e-4 * memory.std()
    assert not np.asarray(state[-1][0]).any()
