"""What is picked for a slot, to the last bit, does not depend on how many slots a step has."""

import jax
import numpy as np
import pytest

from packlight.model.sampling.adjust import nothing, table_size
from packlight.model.sampling.chain import pick, slot_sampling
from packlight.model.sampling.config import SamplingConfig

VOCAB = 1000  # for which XLA adds up one row in another order than several
ASKED = [
    SamplingConfig(seed=1, logprobs=1, **how)
    for how in (
        {},
        {"top_k": 0},
        {"typical_p": 0.9},
        {"mirostat": 1},
        {"mirostat": 2},
        {"top_n_sigma": 1.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"dynatemp_range": 0.5},
    )
]


@pytest.mark.parametrize("native", [False, True])
def test_any_batch_gives_the_same_bits(native, request):
    if native:
        request.getfixturevalue("native_library")
    logits = (np.random.default_rng(0).normal(size=(len(ASKED), VOCAB)) * 3).astype(np.float32)
    is_end = np.zeros(VOCAB, bool)
    run = jax.jit(pick, static_argnames="native")

    def picked(slots: slice):
        asked = ASKED[slots]
        neutral = nothing(len(asked), VOCAB, table_size(VOCAB, 512))
        positions = np.arange(len(ASKED), dtype=np.int32)[slots]
        return run(logits[slots], neutral, slot_sampling(asked), positions, is_end, native)

    whole = picked(slice(0, len(ASKED)))
    for rows in (1, 3):
        for first in range(0, len(ASKED) - rows + 1, rows):
            slots = slice(first, first + rows)
            for name, ours, theirs in zip(whole._fields, picked(slots), whole, strict=True):
                np.testing.assert_array_equal(ours, theirs[slots], err_msg=f"{name} of slots {slots}")
