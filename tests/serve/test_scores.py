"""Log-probabilities of a prompt's tokens: those of its logits, whatever runs beside it, and the same bits any way."""

import dataclasses

import numpy as np
import pytest
from golden_models import model
from tiers import tiered

import packlight
from packlight import demo
from packlight.compile.plan import Phase
from packlight.model.sampling.config import SamplingConfig
from packlight.perplexity import log_softmax

CONFIG = packlight.CompileConfig(
    context=384,
    prefill_buckets=(16, 64),
    prefill_rows_while_decoding=16,
    decode_batch=(1, 4),
    head_rows=8,
    cpu_kernels="native",
)
IDS = np.random.default_rng(3).integers(5, 90, 300).tolist()
ONLY = {"max_tokens": 0, "prompt_logprobs": 3}
ULP = 2.0**-24  # of float32, half of it: what rounding costs


@pytest.fixture(scope="module")
def llm(request):
    request.getfixturevalue("native_library")
    return packlight.load(demo.MODEL, CONFIG)


def rounding(logits):
    """How far the log-softmax of a row (T,) may be from the true one in float32: differences and their exponentials are
    rounded once each, as the sum is in each piece of 256 and in 8 doublings, its logarithm, and what is left of it.
    """
    logp = log_softmax(logits)
    below = logits - logits.max(1, keepdims=True)
    spread = (np.exp(logp) * -below).sum(1)  # the exponential passes an error of its exponent on
    total = 2 + spread + logits.shape[1] / 256 + 8
    return ULP * (total[:, None] + -below - 2 * (logp - below) - logp)


def check(llm, ids, scored, logits=None):
    """Entries for every token, of `logits` or of those of `ids`, with as many alternatives as were wanted."""
    logits = llm.logits(ids) if logits is None else logits
    logp, bound = log_softmax(logits), rounding(logits)
    assert (len(scored), scored[0]) == (len(ids), None)
    for row, (token, said) in enumerate(zip(ids[1:], scored[1:], strict=True)):
        assert said.token_id == token
        assert bytes(said.bytes) == llm.tokenizer.piece(token)
        best = np.argsort(-logits[row], kind="stable")[: len(said.top_logprobs)]
        assert [top.token_id for top in said.top_logprobs] == best.tolist()
        for each in (said, *said.top_logprobs):
            assert abs(each.logprob - logp[row, each.token_id]) <= bound[row, each.token_id]
        if said.top_logprobs:
            assert (said.logprob == said.top_logprobs[0].logprob) == (logits[row, token] == logits[row].max())


@pytest.mark.parametrize("count", [1, 2, 9, 17, 150, 384])
def test_scores_are_the_log_softmax_of_the_logits(llm, count):
    """Of one token nothing is told; 384 fill the context, and no token is wanted."""
    ids = (IDS * 2)[:count]
    completion = llm.generate(ids, **ONLY)
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([], "", "length")
    assert completion.timings["total_s"] > 0
    check(llm, ids, completion.prompt_logprobs)


SMALL = {"context": 128, "prefill_buckets": (16,), "decode_batch": (1,)}
FAMILIES = ("gemma2", "command-r", "granitehybrid-dense", "gpt-oss", "qwen35-packed", "deepseek2-flash", "gemma4-e")


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", tiered(FAMILIES, ("gemma2", "granitehybrid-dense")))  # caps, and a state
def test_scores_of_architectures(name, tmp_path):
    """What is scored leaves all of a prompt in its slot, though no token follows: the next turn goes on behind it."""
    llm = packlight.load(model(f"own/{name}", tmp_path), dataclasses.replace(CONFIG, **SMALL))
    ids = IDS[:45]
    scored = llm.generate(ids, **ONLY)
    longer = [*ids, *IDS[60:70]]
    answer = llm.generate(longer, max_tokens=4, temperature=0, logprobs=0, reuse_prefix=True)
    assert answer.cached_tokens == 45
    alone = llm.generate(longer, max_tokens=4, temperature=0, logprobs=0, prompt_logprobs=3)
    assert (alone.cached_tokens, alone.logprobs) == (0, answer.logprobs)
    assert alone.prompt_logprobs[:45] == scored.prompt_logprobs
    check(llm, longer, alone.prompt_logprobs)


