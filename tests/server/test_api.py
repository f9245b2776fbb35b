"""What each route answers, over a scripted engine: shapes, fields, errors, streams, clients that leave, faults."""

import asyncio
import base64
import itertools
import json
import threading

import numpy as np
import pytest
from asgi import call, freed, running, stream_of
from fake_engine import fake_llm

from packlight import PacklightError, demo
from packlight.server import fields
from packlight.server.app import Server
from packlight.server.limits import Limits
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
IMPOSSIBLE = {"not": {"type": "null"}}  # a schema whose words are not all kept
ANSWER = "A scripted answer, 日本 and 🙂."


class Served:
    """A server over a scripted engine."""

    def __init__(self, answer=ANSWER, slots=2, queue_timeout=600.0, **settings):
        self.llm = fake_llm(demo.MODEL, answer, slots)
        self.faults = []
        self.metrics = Metrics()
        limits = Limits(queue_timeout=queue_timeout)
        self.settings = Settings(names=("demo", "alias"), limits=limits, **settings)

    def run(self, work):
        async def whole():
            self.server = Server(self.llm, self.settings, self.metrics, self.faults.append)
            self.app = self.server.app()
            async with running(self.app):
                return await work(self)

        return asyncio.run(whole())

    def ask(self, path, body, **more):
        """(status, headers, decoded body) of one POST."""
        status, headers, said = self.run(lambda served: call(served.app, "POST", path, body, **more))
        streams = headers.get("content-type", "").startswith("text/event-stream")
        return status, headers, stream_of(said) if streams else json.loads(said)

    async def free(self):
        """Waits until the engine has nothing under way."""
        await freed(self.llm, self.server)


@pytest.fixture(scope="module")
def served():
    return Served()


