"""langchain-openai, pydantic-ai and litellm: what they ask of a server, and what they make of its answers."""

import asyncio
from typing import Literal

import pytest
from sites import CALLS, WEATHER, call_of

from packlight import demo

REASON = "the extra dev-serve is not installed"
langchain_openai = pytest.importorskip("langchain_openai", reason=REASON)
pydantic = pytest.importorskip("pydantic", reason=REASON)
pydantic_ai = pytest.importorskip("pydantic_ai", reason=REASON)
litellm = pytest.importorskip("litellm", reason=REASON)

pytestmark = pytest.mark.clients
CALL = call_of("weather", town="Zürich 🙂")
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": WEATHER}}


class Town(pydantic.BaseModel):
    """A town."""

    kind: Literal["city", "village"]
    capital: bool


def langchain(server, **options):
    settings = {
        "model": "demo",
        "base_url": server.api,
        "api_key": "none",
        "max_retries": 0,
        "max_tokens": 200,
        "stream_usage": True,
    }
    return langchain_openai.ChatOpenAI(**settings | options)


def agent(server, **options):
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=server.api, api_key="none"))
    return pydantic_ai.Agent(model, model_settings={"max_tokens": 200, "temperature": 0.0, "seed": 2}, **options)


def lite(server, question=demo.QUESTION, **options):
    settings = {"model": "openai/demo", "api_base": server.api, "api_key": "none", "max_tokens": 64, "temperature": 0.0}
    messages = [{"role": "user", "content": question}]
    return litellm.completion(messages=messages, **settings | options)


def test_langchain_asks_streams_and_batches(real):
    chat = langchain(real, max_tokens=16, temperature=0.0)
    said = chat.invoke(demo.QUESTION)
    parts = list(chat.stream(demo.QUESTION))
    assert "".join(part.content for part in parts) == said.content
    assert [each.content for each in chat.batch([demo.QUESTION] * 3)] == [said.content] * 3
    assert said.usage_metadata["total_tokens"] == said.response_metadata["token_usage"]["total_tokens"]
    assert [part.usage_metadata for part in parts if part.usage_metadata] == [said.usage_metadata]


def test_langchain_s_structured_output(real):
    chat = langchain(real, temperature=0.0, seed=2)
    assert isinstance(chat.with_structured_output(Town).invoke("A town."), Town)


def test_langchain_s_embeddings(real):
    vectors = langchain_openai.OpenAIEmbeddings(
        model="demo", base_url=real.api, api_key="none", check_embedding_ctx_length=False
    )
    assert vectors.embed_query("a file") == pytest.approx(real.llm.embed(["a file"])[0].tolist(), rel=0, abs=0)


def test_langchain_s_tools(scripted):
    chat = langchain(scripted(CALL, CALLS)).bind_tools([TOOL])
    wanted = {"town": "Zürich 🙂"}
    assert [each["args"] for each in chat.invoke("Well?").tool_calls] == [wanted]
    whole = None
    for part in chat.stream("Well?"):
        whole = part if whole is None else whole + part
    assert [each["args"] for each in whole.tool_calls] == [wanted]


def test_an_agent_of_pydantic_ai_gives_an_object(real):
    result = agent(real, output_type=pydantic_ai.NativeOutput(Town)).run_sync("A town.")
    assert isinstance(result.output, Town)


def test_an_agent_of_pydantic_ai_gives_an_object_by_a_tool(scripted):
    server = scripted(call_of("final_result", kind="city", capital=False), CALLS)
    assert agent(server, output_type=Town).run_sync("A town.").output == Town(kind="city", capital=False)

    async def streamed():
        async with agent(server, output_type=Town).run_stream("A town.") as result:
            return await result.get_output()

    assert asyncio.run(streamed()) == Town(kind="city", capital=False)


def test_litellm_asks_and_streams(real):
    whole = lite(real).choices[0].message.content
    assert whole
    parts = list(lite(real, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole


def test_litellm_s_tools_and_errors(real, scripted):
    (call,) = lite(scripted(CALL, CALLS), tools=[TOOL]).choices[0].message.tool_calls
    assert call.function.name == "weather"
    parts = list(lite(scripted(CALL, CALLS), tools=[TOOL], stream=True))
    told = litellm.stream_chunk_builder(parts).choices[0].message.tool_calls[0].function
    assert told.arguments == call.function.arguments
    with pytest.raises(litellm.NotFoundError):
        lite(real, model="openai/other")
    with pytest.raises(litellm.BadRequestError):
        lite(real, temperature=-1)
    with pytest.raises(litellm.ContextWindowExceededError):
        lite(real, question="x " * 9000)
