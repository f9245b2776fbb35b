"""R31: with a CPU's native kernels a token's bits depend on the tokens before it alone.

Not on how a prompt was cut into chunks, whether it was read or decoded, how many slots a step has, which of them it is,
what its neighbours do, or how many threads there are.
"""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from families import GOLDENS
from golden_models import golden, shared
from steps import load

from packlight.demo import MODEL

TOKENS = 22
SLOT = 2  # of the prompts that are read
# Families that docs/same-answer.md leaves out, as the plan does.
VARYING = ("arch/deepseek2-lite",)
# Ours that between them have every kind of layer.
OWN = ("llama-gqa", "gpt-oss", "qwen2moe", "qwen35-packed", "granitehybrid-dense", "gemma4-e")


def kept(cache, slot):
    """What the cache holds of a slot: keys, values and latents of its tokens, and states whole."""
    parts = (x[:, slot, :, :TOKENS] if x.ndim == 5 and x.shape[3] >= TOKENS else x[:, slot] for x in cache)
    return [np.asarray(x) for x in parts]


def read(model, ids, sizes):
    """The hidden states of a prompt that is read in chunks of so many tokens, and what the cache holds."""
    cache, hidden, at = model.empty_cache(), [], 0
    for size in sizes:
        cache, new = model.prefill(cache, ids[at : at + size], at, SLOT, max(size, 8))
        hidden, at = [*hidden, np.asarray(new)], at + size
    return np.concatenate(hidden), kept(jax.tree.leaves(cache.state), SLOT)


def decoded(model, ids, batch, slot):
    """The same of a text whose tokens are decoded in a slot, beside busy ones."""
    cache, hidden = model.empty_cache(), []
    for at, token in enumerate(ids):
        tokens = [token if each == slot else (7 * each + at) % 50 + 3 for each in range(batch)]
        cache, new = model.decoded(cache, tokens, [each == slot or at % (each + 2) > 0 for each in range(batch)])
        hidden.append(np.asarray(new[slot]))
    return np.stack(hidden), kept(jax.tree.leaves(cache.state), slot)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", [*(f"own/{n}" for n in OWN), *shared(n for n in GOLDENS if n.startswith("arch/"))])
def test_any_way_gives_the_same_bits(name, tmp_path):
    told = golden(name, tmp_path)
    model = load(told.path, cpu_kernels="native", decode_batch=(8,))
    if reasons := model.steps.kernels.varying:
        assert name in VARYING
        pytest.skip("; ".join(reasons))
    ids = told.ids[:TOKENS]
    expected = read(model, ids, [TOKENS])
    ways = {
        "read in chunks of 16": read(model, ids, [16, TOKENS - 16]),
        "read in chunks of 1, 4 and 17": read(model, ids, [1, 4, TOKENS - 5]),
        "decoded alone": decoded(model, ids, 1, 0),
        "decoded beside 4 others": decoded(model, ids, 5, 3),
    }
    for way, found in ways.items():
        np.testing.assert_array_equal(found[0], expected[0], err_msg=f"hidden states, {way}")
        for ours, theirs in zip(found[1], expected[1], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"the cache, {way}")


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize(
    ("name", "kv_dtype", "kept_as"),
    [
        ("own/gpt-oss", "q8_0", "int8"),
        ("own/qwen35-packed", "q8_0", "int8"),
        ("own/gpt-oss", "q4_0", "uint8"),
        ("own/gemma3n", "q4_0", "uint8"),
        pytest.param("own/gemma2", "q4_0", "uint8", marks=pytest.mark.product),
        pytest.param("own/qwen35-packed", "q4_0", "uint8", marks=pytest.mark.product),
    ],
)
def test_any_way_gives_the_same_bits_of_a_rounded_cache(name, kv_dtype, kept_as, tmp_path):
    """All positions, windows with sinks, beside recurrences, which keep float32, and where layers read others' keys."""
    told = golden(name, tmp_path)
    model = load(told.path, cpu_kernels="native", decode_batch=(8,), kv_dtype=kv_dtype)
    assert not model.steps.kernels.varying
    ids = told.ids[:TOKENS]
    whole = read(model, ids, [TOKENS])
    assert {x.dtype.name for x in whole[1]} >= {kept_as, "float16"}
    for found in (read(model, ids, [1, 4, TOKENS - 5]), decoded(model, ids, 5, 3)):
        np.testing.assert_array_equal(found[0], whole[0])
        for ours, theirs in zip(found[1], whole[1], strict=True):
            np.testing.assert_array_equal(ours, theirs)


LOGITS = (
    "import packlight, sys; sys.stdout.buffer.write(packlight.load(sys.argv[1]).logits(eval(sys.argv[2])).tobytes())"
)


@pytest.mark.usefixtures("native_library")
def test_any_number_of_threads_gives_the_same_bits():
    """XLA makes as many threads as NPROC says."""
    digests = set()
    for threads in (1, 2, 3, 8):
        command = [sys.executable, "-c", LOGITS, str(MODEL), json.dumps(list(range(3, 90)))]
        run = subprocess.run(command, env={**os.environ, "NPROC": str(threads)}, capture_output=True, check=True)
        digests.add(hashlib.sha256(run.stdout).hexdigest())
    assert len(digests) == 1
