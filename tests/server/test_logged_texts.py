"""Prompts and answers are in the log with --log_prompts, and nowhere in it without."""

import json

import pytest
from fake_engine import fake_llm
from raw_http import until
from whole_server import asking, posted, said_to, serving

from packlight import demo

ASKED, ANSWERED = "a zebra crossing", "A quokka replies."
MESSAGES = {"messages": [{"role": "user", "content": ASKED}]}
PROMPT = {"prompt": ASKED}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
REQUESTS = [
    (CHAT, MESSAGES),
    (CHAT, MESSAGES | {"stream": True}),
    (CHAT, MESSAGES | {"n": 2, "logprobs": True, "max_tokens": 3}),
    (COMPLETION, PROMPT | {"echo": True, "logprobs": 1}),
    (COMPLETION, PROMPT | {"stream": True, "stop": ["quokka"]}),
    (COMPLETION, {"prompt": [ASKED, "another"]}),
    ("/v1/embeddings", {"input": ASKED}),
    ("/tokenize", {"content": ASKED}),
    ("/apply-template", MESSAGES),
]
REFUSED = [
    (CHAT, MESSAGES | {"temprature": ASKED}),
    (CHAT, MESSAGES | {"temperature": ASKED}),
    (CHAT, MESSAGES | {ASKED: 1}),
    (CHAT, MESSAGES | {"model": ASKED}),
    (CHAT, {"messages": [{"role": ASKED, "content": "x"}]}),
    (CHAT, MESSAGES | {"response_format": {"type": ASKED}}),
    (COMPLETION, {"prompt": {"text": ASKED}}),
    (COMPLETION, {"prompt": ASKED * 200}),
    (COMPLETION, PROMPT | {"grammar": ASKED}),
    (COMPLETION, PROMPT | {"regex": f"({ASKED}"}),
    (COMPLETION, json.dumps(PROMPT).encode()[:-1]),
    ("/v1/embeddings", {"input": [ASKED, 1]}),
    ("/detokenize", {"tokens": [ASKED]}),
]


@pytest.fixture
def llm():
    return fake_llm(demo.MODEL, ANSWERED)


def shows(lines: list[str]) -> bool:
    """Whether there is a word of a prompt or of an answer, in whatever spelling."""
    return any(word in line for line in lines for word in ("zebra", "quokka"))


def status(server, path, body) -> int:
    """Of a request, whose access line is there by then."""
    before = len(server.said("POST /"))
    told = said_to(server, path, body)
    until(lambda: len(server.said("POST /")) > before)
    return int(told[9:12])


def test_texts_are_said_where_the_server_is_told_so(llm):
    with serving(llm, log_prompts=True) as (server, _):
        for path, body in REQUESTS[:6]:
            prompts, before = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1, len(server.lines)
            assert status(server, path, body) == 200
            texts = lambda: [line.removeprefix("text: ") for line in server.lines[before:] if line.startswith("text: ")]  # noqa: B023, E731
            until(lambda: len(texts()) == prompts * (1 + body.get("n", 1)))  # noqa: B023
            assert ASKED in texts()[0], body
            for answer in texts()[prompts:]:
                assert ANSWERED.startswith(answer)
                assert answer == ANSWERED or body.keys() & {"max_tokens", "stop"}


def test_what_was_said_until_a_client_left_is_said(llm):
    llm.engine.script = lambda prompt: llm.tokenizer.encode("quokka " * 200, add_special=False)
    held = [0.0]
    llm.engine.before_step = lambda number: until(lambda: held[0] >= number)
    with serving(llm, log_prompts=True) as (server, _):
        with asking(server, COMPLETION, PROMPT | {"stream": True}) as client:
            held[0] = 4
            assert client.recv(1 << 16)
        held[0] = float("inf")
        until(lambda: len(server.said("text: ")) == 2)
    prompt, answer = server.said("text: ")
    assert ASKED in prompt
    assert answer.startswith("text: q")


def test_no_text_is_said_otherwise(llm, capfd):
    with serving(llm) as (server, _):
        for path, body in REQUESTS:
            assert status(server, path, body) == 200, (path, body)
        for path, body in REFUSED:
            assert status(server, path, body) in (400, 404), (path, body)
    assert not shows(server.lines + server.details)
    assert not shows([*capfd.readouterr()])


def test_a_template_s_error_tells_its_client_alone(llm):
    llm.file.metadata["tokenizer.chat_template"] = "{{ raise_exception('no: ' + messages[0].content) }}"
    with serving(llm) as (server, _):
        told = server.ask(posted(CHAT, MESSAGES))
        assert told.status == 400
        until(lambda: server.said("POST /"))
    assert not shows(server.lines + server.details)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_with_a_text_in_it_is_said_by_its_kind(llm, stream):
    """What it says itself only --verbose shows."""

    def fails(number):
        if number == 3:
            raise RuntimeError(f"at {ASKED!r}, {ANSWERED!r}")

    llm.engine.before_step = fails
    with serving(llm) as (server, _):
        assert not shows([said_to(server, CHAT, MESSAGES | {"stream": stream}).decode().replace(ANSWERED[:1], "")])
        until(lambda: server.said("POST /"))
    assert server.said("error: a request failed: RuntimeError, ")
    assert not shows(server.lines)
    assert shows(server.details)
