"""R16 where layers pass through a device: the bits of a model whose later layers come from pinned host memory."""

import dataclasses

import jax
import numpy as np
import pytest
from ggufs import write_llama

import packlight as api
from packlight.compile import aot
from packlight.compile.config import default_config
from packlight.model.spec.weights import formats
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import abstract, place
from packlight.model.weights.placement import PINNED
from packlight.model.weights.ring import filled, last_layers
from packlight.model.weights.stack import Stack
from packlight.quant.qtensor import QTensor
from packlight.serve.engine import Engine

LAYERS = 6
WIDER = {f"blk.{layer}.{name}": "Q6_K" for layer in (0, 3, 5) for name in ("ffn_down", "attn_v")}
PROMPT = list(range(40))
CONFIG = dataclasses.replace(
    default_config("cpu"),
    cpu_kernels="xla",
    context=64,
    prefill_buckets=(16,),
    decode_batch=(1,),
    head_rows=8,
    store=False,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two tensors alternate between two formats, as in Q4_K_M."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    mixed = {"default": "Q4_K"} | WIDER
    write_llama(path, layers=LAYERS, embed=256, heads=4, kv_heads=2, vocab=320, formats=mixed)
    prepared = api.prepare(path, CONFIG)
    plan = dataclasses.replace(prepared.plan, scores=False)
    return dataclasses.replace(prepared, planned=plan)


def placed(prepared, kept):
    host = read_weights(prepared.file, prepared.model, layouts=prepared.kernels.layouts)
    return place(host, aot.find_devices(prepared.config, prepared.split), kept=kept)


def made(prepared, kept):
    """The bits of the logits of a prompt of several chunks, float32 (T, V), and what a text goes on with: tokens and
    the log-probabilities of the most probable ones, one decode step each.
    """
    params = placed(prepared, kept)
    steps = prepared.steps(aot.find_devices(prepared.config, prepared.split))
    engine = Engine(steps, aot.build(steps, params), params, (), True)
    logits = np.asarray(engine.logits(PROMPT)).view(np.uint32)
    engine.submit(PROMPT, api.SamplingConfig(temperature=0, max_tokens=8, logprobs=5, seed=0), past_end=True)
    events = []
    while not engine.idle:
        events += engine.step()
    return logits, [(event.token, event.top_logprobs) for event in events]


@pytest.fixture(scope="module")
def resident(prepared):
    return made(prepared, None)


@pytest.mark.parametrize("kept", [0, 3, LAYERS - 1])
def test_logits_and_text_are_the_resident_models(kept, prepared, resident):
    """None, some and all but one of the layers stay; the first streamed one has either format."""
    logits, text = made(prepared, kept)
    np.testing.assert_array_equal(logits, resident[0])
    assert len(text) == 8
    assert text == resident[1]


def test_another_order_of_layers_gives_other_logits(prepared, resident):
    """The test above can fail: what is fetched is what the numbers say."""
    params = placed(prepared, 3)
    steps = prepared.steps(aot.find_devices(prepared.config, prepared.split))
    executables = aot.build(steps, params)
    ring = params["ring"]["attention"]["attn_q"]
    turned = dataclasses.replace(ring, blocks=jax.device_put(np.asarray(ring.blocks)[::-1], ring.blocks.sharding))
    params["ring"]["attention"]["attn_q"] = turned
    engine = Engine(steps, executables, params, (), True)
    assert (np.asarray(engine.logits(PROMPT)).view(np.uint32) != resident[0]).any()


@pytest.mark.parametrize("kept", [0, 2])
def test_shapes_and_arrays_are_one_tree_and_matrices_lie_in_the_host(kept, prepared):
    params = placed(prepared, kept)
    placement = aot.find_devices(prepared.config, prepared.split)
    shapes = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement, kept=kept)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(params), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (array.shape, array.dtype, array.sharding)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(params["ring"])} == {PINNED}
    assert PINNED not in {x.sharding.memory_kind for x in jax.tree.leaves(params["blk"])}
    matrices = {name for part in params["ring"].values() for name in part}
    assert matrices == {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}


def test_a_narrower_format_has_zeros_behind_it():
    narrow, wide = (np.full((1, 2, 3, size), size, np.uint8) for size in (144, 210))
    stack = Stack((QTensor(narrow, "Q4_K"), QTensor(wide, "Q6_K")), ((1, 0), (0, 0)))  # type: ignore[arg-type]
    ring = last_layers(stack, 0, filled(stack, 0))
    assert ring.blocks.shape == (2, 2, 3, 210)
    assert (ring.blocks[0] == 210).all()
    assert (ring.blocks[1, ..., :144] == 144).all()
    assert not np.asarray(ring.blocks[1, ..., 144:]).any()
    assert [kind.qtype for kind in ring.kinds] == ["Q6_K", "Q4_K"]
