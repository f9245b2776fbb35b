"""What has lost its slot comes back from host memory, and what cannot be gone back in from a state that was kept."""

import dataclasses

import numpy as np
import pytest
from golden_models import model
from tiers import tiered

import packlight
from packlight import demo
from packlight.cli.loading import describe
from packlight.common.errors import ConfigError
from packlight.compile.config import MeshShape
from packlight.compile.memory import prefix_budget
from packlight.compile.plan import Part
from packlight.model.sampling.config import SamplingConfig
from packlight.serve.pool import BLOCK, OVERHEAD, Entry, Pool
from packlight.serve.prefix import Keep
from packlight.serve.slots import SlotState

CONFIG = packlight.CompileConfig(
    context=384,
    prefill_buckets=(16, 64),
    decode_batch=(2,),
    head_rows=1,
    cpu_kernels="native",
    prefix_cache_bytes=1 << 27,
)
IDS = np.random.default_rng(5).integers(5, 90, 340).tolist()
GREEDY = SamplingConfig(temperature=0, seed=0, max_tokens=6, logprobs=0)


def load(path=demo.MODEL, **changes):
    return packlight.load(path, dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def llm(request):
    request.getfixturevalue("native_library")
    return load()


def run(llm, ids, keep=Keep.TOKENS, salt=""):
    """([(token, its log-probability)], tokens that were kept) of one request."""
    number = llm.engine.submit(ids, GREEDY, past_end=True, keep=keep, salt=salt)
    events = []
    while not llm.engine.idle:
        events += llm.engine.step()
    assert {event.request for event in events} == {number}
    return [(event.token, event.logprob) for event in events], events[0].kept


def cold(llm, ids):
    return run(llm, ids, Keep.NOTHING)[0]


def fill(llm):
    """Overwrites every slot."""
    for slot in range(llm.plan.slots):
        run(llm, [91 + slot] * 3, Keep.NOTHING)


def forget(llm):
    """Nothing is held of any text."""
    fill(llm)
    saved(llm).pool.clear()


def saved(llm):
    assert llm.engine.saved is not None
    return llm.engine.saved


MODELS = tiered(
    (
        *("demo", "llama", "gemma2", "gemma3", "gpt-oss", "gemma4-e", "deepseek2-flash", "lfm2moe"),
        *("granitehybrid", "mamba2", "falcon-h1", "qwen3next", "qwen35"),
    ),
    ("gemma2", "lfm2moe"),
)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", MODELS)
def test_what_lost_its_slot_comes_back_bit_by_bit(name, tmp_path):
    """A next turn, the same prompt again, and another question behind the same beginning."""
    llm = load(demo.MODEL if name == "demo" else model(f"own/{name}", tmp_path))
    first = IDS[:200]
    answer = cold(llm, first)
    turn = [*first, *(token for token, _ in answer), *IDS[200:230]]
    other = [*IDS[:150], *IDS[300:330]]
    expected = [cold(llm, ids) for ids in (turn, first, other)]
    forget(llm)
    assert run(llm, first) == (answer, 0)
    assert run(llm, first) == (answer, 199)  # in its slot
    fill(llm)
    lengths = (205, 199, 128 if saved(llm).pool.stateful else 150)  # a chunk ended with token 128
    for ids, wanted, length in zip((turn, first, other), expected, lengths, strict=True):
        assert run(llm, ids) == (wanted, length)
        fill(llm)
    assert llm.engine.reused["pool"] == sum(lengths)
    assert saved(llm).failed == 0


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("kv_dtype", ["q8_0", "q4_0"])
def test_rounded_keys_and_values_come_back_with_their_scales(kv_dtype):
    """Out of the other slot by a copy, out of host memory, and in their slot after going back."""
    llm = load(kv_dtype=kv_dtype)
    first, other = IDS[:200], [*IDS[:150], *IDS[300:330]]
    answer, expected = cold(llm, first), cold(llm, other)
    forget(llm)
    assert run(llm, first) == (answer, 0)
    assert run(llm, other) == (expected, 150)  # copied
    assert run(llm, first) == (answer, 199)
    fill(llm)
    assert run(llm, other) == (expected, 179)
    assert llm.engine.reused["pool"] >= 179
    assert saved(llm).pool.bytes >= llm.plan.cache(llm.model, kv_dtype, llm.placement.split).block_bytes(128)
    assert f"attention native; context 384, slots 2, cache {kv_dtype}; " in describe(llm)[1]


def test_other_salts_share_nothing(llm):
    """Not in a slot, by a copy, from the pool, or by waiting for another one's chunks."""
    forget(llm)
    answer, _ = run(llm, IDS[:200], salt="a")
    assert run(llm, IDS[:200], salt="b") == (answer, 0)
    fill(llm)
    assert run(llm, IDS[:200]) == (answer, 0)
    fill(llm)
    assert [run(llm, IDS[:200], salt=salt) for salt in ("a", "b", "c")] == [(answer, 199), (answer, 199), (answer, 0)]
    numbers = [llm.engine.submit(IDS[50:250], GREEDY, keep=Keep.TOKENS, salt=salt) for salt in ("a", "b")]
    kept = {}
    while not llm.engine.idle:
        kept.update({event.request: event.kept for event in llm.engine.step()})
    assert [kept[number] for number in numbers] == [0, 0]


def test_more_chats_than_slots_read_only_what_is_new(llm):
    """Twenty over two slots, with one system prompt, each a second turn."""
    forget(llm)
    system = IDS[:128]
    turns = [[*system, 100 + chat, *IDS[chat : chat + 40]] for chat in range(20)]
    answers = [run(llm, turn) for turn in turns]
    assert [kept for _, kept in answers] == [0, *[128] * 19]
    for turn, (told, _) in zip(turns, answers, strict=True):
        following = [*turn, *(token for token, _ in told), *IDS[200:210]]
        assert run(llm, following)[1] == len(turn) + len(told) - 1  # the newest token is in no cache yet
    each = saved(llm)
    assert each.failed == each.pool.evicted == 0
    assert sum(name[1] == b"" for name in each.pool._entries) == 1  # the system prompt is there once


def test_a_prompt_of_whole_blocks_comes_back_but_for_its_last_token(llm):
    answer = cold(llm, IDS[:256])
    forget(llm)
    run(llm, [*IDS[:256], 7, 8, 9])
    fill(llm)
    assert run(llm, IDS[:256]) == (answer, 255)


@pytest.mark.usefixtures("native_library")
def test_a_small_budget_is_kept(tmp_path):
    budget = 700_000
    llm = load(prefix_cache_bytes=budget)
    pool, most = saved(llm).pool, 0
    for turn in range(12):
        run(llm, [100 + turn, *IDS[:300]])
        most = max(most, pool.bytes)
        held = sum(each.nbytes for entry in pool._entries.values() for each in (*entry.block, *entry.state))
        assert held <= pool.bytes <= budget
    assert pool.evicted > 0
    assert most > budget / 2


@pytest.mark.usefixtures("native_library")
def test_a_text_that_is_larger_than_the_budget_keeps_what_fits():
    """Its first blocks, without driving them out again by its later ones."""
    block = saved(load())._bytes[Part.BLOCK] + OVERHEAD
    llm = load(prefix_cache_bytes=2 * block)
    answer = cold(llm, IDS)
    fill(llm)
    for _ in range(2):
        fill(llm)
        assert run(llm, IDS) == (answer, 2 * BLOCK)
    assert saved(llm).pool.evicted == 0


def test_without_memory_a_prompt_is_read_anew(llm, monkeypatch):
    """A part that cannot be put back, and one that cannot be kept: both are counted, and the answer is the same."""
    answer = cold(llm, IDS[:200])
    forget(llm)
    keeper = saved(llm)
    run(llm, IDS[:200])
    fill(llm)
    whole, failed = keeper._run, keeper.failed

    def refused(key, cache, args):
        if key.phase == "load" and args.start:
            raise MemoryError
        return whole(key, cache, args)

    def full(key, cache, args):
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(keeper, "_run", refused)
        assert run(llm, IDS[:200]) == (answer, 0)
        assert keeper.failed == failed + 1
        keeper.pool.clear()
        broken.setattr(keeper, "_run", full)
        fill(llm)
        assert len(keeper.pool) == 0
        assert keeper.failed == failed + 2
    assert run(llm, IDS[:200]) == (answer, 0)


def test_slots_say_what_they_do(llm):
    fill(llm)
    number = llm.engine.submit(IDS[:100], GREEDY, past_end=True)
    llm.engine.step()
    states = llm.engine.slots
    assert states[0] == SlotState("reading", 64, number)
    assert states[1] == SlotState("parked", 8, None)
    while not llm.engine.step():
        pass
    assert llm.engine.slots[0].state == "running"
    while not llm.engine.idle:
        llm.engine.step()
    assert llm.engine.slots[0] == SlotState("parked", 105, None)


@pytest.mark.usefixtures("native_library")
def test_a_step_of_the_pool_takes_no_memory_beside_the_cache(llm):
    """XLA copies a whole array where an update is not made in place."""
    for part in llm.plan.saves:
        for key in (llm.plan.save_key(part), llm.plan.load_key(part)):
            assert llm.executables.built[key].scratch_bytes < 0.1 * llm.kv_bytes


def test_the_plan_counts_the_budget(llm):
    assert llm.memory.prefixes == CONFIG.prefix_cache_bytes
    assert "prefix cache 134.2 MB" in str(llm.memory)
    assert [prefix_budget(left) for left in (-1, 4000, 1 << 40)] == [0, 1000, 2 << 30]


def test_several_devices_have_no_prefix_cache():
    with pytest.raises(ConfigError, match="'prefix_cache_bytes' is for a single device"):
        dataclasses.replace(CONFIG, mesh=MeshShape(1, 2))


def test_what_was_used_longest_ago_goes_first():
    pool = Pool(3000, blocks=True, stateful=False)
    ids = list(range(3 * BLOCK))
    _, *names = pool.names("", ids)
    for name in names:
        assert pool.room(1000)
        pool.put(name, Entry(1000, ()))
    assert pool.find(pool.names("", ids), ids).tokens == 3 * BLOCK - 1
    assert pool.room(1000)  # the last block of the text goes before the first
    assert [pool.has(name) for name in names] == [True, True, False]
    assert not pool.room(3001)
    assert (pool.bytes, len(pool), pool.evicted) == (2000, 2, 1)


def test_nothing_stays_of_thousands_of_texts():
    rng = np.random.default_rng(0)
    pool = Pool(200_000, blocks=True, stateful=True)
    for _ in range(3000):
        ids = rng.integers(0, 9, rng.integers(1, 300)).tolist()
        names = pool.names("", ids)
        pool.find(names, ids)
        tail = ids[len(ids) // BLOCK * BLOCK :]
        if not pool.has(names[-1], tail) and pool.room(1500):
            pool.put(names[-1], Entry(1500, ()), tail)
        assert pool.bytes == 1500 * len(pool) <= 200_000
    assert sum(map(len, pool._tails.values())) == len(pool)
    pool.clear()
    assert (pool.bytes, len(pool), pool._tails) == (0, 0, {})


def test_names_tell_salts_and_beginnings_apart():
    pool, ids = Pool(0, blocks=True, stateful=False), list(range(2 * BLOCK))
    other = [*ids[:BLOCK], *ids[BLOCK + 1 :], 7]
    assert pool.names("", ids)[:2] == pool.names("", other)[:2]
    assert pool.names("", ids)[2] != pool.names("", other)[2]
    assert not set(pool.names("", ids)) & set(pool.names("a", ids))
    assert pool.names("", [1, *ids])[1:] != pool.names("", ids)[1:]