def wrong(served, path, body):
    """(status, param, code, message) of a refusal; nothing was queued."""
    before = len(served.llm.engine.seen)
    status, _, said = served.ask(path, body)
    assert len(served.llm.engine.seen) == before
    error = said["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["param"], error["code"], error["message"]


def test_a_chat_answers_in_the_field_s_shape(served):
    status, headers, said = served.ask("/v1/chat/completions", CHAT)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert said["object"] == "chat.completion"
    (choice,) = said["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)
    usage = said["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert said["timings"]["predicted_n"] == usage["completion_tokens"]


@pytest.mark.parametrize("changes", [{}, {"n": 3}, {"stop": ["日"]}, {"stop": "answer"}, {"max_tokens": 4}])
def test_a_stream_joins_to_the_whole_text(served, changes):
    whole = served.ask("/v1/chat/completions", CHAT | changes)[2]
    status, headers, parts = served.ask("/v1/chat/completions", CHAT | changes | {"stream": True})
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert parts[-1] == "[DONE]"
    texts, reasons = {}, {}
    for part in parts[:-1]:
        assert part["object"] == "chat.completion.chunk"
        assert "usage" not in part
        for choice in part["choices"]:
            index = choice["index"]
            texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
            reasons[index] = choice["finish_reason"] or reasons.get(index)
    assert texts == {each["index"]: each["message"]["content"] for each in whole["choices"]}
    assert reasons == {each["index"]: each["finish_reason"] for each in whole["choices"]}
    assert len(texts) == changes.get("n", 1)


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": [5, 6]})])
def test_a_stream_tells_the_end_of_each_text_when_it_comes(path, body):
    served = Served(slots=1)  # one text runs at a time
    served.llm.engine.before_step = lambda number: threading.Event().wait(0.002)
    parts = served.ask(path, body | {"n": 3, "stream": True})[2]
    choices = [choice for part in parts[:-1] for choice in part["choices"]]
    told = [
        each for each in choices if each["finish_reason"] or each.get("text") or each.get("delta", {}).get("content")
    ]
    assert [each["index"] for each in told] == sorted(each["index"] for each in told)
    assert [each["index"] for each in told if each["finish_reason"]] == [0, 1, 2]
    assert [each["finish_reason"] for each in told if each["finish_reason"]] == ["stop"] * 3


def test_usage_comes_last_where_it_is_asked_for(served):
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    parts = served.ask("/v1/chat/completions", body)[2]
    assert parts[-2]["choices"] == []
    assert parts[-2]["usage"]["completion_tokens"] > 0
    assert all(part["usage"] is None for part in parts[:-2])


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": [5, 6]})])
def test_usage_may_come_with_every_event(served, path, body):
    """Source: vLLM's `continuous_usage_stats`, which its benchmarks and guidellm ask for."""
    options = {"stream": True, "n": 2, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *parts, last, done = served.ask(path, body | options)[2]
    assert done == "[DONE]"
    so_far = [part["usage"] for part in parts if part["choices"][0]["index"] == 1]
    counts = [each["completion_tokens"] for each in so_far]
    assert counts == sorted(counts)
    assert 2 * counts[-1] == last["usage"]["completion_tokens"] > 0
    assert {each["prompt_tokens"] for each in so_far} == {last["usage"]["prompt_tokens"]}
    assert all(each["total_tokens"] == each["prompt_tokens"] + each["completion_tokens"] for each in so_far)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_an_entry_a_token(served, stream):
    body = CHAT | {"logprobs": True, "top_logprobs": 2, "stream": stream}
    said = served.ask("/v1/chat/completions", body)[2]
    choices = [c for part in said[:-1] for c in part["choices"]] if stream else said["choices"]
    content = [entry for each in choices for entry in (each["logprobs"] or {"content": []})["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == ANSWER
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)


def test_completions_take_texts_and_ids_and_lists_of_both(served):
    for prompt, count in (("hi", 1), ([5, 6], 1), (["a", "b"], 2), ([[5], [6, 7], [8]], 3)):
        said = served.ask("/v1/completions", {"prompt": prompt, "n": 2})[2]
        assert said["object"] == "text_completion"
        assert [each["index"] for each in said["choices"]] == list(range(2 * count))
        assert {each["text"] for each in said["choices"]} == {ANSWER}
    assert served.ask("/completions", {"prompt": [5, 6], "echo": True})[2]["choices"][0]["text"].endswith(ANSWER)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("most", [0, 1, None])
def test_an_echo_has_its_prompt_s_log_probabilities(served, stream, most):
    body = {"prompt": [[5, 6, 7], [8, 9]], "echo": True, "logprobs": 1, "max_tokens": most, "stream": stream}
    said = served.ask("/v1/completions", body)[2]
    choices = [c for part in said[:-1] for c in part["choices"]] if stream else said["choices"]
    for index, prompt in enumerate(body["prompt"]):
        mine = [choice for choice in choices if choice["index"] == index]
        told = [each["logprobs"] for each in mine if each["logprobs"]]
        tokens, values, top, offsets = (
            [value for each in told for value in each[name]]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        )
        text = "".join(each["text"] for each in mine)
        assert text == served.llm.tokenizer.decode(prompt) + ("" if most == 0 else "A" if most == 1 else ANSWER)
        assert (values[0], top[0]) == (None, None)
        assert values[1 : len(prompt)] == [-1.0] * (len(prompt) - 1)
        assert all(len(each) == 1 for each in top[1:])
        assert len(tokens) == len(values) == len(top) == len(offsets)
        if most is not None:
            assert len(tokens) == len(prompt) + most
        assert offsets[0] == 0
        assert text.startswith("".join(tokens[:3])[:2])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": 1}, {"echo": True}, {"return_token_ids": True}])
def test_no_tokens_are_a_prompt_that_is_read(served, more, stream):
    """It reaches the engine, so that the cache has it, and nothing is told of the token behind it."""
    before = len(served.llm.engine.seen)
    body = {"prompt": [5, 6, 7], "max_tokens": 0, "stream": stream} | more
    said = served.ask("/v1/completions", body | ({"stream_options": {"include_usage": True}} if stream else {}))[2]
    assert [each.prompt for each in served.llm.engine.seen[before:]] == [[5, 6, 7]] * more.get("n", 1)
    choices = [c for part in said[:-1] for c in part["choices"]] if stream else said["choices"]
    text = served.llm.tokenizer.decode([5, 6, 7]) if "echo" in more else ""
    assert "".join(choice["text"] for choice in choices if choice["index"] == 0) == text
    assert [each["finish_reason"] for each in choices if each["finish_reason"]] == ["length"] * more.get("n", 1)
    assert not any((choice["logprobs"] or {"tokens": []})["tokens"] for choice in choices)
    assert not any(choice.get("token_ids") for choice in choices)
    usage = said[-2]["usage"] if stream else said["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 0, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_no_tokens_is_read_too(served, stream):
    before = len(served.llm.engine.seen)
    said = served.ask("/v1/chat/completions", CHAT | {"max_tokens": 0, "stream": stream})[2]
    assert len(served.llm.engine.seen) == before + 1
    choices = [c for part in said[:-1] for c in part["choices"]] if stream else said["choices"]
    assert not any((choice.get("delta") or choice.get("message") or {}).get("content") for choice in choices)
    assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_token_ids_have_vllms_shape_in_completions(served, echo, stream):
    body = {"prompt": [[5, 6, 7], [8, 9]], "return_token_ids": True, "echo": echo, "stream": stream}
    said = served.ask("/v1/completions", body)[2]
    choices = [c for part in said[:-1] for c in part["choices"]] if stream else said["choices"]
    wanted = served.llm.tokenizer.encode(ANSWER, add_special=False)
    for index, prompt in enumerate(body["prompt"]):
        mine = [choice for choice in choices if choice["index"] == index]
        assert [choice["prompt_token_ids"] for choice in mine if "prompt_token_ids" in choice] == [prompt]
        assert "prompt_token_ids" in mine[0]
        assert [each for choice in mine for each in choice.get("token_ids", [])] == wanted
        assert "tokens" not in mine[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_have_vllms_shape_in_chats(served, stream):
    said = served.ask("/v1/chat/completions", CHAT | {"return_token_ids": True, "stream": stream})[2]
    prompt = served.ask("/apply-template", CHAT)[2]["tokens"]
    parts = said[:-1] if stream else [said]
    assert parts[0]["prompt_token_ids"] == prompt
    assert not any("prompt_token_ids" in part for part in parts[1:])
    found = [each for part in parts for choice in part["choices"] for each in choice.get("token_ids", [])]
    assert found == served.llm.tokenizer.encode(ANSWER, add_special=False)


def test_token_ids_have_llama_cpps_name_too(served):
    body = CHAT | {"return_tokens": True}
    told = served.ask("/v1/chat/completions", body)[2]
    assert told["choices"][0]["tokens"] == served.llm.tokenizer.encode(ANSWER, add_special=False)
    assert "prompt_token_ids" not in told
    both = served.ask("/v1/chat/completions", body | {"return_token_ids": True})[2]["choices"][0]
    assert both["tokens"] == both["token_ids"]


def test_older_log_probabilities_have_offsets_into_the_text(served):
    choice = served.ask("/v1/completions", {"prompt": "hi", "logprobs": 1})[2]["choices"][0]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(told["text_offset"])
    assert told["text_offset"][:2] == [0, len(told["tokens"][0])]


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"max_tokens": -5}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1.0}, "max_tokens", "invalid_value"),
        ({"top_k": -1.0}, "top_k", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**30}, "n", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": 3}, "logprobs", "invalid_value"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"verbosity": "loud"}, "verbosity", "invalid_value"),
        ({"verbosity": ["low"]}, "verbosity", "invalid_value"),
        ({"priority": "high"}, "priority", "invalid_value"),
        ({"priority": True}, "priority", "invalid_value"),
        ({"timings_per_token": 1}, "timings_per_token", "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"response_format": {"json_schema": {"schema": {}}}}, "response_format", "invalid_value"),
        ({"response_format": "json_object"}, "response_format", "invalid_value"),
        ({"model": "other"}, "model", "model_not_found"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "context_length_exceeded"),
        ({"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers", "invalid_value"),
        ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers", "invalid_value"),
        ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers", "invalid_value"),
        ({"prediction": {"type": "content", "content": 5}}, "prediction", "invalid_value"),
        ({"prediction": {"content": [{"type": "image"}]}}, "prediction", "invalid_value"),
        ({"chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": []}}}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL | {"function": {"name": "auto"}}]}, "tools[0]", "invalid_value"),
        (
            {"messages": [{"role": "assistant", "content": None}], "continue_final_message": True},
            "continue_final_message",
            "invalid_value",
        ),
        ({"x" * 500: 1}, "x" * 100, "unknown_parameter"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(served, changes, param, code):
    status, found, said, message = wrong(served, "/v1/chat/completions", CHAT | changes)
    assert (status, found, said) == (404 if code == "model_not_found" else 400, param, code)
    assert message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": IMPOSSIBLE}}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": IMPOSSIBLE}}, "response_format"),
        ({"json_schema": IMPOSSIBLE}, "json_schema"),
        ({"json_schema": "{"}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"grammar": "root ::= other"}, "grammar"),
        ({"grammar": "start: other"}, "grammar"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_form_that_cannot_be_kept_is_refused_by_its_own_name(served, path, changes, param):
    pytest.importorskip("llguidance")
    body = CHAT if "chat" in path else {"prompt": [5, 6]}
    status, found, code, message = wrong(served, path, body | changes)
    assert (status, found, code) == (400, param, "invalid_value")
    assert message


def test_what_cannot_change_an_answer_is_accepted(served):
    quiet = {field.name: None for field in fields.CHAT if field.name != "messages"}
    assert served.ask("/v1/chat/completions", CHAT | quiet)[0] == 200
    unchecked = [field for field in fields.CHAT if field.standing is fields.Standing.INERT and field.kind is None]
    inert = {field.name: {"any": "thing"} for field in unchecked}
    inert |= {"verbosity": "low", "priority": -(2**40), "timings_per_token": True}
    neutral = {field.name: field.neutral[0] for field in fields.CHAT if field.neutral}
    echoes = {"messages": [{"role": "user", "content": "hi", "id": 1, "annotations": [], "name": "x"}]}
    said = served.ask("/v1/chat/completions", echoes | inert | neutral | {"n": 1, "stop": None})[2]
    assert said["choices"][0]["message"]["content"] == ANSWER


def test_unknown_fields_pass_where_the_server_is_told_so():
    told = Served(warn_unknown=True)
    status, headers, _ = told.ask("/v1/chat/completions", CHAT | {"temprature": 1})
    assert (status, headers["x-ignored-params"]) == (200, "'temprature'")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"prompt": "\\ud800"}']
)
def test_a_body_that_is_no_json_object_is_a_400(served, body):
    assert wrong(served, "/v1/completions", body)[0] == 400


