"""openai-python: every reply validated against its types, errors as its exceptions, its retries."""

import asyncio
import math
import threading
import time
from typing import Literal

import numpy as np
import pytest
from fake_engine import fake_llm
from raw_http import until
from sites import CALLS, WEATHER, call_of, site

from packlight import demo
from packlight.server import life

openai = pytest.importorskip("openai", reason="the extra dev-serve is not installed")
pydantic = pytest.importorskip("pydantic", reason="the extra dev-serve is not installed")

pytestmark = pytest.mark.clients
MESSAGES = [{"role": "user", "content": demo.QUESTION}]
CHAT = {"model": "demo", "messages": MESSAGES, "max_tokens": 16, "temperature": 0.0}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


class Town(pydantic.BaseModel):
    kind: Literal["city", "village"]
    capital: bool


def client_of(server, **options):
    """A client that refuses replies which are not of its types."""
    settings = {"base_url": server.api, "api_key": "none", "max_retries": 0, "_strict_response_validation": True}
    return openai.OpenAI(**settings | options)


@pytest.fixture(scope="module")
def client(real):
    with client_of(real) as client:
        yield client


def test_a_chat_and_its_stream_say_the_same(client):
    whole = client.chat.completions.create(**CHAT)
    parts = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    choices = [choice for part in parts for choice in part.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({part.id for part in parts}) == 1


def test_several_answers_have_an_index_each(client):
    said = client.chat.completions.create(**CHAT | {"temperature": 1.0}, n=3, seed=1)
    assert [choice.index for choice in said.choices] == [0, 1, 2]


def test_log_probabilities_of_chats(client):
    said = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)
    told = said.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in told).decode() == said.choices[0].message.content
    for each in told:
        assert len(each.top_logprobs) == 3
        assert each.logprob == each.top_logprobs[0].logprob  # the most probable one, at temperature 0
    parts = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        each for part in parts for choice in part.choices if choice.logprobs for each in choice.logprobs.content
    ]
    assert streamed == told


def test_completions_echo_their_prompts(real):
    prompt = "import os\n"
    asked = {"model": "demo", "prompt": prompt, "max_tokens": 4, "temperature": 0.0, "echo": True, "logprobs": 2}
    with client_of(real, _strict_response_validation=False) as lenient:  # its types have no null
        (choice,) = lenient.completions.create(**asked).choices  # of a first token there is no log-probability
        parts = list(lenient.completions.create(**asked | {"logprobs": None}, stream=True))  # nor of a piece an end
    told = choice.logprobs
    assert prompt in choice.text  # behind the token that begins a text
    assert told.token_logprobs[0] is None
    assert all(math.isfinite(each) for each in told.token_logprobs[1:])
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    assert all(choice.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True))
    assert "".join(part.choices[0].text for part in parts if part.choices) == choice.text


def test_completions_of_ids_and_of_lists(client, real):
    ids = real.llm.tokenizer.encode("import os\n", add_special=False)
    said = client.completions.create(model="demo", prompt=[ids, ids], max_tokens=4, temperature=0.0)
    assert said.choices[0].text == said.choices[1].text


def test_embeddings_are_what_the_model_gives(client, real):
    texts = ["a file", "a folder of files"]
    with client_of(real, _strict_response_validation=False) as lenient:  # it asks for base64, and its types have none
        default = lenient.embeddings.create(model="demo", input=texts)
    floats = client.embeddings.create(model="demo", input=texts, encoding_format="float")
    wanted = real.llm.embed(texts)
    for said in (default, floats):
        np.testing.assert_array_equal(np.float32([each.embedding for each in said.data]), wanted)


def test_models_are_listed_and_found(client):
    (listed,) = client.models.list()
    assert listed.id == "demo"
    assert client.models.retrieve("demo") == listed
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_a_schema_is_parsed_into_its_class(client):
    asked = CHAT | {"max_tokens": 200, "seed": 2}
    said = client.chat.completions.parse(**asked, response_format=Town)
    assert isinstance(said.choices[0].message.parsed, Town)
    with client.chat.completions.stream(**asked, response_format=Town) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == said.choices[0].message.parsed


