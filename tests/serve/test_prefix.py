"""What a prompt keeps of its slot's last text: fewer tokens are read, and the text is what it would be without."""

import dataclasses

import numpy as np
import pytest
from ggufs import write_llama
from golden_models import model
from tiers import tiered

import packlight
from packlight import demo
from packlight.compile.plan import make_plan
from packlight.model.sampling.config import SamplingConfig
from packlight.prepared import prepare
from packlight.serve.prefix import Held, Keep, in_words, kept

CONFIG = packlight.CompileConfig(
    context=384, prefill_buckets=(16, 64), decode_batch=(1,), head_rows=1, cpu_kernels="xla"
)
GREEDY = {"temperature": 0, "max_tokens": 10, "logprobs": 0}
IDS = np.random.default_rng(3).integers(5, 90, 200).tolist()
OTHER = [91, *IDS[:5]]  # begins as no other text here


def fresh(llm, ids, **sampling):
    """What a prompt gives whose slot knows nothing of it."""
    llm.generate(OTHER, max_tokens=1)
    alone = llm.generate(ids, **GREEDY | sampling)
    assert alone.cached_tokens == 0
    return alone


def logprobs(completion):
    return np.array([each.logprob for each in completion.logprobs])


def rows_run(llm, work):
    """(what `work` returns, how many rows of prompts ran)."""
    before = sum(n * key.rows for key, n in llm.engine.steps_run.items() if key.phase == "prefill")
    result = work()
    return result, sum(n * key.rows for key, n in llm.engine.steps_run.items() if key.phase == "prefill") - before


@pytest.fixture(scope="module", params=["native demo", *tiered(("xla", "native"), ("xla",))])
def llm(request, tmp_path_factory):
    kernels = request.param.split()[0]
    path = demo.MODEL if "demo" in request.param else write_llama(tmp_path_factory.mktemp("m") / "m.gguf", context=384)
    return packlight.load(path, dataclasses.replace(CONFIG, cpu_kernels=kernels, tokens_per_launch=4), slots=1)


def test_what_is_kept_changes_no_bit(llm):
    """All of 150 tokens where their bits are their own; elsewhere two chunks of 64, which the same steps read whatever
    follows."""
    alone = fresh(llm, IDS[:190])
    llm.generate(OTHER, max_tokens=1)
    first = llm.generate(IDS[:150], **GREEDY)
    again, rows = rows_run(llm, lambda: llm.generate(IDS[:190], **GREEDY))
    assert (first.cached_tokens, again.cached_tokens, rows) == (0, 128 if llm.varying else 150, 64)
    assert again == dataclasses.replace(alone, timings=again.timings)
    assert logprobs(again).tobytes() == logprobs(alone).tobytes()


def test_every_token_is_kept_on_request(llm):
    """A second turn reads what is behind the first one's last token; the ids are those of a fresh run."""
    llm.generate(OTHER, max_tokens=1)
    first = llm.generate(IDS[:150], **GREEDY)
    turn = [*first.prompt_token_ids, *first.token_ids, *IDS[150:160]]
    again, rows = rows_run(llm, lambda: llm.generate(turn, reuse_prefix=True, **GREEDY))
    assert again.cached_tokens == 150 + len(first.token_ids) - (first.finish_reason == "length")
    assert rows == 16
    alone = fresh(llm, turn)
    assert again.token_ids == alone.token_ids
    assert np.abs(logprobs(again) - logprobs(alone)).max() <= 1e-3  # two programs of the same sums in float32


def test_the_same_prompt_again_reads_its_last_token(llm):
    """By a decode step, where that gives it the same bits."""
    first = fresh(llm, IDS[:100])
    for _ in range(2):
        again, rows = rows_run(llm, lambda: llm.generate(IDS[:100], reuse_prefix=True, **GREEDY))
        assert (again.cached_tokens, rows) == (99, 16 if llm.varying else 0)
        assert again.token_ids == first.token_ids


def test_a_shorter_prompt_goes_back(llm):
    """Nothing of the longer text is seen, neither by the prompt nor by the tokens behind it."""
    alone = fresh(llm, IDS[:70])
    llm.generate(IDS, **GREEDY)
    again = llm.generate(IDS[:70], reuse_prefix=True, **GREEDY)
    assert (again.cached_tokens, again.token_ids) == (69, alone.token_ids)


def test_bits_stay_after_a_prefix_of_other_steps(llm):
    """Tokens kept by the first turn were read in other chunks than the whole: where that is seen, none is taken."""
    alone = fresh(llm, IDS[:190])
    llm.generate(OTHER, max_tokens=1)
    llm.generate(IDS[:50], **GREEDY)
    assert llm.generate(IDS[:150], reuse_prefix=True, **GREEDY).cached_tokens == 50
    again = llm.generate(IDS[:190], **GREEDY)
    assert again.cached_tokens == (0 if llm.varying else 150)
    assert logprobs(again).tobytes() == logprobs(alone).tobytes()


