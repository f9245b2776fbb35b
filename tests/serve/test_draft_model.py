"""A draft model changes nothing but speed: ids and log-probabilities to the bit, whatever it guesses; what it reads,
and when it is asked.
"""

import dataclasses

import encoders
import pytest
from drafting_models import CONFIG, REPEATS
from golden_models import model

import packlight
from packlight import demo
from packlight.bench import shallow
from packlight.cli.loading import describe
from packlight.compile.plan import Phase
from packlight.prepared import prepare
from packlight.serve import speculation
from packlight.serve.speculation import Drafter, Pace, Rate

WANTED = {
    "greedy": {"temperature": 0},
    "drawn": {"seed": 5},
    "biased": {"temperature": 0, "logit_bias": {70: 3.0, 71: -50.0}},
}


@pytest.fixture(scope="module")
def first_layer(tmp_path_factory):
    path = tmp_path_factory.mktemp("draft") / "first-layer.gguf"
    shallow.write(demo.MODEL, 1, path)
    return path


@pytest.fixture(scope="module")
def itself(native_library):
    """The embedded model, with itself as its draft model."""
    with packlight.load(demo.MODEL, CONFIG, draft_model=demo.MODEL) as llm:
        yield llm


@pytest.fixture(scope="module")
def smaller(native_library, first_layer):
    """The embedded model, with its first layer as its draft model."""
    with packlight.load(demo.MODEL, CONFIG, draft_model=first_layer) as llm:
        yield llm


@pytest.fixture
def eager(monkeypatch):
    """The draft model is asked for as many drafts as a step verifies, and nothing is looked up."""
    monkeypatch.setattr(Pace, "drafts", lambda self, rate, asked=False: 3 if asked else 0)
    monkeypatch.setattr(Pace, "tried", lambda self: 0)
    monkeypatch.setattr(Pace, "reading", lambda self, tokens: 0.0)


def undrafted(llm, prompt, **wanted):
    """What decode steps alone give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "drafts", lambda *_: [])
        return llm.generate(prompt, **wanted)


def read(llm):
    """Chunks of prompts that the draft model has read, by their rows."""
    return {key.rows: count for key, count in llm.draft.engine.steps_run.items() if key.phase is Phase.PREFILL}


def right(completion):
    """How many drafts were right."""
    return completion.timings["accepted"]


def same(a, b):
    assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
    assert a.logprobs == b.logprobs


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("wanted", WANTED)
def test_the_model_itself_guesses_right(itself, wanted):
    asked = WANTED[wanted] | {"max_tokens": 50, "logprobs": 3, "ignore_eos": True}
    alone = undrafted(itself, REPEATS, **asked)
    beside = itself.generate(REPEATS, **asked)
    same(beside, alone)
    drafted, accepted = beside.timings["drafted"], beside.timings["accepted"]
    assert drafted > 20
    assert accepted == drafted or wanted == "drawn"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("wanted", WANTED)
def test_a_model_that_is_mostly_wrong(smaller, wanted):
    asked = WANTED[wanted] | {"max_tokens": 60, "logprobs": 3, "ignore_eos": True}
    alone = undrafted(smaller, REPEATS, **asked)
    for _ in range(2):
        beside = smaller.generate(REPEATS, **asked)
        same(beside, alone)
        assert beside.timings["accepted"] < beside.timings["drafted"] / 2


@pytest.mark.usefixtures("eager")
def test_ends(itself):
    """By an end token, `max_tokens`, a full context: as without drafts."""
    long = undrafted(itself, REPEATS, temperature=0, ignore_eos=True)
    assert len(long.token_ids) == 192 - len(REPEATS)
    same(itself.generate(REPEATS, temperature=0, ignore_eos=True), long)
    for count in (1, 2, 3, 5):
        some = itself.generate(REPEATS, temperature=0, ignore_eos=True, max_tokens=count)
        assert some.token_ids == long.token_ids[:count]
    natural = undrafted(itself, "What is a generator?", temperature=0)
    same(itself.generate("What is a generator?", temperature=0), natural)


@pytest.mark.usefixtures("eager")
def test_a_prompt_is_read_once_and_a_second_turn_reads_what_is_new(smaller):
    prompt = [(7 * n) % 500 + 100 for n in range(100)]
    asked = {"temperature": 0, "ignore_eos": True, "max_tokens": 30}
    before = read(smaller).get(16, 0)
    first = smaller.generate(prompt, **asked)
    assert first.timings["drafted"]
    assert read(smaller)[16] - before in (7, 8)  # of 100 tokens, and of those that were picked meanwhile
    turn = [*prompt, *first.token_ids, *range(300, 310)]
    alone = undrafted(smaller, turn, **asked)
    before = read(smaller)[16]
    same(smaller.generate(turn, **asked), alone)
    assert read(smaller)[16] - before <= 1


@pytest.mark.usefixtures("eager")
def test_a_long_prompt_is_read_a_chunk_a_step(itself, monkeypatch):
    prompt, chunks = [(11 * n) % 400 + 100 for n in range(120)], []
    ran = Drafter.drafts

    def drafts(self, *args):
        before = sum(read(itself).values())
        found = ran(self, *args)
        chunks.append((sum(read(itself).values()) - before, len(found)))
        return found

    monkeypatch.setattr(Drafter, "drafts", drafts)
    itself.generate(prompt, temperature=0, ignore_eos=True, max_tokens=30)
    assert chunks[:7] == [(1, 0)] * 7
    assert any(made for _, made in chunks[7:])


@pytest.mark.usefixtures("eager")
def test_nothing_is_read_that_takes_longer_than_it_may(itself, monkeypatch):
    monkeypatch.setattr(Pace, "reading", lambda self, tokens: 1e9)
    before = itself.draft.engine.steps_run.copy()
    done = itself.generate([*range(200, 280)], temperature=0, ignore_eos=True, max_tokens=20)
    assert done.timings["drafted"] == 0
    assert itself.draft.engine.steps_run == before


@pytest.mark.usefixtures("eager")
def test_texts_that_take_turns(itself):
    """The draft model goes over to whichever text runs alone, also amid another one's reading."""
    asked = {"temperature": 0, "ignore_eos": True, "max_tokens": 24}
    prompts = [[(n * step) % 300 + 100 for n in range(90)] for step in (3, 5)]
    alone = [undrafted(itself, prompt, **asked).token_ids for prompt in prompts]
    assert [each.token_ids for each in itself.generate(prompts, **asked)] == alone
    stream = itself.stream(prompts[0], **asked)
    next(stream)
    stream.close()
    assert itself.generate(prompts[1], **asked).token_ids == alone[1]
    assert itself.generate(prompts[0], **asked).token_ids == alone[0]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("more", [{"repeat_penalty": 1.1}, {"mirostat": 2}])
