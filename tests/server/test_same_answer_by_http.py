"""The server's headline, through HTTP: the same ids and log-probability bits, cold or warm, from a copied prefix,
alone or among sixteen others; and nothing compiles meanwhile.
"""

import asyncio
import json

import pytest
from asgi import call, running, stream_of

import packlight
from packlight import demo
from packlight.server.app import Server
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

CONFIG = packlight.CompileConfig(
    context=256, prefill_buckets=(16, 64), decode_batch=(1, 4), head_rows=1, prefix_cache_bytes=1 << 27
)
SYSTEM = "You know what the documentation of Python says of its functions, and words it as it does. " * 2
QUESTIONS = [
    "What is a generator?",
    "What does os.path.join do?",
    "What is a mutable object, and what is a list?",
    "len",
]


def bodies():
    """Requests that share beginnings, or nothing, greedy and drawn, long and short."""
    for number in range(16):
        question = QUESTIONS[number % len(QUESTIONS)]
        prompt = (SYSTEM if number % 3 else "") + question * (1 + number % 2)
        yield {
            "prompt": prompt,
            "max_tokens": 5 + number,
            "temperature": 0.9 * (number % 2),
            "seed": number,
            "ignore_eos": True,
            "logprobs": number % 3,
            "return_tokens": True,
            **({"repeat_penalty": 1.2} if number % 5 == 4 else {}),
        }


@pytest.fixture(scope="module")
def llm(native_library):
    llm = packlight.load(demo.MODEL, CONFIG)
    assert not llm.varying
    yield llm
    llm.close()


async def answer(app, body):
    """(ids, log-probabilities, tokens of the prompt that were cached) of one request."""
    status, _, said = await call(app, "POST", "/v1/completions", body)
    assert status == 200, said
    if not body.get("stream"):
        said = json.loads(said)
        (choice,) = said["choices"]
        cached = said["usage"]["prompt_tokens_details"]["cached_tokens"]
        return choice["tokens"], choice["logprobs"]["token_logprobs"], cached
    choices = [choice for part in stream_of(said)[:-1] for choice in part["choices"]]
    ids = [token for choice in choices for token in choice.get("tokens", [])]
    values = [v for choice in choices for v in (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]]
    return ids, values, None


def test_an_answer_depends_on_nothing_but_its_request(llm):
    async def work():
        metrics = Metrics()
        faults = []
        app = Server(llm, Settings(names=("demo",)), metrics, faults.append).app()
        asked = list(bodies())
        async with running(app):
            cold = [await answer(app, body | {"cache_prompt": False}) for body in asked]
            alone = [await answer(app, body) for body in asked]
            among = await asyncio.gather(*(answer(app, body) for body in asked))
            streamed = await asyncio.gather(*(answer(app, body | {"stream": True}) for body in reversed(asked)))
            several = await call(app, "POST", "/v1/completions", asked[1] | {"n": 5, "seed": 0})
        assert not faults
        assert b"packlight_compiles_total 0.0" in metrics.text()
        return cold, alone, among, streamed[::-1], json.loads(several[2])

    cold, alone, among, streamed, several = asyncio.run(work())
    assert all(llm.engine.reused[place] > 0 for place in ("slot", "copy")), llm.engine.reused
    assert all(cached == 0 for *_, cached in cold)
    assert sum(cached > 0 for *_, cached in alone) > 8
    for other in (alone, among, streamed):
        assert [(ids, values) for ids, values, _ in other] == [(ids, values) for ids, values, _ in cold]
    assert len(several["choices"]) == 5
    assert several["choices"][1]["tokens"] == cold[1][0]  # seed + 1 is that request's own