def test_tool_calls_are_typed(scripted):
    server = scripted(f"Let me see.\n{call_of('weather', town='Zürich 🙂')}", CALLS)
    with client_of(server) as client:
        said = client.chat.completions.create(model="demo", messages=MESSAGES, tools=[TOOL]).choices[0]
        (call,) = said.message.tool_calls
        assert (said.finish_reason, call.function.name) == ("tool_calls", "weather")
        with client.chat.completions.stream(model="demo", messages=MESSAGES, tools=[TOOL]) as stream:
            streamed = stream.get_final_completion().choices[0].message
        assert streamed.tool_calls[0].function.arguments == call.function.arguments
        assert streamed.content == said.message.content
        answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        turns = [*MESSAGES, said.message.model_dump(exclude_none=True), answer]
        client.chat.completions.create(model="demo", messages=turns, tools=[TOOL])


@pytest.mark.parametrize(
    ("changes", "error", "param", "code"),
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"store": True}, openai.BadRequestError, "store", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, openai.BadRequestError, "messages",
         "context_length_exceeded"),
    ],
)  # fmt: skip
def test_errors_are_the_client_s_exceptions(client, changes, error, param, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**CHAT | changes)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type in ("invalid_request_error", "not_found_error")


def test_many_async_clients(real):
    async def work():
        settings = {"base_url": real.api, "api_key": "none", "_strict_response_validation": True}
        async with openai.AsyncOpenAI(**settings) as client:
            asked = [client.chat.completions.create(**CHAT) for _ in range(8)]
            texts = {each.choices[0].message.content for each in await asyncio.gather(*asked)}
            stream = await client.chat.completions.create(**CHAT, stream=True)
            parts = [part async for part in stream]
        return texts, "".join(part.choices[0].delta.content or "" for part in parts)

    texts, streamed = asyncio.run(work())
    assert texts == {streamed}


def test_a_stream_that_is_closed_frees_its_slot():
    llm = fake_llm(demo.MODEL, "word " * 200, slots=1, context=512)
    llm.engine.before_step = lambda number: time.sleep(0.005)
    with site(llm) as server, client_of(server) as client:
        stream = client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
        until(lambda: llm.engine.idle)
        assert llm.engine.steps < 100


def test_a_full_queue_is_a_rate_limit_that_ends():
    llm, held = fake_llm(demo.MODEL, "ok", slots=1), threading.Event()
    llm.engine.before_step = lambda number: held.wait(10) if number > 1 else None
    asked = {"model": "demo", "messages": MESSAGES}
    with site(llm, max_queue=1) as server, client_of(server) as client:
        others = [threading.Thread(target=client.chat.completions.create, kwargs=asked) for _ in range(2)]
        others[0].start()
        until(lambda: llm.engine.steps == 2)
        others[1].start()
        until(lambda: server.waiting)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**asked)
        seconds = int(caught.value.response.headers["retry-after"])
        assert (caught.value.code, seconds >= 1) == ("queue_full", True)
        threading.Timer(0.3, held.set).start()
        began = time.monotonic()
        client.with_options(max_retries=2).chat.completions.create(**asked)
        assert time.monotonic() - began >= seconds  # it came back when it was told to
        for other in others:
            other.join()


def test_a_client_waits_for_a_model_that_is_loading(monkeypatch):
    monkeypatch.setattr(life, "RETRY", 1)
    loaded = threading.Event()
    with site(fake_llm(demo.MODEL, "ok"), loaded.wait, wait=False) as server, client_of(server) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.models.list()
        assert (caught.value.status_code, caught.value.code) == (503, "loading")
        threading.Timer(0.3, loaded.set).start()
        said = client.with_options(max_retries=3).chat.completions.create(model="demo", messages=MESSAGES)
    assert said.choices[0].message.content == "ok"