def test_no_drafts_where_logits_depend_on_what_was_written(itself, more):
    before = itself.draft.engine.steps_run.copy()
    assert not itself.generate(REPEATS, max_tokens=8, seed=1, **more).timings.keys() & {"drafted", "accepted"}
    assert itself.draft.engine.steps_run == before


@pytest.mark.product
@pytest.mark.usefixtures("native_library", "eager")
def test_windows(tmp_path):
    """Layers with windows go back as far as drafts reach, of either model."""
    path = model("own/gemma2", tmp_path)
    with packlight.load(path, dataclasses.replace(CONFIG, context=96), draft_model=path) as llm:
        asked = {"max_tokens": 50, "temperature": 0, "logprobs": 2, "ignore_eos": True}
        prompt = [*range(5, 42)]
        alone = undrafted(llm, prompt, **asked)
        beside = llm.generate(prompt, **asked)
        same(beside, alone)
        assert right(beside) > 20


# ---- what is said, and when it is asked


def test_the_plan_counts_and_tells_of_both(first_layer, native_library):
    prepared = prepare(demo.MODEL, CONFIG, draft_model=first_layer)
    without = prepare(demo.MODEL, CONFIG).memory
    companion = prepared.companion
    assert companion is not None
    assert prepared.memory.draft == companion.memory.weights + companion.memory.cache > 0
    assert prepared.memory.total == without.total + prepared.memory.draft
    assert "+ draft model " in str(prepared.memory)
    assert companion.plan.slots == 1
    assert (companion.plan.context, companion.plan.tokens_per_launch) == (192, 3)
    with pytest.raises(packlight.MemoryLimitError, match="draft model"):
        packlight.load(demo.MODEL, dataclasses.replace(CONFIG, memory_limit=without.total + 1), draft_model=first_layer)


