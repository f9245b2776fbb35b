"""Test helpers that run the traced steps directly: a loaded file, its prefill, and logits of every position."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from packlight.compile.config import CompileConfig
from packlight.compile.plan import Phase, Plan, StepKey
from packlight.compile.steps import PrefillArgs, Steps
from packlight.model.network.forward import head, hidden_states
from packlight.model.network.state import Cache, Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import Params, place
from packlight.model.weights.placement import Placement
from packlight.prepared import prepare


@dataclasses.dataclass(eq=False)
class Loaded:
    """A file ready to run: `prefill` and `logits` are jitted per shape, and shared."""

    cfg: ModelConfig
    plan: Plan
    params: Params
    steps: Steps

    def empty_cache(self) -> Cache:
        return self.steps.empty_cache()

    @functools.cache  # noqa: B019  one test's model
    def step(self, phase: Phase, rows: int):
        return jax.jit(self.steps.function(StepKey(phase, rows, self.plan.capacity)))

    def prefill(self, cache, ids, start=0, slot=0, rows=None):
        """Runs ids in one chunk padded to `rows`: (cache, hidden states of the real tokens (T, D))."""
        rows = rows or len(ids)
        tokens = np.zeros(rows, np.int32)
        tokens[: len(ids)] = ids
        args = PrefillArgs(tokens, np.int32(slot), np.int32(start), np.int32(len(ids)))
        cache, hidden, last = self.step(Phase.PREFILL, rows)(self.params, cache, args)
        np.testing.assert_array_equal(np.asarray(last[0]), np.asarray(hidden[len(ids) - 1]))
        return cache, hidden[: len(ids)]

    @functools.cache  # noqa: B019  one test's model
    def _decoded(self, batch: int):
        numerics = self.steps.numerics(StepKey(Phase.DECODE, batch, self.plan.capacity))

        def run(params, cache, tokens, running):
            start = jnp.where(running, cache.length[:batch], 0)
            rows = Rows(jnp.int32(0), start, start + 1, running)
            step = Step.of(self.cfg, numerics, params, rows, 1)
            hidden, state = hidden_states(step, params, tokens[:, None], cache.state)
            return Cache(cache.length.at[:batch].add(running.astype(jnp.int32)), state), hidden[:, 0]

        return jax.jit(run)

    def decoded(self, cache, tokens, running):
        """Runs a token of each of the first slots as a decode step does: (cache, hidden states (B, D))."""
        tokens, running = np.array(tokens, np.int32), np.array(running)
        return self._decoded(len(tokens))(self.params, cache, tokens, running)

    def logits(self, hidden):
        dtype = jnp.dtype(self.steps.config.activation_dtype)
        numerics = Numerics(self.steps.kernels.products, dtype, 0, self.plan.context)
        return np.asarray(jax.jit(lambda p, h: head(self.cfg, p, h, numerics))(self.params, hidden))

    def all_logits(self, ids, rows=None):
        """Logits after every token of a prompt run in one chunk, (T, V)."""
        return self.logits(self.prefill(self.empty_cache(), ids, rows=rows)[1])


def load(path, **config) -> Loaded:
    """Loads a file for direct runs, on the first fake device."""
    base = {"decode_batch": (4,), "prefill_buckets": (64,), "cpu_kernels": "xla"}
    prepared = prepare(path, CompileConfig(**{**base, **config}))
    host = read_weights(prepared.file, prepared.model, layouts=prepared.kernels.layouts)
    placement = Placement.on(jax.devices())
    return Loaded(prepared.model, prepared.plan, place(host, placement), prepared.steps(placement))