ODD = (True, 0, -1, 1.5, 10**30, "", "x", "\0", [], ["x"], [None], [[]], [True], [1.5], {}, {"a": None}, {"type": []})
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": [5, 6]},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/tokenize": {"content": "a"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": CHAT,
}


@pytest.mark.parametrize("route", fields.BODIES)
def test_no_value_of_a_field_is_a_fault(route):
    """A few odd values for each, in turn, so that each kind of field meets all of them."""
    served = Served(answer="ok")
    tried = itertools.cycle(ODD)

    async def work(_):
        for field in fields.BODIES[route]:
            for odd in itertools.islice(tried, 5):
                status, _, said = await call(served.app, "POST", route, BODIES[route] | {field.name: odd})
                assert status in (200, 400, 404), (field.name, odd, said)

    served.run(work)
    assert not served.faults


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": [True, False]}, "prompt"),
        ("/v1/embeddings", {"input": [True]}, "input"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": [1.0]}, "tokens"),
        ("/v1/completions", {"prompt": [5], "logit_bias": {"5": True}}, "logit_bias"),
        ("/v1/completions", {"prompt": [5], "logprobs": True}, "logprobs"),
        ("/v1/completions", {"prompt": [5], "logprobs": 1.0}, "logprobs"),
        ("/v1/chat/completions", CHAT | {"top_logprobs": True, "logprobs": True}, "top_logprobs"),
        ("/v1/chat/completions", CHAT | {"logprobs": 1}, "logprobs"),
    ],
)
def test_true_is_no_number_and_one_is_no_truth(served, path, body, param):
    assert wrong(served, path, body)[:2] == (400, param)