def test_bits_stay_where_a_text_ends_with_a_chunk(llm):
    """A second turn begins at token 64, but its last tokens before that were written by decode steps."""
    answer = GREEDY | {"max_tokens": 15, "ignore_eos": True}
    turn = [*IDS[:50], *fresh(llm, IDS[:50], **answer).token_ids, *IDS[65:190]]
    alone = fresh(llm, turn)
    llm.generate(OTHER, max_tokens=1)
    llm.generate(IDS[:50], **answer)
    assert llm.generate(turn, reuse_prefix=True, **GREEDY).cached_tokens == 64
    again = llm.generate(turn, **GREEDY)
    assert again.cached_tokens == (0 if llm.varying else 189)
    assert logprobs(again).tobytes() == logprobs(alone).tobytes()


def test_what_leaves_the_slot_early_is_kept_as_far_as_it_came(llm):
    """A closed stream, a stop string; `logits` in the same slot leaves nothing."""
    alone = fresh(llm, IDS[:80])
    llm.generate(OTHER, max_tokens=1)
    stream = llm.stream(IDS[:80], ignore_eos=True, **GREEDY | {"max_tokens": None})
    next(stream)
    stream.close()
    again = llm.generate(IDS[:80], reuse_prefix=True, **GREEDY)
    assert (again.cached_tokens, again.token_ids) == (79, alone.token_ids)
    text = fresh(llm, IDS[:80], ignore_eos=True).text
    stopped = llm.generate(IDS[:80], ignore_eos=True, stop=[text[2:4]], **GREEDY)
    assert (stopped.finish_reason, len(stopped.token_ids) < 10) == ("stop", True)
    assert (len(stopped.token_ids) - 1) % 4  # midway in a launch
    turn = [*IDS[:80], *stopped.token_ids, *IDS[80:90]]
    expected = fresh(llm, turn).token_ids
    llm.generate(OTHER, max_tokens=1)
    llm.generate(IDS[:80], ignore_eos=True, stop=[text[2:4]], **GREEDY)
    again = llm.generate(turn, reuse_prefix=True, **GREEDY)
    assert again.cached_tokens >= 80 + len(stopped.token_ids) - 1
    assert again.token_ids == expected
    llm.logits(IDS[:80])
    assert llm.generate(IDS[:80], reuse_prefix=True, **GREEDY).cached_tokens == 0


def test_a_request_that_fails_leaves_nothing(llm, monkeypatch):
    """Its keys may not be finite."""
    llm.generate(OTHER, max_tokens=1)
    llm.generate(IDS[:80], **GREEDY)
    with monkeypatch.context() as broken:
        broken.setattr(np, "asarray", lambda x: np.array(x) & False if x.dtype == bool else np.array(x))
        with pytest.raises(packlight.NonFiniteLogitsError):
            llm.generate(IDS[:80], reuse_prefix=True, **GREEDY)
    assert llm.generate(IDS[:80], reuse_prefix=True, **GREEDY).cached_tokens == 0


