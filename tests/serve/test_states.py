"""States of a fixed size, windows and convolutions, through the engine: what is let go changes nothing that is seen."""

import dataclasses

import numpy as np
import pytest
import steps
from golden_models import golden, model
from tiers import tiered

import packlight
from packlight.model.spec.layers import traced

CONFIG = packlight.CompileConfig(context=384, prefill_buckets=(16,), decode_batch=(4,), head_rows=1, cpu_kernels="xla")
HYBRIDS = tiered(("lfm2", "lfm2-taps", "lfm2moe", "lfm2moe-softmax"), ("lfm2moe",))
WINDOWS = tiered(("gemma2", "gemma3", "gpt-oss", "olmo3", "gemma4-e"), ("gemma2", "gemma4-e"))
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module", params=HYBRIDS)
def hybrid(request, tmp_path_factory):
    told = golden(f"own/{request.param}", tmp_path_factory.mktemp("hybrid"))
    return told, packlight.load(told.path, dataclasses.replace(CONFIG, tokens_per_launch=4))


def test_a_hybrid_writes_what_llama_cpp_writes(hybrid):
    """Three chunks of a prompt, the last one padded, then several tokens a launch."""
    told, llm = hybrid
    assert llm.generate(told.ids, **GREEDY).token_ids == told.greedy


def test_slots_of_a_hybrid_are_used_again_and_share_steps(hybrid):
    """Of six texts four run together, and each gets what it would get alone."""
    told, llm = hybrid
    prompts = [told.ids, told.ids[:3], told.ids[5:30], told.ids[:17], told.ids[1:], told.ids]
    alone = [llm.generate(prompt, **GREEDY).token_ids for prompt in prompts]
    assert alone[0] == told.greedy
    numbers = [llm.engine.submit(p, packlight.SamplingConfig(**GREEDY, seed=0), past_end=True) for p in prompts]
    found = {number: [] for number in numbers}
    while not llm.engine.idle:
        for event in llm.engine.step():
            found[event.request].append(event.token)
    assert [found[number][: len(ids)] for number, ids in zip(numbers, alone, strict=True)] == alone


def first_token(engine):
    """Steps until the chunks of a prompt are read."""
    while not (events := engine.step()):
        pass
    return events[0].token


def test_a_recurrence_does_not_go_back(hybrid):
    told, llm = hybrid
    request = llm.engine.submit(told.ids, packlight.SamplingConfig(**GREEDY, seed=0), past_end=True)
    first_token(llm.engine)
    llm.engine.rewind(request, 1)  # to where it is
    llm.engine.step()
    assert not llm.engine.rewinds(request, 1)
    with pytest.raises(
        packlight.PacklightError, match=r"cannot go back from 44 cached tokens to 40: layers of the model"
    ):
        llm.engine.rewind(request, 1)
    llm.engine.cancel(request)


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_that_goes_round_says_what_one_does_that_holds_everything(name, tmp_path):
    """Of 384 positions 128 are kept, or all, by the largest chunk."""
    path = model(f"own/{name}", tmp_path)
    ids = np.random.default_rng(0).integers(3, 90, 300).tolist()
    kept, logits = [], []
    for size in (16, 384):
        loaded = steps.load(path, context=384, prefill_buckets=(size,))
        cache, hidden = loaded.empty_cache(), []
        kept.append(cache.state["window"].k.shape[3])
        for at in range(0, len(ids), size):
            cache, part = loaded.prefill(cache, ids[at : at + size], at, rows=size)
            hidden.append(part)
        logits.append(loaded.logits(np.concatenate(hidden)))
    assert kept == [128, 384]
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4 * logits[1].std()  # DESIGN, Invariance: two executables


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_goes_back_as_far_as_it_holds(name, tmp_path):
    """From 300 tokens on: within what is kept the same tokens come again, beyond it the engine refuses."""
    llm = packlight.load(model(f"own/{name}", tmp_path), CONFIG)
    sampling = packlight.SamplingConfig(temperature=0, seed=0, max_tokens=150)
    request = llm.engine.submit([5] * 200, sampling, past_end=True)
    tokens = [first_token(llm.engine), *(llm.engine.step()[0].token for _ in range(129))]
    window = llm.model.sliding_window
    furthest = next(n for n in range(1, 131) if llm.engine.rewinds(request, n))
    assert 128 - window - 16 <= 130 - furthest <= 128 - window + 1
    with pytest.raises(packlight.PacklightError, match="have forgotten what was before"):
        llm.engine.rewind(request, furthest - 1)
    llm.engine.rewind(request, furthest)
    assert [llm.engine.step()[0].token for _ in range(130 - furthest)] == tokens[furthest:]


@pytest.mark.parametrize("kernels", tiered(("native", "xla"), ("native",)))
def test_padding_behind_the_last_position_is_left_out(kernels, tmp_path):
    """The third chunk of 48 reaches beyond the 128 positions that there are."""
    path = model("own/llama", tmp_path)
    ids = np.random.default_rng(0).integers(3, 90, 128).tolist()
    config = dataclasses.replace(CONFIG, context=128, cpu_kernels=kernels)
    odd, even = (packlight.load(path, dataclasses.replace(config, prefill_buckets=(size,))) for size in (48, 64))
    assert odd.plan.capacity == 128
    a, b = odd.logits(ids), even.logits(ids)
    assert np.abs(a - b).max() <= 1e-4 * b.std()
    assert odd.generate(ids[:120], temperature=0).token_ids == even.generate(ids[:120], temperature=0).token_ids


def test_layers_that_alternate_are_traced_once_for_each_kind(tmp_path):
    counts = {
        name: traced(packlight.prepare(model(f"own/{name}", tmp_path)).model.layers) for name in ("gemma3", "lfm2")
    }
    assert counts == {"gemma3": 3, "lfm2": 4}  # five windows, one without, one more; two, one, one and one more
