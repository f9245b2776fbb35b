"""Prompts that are read and not answered: for their hidden states, or for the cache; streams go on beside them."""

import numpy as np
import pytest

import packlight
from packlight import demo
from packlight.compile.plan import Phase
from packlight.model.sampling.config import SamplingConfig

CONFIG = packlight.CompileConfig(
    context=384,
    prefill_buckets=(16, 64),
    prefill_rows_while_decoding=16,
    decode_batch=(1, 2),
    head_rows=1,
    cpu_kernels="native",
)
IDS = np.random.default_rng(5).integers(5, 90, 384).tolist()


@pytest.fixture(scope="module")
def llm(request):
    request.getfixturevalue("native_library")
    with packlight.load(demo.MODEL, CONFIG) as llm:
        yield llm


@pytest.mark.parametrize("count", [1, 17, 150, 384])
def test_states_are_those_of_the_steps(llm, count):
    """384 tokens fill the context: no token follows."""
    (read,) = llm.embed([IDS[:count]], "none", normalize=False)
    np.testing.assert_array_equal(read, llm.engine.hidden(IDS[:count]))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pooling_by_chunks_is_that_of_all_states(llm, pooling):
    """To the bit: what is summed chunk by chunk is summed in the order of the whole."""
    (whole,) = llm.embed([IDS[:300]], "none", normalize=False)
    wanted = {"mean": whole.mean(0), "cls": whole[0], "last": whole[-1]}[pooling]
    np.testing.assert_array_equal(llm.embed([IDS[:300]], pooling, normalize=False)[0], wanted)


def test_more_texts_than_slots_get_what_each_gets_alone(llm):
    texts = [IDS[at : at + 5 + 20 * at] for at in range(5)]
    together = llm.embed(texts, "mean")
    np.testing.assert_array_equal(together, np.concatenate([llm.embed([text], "mean") for text in texts]))


def test_a_stream_goes_on_while_a_text_is_read(llm):
    """By small chunks, with a launch of the stream behind each; neither's numbers change."""
    wanted = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone, vector = llm.generate([7, 8], **wanted).token_ids, llm.embed([IDS[:300]], "last")
    stream = llm.stream([7, 8], **wanted)
    next(stream)
    before, told = llm.engine.steps_run.copy(), len(stream.so_far.token_ids)
    beside = llm.embed([IDS[:300]], "last")
    ran = llm.engine.steps_run - before
    chunks = sum(count for key, count in ran.items() if key.phase is Phase.PREFILL)
    assert chunks == -(-300 // 16)
    assert len(stream.so_far.token_ids) - told >= chunks
    list(stream)
    np.testing.assert_array_equal(beside, vector)
    assert stream.so_far.token_ids == alone


def test_a_text_that_is_read_shares_nothing_and_leaves_nothing(llm):
    """What the cache has of it is not used, as its states are gone; what it read is not kept."""
    llm.generate(IDS[:100], max_tokens=1, temperature=0)
    llm.embed([IDS[:100]], "last")
    reused = llm.engine.reused.total()
    llm.embed([IDS[:100]], "last")
    assert llm.engine.reused.total() == reused
    assert all(slot.state in ("empty", "parked") for slot in llm.engine.slots)
    assert sum(slot.state == "empty" for slot in llm.engine.slots) >= 1


def test_a_prompt_is_read_for_the_cache_alone(llm):
    """`max_tokens=0`: no head step runs, and the next request with that beginning reads what is new. It may be all of
    a context.
    """
    alone = llm.generate(IDS[100:200], max_tokens=4, temperature=0)
    before = llm.engine.steps_run.copy()
    warm = llm.generate([9, *IDS[100:200]], max_tokens=0)
    assert (warm.text, warm.token_ids, warm.finish_reason, warm.cached_tokens) == ("", [], "length", 0)
    assert warm.timings["prefill_tok_s"] > 0
    assert {key.phase for key in llm.engine.steps_run - before} == {Phase.PREFILL}
    assert llm.generate([9, *IDS[100:200]], max_tokens=0).cached_tokens == 100  # the last token is read
    answer = llm.generate([9, *IDS[100:200], 11], max_tokens=4, temperature=0)
    assert answer.cached_tokens == 101
    assert llm.generate(IDS[100:200], max_tokens=4, temperature=0).token_ids == alone.token_ids
    assert llm.generate(IDS, max_tokens=0).prompt_token_ids == IDS


def test_what_makes_no_sense_is_refused(llm):
    with pytest.raises(ValueError, match="wants states or tokens"):
        llm.engine.submit([5], SamplingConfig(max_tokens=1, seed=0), states=True)
    with pytest.raises(ValueError, match="at least one prompt token"):
        llm.engine.submit([], SamplingConfig(max_tokens=0, seed=0), states=True)
    with pytest.raises(packlight.ContextLengthError, match="385 tokens"):
        llm.engine.submit([5] * 385, SamplingConfig(max_tokens=0, seed=0), states=True)
