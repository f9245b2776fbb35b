"""Routes over models that are no script: cached tokens to the last one, ranking, a client that leaves in its prompt,
README's first request.
"""

import asyncio
import dataclasses
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
import raw_http
from asgi import call, freed, running
from encoders import ENCODERS, write

import packlight
from packlight import demo
from packlight.bench.render import ROOT
from packlight.serve.speculation import Pace
from packlight.server.accounts import Account, account_of
from packlight.server.app import Server
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

CONFIG = packlight.CompileConfig(
    context=256, prefill_buckets=(16, 64), decode_batch=(1, 4), head_rows=1, prefix_cache_bytes=1 << 27
)


@pytest.fixture(scope="module")
def llm(native_library):
    with packlight.load(demo.MODEL, CONFIG) as llm:
        yield llm


def served(llm, work):
    """What `work` gives, called with the server and its app."""

    async def whole():
        server = Server(llm, Settings(names=("demo",)), Metrics(), lambda error: None)
        app = server.app()
        async with running(app):
            return await work(server, app)

    return asyncio.run(whole())


async def said(app, path, body):
    status, _, answer = await call(app, "POST", path, body)
    assert status == 200, answer
    return json.loads(answer)


def test_cached_tokens_are_those_that_were_not_read(llm):
    """The same prompt again, the next turn, again after more chats than there are slots, and without the cache."""

    async def work(_, app):
        long = "What does os.path.join do, and what do its relatives do? " * 7  # more than a block of the pool
        first = {"messages": [{"role": "user", "content": long}], "temperature": 0, "max_tokens": 8}
        told = await said(app, "/v1/chat/completions", first)
        read, written = told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]
        turns = [*first["messages"], told["choices"][0]["message"], {"role": "user", "content": "And split?"}]
        others = [{"messages": [{"role": "user", "content": f"{n}: what is a generator? " * 8}]} for n in range(6)]
        cached = []
        for body in (first, {**first, "messages": turns}, *others, first, first | {"cache_prompt": False}):
            usage = (await said(app, "/v1/chat/completions", body | {"max_tokens": 8}))["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        return read, written, cached

    read, written, cached = served(llm, work)
    assert cached[0] == read - 1  # the last token is always read
    assert read < cached[1] <= read + written
    assert cached[-2:] == [read - 1, 0]


def test_a_client_that_leaves_in_its_prompt_frees_its_slot_and_changes_no_other(llm):
    stays = {"prompt": "What is a generator?", "max_tokens": 40, "ignore_eos": True, "temperature": 0, "logprobs": 0}

    async def work(server, app):
        alone = await said(app, "/v1/completions", stays | {"cache_prompt": False})
        leave = asyncio.Event()
        running_one = asyncio.create_task(said(app, "/v1/completions", stays | {"cache_prompt": False}))
        long = {"prompt": [[5 + n, *range(10, 230)] for n in range(3)], "max_tokens": 8, "cache_prompt": False}
        left = asyncio.create_task(call(app, "POST", "/v1/completions", long, leave))
        while not any(slot.state == "reading" and slot.tokens for slot in llm.engine.slots):
            await asyncio.sleep(0.001)
        leave.set()
        await left
        beside = await running_one
        await freed(llm, server)
        return alone["choices"], beside["choices"]

    alone, beside = served(llm, work)
    assert alone == beside


def test_embeddings_are_those_of_the_model_and_streams_go_on_beside_them(llm):
    texts = ["What is a generator?", "os.path " * 60]
    stream = {"prompt": "A generator", "max_tokens": 100, "ignore_eos": True, "temperature": 0}

    async def work(_, app):
        streaming = asyncio.create_task(said(app, "/v1/completions", stream))
        told = await said(app, "/v1/embeddings", {"input": texts})
        beside = not streaming.done()
        await streaming
        return told, beside

    told, beside = served(llm, work)
    assert beside
    np.testing.assert_array_equal(
        np.array([each["embedding"] for each in told["data"]], np.float32), llm.embed(texts, "mean")
    )
    assert told["usage"]["prompt_tokens"] == sum(len(llm.encode(text)) for text in texts)


def test_a_prediction_is_followed_and_changes_nothing_else(native_library, monkeypatch):
    monkeypatch.setattr(Pace, "drafts", lambda self, rate, asked: 3)  # whatever this machine's steps take
    config = dataclasses.replace(CONFIG, speculate=(2, 4))
    body = {"prompt": "A generator is", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    accounts: list[Account] = []
    with packlight.load(demo.MODEL, config) as llm:

        async def work(_, inner):
            async def app(scope, receive, send):
                accounts.append(account_of(scope))
                await inner(scope, receive, send)

            plain = await said(app, "/v1/completions", body | {"cache_prompt": False})
            told = []
            for content in (plain["choices"][0]["text"], [{"type": "text", "text": plain["choices"][0]["text"]}]):
                asked = body | {"prediction": {"type": "content", "content": content}, "cache_prompt": False}
                told.append(await said(app, "/v1/completions", asked))
            return plain, told

        plain, told = served(llm, work)
    for each, account in zip(told, accounts[1:], strict=True):
        assert each["choices"] == plain["choices"]
        details = each["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] == each["timings"]["draft_n_accepted"] > 20
        drafted = details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"]
        assert drafted == each["timings"]["draft_n"]
        assert (account.drafted_tokens, account.accepted_tokens) == (drafted, details["accepted_prediction_tokens"])
        assert f"{account.accepted_tokens} of {drafted} drafts right" in account.line()


def test_a_prompt_may_be_read_for_the_cache_alone(llm):
    prompt = [7, *range(40, 140)]

    async def work(_, app):
        warm = await said(app, "/v1/completions", {"prompt": prompt, "max_tokens": 0})
        return warm, await said(app, "/v1/completions", {"prompt": [*prompt, 8], "max_tokens": 1})

    warm, next_one = served(llm, work)
    assert (warm["choices"][0]["text"], warm["choices"][0]["finish_reason"]) == ("", "length")
    assert (warm["usage"]["prompt_tokens"], warm["usage"]["completion_tokens"]) == (101, 0)
    assert next_one["usage"]["prompt_tokens_details"]["cached_tokens"] == 101


@pytest.mark.parametrize("waits", [False, True])
def test_an_encoder_has_a_queue_and_stops_for_a_client_that_left(tmp_path, monkeypatch, waits):
    """waits: whether another request's texts run as the client leaves, and not its own."""
    config = packlight.CompileConfig(context=64, prefill_buckets=(16,), decode_batch=(1,), head_rows=1)
    with packlight.load(write(tmp_path / "m.gguf", ENCODERS["bert"]), config) as llm:
        held, groups = threading.Event(), []
        encode = llm.encode_group

        def slow(key, texts, pooling):
            groups.append(len(texts))
            held.wait(60)
            return encode(key, texts, pooling)

        monkeypatch.setattr(llm, "encode_group", slow)

        async def work(server, app):
            leave = asyncio.Event()

            def start(texts, *left):
                return asyncio.create_task(call(app, "POST", "/v1/embeddings", {"input": texts}, *left))

            many = ["one", "two"] * 20
            first = start("a") if waits else start(many, leave)
            while not groups:
                await asyncio.sleep(0.001)
            left = start(many, leave) if waits else first
            while server._pooler._under_way < 1 + waits:
                await asyncio.sleep(0.001)
            others = [start("a") for _ in range(33)]
            while not any(task.done() for task in others):  # one finds the queue full
                await asyncio.sleep(0.001)
            leave.set()
            status, *_ = await left
            held.set()
            return status, await asyncio.gather(*([first] if waits else []), *others)

        status, others = served(llm, work)
    statuses = [status for status, *_ in others]
    assert status == 499
    assert groups[0] == (1 if waits else 4)  # of 40 texts
    assert sum(groups) == statuses.count(200) + (0 if waits else 4)
    assert (statuses.count(200), statuses.count(429)) == (32, 1 + waits)


def test_documents_are_ranked(tmp_path):
    config = packlight.CompileConfig(context=64, prefill_buckets=(16,), decode_batch=(1,), head_rows=1)
    documents = ["one", "two words", {"text": "and three more"}]
    body = {"query": "a query", "documents": documents, "top_n": 2, "return_documents": True}
    with packlight.load(write(tmp_path / "m.gguf", ENCODERS["qwen3-rank"]), config) as llm:
        told = served(llm, lambda _, app: said(app, "/v1/rerank", body))
        texts = ["one", "two words", "and three more"]
        scores = llm.rerank("a query", texts).tolist()
    best = sorted(range(3), key=lambda number: -scores[number])[:2]
    assert [(each["index"], each["relevance_score"]) for each in told["results"]] == [(n, scores[n]) for n in best]
    assert [each["document"]["text"] for each in told["results"]] == [texts[n] for n in best]
    assert told["usage"]["prompt_tokens"] > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_readme_s_first_request_is_answered_as_it_says(llm):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    form = r"^\$ make serve .*\n(http.*)\n\$ (curl [^|]*) \| jq -r '\.choices\[0\]\.message\.content'\n(.*)\n```$"
    (found,) = re.findall(form, text, re.MULTILINE)
    ready, command, answer = found
    with raw_http.served(lambda: Server(llm, Settings(names=("demo",)), Metrics(), lambda error: None).app()) as server:
        own = lambda line: line.replace("http://127.0.0.1:8080", server.life.url)  # noqa: E731
        assert own(ready) in server.lines
        done = subprocess.run(["bash", "-c", own(command)], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == answer
