"""Test helpers that run the traced steps directly: a loaded file, its prefill, and logits of every position."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from packlight.compile.config import CompileConfig
from packlight.compile.kernels import layout
from packlight.compile.plan import Plan, StepKey, make_plan
from packlight.compile.steps import abstract_cache, make_step
from packlight.model.gguf.reader import open_gguf
from packlight.model.network.forward import head
from packlight.model.network.state import Cache, Numerics
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import Params, place
from packlight.model.weights.placement import Placement


@dataclasses.dataclass(eq=False)
class Loaded:
    """A file ready to run: `prefill` and `logits` are jitted per shape, and shared."""

    cfg: ModelConfig
    config: CompileConfig
    plan: Plan
    params: Params

    def empty_cache(self) -> Cache:
        shapes = abstract_cache(self.cfg, self.plan, self.config)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    @functools.cache  # noqa: B019  one test's model
    def step(self, phase: str, rows: int):
        return jax.jit(make_step(StepKey(phase, rows, self.plan.capacity), self.cfg, self.config, self.plan.context))

    def prefill(self, cache, ids, start=0, slot=0, rows=None):
        """Runs ids in one chunk padded to `rows`: (cache, hidden states of the real tokens (T, D))."""
        rows = rows or len(ids)
        tokens = np.zeros(rows, np.int32)
        tokens[: len(ids)] = ids
        place = (np.int32(slot), np.int32(start), np.int32(len(ids)))
        cache, hidden, last = self.step("prefill", rows)(self.params, cache, tokens, *place)
        np.testing.assert_array_equal(np.asarray(last[0]), np.asarray(hidden[len(ids) - 1]))
        return cache, hidden[: len(ids)]

    def logits(self, hidden):
        numerics = Numerics(self.config.kernel_path, jnp.dtype(self.config.activation_dtype), 0, self.plan.context)
        return np.asarray(jax.jit(lambda p, h: head(self.cfg, p, h, numerics))(self.params, hidden))

    def all_logits(self, ids, rows=None):
        """Logits after every token of a prompt run in one chunk, (T, V)."""
        return self.logits(self.prefill(self.empty_cache(), ids, rows=rows)[1])


def load(path, **config) -> Loaded:
    """Loads a file for direct runs, on the first fake device."""
    file = open_gguf(path)
    cfg = ModelConfig.from_gguf(file)
    base = {"decode_batch": (4,), "prefill_buckets": (64,), "cpu_kernels": "xla"}
    compile_config = CompileConfig(**{**base, **config})
    params = place(read_weights(file, cfg, layout=layout(compile_config)), Placement.on(jax.devices()))
    return Loaded(cfg, compile_config, make_plan(compile_config, cfg.context_length), params)
