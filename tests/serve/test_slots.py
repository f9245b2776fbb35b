"""Where requests go and in which order prompts are read: none stops the others, and none is read twice."""

import dataclasses
import itertools

import numpy as np
import pytest
from ggufs import write_llama
from golden_models import model
from tiers import product, tiered

import packlight
from packlight import demo
from packlight.compile.config import MeshShape
from packlight.compile.plan import Phase
from packlight.model.sampling.config import SamplingConfig
from packlight.serve.prefix import Keep, common

CONFIG = packlight.CompileConfig(
    context=384,
    prefill_buckets=(16, 64),
    prefill_rows_while_decoding=16,
    decode_batch=(1, 4),
    head_rows=1,
    cpu_kernels="native",
)
IDS = np.random.default_rng(3).integers(5, 90, 300).tolist()
GREEDY = SamplingConfig(temperature=0, seed=0, max_tokens=8, logprobs=0)


def load(path=demo.MODEL, **changes):
    return packlight.load(path, dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def llm(request):
    request.getfixturevalue("native_library")
    return load()


def submit(llm, ids, sampling=GREEDY, keep=Keep.TOKENS):
    return llm.engine.submit(ids, sampling, past_end=True, keep=keep)


def ran(llm, phase):
    return {key: count for key, count in llm.engine.steps_run.items() if key.phase is phase}


def rows_read(llm):
    return sum(key.rows * count for key, count in ran(llm, Phase.PREFILL).items())


def finish(llm):
    """request -> [(token, its logprob)], and request -> what it kept, of all that is under way."""
    told, kept = {}, {}
    while not llm.engine.idle:
        for event in llm.engine.step():
            told.setdefault(event.request, []).append((event.token, event.logprob))
            kept[event.request] = event.kept
    return told, kept


def alone(llm, ids, sampling=GREEDY):
    number = submit(llm, ids, sampling, keep=Keep.NOTHING)
    return finish(llm)[0][number]


def forget(llm):
    """Fills every slot with a text that begins as no other."""
    for first in range(llm.plan.slots):
        submit(llm, [91 + first] * 2, dataclasses.replace(GREEDY, max_tokens=1), keep=Keep.NOTHING)
    finish(llm)


def test_a_long_prompt_does_not_stop_the_others(llm):
    """Every step that reads a small chunk of it moves the one that runs by a token; alone it is read in large ones."""
    short, long = alone(llm, IDS[:5], dataclasses.replace(GREEDY, max_tokens=40)), alone(llm, IDS[10:210])
    forget(llm)
    running = submit(llm, IDS[:5], dataclasses.replace(GREEDY, max_tokens=40))
    events = llm.engine.step()
    waiting = submit(llm, IDS[10:210])
    before = ran(llm, Phase.PREFILL)
    while not any(event.request == waiting for event in events):
        steps = llm.engine.step()
        assert sum(event.request == running for event in steps) == 1
        events += steps
    read = {key.rows: count - before.get(key, 0) for key, count in ran(llm, Phase.PREFILL).items()}
    assert {rows: count for rows, count in read.items() if count} == {16: 13}
    told, _ = finish(llm)
    whole = [(event.token, event.logprob) for event in events if event.request == running] + told[running]
    assert whole == short
    assert [(e.token, e.logprob) for e in events if e.request == waiting] + told[waiting] == long


def test_the_shortest_rest_is_read_first_and_the_oldest_in_its_turn(llm):
    forget(llm)
    long = submit(llm, IDS[:256])
    llm.engine.step()
    shorts = [submit(llm, [100 + i, *IDS[: 20 + i]]) for i in range(3)]
    order = []
    for _ in range(40):
        order += [event.request for event in llm.engine.step() if event.request not in order]
    finish(llm)
    assert order == [*shorts, long]


def test_a_prompt_that_never_is_the_shortest_is_read_all_the_same(llm):
    """One chunk in four is the oldest prompt's, however many shorter ones come."""
    forget(llm)
    long = submit(llm, IDS[:128])
    for step in itertools.count():
        assert step < 50
        if sum(r is not None for r in llm.engine._slots.requests) + len(llm.engine._queue) < 4:
            submit(llm, [150, step + 3], dataclasses.replace(GREEDY, max_tokens=1))
        if any(event.request == long for event in llm.engine.step()):
            break
    finish(llm)


def test_a_slot_of_any_rank_runs_alone(llm):
    """Three texts end before the fourth: its last steps are those of one slot."""
    forget(llm)
    for i in range(3):
        submit(llm, IDS[20 * i : 20 * i + 9], dataclasses.replace(GREEDY, max_tokens=2))
    last = submit(llm, IDS[100:109], dataclasses.replace(GREEDY, max_tokens=20))
    told, _ = finish(llm)
    before = dict(llm.engine.steps_run)
    expected = alone(llm, IDS[100:109], dataclasses.replace(GREEDY, max_tokens=20))
    assert told[last] == expected
    after = {key.rows: n - before.get(key, 0) for key, n in ran(llm, Phase.DECODE).items()}
    assert after[1] == 19


FAMILIES = tiered(("llama", "gemma2", "gpt-oss", "deepseek2-flash", "gemma4-e", "glm4"), ("gemma2", "deepseek2-flash"))


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_beginning_is_copied_from_another_slot(name, tmp_path):
    """From one that runs, and from one whose text stays whole: the bits are those of a prompt that was read."""
    llm = load(model(f"own/{name}", tmp_path), prefill_buckets=(16,))
    long, turn = IDS[:120], [*IDS[:100], *IDS[200:210]]
    expected = alone(llm, turn)
    forget(llm)
    first = submit(llm, long, dataclasses.replace(GREEDY, max_tokens=30))
    while not llm.engine.step():
        pass
    before = rows_read(llm)
    second = submit(llm, turn)
    told, kept = finish(llm)
    assert (kept[first], kept[second], rows_read(llm) - before) == (0, 100, 16)
    assert told[second] == expected
    third = submit(llm, [*IDS[:50], 7])  # less than half of what either slot has
    told, kept = finish(llm)
    assert kept[third] == 50
    assert submit(llm, long) > third
    assert finish(llm)[1].popitem()[1] == 119  # it is still there
    assert ran(llm, Phase.COPY)[llm.plan.copy_key] >= 2


@pytest.mark.usefixtures("native_library")
def test_a_copied_window_knows_what_was_written_over(tmp_path):
    """Its source has gone round: a copy of it goes back no further than the source itself."""
    llm = load(model("own/gemma2", tmp_path))
    turn = [*IDS[:70], *IDS[200:220]]
    expected = alone(llm, turn)
    forget(llm)
    first = submit(llm, IDS[:100], dataclasses.replace(GREEDY, max_tokens=150))
    length = 0
    while length < 60:
        length += sum(event.request == first for event in llm.engine.step())
    copied = submit(llm, IDS[:100])
    events = []
    while not any(event.request == copied and event.ended for event in events):
        events += llm.engine.step()
    assert next(event.kept for event in events if event.request == copied) == 99
    third = submit(llm, turn)
    told, _ = finish(llm)
    assert told[third] == expected


@pytest.mark.usefixtures("native_library")
def test_a_recurrence_reads_equal_prompts_once(tmp_path):
    """Without a pool its state is where the others go on only before the first one's last token is read."""
    llm = load(model("own/lfm2moe", tmp_path))
    expected = alone(llm, IDS[:150])
    forget(llm)
    numbers = [submit(llm, IDS[:150]) for _ in range(3)]
    other = submit(llm, [*IDS[:100], 7])  # it cannot go back, and does not wait
    told, kept = finish(llm)
    assert [told[number] for number in numbers] == [expected] * 3
    assert [kept[number] for number in (*numbers, other)] == [0, 149, 149, 0]


def test_equal_prompts_are_read_once(llm):
    """Three texts of one prompt wait for the first one's chunks, and begin with a decode step."""
    forget(llm)
    before = rows_read(llm)
    texts = llm.generate(IDS[:150], n=3, max_tokens=8, temperature=1.0, seed=4)
    assert rows_read(llm) - before == sum(chunk.key.rows for chunk in llm.plan.chunks(0, 150))
    assert [text.cached_tokens for text in texts] == [0, 149, 149]
    for text in texts:
        forget(llm)
        assert llm.generate(IDS[:150], max_tokens=8, temperature=1.0, seed=text.seed).token_ids == text.token_ids


def test_prompts_with_one_beginning_read_it_once(llm):
    """As clients that share a system prompt send them, all at once."""
    forget(llm)
    prompts = [[*IDS[:128], *IDS[200 + 5 * i : 205 + 5 * i]] for i in range(4)]
    expected = [alone(llm, prompt) for prompt in prompts]
    forget(llm)
    numbers = [submit(llm, prompt) for prompt in prompts]
    told, kept = finish(llm)
    assert [told[number] for number in numbers] == expected
    assert [kept[number] for number in numbers] == [0, 128, 128, 128]


@pytest.mark.parametrize("mesh", [MeshShape(2, 1), product(MeshShape(2, 2))])
def test_groups_of_devices_copy_among_themselves(mesh, tmp_path):
    path = write_llama(tmp_path / "m.gguf", context=384, seed=3)
    llm = load(path, mesh=mesh, decode_batch=(4,), cpu_kernels="xla")
    turns = [[*IDS[:100], *IDS[200 + i : 210 + i]] for i in range(2)]
    expected = [alone(llm, turn) for turn in turns]
    forget(llm)
    submit(llm, IDS[:120])
    finish(llm)
    numbers = [submit(llm, turn) for turn in turns]
    told, kept = finish(llm)
    assert [kept[number] for number in numbers] == [100, 100]
    for number, wanted in zip(numbers, expected, strict=True):
        assert [token for token, _ in told[number]] == [token for token, _ in wanted]


def test_a_copy_takes_no_memory_beside_the_cache(llm):
    """XLA copies a whole array where it reads and writes it at two places in one fusion."""
    built = llm.executables.built[llm.plan.copy_key]
    assert built.scratch_bytes < 0.1 * llm.kv_bytes


def test_common_beginnings_are_counted():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 2, rng.integers(0, 9)).tolist() for _ in range(2))
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common(a, b) == expected