def test_sampling_reaches_the_engine_under_every_name(served):
    body = CHAT | {
        "max_completion_tokens": 3,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": -100},
        "seed": -1,
        "stop": "x",
    }
    served.ask("/v1/chat/completions", body)
    sampling = served.llm.engine.seen[-1].sampling
    assert (sampling.max_tokens, sampling.repeat_penalty, sampling.stop) == (3, 1.5, ("x",))
    assert sampling.logit_bias == ((5, -100.0),)
    assert sampling.seed is not None


@pytest.mark.parametrize("off", [-1, 0])
def test_top_k_is_off_in_both_ways_to_say_it(served, off):
    assert served.ask("/v1/chat/completions", CHAT | {"top_k": off})[0] == 200
    assert served.llm.engine.seen[-1].sampling.top_k == 0
    assert wrong(served, "/v1/chat/completions", CHAT | {"top_k": -2})[1] == "top_k"


def test_a_salt_reaches_the_engine(served):
    served.ask("/v1/completions", {"prompt": [5, 6], "cache_salt": "mine"})
    assert served.llm.engine.salts[-1] == "mine"
    served.ask("/v1/completions", {"prompt": [5, 6]})
    assert served.llm.engine.salts[-2:] == ["mine", ""]


def test_the_server_s_defaults_hold_where_a_body_says_nothing():
    served = Served(defaults={"temperature": 0.25, "top_k": 3})
    served.ask("/v1/chat/completions", CHAT | {"top_k": 5})
    sampling = served.llm.engine.seen[-1].sampling
    assert (sampling.temperature, sampling.top_k) == (0.25, 5)


