"""Weights of which a budget is in memory and the rest is read in every step: the same bits, the budget kept, every byte
counted, and a disk that fails said by the layer.
"""

import itertools
import math
import os
import pathlib
import random
import re
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import NOISE, write_llama
from streams import FAILED, SMALL, WeightsFile, cached, disk_bytes, streamed

import packlight
from packlight.compile.config import CompileConfig, MeshShape
from packlight.model.weights.load import Buffer
from packlight.model.weights.mapfile import PAGE, Arrangement
from packlight.model.weights.residence import UNIT, Cut, Residence, plan_residence
from packlight.prepared import prepare
from packlight.quant.kernels import native_ops

LAYERS = 6


def buffers(seed):
    """What a model of LAYERS layers may have: large and small matrices, some of them in two formats, and two tables."""
    draw = random.Random(seed)

    def stacked(name, layers, size):
        return Buffer((len(layers), size), [f"blk.{layer}.{name}.weight" for layer in layers])

    first = sorted(draw.sample(range(LAYERS), draw.randint(1, LAYERS - 1)))
    second = [layer for layer in range(LAYERS) if layer not in first]
    return [
        Buffer((1, draw.randint(1, 3 * UNIT)), ["token_embd.weight"]),
        stacked("attn_q", range(LAYERS), draw.randint(UNIT // 2, 2 * UNIT)),
        stacked("ffn_down", first, draw.randint(UNIT // 2, 3 * UNIT)),
        stacked("ffn_down", second, draw.randint(UNIT // 2, 3 * UNIT)),
        stacked("attn_k", range(LAYERS), draw.randint(1, UNIT // LAYERS)),
        Buffer((1, draw.randint(1, UNIT)), ["output.weight"]),
    ]


class Twin:
    """What a stream has in memory and reads, layer after layer, in sets of units."""

    def __init__(self, where: Residence):
        self.where, self.held = where, [*range(where.kept)]
        self.most, self.read = 0, 0

    def visit(self, layer):
        where, size = self.where, self.where.layers
        coming = [at % size for at in range(layer, layer + size) if at % size >= where.kept][: where.ahead + 1]
        self.held = [each for each in self.held if each < where.kept or each in coming]
        for each in coming:
            if each not in self.held:
                self.read += where.cut.bytes(where.cut.sets[each] - where.cut.union(self.held))
                self.held.append(each)
        self.most = max(self.most, UNIT * len(where.cut.union(self.held)))


@pytest.mark.parametrize("seed", range(8))
def test_the_arithmetic_is_that_of_sets_of_units(seed):
    cut = Cut.of(buffers(seed), LAYERS)
    arranged = Arrangement.of(buffers(seed))
    assert sum(cut.sizes) >= arranged.nbytes - len(arranged.offsets) * UNIT
    for kept, ahead in itertools.product(range(LAYERS + 1), range(4)):
        where = Residence(cut, kept, ahead)
        twin = Twin(where)
        for layer in range(LAYERS):
            twin.visit(layer)
        first = twin.read
        for layer in range(LAYERS):
            twin.visit(layer)
        assert twin.read - first == where.step_bytes
        assert twin.most == where.kept_bytes + where.ring_bytes
    whole = Residence(cut, LAYERS, 0)
    assert (whole.step_bytes, whole.ring_bytes) == (0, 0)
    assert whole.resident_bytes == UNIT * len(cut.sizes)


@pytest.mark.parametrize("seed", range(4))
def test_a_budget_keeps_as_many_layers_as_it_lets(seed):
    cut = Cut.of(buffers(seed), LAYERS)
    sizes = [Residence(cut, kept, 1).resident_bytes for kept in range(LAYERS + 1)]
    assert sizes == sorted(sizes)
    for kept, size in enumerate(sizes):
        found = plan_residence(cut, size, 1, ("the test allows",))
        assert found.resident_bytes == size
        assert found.kept >= kept
    with pytest.raises(packlight.MemoryLimitError) as refused:
        plan_residence(cut, sizes[0] - 1, 1, ("the test allows",))
    (least,) = re.findall(r"; ([\d,]+) bytes are the least, with 1 layers ahead$", str(refused.value))
    assert plan_residence(cut, int(least.replace(",", "")), 1, ()).kept == sizes.count(sizes[0]) - 1


class Layered(WeightsFile):
    def settled(self, reads):
        """The counts once so many layers have been asked for."""
        end = time.monotonic() + 60
        while self.stream.counts().reads < reads:
            assert time.monotonic() < end
            time.sleep(0.01)
        return self.stream.counts()


@pytest.fixture
def layered(tmp_path):
    opened = []

    def make(kept, ahead):
        where = Residence(Cut.of(buffers(0), LAYERS), kept, ahead)
        opened.append(Layered(tmp_path / f"{len(opened)}.weights", buffers(0), where))
        return opened[-1]

    yield make
    for each in opened:
        each.stream.close()


@pytest.mark.parametrize(("kept", "ahead"), [(0, 0), (0, 1), (2, 1), (1, 2), (LAYERS - 2, 3), (LAYERS, 1)])
def test_bytes_are_those_of_the_arithmetic_and_of_the_disk(layered, kept, ahead):
    """R18, R19: a layer is read once a step, none that stays again."""
    made, passes = layered(kept, ahead), 3
    where, twin = made.where, Twin(made.where)
    before, counts = 0, made.stream.counts()
    for number in range(1, passes + 1):
        for layer in range(LAYERS):
            made.visit(layer)
            twin.visit(layer)
        reads = number * where.streamed + ahead if where.ring < where.streamed else where.streamed
        counts = made.settled(reads)
        if number == 1:  # what the test has written may have been in memory still
            before, first = disk_bytes(), counts
    kept_bytes = where.cut.bytes(where.cut.union(range(kept)))
    assert (counts.reads, counts.bytes, counts.kept_bytes) == (reads, twin.read, kept_bytes)
    assert counts.ready + counts.late == passes * where.streamed
    assert counts.bytes - first.bytes == (passes - 1) * where.step_bytes
    if read := disk_bytes() - before:  # a file system in memory has no disk
        assert 0 <= read - (counts.bytes - first.bytes) <= 1 << 16  # blocks of the file system's own
    # what is in memory: no more than the residence says, but for what is outside layers, which nothing has touched
    assert PAGE * cached(made.memory).sum() <= where.kept_bytes + where.ring_bytes


def test_a_layer_that_cannot_be_read_is_said_and_asked_for_anew(layered):
    made = layered(1, 1)
    for layer in range(LAYERS):
        made.visit(layer)
    size = made.path.stat().st_size
    os.truncate(made.path, 0)
    for layer in range(2, LAYERS):  # the ring has the one before
        with pytest.raises(FAILED, match=rf"layer {layer}: its weights cannot be read: Bad address"):
            made.visit(layer)
    os.truncate(made.path, size)
    for layer in [*range(LAYERS)] * 2:
        made.visit(layer)


def test_a_stream_ends_cleanly(layered):
    """Its thread is joined, whoever comes afterwards is told, and to close it again does nothing."""

    def threads():
        return len([*pathlib.Path("/proc/self/task").iterdir()])

    layered(0, 1).visit(0)  # what jax begins
    before = threads()
    made = layered(0, 1)
    made.visit(0)
    assert threads() == before + 1
    made.stream.close()
    assert threads() == before
    made.stream.close()
    assert made.stream.counts().reads == 0
    with pytest.raises(FAILED, match="no stream has this number"):
        made.visit(1)


def test_a_stream_that_nobody_has_ends(layered):
    made = layered(0, 1)
    number = made.stream.number
    del made.stream
    with pytest.raises(FAILED, match="no stream has this number"):
        native_ops.advance(jnp.zeros(1), jnp.int32(0), jnp.int32(number)).block_until_ready()
    made.stream = layered(0, 0).stream


def test_threads_may_come_to_layers_together(layered):
    """Whatever order that makes: nothing waits for ever, and no layer is outside the model."""
    made = layered(1, 1)

    def run(seed):
        draw = random.Random(seed)
        for _ in range(40):
            made.visit(draw.randrange(LAYERS))

    running = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive()
    with pytest.raises(FAILED, match="there is no layer 6"):
        made.visit(LAYERS)


# The whole model.
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    formats = {"default": "Q8_0", "ffn_down": "Q4_K", "blk.3.ffn_down": "Q6_K", "blk.1.attn_v": "F16"}
    return write_llama(folder / "m.gguf", layers=LAYERS, embed=1024, ffn=4096, heads=8, vocab=300, formats=formats)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return CompileConfig(**SMALL, cache_dir=str(tmp_path_factory.mktemp("store")))


def budget(path, config, kept, ahead):
    """Bytes that let so many layers stay, and one more than `ahead` be streamed at a time."""
    prepared = prepare(path, streamed(config))
    assert prepared.residence is not None
    return prepared.memory.weights + Residence(prepared.residence.cut, kept, ahead).resident_bytes


def test_a_budget_of_three_layers_gives_the_same_bits(model, config):
    """R16, R39: whatever is ahead, and however much stays, by the same executables."""
    ids, greedy = [*range(5, 25)], {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    with packlight.load(model, config) as plain:
        logits = plain.logits(ids)
        (text,) = plain.generate([ids], **greedy)
        assert plain.streamed is None
    for number, (ahead, kept) in enumerate([(1, 1), (2, 0), (0, 2)]):
        most = budget(model, config, kept, ahead)
        own = streamed(config, weights_budget=most, weights_ahead=ahead)
        with packlight.load(model, own) as llm:
            assert llm.warnings == ()
            assert (llm.executables.misses > 0) == (number == 0)
            where = llm.memory.residence
            assert where is not None
            assert where.kept == kept
            assert where.resident_bytes + llm.memory.weights <= most
            np.testing.assert_array_equal(llm.logits(ids), logits)
            assert llm.generate([ids], **greedy)[0].token_ids == text.token_ids
            counts = llm.streamed
            assert counts is not None
            assert counts.bytes > where.step_bytes > 0
            assert counts.ready + counts.late == where.streamed * sum(
                count for key, count in llm.engine.steps_run.items() if key.phase.value in ("prefill", "decode")
            )
        with pytest.raises(packlight.PacklightError, match="the model is closed"):
            llm.generate("x")


def test_what_all_fits_is_read_once(model, config):
    with packlight.load(model, streamed(config)) as llm:
        where = llm.memory.residence
        assert where is not None
        assert (where.kept, where.step_bytes) == (LAYERS, 0)
        llm.logits([1, 2, 3])
        counts = llm.streamed
        assert counts is not None
        assert (counts.reads, counts.bytes) == (0, 0)
        assert 0 < counts.kept_bytes <= where.kept_bytes


def test_a_layer_that_cannot_be_read_ends_no_process(model, config, layered):
    """It is an error that names the layer, and the model goes on once the layer can be read."""
    with packlight.load(model, streamed(config, weights_budget=budget(model, config, 1, 2))) as llm:
        right = llm.logits([1, 2, 3])
        made, params = layered(0, 1), llm.engine._params
        os.truncate(made.path, 0)
        own, params["stream"] = params["stream"], jnp.int32(made.stream.number)
        for attempt in (lambda: llm.logits([1, 2, 3]), lambda: llm.generate("x", temperature=0)):
            with pytest.raises(packlight.PacklightError, match=r"^layer \d: its weights cannot be read: Bad address$"):
                attempt()
        params["stream"] = own
        np.testing.assert_array_equal(llm.logits([1, 2, 3]), right)


def test_the_plan_says_what_is_where(model, config):
    plan = prepare(model, streamed(config, weights_budget=budget(model, config, 1, 1), weights_ahead=1)).memory
    where = plan.residence
    assert where is not None
    whole, outside, kept, ring, step, resident = (
        f"{count / 1e6:.1f} MB"
        for count in (
            plan.mapped,
            where.outside_bytes,
            where.kept_bytes,
            where.ring_bytes,
            where.step_bytes,
            where.resident_bytes,
        )
    )
    said = f"weights {whole} streamed: outside layers {outside}, layers 0-0 {kept}, 2 of the other 5 {ring}; "
    assert str(plan).startswith(f"{said}{step} read a step; streamed weights {resident} + vectors ")
    mapped = prepare(model, config, weights="mapped").memory
    assert plan.total == mapped.total + where.resident_bytes
    assert math.isclose(where.step_bytes, plan.mapped * 5 / 6, rel_tol=0.2)  # units that formats share are read twice


def test_a_budget_that_is_too_small_names_the_least(model, config):
    with pytest.raises(packlight.MemoryLimitError) as refused:
        packlight.load(model, streamed(config, weights_budget=1_000_000))
    said = str(refused.value)
    assert said.startswith("config key 'weights_budget' allows ")
    (least,) = re.findall(r" for streamed weights; ([\d,]+) bytes are the least, with 2 layers ahead$", said)
    least = int(least.replace(",", ""))
    assert prepare(model, streamed(config, weights_budget=least)).residence is not None
    with pytest.raises(packlight.MemoryLimitError):
        _ = prepare(model, streamed(config, weights_budget=least - 1)).residence
    with pytest.raises(packlight.MemoryLimitError, match="^config key 'memory_limit' leaves 0.0 MB for streamed"):
        packlight.load(model, streamed(config, memory_limit=1_000_000))


def test_what_cannot_be_streamed_is_refused_by_name(tmp_path, config):
    dense = write_llama(tmp_path / "d.gguf", **NOISE)
    with pytest.raises(packlight.ConfigError, match="^weights=streamed: layers are streamed with native kernels only"):
        packlight.load(dense, streamed(config, cpu_kernels="xla"))
    with pytest.raises(packlight.ConfigError, match="key 'weights' is 'streamed'; .* not to a mesh"):
        CompileConfig(mesh=MeshShape(1, 2), weights="streamed")


def test_arguments_replace_what_the_config_says(model, config):
    most = budget(model, config, 2, 1)
    prepared = prepare(model, config, weights="streamed", weights_budget=most, weights_ahead=1)
    assert (prepared.config.weights_budget, prepared.config.weights_ahead) == (most, 1)
    assert prepared.residence == prepare(model, streamed(config, weights_budget=most, weights_ahead=1)).residence
    assert prepare(model, streamed(config, weights_ahead=3), weights_ahead=0).config.weights_ahead == 0
    plain = prepared.resident("the disk is full")  # which needs neither
    assert (plain.config.weights, plain.residence) == ("resident", None)
    said = r"^weights_budget=1000000 allows \d+\.\d MB for streamed weights; [\d,]+ bytes are the least"
    with pytest.raises(packlight.MemoryLimitError, match=said):
        packlight.load(model, config, weights="streamed", weights_budget=1_000_000)
    for kind in ("mapped", "resident", None):
        for name in ("weights_budget", "weights_ahead"):
            said = f"^{name}=1 is of streamed weights only: weights=streamed is missing$"
            with pytest.raises(packlight.ConfigError, match=said):
                packlight.load(model, config, weights=kind, **{name: 1})


@pytest.mark.parametrize("wrong", [-1, "1", 1.5, True, 2**63])
@pytest.mark.parametrize("name", ["weights_budget", "weights_ahead"])
def test_wrong_arguments_are_refused_by_name(name, wrong, model, config):
    said = f"{name}={re.escape(repr(wrong))}: (it is an integer of at least 0|at most \\d+)$"
    with pytest.raises(packlight.ConfigError, match=said):
        packlight.load(model, config, weights="streamed", **{name: wrong})


@pytest.mark.parametrize("wrong", [-1, "1", 1.5, True])
@pytest.mark.parametrize("key", ["weights_budget", "weights_ahead"])
def test_wrong_numbers_are_refused_by_name(key, wrong):
    with pytest.raises(packlight.ConfigError, match=f"key '{key}' is .*; it is an integer >= 0"):
        CompileConfig(**{key: wrong})