def test_tokens_are_scored_as_they_were_chosen(llm):
    """To the bit, by another step: the prompt of the second request is the text of the first."""
    chosen = llm.generate(IDS[:20], max_tokens=50, temperature=0, logprobs=4, ignore_eos=True)
    text = chosen.prompt_token_ids + chosen.token_ids
    scored = llm.generate(text, prompt_logprobs=4, max_tokens=0).prompt_logprobs
    assert scored[20:] == chosen.logprobs
    best = [said.logprob == said.top_logprobs[0].logprob for said in scored[20:]]
    assert best == [said.token_id == said.top_logprobs[0].token_id for said in scored[20:]]
    assert sum(best) > 40


def test_what_runs_beside_changes_no_bit(llm):
    """Two prompts are read in small chunks beside a text and get what they get alone; so does the text."""
    prompts = IDS[:150], IDS[150:]
    alone = [llm.generate(ids, **ONLY).prompt_logprobs for ids in prompts]
    text = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    expected = llm.generate([7, 8], **text).token_ids
    running = llm.stream([7, 8], **text)
    next(running)
    before = llm.engine.steps_run.copy()
    both = llm.generate(list(prompts), prompt_logprobs=3, max_tokens=2, seed=1)
    ran = llm.engine.steps_run - before
    assert max(key.rows for key in ran if key.phase is Phase.PREFILL) == 16
    assert [each.prompt_logprobs for each in both] == alone
    assert [len(each.token_ids) for each in both] == [2, 2]
    list(running)
    assert running.so_far.token_ids == expected


def test_all_of_the_prompt_is_read_and_no_head_step_runs(llm):
    """Though the cache has it; a prompt of which no token is wanted takes scores alone."""
    llm.generate(IDS[:40], max_tokens=1)
    before = llm.engine.steps_run.copy()
    completion = llm.generate(IDS[:40], reuse_prefix=True, prompt_logprobs=0, max_tokens=0)
    ran = llm.engine.steps_run - before
    assert completion.cached_tokens == 0
    assert all(said.top_logprobs == () for said in completion.prompt_logprobs[1:])
    assert {key.phase: count for key, count in ran.items() if key.phase is not Phase.PREFILL} == {Phase.SCORE: 5}


def test_a_prompt_that_leaves_no_room_for_a_token(llm):
    with pytest.raises(packlight.ContextLengthError, match="384 tokens, which leaves no room for an answer"):
        llm.generate([5] * 384, max_tokens=1, prompt_logprobs=0)
    with pytest.raises(packlight.ContextLengthError, match="385 tokens; the context holds 384"):
        llm.generate([5] * 385, **ONLY)
    engine, seeded = llm.engine, SamplingConfig(seed=0, **ONLY)
    with pytest.raises(packlight.ContextLengthError):
        engine.submit([5] * 385, seeded)
    with pytest.raises(ValueError, match="at least one prompt token"):
        engine.submit([], seeded)


def test_logits_that_are_not_finite_end_it(llm, monkeypatch):
    """Those of the second chunk's third row; the other request, and its slot, go on."""
    run = type(llm.engine)._run

    def spoiled(self, key, cache, args):
        result = run(self, key, cache, args)
        if key.phase is Phase.SCORE and args.next_ids[2] == IDS[67]:
            result = result._replace(finite=np.arange(key.rows) != 2)
        return result

    good = llm.stream(IDS[:30], max_tokens=5, temperature=0)
    expected = llm.generate(IDS[:30], max_tokens=5, temperature=0).text
    bad = llm.stream(IDS[:90], **ONLY)
    begun = next(good)
    with monkeypatch.context() as patch:
        patch.setattr(type(llm.engine), "_run", spoiled)
        with pytest.raises(packlight.NonFiniteLogitsError, match="at position 67 are NaN or infinite"):
            list(bad)
    assert len(bad.so_far.prompt_logprobs) == 67
    assert begun + "".join(good) == expected
    assert llm.engine.idle


def test_a_prompt_that_is_closed_early_frees_its_slot(llm):
    number = llm.engine.submit(IDS, SamplingConfig(seed=0, **ONLY))
    (first,) = llm.engine.step()
    assert (first.request, first.start, first.position, first.ended) == (number, 1, 65, None)
    llm.engine.cancel(number)
    assert llm.engine.idle
