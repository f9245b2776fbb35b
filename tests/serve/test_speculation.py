"""Drafts change nothing but speed: ids and log-probabilities to the bit, whatever is right; and when they are made."""

import dataclasses

import numpy as np
import pytest
from drafting_models import CONFIG, REPEATS
from golden_models import model
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import product, tiered

import packlight
from packlight import demo
from packlight.compile.config import MeshShape
from packlight.compile.plan import Phase
from packlight.serve import speculation
from packlight.serve.speculation import Drafter, Pace

FAMILIES = ("gemma2", "gpt-oss", "deepseek2-flash", "gemma4-e", "command-r", "phi3-packed")
WANTED = {
    "greedy": {"temperature": 0},
    "drawn": {"seed": 5},
    "long path": {"seed": 5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.5},
    "biased": {"temperature": 0, "logit_bias": {70: 3.0, 71: -50.0}},
}


@pytest.fixture(scope="module")
def llm(request):
    request.getfixturevalue("native_library")
    with packlight.load(demo.MODEL, CONFIG) as llm:
        yield llm


def verified(llm):
    return {key.rows: count for key, count in llm.engine.steps_run.items() if key.phase is Phase.VERIFY}


def undrafted(llm, monkeypatch, prompt, **wanted):
    """What decode steps alone give."""
    with monkeypatch.context() as patch:
        patch.setattr(Drafter, "drafts", lambda *_: [])
        before = verified(llm)
        completion = llm.generate(prompt, **wanted)
        assert verified(llm) == before
    return completion


def guesses(monkeypatch, right, wrong_at):
    """Drafts that are the true continuation, but for the places in `wrong_at`; three at a time at most."""
    told = [token + (number in wrong_at) for number, token in enumerate(right)]

    def drafts(self, prompt, tokens, most, pace, ask):
        at = len(tokens)
        return told[at : at + min(most, 1 + at % 3)]

    monkeypatch.setattr(Drafter, "drafts", drafts)


def same(a, b):
    assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
    assert a.logprobs == b.logprobs


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("wrong_at", [(), (0, 3, 4, 11, 12, 13, 14, 30), range(100)])
def test_right_and_wrong_drafts_change_no_bit(llm, monkeypatch, wanted, wrong_at):
    asked = WANTED[wanted] | {"max_tokens": 40, "logprobs": 3, "ignore_eos": True}
    alone = undrafted(llm, monkeypatch, REPEATS, **asked)
    guesses(monkeypatch, alone.token_ids, wrong_at)
    before = llm.engine.steps_run.copy()
    beside = llm.generate(REPEATS, **asked)
    same(beside, alone)
    ran = llm.engine.steps_run - before
    steps = sum(count for key, count in ran.items() if key.phase in (Phase.VERIFY, Phase.DECODE))
    drafted, accepted = beside.timings["drafted"], beside.timings["accepted"]
    assert steps + accepted in (
        39,
        40,
    )  # a head step may be the first
    assert accepted == (0 if wrong_at == range(100) else drafted if not wrong_at else accepted)
    assert drafted > 10


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", tiered(FAMILIES, ("gemma2", "deepseek2-flash")))
def test_architectures(name, tmp_path, monkeypatch):
    """Windows, sinks, latents, layers of two kinds: what a wrong draft wrote is never looked at."""
    with packlight.load(model(f"own/{name}", tmp_path), dataclasses.replace(CONFIG, context=96)) as llm:
        asked = {"max_tokens": 50, "temperature": 0, "logprobs": 2, "ignore_eos": True}
        prompt = np.random.default_rng(1).integers(5, 60, 37).tolist()
        alone = undrafted(llm, monkeypatch, prompt, **asked)
        guesses(monkeypatch, alone.token_ids, (2, 3, 9, 17, 18, 33))
        same(llm.generate(prompt, **asked), alone)
        assert len(verified(llm)) == 2


def test_ends(llm, monkeypatch):
    """By an end token among drafts, a stop string, `max_tokens`, a full context: as without drafts."""
    free = {"temperature": 0, "ignore_eos": True, "logprobs": 0}
    long = undrafted(llm, monkeypatch, REPEATS, **free)  # to the end of the context
    assert len(long.token_ids) == 192 - len(REPEATS)
    natural = undrafted(llm, monkeypatch, "What is a generator?", temperature=0)
    stop = long.text[10:14]
    stopped = undrafted(llm, monkeypatch, REPEATS, **free, stop=[stop])
    guesses(monkeypatch, long.token_ids, (5,))
    same(llm.generate(REPEATS, **free), long)
    for count in (1, 2, 3, 5):
        assert llm.generate(REPEATS, **free, max_tokens=count).token_ids == long.token_ids[:count]
    same(llm.generate(REPEATS, **free, stop=[stop]), stopped)
    guesses(monkeypatch, [*natural.token_ids, *llm.tokenizer.eog_ids, 5, 5, 5], ())
    same(llm.generate("What is a generator?", temperature=0), natural)