def test_texts_in_parts_are_one_text(served):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = [
        served.ask("/apply-template", {"messages": [{"role": "user", "content": content}]})[2]
        for content in (parts, "a\nb")
    ]
    assert made[0] == made[1]
    assert made[0]["count"] == len(made[0]["tokens"])


def test_an_answer_goes_on_where_the_last_message_ends(served):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "It begins"}]
    made = served.ask("/apply-template", {"messages": messages, "continue_final_message": True})[2]
    assert made["prompt"].endswith("It begins")
    status, param, *_ = wrong(
        served,
        "/v1/chat/completions",
        {"messages": messages, "continue_final_message": True, "add_generation_prompt": True},
    )
    assert (status, param) == (400, "continue_final_message")


def test_tokens_and_texts(served):
    for body in ({"prompt": "hello 🙂", "add_special_tokens": False}, {"content": "hello 🙂"}):
        tokens = served.ask("/tokenize", body)[2]["tokens"]
        assert tokens == served.llm.tokenizer.encode("hello 🙂", add_special=False)
    assert served.ask("/detokenize", {"tokens": tokens})[2] == {"prompt": "hello 🙂", "content": "hello 🙂"}
    pieces = served.ask("/tokenize", {"content": "🙂", "with_pieces": True})[2]["tokens"]
    whole = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert whole.decode() == "🙂"
    assert wrong(served, "/tokenize", {})[1] == "prompt"
    assert wrong(served, "/detokenize", {"tokens": [10**9]})[1] == "tokens"
    assert served.ask("/detokenize", {"tokens": []})[2]["content"] == ""


def test_embeddings_as_floats_and_as_base64(served):
    body = {"input": ["a", "b b b"]}
    floats = served.ask("/v1/embeddings", body)[2]
    coded = served.ask("/v1/embeddings", body | {"encoding_format": "base64"})[2]
    wanted = np.array([each["embedding"] for each in floats["data"]], np.float32)
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    np.testing.assert_array_equal(found, wanted)
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] > 0
    assert wrong(served, "/v1/embeddings", body | {"dimensions": 8})[1] == "dimensions"
    assert wrong(served, "/v1/embeddings", {"input": []})[1] == "input"
    assert wrong(served, "/v1/rerank", {"query": "a", "documents": ["b"]})[1] == "model"


def test_embeddings_wait_for_a_slot():
    served = Served(slots=1)
    held = threading.Event()
    served.llm.engine.before_step = lambda number: held.wait(5) if number == 3 else None

    async def work(_):
        chat = asyncio.create_task(call(served.app, "POST", "/v1/chat/completions", CHAT))
        await asyncio.sleep(0.1)
        vectors = asyncio.create_task(call(served.app, "POST", "/v1/embeddings", {"input": "a"}))
        await asyncio.sleep(0.1)
        held.set()
        return await asyncio.gather(chat, vectors)

    assert [status for status, *_ in served.run(work)] == [200, 200]


