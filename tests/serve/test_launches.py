"""Decode steps of several tokens a launch: requests get what single steps give them, in fewer launches."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from ggufs import write_llama
from tiers import product

import packlight
from packlight.compile.config import MeshShape
from packlight.compile.plan import Phase
from packlight.prepared import prepare

CONFIG = packlight.CompileConfig(context=96, prefill_buckets=(16,), decode_batch=(4,), head_rows=1, cpu_kernels="xla")
PROMPTS = ["hello", "The rain in Spain", "a", "one two three"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("launches") / "m.gguf", formats={"token_embd": "F32"}, seed=3)


def load(path, launch, end_tokens=(319,), **changes):
    prepared = prepare(path, dataclasses.replace(CONFIG, tokens_per_launch=launch, **changes))
    prepared.tokenizer.eog_ids = frozenset(end_tokens)
    return packlight.LLM(prepared)


@pytest.fixture(scope="module")
def single(path):
    return load(path, 1)


@pytest.fixture(scope="module")
def several(path):
    return load(path, 5)


def launches(llm, prompt, **sampling):
    """(completion or completions, how many decode steps ran)."""

    def ran():
        return sum(n for key, n in llm.engine.steps_run.items() if key.phase is Phase.DECODE)

    before = ran()
    return llm.generate(prompt, **sampling), ran() - before


CONSTANT = {
    "greedy": {"temperature": 0},
    "drawn": {"seed": 5},
    "long path": {"seed": 5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.5},
    "mirostat 1": {"seed": 7, "mirostat": 1},
    "mirostat 2": {"seed": 7, "mirostat": 2, "mirostat_eta": 0.5},
    "biased": {"temperature": 0, "logit_bias": {70: 3.0, 71: -50.0}},
    "logprobs": {"temperature": 0, "logprobs": 3},
}


@pytest.mark.parametrize("tokens", [1, 2, 6, 13])
@pytest.mark.parametrize("sampling", CONSTANT.values(), ids=CONSTANT)
def test_launches_give_what_steps_give(single, several, sampling, tokens):
    expected, steps = launches(single, PROMPTS[1], max_tokens=tokens, **sampling)
    got, ran = launches(several, PROMPTS[1], max_tokens=tokens, **sampling)
    plain = {"timings": {}, "logprobs": None}
    assert dataclasses.replace(got, **plain) == dataclasses.replace(expected, **plain)
    assert steps == len(got.token_ids) - (got.finish_reason == "length")  # the head step gave the first
    assert ran == -(-steps // 5)
    for ours, theirs in zip(got.logprobs or (), expected.logprobs or (), strict=True):
        assert ours.token_id == theirs.token_id
        assert [top.token_id for top in ours.top_logprobs] == [top.token_id for top in theirs.top_logprobs]
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)  # two programs of the same sums in float32


def test_history_needs_the_host_after_each_token(single, several):
    """A request whose logits depend on what it wrote has one token a launch; others beside it keep theirs."""
    for change in ({"repeat_penalty": 1.5}, {"dry_multiplier": 1.0}, {"regex": "[a-z]+"}):
        expected, _ = launches(single, PROMPTS[0], max_tokens=8, temperature=0, **change)
        got, ran = launches(several, PROMPTS[0], max_tokens=8, temperature=0, **change)
        assert got.token_ids == expected.token_ids
        assert ran == len(got.token_ids) - 1
    config = packlight.SamplingConfig(temperature=0, seed=0, max_tokens=8)
    engine = several.engine
    free = engine.submit([5, 6], config, past_end=True)
    held = engine.submit([5, 6], dataclasses.replace(config, repeat_penalty=1.5), past_end=True)
    given = {free: [], held: []}
    while not engine.idle:
        events = engine.step()
        for request, counts in given.items():
            counts.append(sum(event.request == request for event in events))
    assert (max(given[free]), max(given[held])) == (5, 1)
    assert {request: sum(counts) for request, counts in given.items()} == {free: 8, held: 8}


def test_slots_end_where_they_would_alone(single, several):
    """Four prompts of mixed lengths side by side, then more than there are slots."""
    expected = [single.generate(p, max_tokens=9, temperature=0).token_ids for p in PROMPTS]
    together, ran = launches(several, PROMPTS, max_tokens=9, temperature=0)
    assert [c.token_ids for c in together] == expected
    chunks = sum(len(several.plan.chunks(0, len(several.encode(prompt)))) for prompt in PROMPTS)
    assert ran == chunks - 1 + 2  # one beside each chunk but the first, and two for what the last prompt has left
    queued, _ = launches(several, PROMPTS * 2, max_tokens=9, temperature=0)
    assert [c.token_ids for c in queued] == expected * 2


def test_the_context_is_filled_to_its_last_position(single, several):
    expected = single.generate([5] * 80, temperature=0)
    got = several.generate([5] * 80, temperature=0)
    assert len(expected.token_ids) == 96 - 80
    assert (got.token_ids, got.finish_reason) == (expected.token_ids, "length")


@pytest.mark.parametrize("at", [1, 2, 5, 6, 8])
def test_an_end_token_stops_its_slot_on_the_device(path, single, at):
    """In the middle of a launch: neighbours go on, and its cache does not."""
    ids = single.generate(PROMPTS[1], max_tokens=12, temperature=0).token_ids
    end = ids[at]
    kept = ids[: ids.index(end)]
    llm = load(path, 5, {end})
    (first, other) = llm.generate([PROMPTS[1], PROMPTS[2]], max_tokens=12, temperature=0)
    assert (first.token_ids, first.finish_reason) == (kept, "stop")
    neighbour = single.generate(PROMPTS[2], max_tokens=12, temperature=0).token_ids
    if end in neighbour:
        neighbour = neighbour[: neighbour.index(end)]
    assert other.token_ids == neighbour
    if kept:  # a lone request: the launch ends with it
        prompt = llm.encode(PROMPTS[1])
        assert llm.generate(PROMPTS[1], max_tokens=12, temperature=0).token_ids == kept
        assert int(np.asarray(llm.engine._cache.length)[0]) == len(prompt) + len(kept)


def test_past_end_goes_on(path, single):
    ids = single.generate([9, 8], max_tokens=11, temperature=0).token_ids
    llm = load(path, 5, set(ids))
    request = llm.engine.submit([9, 8], packlight.SamplingConfig(temperature=0, seed=0, max_tokens=11), past_end=True)
    events = list(itertools.chain.from_iterable(iter(lambda: [] if llm.engine.idle else llm.engine.step(), [])))
    assert [event.token for event in events] == ids
    assert [event.position for event in events] == list(range(2, 13))
    assert {event.request for event in events} == {request}
    assert [event.ended for event in events] == [None] * 10 + ["length"]


def test_a_stop_string_ends_a_launch_midway(single, several):
    text = single.generate(PROMPTS[1], max_tokens=12, temperature=0).text
    for at in range(2, len(text) - 1, 3):
        sampling = {"max_tokens": 12, "temperature": 0, "stop": [text[at : at + 2]]}
        expected, got = single.generate(PROMPTS[1], **sampling), several.generate(PROMPTS[1], **sampling)
        assert dataclasses.replace(got, timings={}) == dataclasses.replace(expected, timings={})
    assert several.engine.idle


def test_streams_take_turns(single, several):
    expected = [single.generate(p, max_tokens=9, temperature=0).text for p in PROMPTS[:2]]
    streams = [several.stream(p, max_tokens=9, temperature=0) for p in PROMPTS[:2]]
    texts = ["".join(parts) for parts in zip(*itertools.zip_longest(*streams, fillvalue=""), strict=True)]
    assert texts == expected


def test_a_rewound_request_goes_on_from_there(several):
    engine = several.engine
    request = engine.submit([5, 6, 7], packlight.SamplingConfig(temperature=0, seed=0, max_tokens=20), past_end=True)
    first = engine.step() + engine.step()
    engine.rewind(request, 1)
    assert [e.token for e in engine.step()] == [e.token for e in first[1:]]
    engine.cancel(request)
    assert engine.idle


def test_logits_that_are_not_finite_end_their_slot(path, single):
    """The embedding of the third token written is NaN: the step it enters fails, midway in a launch."""
    ids = single.generate([9, 8], max_tokens=9, temperature=0).token_ids
    assert ids[2] not in (9, 8, *ids[:2])
    other = single.generate([7, 7, 7], max_tokens=3, temperature=0).token_ids
    llm = load(path, 5)
    broken = dict(llm.engine._params)
    table = np.array(broken["token_embd"].blocks)
    table[ids[2]] = 0xFF
    blocks = jax.device_put(table, broken["token_embd"].blocks.sharding)
    broken["token_embd"] = dataclasses.replace(broken["token_embd"], blocks=blocks)
    llm.engine._params = broken
    for prompt, tokens in (([9, 8], 9), ([7, 7, 7], 3)):
        llm.engine.submit(prompt, packlight.SamplingConfig(temperature=0, seed=0, max_tokens=tokens))
    events = list(itertools.chain.from_iterable(iter(lambda: [] if llm.engine.idle else llm.engine.step(), [])))
    failed = [event for event in events if event.request == 0]
    assert [event.token for event in failed[:3]] == ids[:3]
    assert [event.ended for event in failed] == [None, None, None, "error"]
    assert [event.token for event in events if event.request == 1] == other


@pytest.mark.parametrize("mesh", [MeshShape(2, 2), product(MeshShape(1, 4))])
def test_a_mesh_launches_together(path, single, mesh):
    """Groups whose slots end at different times run the same number of rounds."""
    llm = load(path, 5, mesh=mesh)
    lengths = [3, 11, 6, 1]
    runs = [packlight.SamplingConfig(temperature=0, seed=0, max_tokens=n) for n in lengths]
    numbers = [llm.engine.submit([7, 8, 9 + i], run) for i, run in enumerate(runs)]
    tokens = {number: [] for number in numbers}
    while not llm.engine.idle:
        for event in llm.engine.step():
            tokens[event.request].append(event.token)
    for i, n in enumerate(lengths):
        assert tokens[numbers[i]] == single.generate([7, 8, 9 + i], max_tokens=n, temperature=0).token_ids