def test_the_next_text_begins_where_drafts_were_wrong(llm, monkeypatch):
    """The slot keeps what is right: the next turn reads only what is new, and gets what it gets alone."""
    asked = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}
    first = undrafted(llm, monkeypatch, REPEATS, **asked)
    turn = [*REPEATS, *first.token_ids, 7, 8, 9]
    alone = undrafted(llm, monkeypatch, turn, **asked, logprobs=2)
    llm.generate(list(range(100, 150)), max_tokens=1)
    guesses(monkeypatch, first.token_ids, (1, 4, 8))
    llm.generate(REPEATS, **asked)
    guesses(monkeypatch, alone.token_ids, (0,))
    again = llm.generate(turn, **asked, logprobs=2)
    same(again, alone)
    assert again.cached_tokens >= len(REPEATS)


def test_drafts_are_for_one_text_at_a_time(llm, monkeypatch):
    asked = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    alone = [undrafted(llm, monkeypatch, prompt, **asked) for prompt in (REPEATS, REPEATS[3:])]
    guesses(monkeypatch, alone[0].token_ids, ())
    before = verified(llm)
    both = llm.generate([REPEATS, REPEATS[3:]], **asked)
    assert [each.token_ids for each in both] == [each.token_ids for each in alone]
    assert verified(llm) == before


@pytest.mark.parametrize(
    "more", [{"repeat_penalty": 1.1}, {"dry_multiplier": 0.5}, {"mirostat": 2}, {"frequency_penalty": 0.5}]
)
def test_no_drafts_where_logits_depend_on_what_was_written(llm, monkeypatch, more):
    monkeypatch.setattr(Drafter, "drafts", lambda *_: pytest.fail("a draft was asked for"))
    done = llm.generate(REPEATS, max_tokens=8, seed=1, **more)
    assert not done.timings.keys() & {"drafted", "accepted"}


def test_a_text_that_repeats_is_guessed(llm, monkeypatch):
    """By the drafts that the engine makes itself, in fewer steps than tokens."""
    monkeypatch.setattr(Pace, "drafts", lambda self, rate, asked: 3)
    said = llm.generate("What is a generator?", temperature=0, max_tokens=60, ignore_eos=True)
    prompt = [*said.prompt_token_ids, *said.token_ids, *said.prompt_token_ids]
    before = sum(llm.engine.steps_run.values())
    again = llm.generate(prompt, temperature=0, max_tokens=40, ignore_eos=True)
    assert again.timings["drafted"] >= again.timings["accepted"] > 0
    assert sum(llm.engine.steps_run.values()) - before < 40 + len(llm.plan.chunks(0, len(prompt)))


@pytest.mark.parametrize("mesh", [MeshShape(2, 1), product(MeshShape(2, 2))])
def test_a_mesh_verifies(tmp_path, monkeypatch, mesh):
    """A slot of the second group of devices, whose group alone keeps what is right."""
    changes = {"mesh": mesh, "cpu_kernels": "xla", "decode_batch": (2, 4), "context": 96}
    with packlight.load(model("own/qwen2", tmp_path), dataclasses.replace(CONFIG, **changes)) as llm:
        asked = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
        alone = undrafted(llm, monkeypatch, REPEATS, **asked)
        guesses(monkeypatch, alone.token_ids, (3, 7, 8))
        for _ in range(4):  # another slot each time
            assert llm.generate([9, *REPEATS], max_tokens=1, temperature=0).token_ids
            assert llm.generate(REPEATS, **asked).token_ids == alone.token_ids
        assert verified(llm)


def test_a_prediction_changes_nothing_but_speed(llm, monkeypatch):
    asked = {"temperature": 0, "max_tokens": 60, "logprobs": 1, "ignore_eos": True}
    alone = undrafted(llm, monkeypatch, "A generator is", **asked)
    half = len(alone.text) // 2
    monkeypatch.setattr(Pace, "drafts", lambda self, rate, asked: 3)  # whatever this machine's steps take
    beside = llm.generate("A generator is", **asked, prediction=f"{alone.text[:half]}!? {alone.text[half:]}")
    same(beside, alone)
    assert beside.timings["accepted"] > len(alone.token_ids) / 3


# ---- what is guessed, and when