def test_embeddings_wait_in_the_queue_and_leave_it_with_their_client():
    """A text is read in the one slot, one waits, the next request is refused; whoever leaves frees what it had."""
    served = Served(slots=1, max_queue=1)
    held = threading.Event()
    served.llm.engine.before_step = lambda number: held.wait(5)

    async def work(_):
        leave = asyncio.Event()
        texts = [
            asyncio.create_task(call(served.app, "POST", "/v1/embeddings", {"input": "a"}, leave)) for _ in range(2)
        ]
        while served.server.desk.driver.waiting + served.server.desk.driver.running < 2:
            await asyncio.sleep(0.001)
        refused = await call(served.app, "POST", "/v1/embeddings", {"input": "a"})
        leave.set()
        left = await asyncio.gather(*texts)
        held.set()
        await served.free()
        return refused, left, await call(served.app, "POST", "/v1/embeddings", {"input": "a"})

    (status, headers, said), left, after = served.run(work)
    assert (status, json.loads(said)["error"]["code"]) == (429, "queue_full")
    assert int(headers["retry-after"]) >= 1
    assert [status for status, *_ in left] == [499, 499]
    assert after[0] == 200
    assert served.faults == []


def test_a_text_of_megabytes_is_refused_before_it_is_cut_into_tokens(served, monkeypatch):
    monkeypatch.setattr(served.llm.tokenizer, "_coder", None)  # it would fail
    body = "a long text, " * 300_000
    chat = {"messages": [{"role": "user", "content": body}]}
    for path, asked in (
        ("/v1/completions", {"prompt": body}),
        ("/v1/chat/completions", chat),
        ("/v1/embeddings", {"input": body}),
    ):
        status, _, code, message = wrong(served, path, asked)
        assert (status, code) == (400, "context_length_exceeded")
        assert "tokens or more" in message


def test_models_and_what_else_is_told(served):
    async def work(_):
        return {
            path: await call(served.app, "GET", path)
            for path in (
                "/v1/models",
                "/models/demo",
                "/v1/models/nope",
                "/tokenizer_info",
                "/props",
                "/health",
                "/slots",
            )
        }

    told = {path: (status, json.loads(body)) for path, (status, _, body) in served.run(work).items()}
    (model,) = told["/v1/models"][1]["data"]
    assert (model["id"], model["max_model_len"]) == ("demo", served.llm.plan.context)
    assert told["/models/demo"] == (200, model)
    assert told["/v1/models/nope"][0] == 404
    assert told["/tokenizer_info"][1]["eos_token"] == "<|endoftext|>"
    assert told["/health"] == (200, {"status": "ok"})
    assert told["/slots"] == (200, [{"id": n, "state": "empty", "tokens": 0, "request": None} for n in (0, 1)])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", ["queued", "running"])
def test_a_client_that_leaves_frees_its_slot(stream, at):
    served = Served(answer="word " * 40, slots=1)
    served.llm.engine.before_step = lambda number: threading.Event().wait(0.005)

    async def work(_):
        leave = asyncio.Event()
        first = asyncio.create_task(call(served.app, "POST", "/v1/chat/completions", CHAT)) if at == "queued" else None
        await asyncio.sleep(0.02)
        asked = asyncio.create_task(call(served.app, "POST", "/v1/chat/completions", CHAT | {"stream": stream}, leave))
        await asyncio.sleep(0.05)
        leave.set()
        status, _, body = await asked
        if first is not None:
            assert (await first)[0] == 200
        await served.free()
        return status, body, (await call(served.app, "POST", "/v1/chat/completions", CHAT))[0]

    status, body, after = served.run(work)
    assert status in (499, 200)
    assert b"[DONE]" not in body
    assert after == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_before_the_first_token_is_a_status(stream):
    served = Served()

    def fails(number):
        raise RuntimeError("injected secret")

    served.llm.engine.before_step = fails
    status, _, said = served.ask("/v1/chat/completions", CHAT | {"stream": stream})
    assert (status, said["error"]["type"]) == (500, "server_error")
    assert "secret" not in said["error"]["message"]
    assert [str(each) for each in served.faults] == ["injected secret"]