def test_three_drafts_a_step_where_nobody_says_how_many(first_layer, native_library):
    assert prepare(demo.MODEL, draft_model=first_layer).plan.verified == (2, 4)
    assert prepare(demo.MODEL, speculate=6, draft_model=first_layer).plan.verified == (2, 4, 7)
    short = prepare(demo.MODEL, CONFIG, context=1, draft_model=first_layer).companion
    assert short is not None
    assert short.plan.tokens_per_launch == 1


def test_both_are_shown_and_closed(native_library, first_layer):
    llm = packlight.load(demo.MODEL, CONFIG, draft_model=first_layer)
    assert describe(llm)[-1].startswith("draft model: first-layer.gguf: llama, 1.4 MB: ")
    llm.close()
    assert llm.draft is not None
    for each in (llm, llm.draft):
        with pytest.raises(packlight.PacklightError, match="closed"):
            each.logits([1])


def test_a_recurrence_makes_no_drafts(tmp_path):
    path = model("own/granitehybrid-dense", tmp_path)
    attends = model("own/llama", tmp_path)
    with pytest.raises(packlight.ConfigError, match="granitehybrid-dense.gguf: layers of the model cannot go back"):
        prepare(attends, CONFIG, draft_model=path)


def test_a_draft_model_has_the_same_type_of_cache_or_none(tmp_path):
    attends, narrow = (model(f"own/{name}", tmp_path) for name in ("llama-gqa", "llama"))
    with pytest.raises(packlight.ConfigError, match="llama.gguf: keys and values are kept in q4_0, and .* of 32 "):
        prepare(attends, CONFIG, kv_type="q4_0", draft_model=narrow)
    companion = prepare(attends, CONFIG, kv_type="q4_0", draft_model=attends).companion
    assert companion is not None
    assert companion.config.kv_dtype == "q4_0"


def test_an_encoder_makes_no_drafts(tmp_path):
    encoder = encoders.write(tmp_path / "modern-bert.gguf", encoders.ENCODERS["modern-bert"])
    attends = model("own/llama", tmp_path)
    with pytest.raises(packlight.ConfigError, match="draft_model=.*: a modern-bert model is an encoder"):
        prepare(attends, draft_model=encoder)
    with pytest.raises(packlight.ConfigError, match="draft_model=.*modern-bert.gguf is an encoder"):
        prepare(encoder, draft_model=attends)


def test_what_a_draft_model_takes_counts():
    """By its weights until it is known, then by what it took."""
    assert Pace((2, 4), 10, weight=0.1).drafts(0.8, asked=True) == 3
    assert Pace((2, 4), 10, weight=1.0).drafts(1.0, asked=True) == 0
    pace = Pace((2, 4), 10, weight=0.1)
    for _ in range(speculation.KNOWN):
        pace.took(1, 0.010)
        pace.asked(1, 0.008)
        pace.asked(3, 0.024)
        pace.asked(2, 5.0)  # as no step takes two
    assert pace.drafts(0.8, asked=True) == 0
    assert pace.drafts(0.8) == 3
    assert pace.asking(3) == pytest.approx(2.4)


def test_the_better_of_two_sources():
    """What is looked up costs nothing, and is taken where it promises more than the draft model."""
    pace, model_rate, asked = Pace((2, 4), 10, weight=0.2), Rate(asked=True), []

    def ask(wanted, affordable):
        asked.append((wanted, affordable))
        return [9] * wanted

    drafter, repeats = Drafter(64, model=model_rate), [1, 2, 3, 4, 1, 2, 3]
    assert drafter.drafts(repeats, [], 3, pace, ask)[0] == 4
    for _ in range(20):
        drafter.verified(3, 0)  # what was looked up was wrong
    assert drafter.drafts(repeats, [], 3, pace, ask)[0] == 9
    drafter.verified(1, 1)
    assert model_rate.value > speculation.FIRST_RATE
    assert asked[-1] == (1, 0)
    assert drafter.drafts([1], [2] * 8, 3, pace, lambda *_: None) == []  # it still reads


def test_tries_of_a_bad_draft_model_become_rare():
    pace, rate, tries = Pace((2, 4), 10, weight=0.2), Rate(asked=True), []
    for step in range(5000):
        if (wanted := rate.wanted(pace)[0]) > 0:
            rate.verified(wanted, 0)
            tries.append(step)
    gaps = [b - a for a, b in zip(tries, tries[1:], strict=False)]
    assert gaps[-1] == speculation.RARELY
    assert len(tries) < 15
    for _ in range(9):
        rate.verified(3, 3)
    assert rate.wanted(pace) == (3, True)