def eager(rows):
    """A pace at which as many drafts are made as there may be."""
    pace = Pace((rows,), 10)
    for _ in range(speculation.KNOWN):
        pace.took(1, 1.0)
        pace.took(rows, 0.1)
    return pace


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
@settings(deadline=None, max_examples=200)
def test_a_draft_follows_the_newest_place_that_is_alike(ids, most):
    drafter, pace = Drafter(64), eager(8)
    found = drafter.drafts(ids[:7], ids[7:], most, pace)
    for length in (3, 2):
        places = [at for at in range(len(ids) - length) if ids[at : at + length] == ids[len(ids) - length :]]
        if places and len(ids) > length:
            behind = places[-1] + length
            assert found == ids[behind : behind + most]
            return
    assert found == []


def test_a_text_is_taken_in_as_it_grows():
    ids, one, pace = np.random.default_rng(0).integers(0, 4, 200).tolist(), Drafter(200), eager(4)
    for end in range(20, 200):
        assert one.drafts(ids[:15], ids[15:end], 3, pace) == Drafter(200).drafts(ids[:end], [], 3, pace)
    other = [*ids[:90], 0, 1, 0, 1]  # it was taken back
    assert one.drafts(ids[:15], other[15:], 3, pace) == Drafter(200).drafts(other, [], 3, pace)


def test_a_prediction_is_followed_through_what_differs():
    """From its beginning, behind a token that is another one, and behind a part that is left out."""
    expected, pace = list(range(100, 130)), eager(8)
    answer = [*expected[:9], 7, *expected[10:16], *expected[22:]]
    drafter, right = Drafter(64, expected), []
    for end in range(len(answer)):
        drafts = drafter.drafts([1, 2, 3], answer[:end], 7, pace)
        right.append(drafts[:1] == answer[end : end + 1])
    assert [at for at, found in enumerate(right) if not found] == [9, 10, 11, 16, 17]
    assert Drafter(64, expected).drafts([1], [], 3, pace) == expected[:3]


def test_drafts_cease_where_they_are_wrong_and_are_tried_again():
    pace, drafter, ids = Pace((2, 4), 10), Drafter(4096), [1, 2, 3, 4] * 10
    tries = []
    for step in range(200):
        drafts = drafter.drafts(ids, [], 3, pace)
        if drafts:
            drafter.verified(len(drafts), 0)
            tries.append(step)
        ids = [*ids, 1 + step % 4]
    assert tries[0] == 0
    assert len(tries) < 20
    assert min(np.diff(tries[-3:])) >= speculation.TRIED_EVERY


def test_the_number_of_drafts_follows_from_what_steps_take():
    pace = Pace((2, 4, 8), 10)
    assert pace.drafts(0.0) == 0
    assert pace.drafts(0.95) == 7
    assert [pace.drafts(rate) for rate in (0.2, 0.5)] == [1, 3]
    for _ in range(50):
        pace.took(1, 0.010)
        pace.took(8, 0.090)  # slower than eight tokens
        pace.took(4, 0.045)
        pace.took(2, 0.021)
    assert pace.drafts(0.99) == 0
    for _ in range(50):
        pace.took(8, 0.011)
    assert pace.drafts(0.5) == 7


def test_a_first_step_that_takes_longer_turns_no_drafts_off():
    pace = Pace((2, 4), 10)
    for _ in range(9):
        pace.took(1, 0.010)
    pace.took(4, 0.900)
    assert pace.drafts(0.9) == 3
    pace.took(4, 0.012)
    pace.took(4, 0.012)
    assert pace.drafts(0.9) == 3
    assert [pace.tried() for _ in range(4)] == [1, 3, 1, 3]


# ---- what is refused


def test_a_recurrence_is_refused_by_name(tmp_path):
    with pytest.raises(packlight.ConfigError, match="'speculate': layers of the model cannot go back"):
        packlight.load(model("own/granitehybrid-dense", tmp_path), CONFIG)


@pytest.mark.parametrize(
    ("given_rows", "words"),
    [
        ((1, 4), "'speculate' holds .1, 4.; a step has 2 to 64 rows"),
        ((4, 2), "ascends"),
        ((2, 65), "2 to 64 rows"),
        (("2",), "integer"),
        (4, "list"),
    ],
)
def test_impossible_rows_are_refused(given_rows, words):
    with pytest.raises(packlight.ConfigError, match=words):
        packlight.CompileConfig(speculate=given_rows)


def test_the_argument_means_rows(native_library):
    plan = packlight.prepared.prepare(demo.MODEL, speculate=3).plan
    assert plan.verified == (2, 4)
    assert packlight.prepared.prepare(demo.MODEL, speculate=6).plan.verified == (2, 4, 7)
    assert packlight.prepared.prepare(demo.MODEL, CONFIG, speculate=0).plan.verified == ()
    for wrong in (-1, 64, "3", True):
        with pytest.raises(packlight.ConfigError, match="speculate"):
            packlight.prepared.prepare(demo.MODEL, speculate=wrong)