def test_a_fault_in_a_stream_is_its_last_event():
    served = Served()

    def fails(number):
        threading.Event().wait(0.02)  # what came before has gone out
        if number == 3:
            raise RuntimeError("injected")

    served.llm.engine.before_step = fails
    status, _, parts = served.ask("/v1/chat/completions", CHAT | {"stream": True})
    assert status == 200
    assert parts[-1]["error"]["type"] == "server_error"
    assert not any(c["finish_reason"] for part in parts[:-1] for c in part["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_nan_are_a_fault(stream):
    served = Served()
    served.llm.engine.failing = {0}
    status, _, said = served.ask("/v1/chat/completions", CHAT | {"stream": stream})
    assert status == 500
    assert "NaN" in said["error"]["message"]
    assert len(served.faults) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), PacklightError("ours")])
def test_a_fault_in_one_text_loses_no_news_of_others(error):
    served = Served()
    real_runs = served.llm.runs

    def fails(event):
        raise error

    def runs(*given):
        made = real_runs(*given)
        if given[0] == [[5]]:
            made[0].take = fails
        return made

    served.llm.runs = runs

    async def work(_):
        asked = [call(served.app, "POST", "/v1/completions", {"prompt": prompt}) for prompt in ([5], [6], [7])]
        done = await asyncio.wait_for(asyncio.gather(*asked), 30)
        await served.free()
        return [status for status, *_ in done]

    assert served.run(work) == [500, 200, 200]
    assert len(served.faults) == 1


def test_log_probabilities_of_a_prompt_are_told(served):
    body = {"prompt": [5, 6, 7], "prompt_logprobs": 1, "max_tokens": 1}
    told = served.ask("/v1/completions", body)[2]["choices"][0]["prompt_logprobs"]
    assert told[0] is None
    assert [str(at) in each for each, at in zip(told[1:], (6, 7), strict=True)] == [True, True]
    assert {value["rank"] for each in told[1:] for value in each.values()} <= {1, None}
    chat = served.ask("/v1/chat/completions", CHAT | {"prompt_logprobs": 0})[2]
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert wrong(served, "/v1/completions", body | {"stream": True})[1] == "prompt_logprobs"
    assert wrong(served, "/v1/completions", body | {"echo": True, "logprobs": 1})[1] == "prompt_logprobs"


def test_a_full_queue_is_a_429_that_says_when_to_come_back():
    served = Served(slots=1, max_queue=2)
    held = threading.Event()
    served.llm.engine.before_step = lambda number: held.wait(5)

    async def work(_):
        asked = [asyncio.create_task(call(served.app, "POST", "/v1/chat/completions", CHAT)) for _ in range(3)]
        while served.server.desk.driver.waiting < 3:  # one of them for the slot, once its step is over
            await asyncio.sleep(0.01)
        status, headers, body = await call(served.app, "POST", "/v1/chat/completions", CHAT)
        held.set()
        return status, headers, json.loads(body), [done[0] for done in await asyncio.gather(*asked)]

    status, headers, said, others = served.run(work)
    assert (status, said["error"]["type"], said["error"]["code"]) == (429, "rate_limit_error", "queue_full")
    assert int(headers["retry-after"]) >= 1
    assert others == [200, 200, 200]


def test_who_waits_too_long_is_told_so():
    served = Served(slots=1, queue_timeout=0.1)
    held = threading.Event()
    served.llm.engine.before_step = lambda number: held.wait(5) if number == 2 else None

    async def work(_):
        first = asyncio.create_task(call(served.app, "POST", "/v1/chat/completions", CHAT))
        await asyncio.sleep(0.1)
        status, _, body = await call(served.app, "POST", "/v1/chat/completions", CHAT)
        held.set()
        await served.free()
        return status, json.loads(body), (await first)[0]

    status, said, first = served.run(work)
    assert (status, said["error"]["code"], first) == (503, "queue_timeout", 200)


def test_many_requests_leave_nothing_behind():
    served = Served(answer="ok", slots=2)

    async def work(_):
        for _ in range(10):
            await asyncio.gather(
                *(call(served.app, "POST", "/v1/completions", {"prompt": [5], "n": 2}) for _ in range(8))
            )
        await served.free()
        return len(served.server.desk._of), len(served.server.desk._newest), len(served.llm.scheduler._runs)

    assert served.run(work) == (0, 0, 0)
