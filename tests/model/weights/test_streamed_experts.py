"""Experts of a mixture of which a budget is in memory and the rest is read when it is chosen: the same bits, the budget
kept, every byte counted, each read once, and a disk that fails said by the expert.
"""

import collections
import os
import random
import re
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from recipe_files import write as write_recipe
from recipes import DENSE_FIRST, RECIPES, SHARED_WIDTH, Recipe, routed
from streams import FAILED, SMALL, WeightsFile, cached, disk_bytes, streamed

import packlight
from packlight.cli.terminal import streaming
from packlight.compile.config import CompileConfig
from packlight.model.weights.load import Buffer
from packlight.model.weights.mapfile import PAGE, Arrangement
from packlight.model.weights.residence import UNIT, Cut, Residence, plan_residence
from packlight.prepared import prepare
from packlight.quant.kernels import native_ops

LAYERS, FIRST = 4, 1  # layers, of which the first has no experts
EACH, USED = 8, 2


def buffers(seed):
    """Matrices of experts in two formats, large and small, of whole pages and not, between other things."""
    draw = random.Random(seed)

    def stacked(name, layers, size):
        return Buffer((len(layers), EACH, size), [f"blk.{layer}.{name}.weight" for layer in layers])

    whole = range(FIRST, LAYERS)
    return [
        Buffer((1, draw.randint(1, UNIT)), ["token_embd.weight"]),
        Buffer((LAYERS, draw.randint(UNIT, 2 * UNIT)), [f"blk.{layer}.attn_q.weight" for layer in range(LAYERS)]),
        stacked("ffn_gate_exps", whole, PAGE * draw.randint(30, 60)),
        stacked("ffn_up_exps", whole, draw.randint(100_000, 300_000)),
        Buffer((1, draw.randint(1, UNIT)), ["output.weight"]),  # in the unit where the experts end
        stacked("ffn_down_exps", whole[:-1], draw.randint(140_000, 300_000)),
        stacked("ffn_down_exps", whole[-1:], draw.randint(1, UNIT // EACH)),
    ]


def cut_of(seed):
    return Cut.of(buffers(seed), LAYERS, USED)


@pytest.mark.parametrize("seed", range(6))
def test_pages_are_an_experts_own(seed):
    """Each page that an expert has holds nothing else, and all others of the file count as something that stays."""
    cut, arranged = cut_of(seed), Arrangement.of(buffers(seed))
    experts = cut.experts
    assert experts is not None
    assert (experts.each, experts.used, experts.layers) == (EACH, USED, tuple(range(FIRST, LAYERS)))
    holders = collections.defaultdict(set)
    for record in arranged.records:
        parts = EACH if "_exps" in record.name else 1
        size = record.nbytes // parts
        for number in range(parts):
            first, end = record.offset + number * size, record.offset + (number + 1) * size
            for page in range(first // PAGE, -(-end // PAGE)):
                holders[page].add((record.name, number))
    own = {}
    for at, runs in enumerate(experts.pages):
        layer, number = FIRST + at // EACH, at % EACH
        for page in (page for run in runs for page in run):
            ((name, holder),) = holders[page]
            assert (name.split(".")[1], holder) == (str(layer), number)
            assert page not in own
            own[page] = at
            assert page * PAGE // UNIT not in cut.outside
    kept = {unit for units in cut.sets for unit in units} | cut.outside
    others = [page for page in holders if page not in own and page * PAGE // UNIT not in kept]
    assert len(others) == experts.shared
    assert experts.bytes == PAGE * len(own)
    assert experts.token_bytes == sum(USED * max(experts.sizes[at : at + EACH]) for at in (0, EACH, 2 * EACH))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_budget_keeps_layers_first_and_then_experts(rows):
    cut = cut_of(0)
    assert cut.experts is not None
    least = Residence(cut, 0, 1, cut.experts.chosen_bytes(rows)).resident_bytes
    assert cut.experts.chosen_bytes(rows) == min(EACH, rows * USED) * max(cut.experts.sizes)
    with pytest.raises(packlight.MemoryLimitError, match=f"; {least + 5:,} bytes are the least, with 1 layers ahead$"):
        plan_residence(cut, least + 4, 1, ("the test allows",), rows, 5)
    found = plan_residence(cut, least + 5, 1, (), rows, 5)
    assert (found.kept, found.pool) == (0, cut.experts.chosen_bytes(rows))
    layers = Residence(cut, LAYERS, 1).resident_bytes
    for more in (0, 1_000_000, 1 << 40):
        found = plan_residence(cut, layers + cut.experts.chosen_bytes(rows) + more, 1, (), rows)
        assert (found.kept, found.step_bytes) == (LAYERS, 0)
        assert found.pool == min(cut.experts.bytes, cut.experts.chosen_bytes(rows) + more)


class Twin:
    """What a pool has in memory and reads."""

    def __init__(self, experts, budget):
        self.sizes, self.budget = experts.sizes, budget
        self.held = {}  # in the order in which they were chosen
        self.ready = self.reads = self.bytes = 0

    def choose(self, layer, chosen):
        wanted = sorted({layer * EACH + int(each) for each in chosen.ravel() if 0 <= each < EACH})
        missing = [each for each in wanted if each not in self.held]
        for each in wanted:
            if each in self.held:
                self.held[each] = self.held.pop(each)
        needed = sum(self.sizes[each] for each in missing)
        while sum(self.held.values()) + needed > self.budget and next(iter(self.held), wanted[0]) not in wanted:
            del self.held[next(iter(self.held))]
        self.held |= {each: self.sizes[each] for each in missing}
        self.ready, self.reads = self.ready + len(wanted) - len(missing), self.reads + len(missing)
        self.bytes += needed


@pytest.fixture
def pooled(tmp_path):
    opened = []

    def make(pool):
        where = Residence(cut_of(0), LAYERS, 0, pool)
        opened.append(WeightsFile(tmp_path / f"{len(opened)}.weights", buffers(0), where))
        return opened[-1]

    yield make
    for each in opened:
        each.stream.close()


def choices(seed, count, rows=2):
    """Layers, and what their rows choose: some experts oftener than others, and numbers that are nobody's."""
    rng = np.random.default_rng(seed)
    weight = rng.permutation(np.geomspace(1, 20, EACH))
    for at in range(count):
        chosen = rng.choice(EACH, (rows, USED), p=weight / weight.sum()).astype(np.int32)
        yield at % (LAYERS - FIRST), np.where(rng.random(chosen.shape) < 0.1, EACH + 1, chosen)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_bytes_are_those_of_the_experts_that_were_missing(pooled, share):
    """R18, R19: whatever is chosen, one read each, as the disk says too, and no more in memory than the pool."""
    experts = cut_of(0).experts
    pool = max(experts.chosen_bytes(2), int(share * experts.bytes))
    made, twin = pooled(pool), Twin(experts, pool)
    made.visit(LAYERS - 1)
    before = disk_bytes()
    for layer, chosen in choices(1, 60):
        made.choose(layer, chosen)
        twin.choose(layer, chosen)
        assert sum(twin.held.values()) <= pool
    counts = made.stream.counts()
    assert (counts.experts, counts.experts_ready, counts.experts_read) == (len(twin.held), twin.ready, twin.reads)
    assert counts.experts_bytes == twin.bytes
    assert (counts.experts_waited_ns > 0, twin.ready > 0) == (True, True)
    if share == 1:
        assert counts.experts_read == counts.experts
    kept = cut_of(0).bytes(cut_of(0).union(range(LAYERS)))
    if read := disk_bytes() - before:  # a file system in memory has no disk
        assert (
            0 <= read - twin.bytes <= kept + (1 << 16)
        )  # layers that were on their way, blocks of the file system's own
    there = cached(made.memory)
    for expert, runs in enumerate(experts.pages):
        for run in runs:
            assert there[run.start : run.stop].all() == there[run.start : run.stop].any() == (expert in twin.held)


def test_large_experts_are_read_in_huge_pages_and_exactly_too(tmp_path):
    """Matrices of several huge pages that begin and end inside of them."""
    count, size = 3, 2 * UNIT + 77 * PAGE + 5
    of = [Buffer((1, count, size), [f"blk.0.{name}.weight"]) for name in ("ffn_up_exps", "ffn_down_exps")]
    cut = Cut.of(of, 1, 1)
    assert cut.experts is not None
    made = WeightsFile(tmp_path / "m.weights", of, Residence(cut, 1, 0, max(cut.experts.sizes)))
    before = disk_bytes()
    for expert in (0, 1, 2, 1, 0):
        made.choose(0, np.array([[expert]], np.int32))
        there = cached(made.memory)
        for number, runs in enumerate(cut.experts.pages):
            for run in runs:
                assert there[run.start : run.stop].all() == there[run.start : run.stop].any() == (number == expert)
    counts = made.stream.counts()
    assert (counts.experts, counts.experts_read) == (1, 5)
    assert counts.experts_bytes == sum(cut.experts.sizes[expert] for expert in (0, 1, 2, 1, 0))
    if read := disk_bytes() - before:  # a file system in memory has no disk
        assert 0 <= read - counts.experts_bytes <= 1 << 16  # blocks of the file system's own
    made.stream.close()


def test_what_a_step_chooses_is_there_even_beyond_the_budget(pooled):
    made = pooled(1)
    for layer in (0, 1):
        made.choose(layer, np.arange(EACH, dtype=np.int32)[None])
        counts = made.stream.counts()
        assert (counts.experts, counts.experts_read) == (EACH, (layer + 1) * EACH)


def test_an_expert_that_cannot_be_read_is_said_and_read_anew(pooled):
    made = pooled(cut_of(0).experts.bytes)
    made.visit(LAYERS - 1)
    made.choose(0, np.array([[0, 1]], np.int32))
    before, size = made.stream.counts(), made.path.stat().st_size
    os.truncate(made.path, 0)
    for layer in range(2):
        said = rf"layer {layer + FIRST}, expert 3: its weights cannot be read: Bad address"
        with pytest.raises(FAILED, match=said):
            made.choose(layer, np.array([[3, 4]], np.int32))
    assert made.stream.counts().experts_read == before.experts_read
    os.truncate(made.path, size)
    for layer in range(2):
        made.choose(layer, np.array([[3, 4]], np.int32))
    counts = made.stream.counts()
    assert (counts.experts_read - before.experts_read, counts.experts - before.experts) == (4, 4)
    with pytest.raises(FAILED, match="there are no experts of a layer 3"):
        made.choose(3, np.array([[3]], np.int32))


def test_a_pool_ends_cleanly(pooled):
    """Whoever chooses afterwards is told, and what is brought before the end is whole."""
    made = pooled(cut_of(0).experts.chosen_bytes(2))

    def run(seed):
        try:
            for layer, chosen in choices(seed, 1000):
                made.choose(layer, chosen)
        except FAILED as error:
            ended.append(str(error))

    ended = []
    running = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(3)]
    for thread in running:
        thread.start()
    while made.stream.counts().experts_read < 20:
        pass
    made.stream.close()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ended) == 3
    assert all("no stream has this number" in each for each in ended)
    made.stream.close()


def test_without_experts_nothing_is_brought(pooled):
    cut = Cut.of(buffers(0)[:2], LAYERS)
    assert cut.experts is None
    made = pooled(0)
    made.stream = WeightsFile(made.path.with_suffix(".other"), buffers(0)[:2], Residence(cut, 0, 0)).stream
    made.choose(7, np.array([[1]], np.int32))
    assert made.stream.counts().experts_read == 0


# The whole model.
MIXTURE = Recipe(
    "ernie4_5-moe",
    {
        **routed(EACH, USED),
        "block_count": LAYERS,
        "embedding_length": 1024,
        "feed_forward_length": 512,
        "expert_feed_forward_length": 256,
        "attention.head_count": 8,
        "interleave_moe_layer_step": 1,
        DENSE_FIRST: FIRST,
        SHARED_WIDTH: 256,
    },
    formats={
        "default": "Q8_0",
        "attn_q": "F32",
        "ffn_gate_inp": "F32",
        "ffn_down_exps": "Q6_K",
        "blk.2.ffn_up_exps": "Q4_K",
    },
    seed=3,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("model") / "m.gguf", MIXTURE, neutral=("exp_probs_b.bias",))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return CompileConfig(**SMALL, cache_dir=str(tmp_path_factory.mktemp("store")))


def budget(path, config, kept, ahead, more):
    """Bytes that let so many layers stay, and more experts than a step of all rows may choose."""
    prepared = prepare(path, streamed(config))
    assert prepared.residence is not None
    cut = prepared.residence.cut
    assert cut.experts is not None
    pool = cut.experts.chosen_bytes(16) + more * max(cut.experts.sizes)
    return prepared.memory.weights + Residence(cut, kept, ahead, pool).resident_bytes


def test_a_small_budget_gives_the_same_bits(model, config):
    """R16: whatever of layers and experts stays, by the same executables; no expert beyond the pool is in memory."""
    ids, greedy = [*range(5, 25)], {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    with packlight.load(model, config) as plain:
        logits = plain.logits(ids)
        (text,) = plain.generate([ids], **greedy)
    for number, (kept, ahead, more) in enumerate([(0, 1, 0), (2, 0, 3)]):
        own = streamed(config, weights_budget=budget(model, config, kept, ahead, more), weights_ahead=ahead)
        with packlight.load(model, own) as llm:
            assert llm.warnings == ()
            assert (llm.executables.misses > 0) == (number == 0)
            where = llm.memory.residence
            assert where is not None
            experts = where.cut.experts
            assert experts is not None
            assert (where.kept, where.pool // max(experts.sizes)) == (kept, EACH + more)
            assert where.pool < experts.bytes
            np.testing.assert_array_equal(llm.logits(ids), logits)
            assert llm.generate([ids], **greedy)[0].token_ids == text.token_ids
            counts = llm.streamed
            assert counts is not None
            assert counts.experts_ready > 0
            assert counts.experts_read > counts.experts > 0
            assert counts.experts_read * min(experts.sizes) <= counts.experts_bytes
            assert counts.experts_bytes <= counts.experts_read * max(experts.sizes)
            if not ahead:  # and nothing is on its way between two texts
                before = disk_bytes() - counts.bytes - counts.experts_bytes
                np.testing.assert_array_equal(llm.logits(ids), logits)
                after = llm.streamed
                assert after is not None
                assert after.experts_read > counts.experts_read
                if before > 0:  # a file system in memory has no disk
                    assert 0 <= disk_bytes() - after.bytes - after.experts_bytes - before <= 1 << 16
            blocks = llm.engine._params["blk"]["moe"]["ffn_down_exps"].groups[0].blocks
            there, begin = cached(np.asarray(blocks).reshape(-1)), experts.pages[0][-1].start
            runs = [runs[-1] for runs in experts.pages if runs[-1].start >= begin]
            assert len(runs) > counts.experts
            held = [there[run.start - begin : run.stop - begin] for run in runs]
            assert sum(pages.any() for pages in held) <= llm.streamed.experts


def test_an_expert_that_cannot_be_read_ends_no_process(model, config, pooled):
    with packlight.load(model, streamed(config, weights_budget=budget(model, config, 1, 2, 2))) as llm:
        right = llm.logits([1, 2, 3])
        made, params = pooled(cut_of(0).experts.bytes), llm.engine._params
        made.visit(LAYERS - 1)
        os.truncate(made.path, 0)
        own, params["stream"] = params["stream"], jnp.int32(made.stream.number)
        for attempt in (lambda: llm.logits([1, 2, 3]), lambda: llm.generate("x", temperature=0)):
            said = r"^layer 1, expert \d: its weights cannot be read: Bad address$"
            with pytest.raises(packlight.PacklightError, match=said):
                attempt()
        params["stream"] = own
        np.testing.assert_array_equal(llm.logits([1, 2, 3]), right)


def test_the_plan_says_what_is_where(model, config):
    plan = prepare(model, streamed(config, weights_budget=budget(model, config, 1, 1, 2), weights_ahead=1)).memory
    where = plan.residence
    assert where is not None
    assert where.cut.experts is not None
    pool, token = f"{where.pool / 1e6:.1f} MB", f"{where.cut.experts.token_bytes / 1e6:.1f} MB"
    said = rf", {EACH + 2} of {(LAYERS - FIRST) * EACH} experts {pool}; [\d.]+ MB read a step, and {token} of other"
    assert re.search(said, str(plan))
    with pytest.raises(packlight.MemoryLimitError) as refused:
        packlight.load(model, streamed(config, weights_budget=1_000_000))
    (least,) = re.findall(r"; ([\d,]+) bytes are the least, with 2 layers ahead$", str(refused.value))
    least = int(least.replace(",", ""))
    found = prepare(model, streamed(config, weights_budget=least)).residence
    assert found is not None
    assert (found.kept, found.pool) == (0, where.cut.experts.chosen_bytes(16))
    with pytest.raises(packlight.MemoryLimitError):
        _ = prepare(model, streamed(config, weights_budget=least - 1)).residence


def test_what_all_fits_is_read_once(model, config):
    with packlight.load(model, streamed(config)) as llm:
        for _ in range(2):
            llm.logits([*range(5, 25)])
        where, counts = llm.memory.residence, llm.streamed
        assert where is not None
        assert counts is not None
        assert where.cut.experts is not None
        assert where.pool == where.cut.experts.bytes
        assert counts.experts_read == counts.experts <= len(where.cut.experts.sizes)
        here = rf"experts: {counts.experts} of {(LAYERS - FIRST) * EACH} in memory; {counts.experts_ready} ready, "
        lines = streaming(llm)
        assert lines[0].startswith(f"streamed: 0 of {LAYERS} layers, 0.0 MB a step; ")
        assert re.fullmatch(rf"{here}{counts.experts_read} read, \d\.\d\d s waited; [\d.]+ MB read", lines[1])


@pytest.mark.parametrize("name", ["llama-moe", "gpt-oss", "gemma4-moe"])
def test_small_mixtures_are_streamed_too(tmp_path, config, name):
    """Biases, scales, experts beside a dense part; their matrices are too small to be cut, and stay."""
    path, ids = write_recipe(tmp_path / "m.gguf", RECIPES[name]), [*range(5, 25)]
    with packlight.load(path, config) as plain, packlight.load(path, streamed(config)) as llm:
        assert llm.memory.residence is not None
        assert llm.memory.residence.cut.experts is None
        np.testing.assert_array_equal(llm.logits(ids), plain.logits(ids))


def test_a_stream_that_is_not_there_is_an_error():
    with pytest.raises(FAILED, match="no stream has this number"):
        native_ops.bring_experts(jnp.zeros((1, 1), jnp.int32), jnp.int32(0), jnp.int32(-1)).block_until_ready()