def test_an_interrupted_prompt_leaves_nothing(llm, monkeypatch):
    llm.generate(OTHER, max_tokens=1)
    llm.generate(IDS[:180], **GREEDY)
    run, left = llm.engine._run, iter([True])

    def stopped(*arguments):
        if next(left, None):
            return run(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(llm.engine, "_run", stopped)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([*IDS[:20], *IDS[:150]], reuse_prefix=True, **GREEDY)
    assert llm.generate(IDS[:180], reuse_prefix=True, **GREEDY).cached_tokens == 0


def test_slots_keep_their_own(tmp_path):
    """Two texts side by side; each of the next two finds its beginning where its slot has it."""
    path = write_llama(tmp_path / "m.gguf", context=384)
    llm = packlight.load(path, dataclasses.replace(CONFIG, decode_batch=(2,)), slots=2)
    assert kept_of(llm, IDS[:40], OTHER) == [0, 0]
    assert kept_of(llm, [*OTHER, 7], [*IDS[:40], 7]) == [len(OTHER), 40]


def kept_of(llm, *prompts):
    """How many tokens of each prompt the cache had, when they run side by side."""
    sampling = SamplingConfig(temperature=0, seed=0, max_tokens=4)
    numbers = [llm.engine.submit(ids, sampling, past_end=True, keep=Keep.TOKENS) for ids in prompts]
    found = dict.fromkeys(numbers, 0)
    while not llm.engine.idle:
        for event in llm.engine.step():
            found[event.request] = event.kept
    return [found[number] for number in numbers]


WINDOWS = tiered(("gemma2", "gemma3", "gpt-oss", "olmo3", "gemma4-e"), ("gemma2",))


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_is_gone_back_in_as_far_as_it_holds(name, tmp_path):
    """Of 384 positions 128 are kept. What is refused is read anew, and both give a fresh run's ids."""
    config = dataclasses.replace(CONFIG, prefill_buckets=(16,), cpu_kernels="native")
    llm = packlight.load(model(f"own/{name}", tmp_path), config, slots=1)
    ids = np.random.default_rng(0).integers(3, 90, 330).tolist()
    seen = {}
    for length in (299, 270, 150):
        alone = fresh(llm, ids[:length])
        llm.generate(OTHER, max_tokens=1)
        llm.generate(ids[:300], **GREEDY)
        again = llm.generate(ids[:length], reuse_prefix=True, **GREEDY)
        assert again.token_ids == alone.token_ids
        seen[length] = again.cached_tokens
    window = llm.model.sliding_window
    back = 128 - window + 1  # from position 309, the last that was generated, or the end of the padding, 304
    assert seen == {n: n - 1 if 309 - (n - 1) <= back else 0 for n in seen}
    assert set(seen.values()) > {0}
    assert in_words(llm.plan, llm.plan.cache(llm.model, llm.config.kv_dtype, llm.placement.split)) == (
        f"a turn reads only what is new, or everything if it goes back by more than {back} tokens"
    )


def test_a_recurrence_goes_on_but_not_back(tmp_path):
    config = dataclasses.replace(CONFIG, tokens_per_launch=4)
    llm = packlight.load(model("own/lfm2moe", tmp_path), config, slots=1)
    first = fresh(llm, IDS[:40], ignore_eos=True)
    turn = [*IDS[:40], *first.token_ids, *IDS[40:50]]
    again = llm.generate(turn, reuse_prefix=True, **GREEDY)
    assert again.cached_tokens == 49
    assert again.token_ids == fresh(llm, turn).token_ids
    assert llm.generate(turn, reuse_prefix=True, **GREEDY).cached_tokens == 0  # its last token would be read twice


def test_a_recurrence_does_not_go_on_from_an_interrupted_launch(tmp_path, monkeypatch):
    """Its state is behind all tokens of the launch, of which the request has booked some."""
    config = dataclasses.replace(CONFIG, tokens_per_launch=4)
    llm = packlight.load(model("own/lfm2moe", tmp_path), config, slots=1)
    first = fresh(llm, IDS[:40], ignore_eos=True)
    turn = [*IDS[:40], *first.token_ids[:2], *IDS[40:50]]
    expected = fresh(llm, turn).token_ids
    advance, left = llm.engine._advance, iter(range(2))

    def stopped(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return advance(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(llm.engine, "_advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(IDS[:40], ignore_eos=True, **GREEDY)
    again = llm.generate(turn, reuse_prefix=True, **GREEDY)
    assert (again.cached_tokens, again.token_ids) == (0, expected)


def test_what_the_next_turn_reads_is_said(tmp_path):
    words = {
        name: in_words(prepared.plan, prepared.plan.cache(prepared.model, "float32", prepared.split))
        for name in ("llama", "lfm2")
        for prepared in [prepare(model(f"own/{name}", tmp_path), CONFIG)]
    }
    assert words == {
        "llama": "a turn reads only what is new",
        "lfm2": "a turn reads only what is new if it goes on where the last one ended, else everything",
    }


def test_the_last_token_of_a_prompt_is_always_read(tmp_path):
    prepared = prepare(write_llama(tmp_path / "m.gguf", layers=1, embed=32, context=384), CONFIG)
    plan, shape = make_plan(CONFIG, 384), prepared.plan.cache(prepared.model, "float32", prepared.split)
    held = Held(IDS[:64], 64, plan.chunks(0, 64))
    for length, tokens, chunks in ((1, 0, 0), (64, 63, 0), (65, 64, 64), (70, 64, 64)):
        found = [kept(held, IDS[:length], keep, plan, shape) for keep in (Keep.NOTHING, Keep.TOKENS, Keep.CHUNKS)]
        assert found == [0, tokens, chunks]


def test_a_chunk_counts_only_behind_equal_ones(tmp_path):
    """The second of these was read as the prompt alone would be, but behind tokens that were generated."""
    prepared = prepare(write_llama(tmp_path / "m.gguf", layers=1, embed=32, context=384), CONFIG)
    plan, shape = make_plan(CONFIG, 384), prepared.plan.cache(prepared.model, "float32", prepared.split)
    held = Held(IDS[:190], 192, (*plan.chunks(0, 50), *plan.chunks(64, 126)))
    assert [(chunk.start, chunk.count) for chunk in held.chunks] == [(0, 50), (64, 64), (128, 62)]
    assert held.chunks[1:] == plan.chunks(0, 190)[1:]
    assert kept(held, IDS[:195], Keep.CHUNKS, plan, shape) == 0
    assert kept(held, IDS[:195], Keep.TOKENS, plan, shape) == 190
