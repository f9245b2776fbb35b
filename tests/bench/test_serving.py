"""Servers under load: what the client understands, the loads on a server without a model, figures, table and aims."""

import asyncio
import json
import pathlib
import signal
import sys

import pytest
from completions_server import CUT, REFUSED

from packlight.bench import load, load_table, render, second_opinion, serving
from packlight.bench.http_client import UNFINISHED, Reply, read_events, read_pieces, read_reply
from packlight.bench.servers import Server
from packlight.bench.worker import WorkerError

FAKE = str(pathlib.Path(__file__).resolve().parents[1] / "helpers" / "completions_server.py")
SMALL = load.Sizes(
    **{"prompt": 24, "answer": 4, "clients": 2, "crowd": 5, "shared": 16, "own": 8, "long": 64, "begun": 2},
    **{"chats": 5, "opening": 20, "turn": 4, "turns": 3, "together": 6},
)


def fake(name: str = "packlight", seconds: float = 0.002) -> Server:
    return Server(name, [sys.executable, FAKE, "{port}", str(seconds)])


@pytest.fixture(scope="module")
def server():
    with fake() as running:
        yield running


def stream(*events: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def test_every_cut_of_a_stream_gives_the_same_events():
    texts = [b'data: {"a": 1}\n\n', b": ping\n\nda", b'ta: {"b": 2}\n\ndata: [DONE]\n\n']
    whole = stream(*texts)
    for cut in range(1, len(whole)):
        status, pieces = read_pieces([(1.0, whole[:cut]), (2.0, whole[cut:])])
        events = read_events(pieces)
        assert (status, [event for _, event in events]) == (200, [b'{"a": 1}', b'{"b": 2}', b"[DONE]"])
        first = len(stream(texts[0])) - len(b"\r\n0\r\n\r\n")  # where the first event is whole
        assert events[0][0] == (1.0 if cut >= first else 2.0)


def test_a_reply_has_the_times_of_its_text_and_what_the_server_counted():
    usage = (
        b'data: {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}}\n\n'
    )
    word = b'data: {"choices": [{"text": "a"}]}\n\n'
    parts = [b'data: {"choices": [{"text": ""}]}\n\n', word, word, usage, b"data: [DONE]\n\n"]
    arrived = [(float(i), data) for i, data in enumerate(stream(*parts).split(b"0\r\n\r\n")[0].splitlines(True))]
    reply = read_reply(0.0, arrived, 2)
    assert (reply.tokens, reply.cached, reply.error, len(reply.times)) == (2, 7, "", 2)
    assert reply.first_s == reply.times[0] > 0
    assert reply.gaps == [reply.times[1] - reply.times[0]]
    assert read_reply(0.0, arrived, 3).error == "2 tokens instead of 3"
    assert read_reply(0.0, arrived[:-3], 2).error == UNFINISHED
    assert read_reply(0.0, [], 2).error == "no reply"


def test_failures_are_counted_and_have_no_times(server):
    work = [[([REFUSED], 3)], [([CUT], 3)], [([5, 6], 3)]]
    replies = asyncio.run(load.loop(server.client, work))
    assert [reply.error for reply in replies] == ["status 429: full", '{"message": "it broke"}', ""]
    assert server.client.told() == ["1 times status 429: full", '1 times {"message": "it broke"}']
    assert server.client.told() == []
    found = load.figures(replies)
    assert found["failed"] == 2
    assert found["first_p50_s"] == replies[2].first_s
    assert load.figures(replies[:2]) == {"failed": 2}


def test_figures():
    replies = [Reply(0.0, [1.0, 1.5, 3.0], 3, 6), Reply(1.0, [2.0, 2.5], 2, 2)]
    assert load.figures(replies, 16) == {
        "failed": 0,
        "tok_s": 5 / 3.0,
        "first_p50_s": 1.0,
        "first_p95_s": 1.0,
        "gap_p50_s": 0.5,
        "gap_p95_s": 1.5,
        "gap_max_s": 1.5,
        "cached": 0.5,
    }
    assert load.percentile(range(1, 101), 0.95) == 95
    assert load.percentile([3.0], 0.5) == 3.0


def test_a_gap_counts_until_the_long_prompt_is_answered():
    streams = [Reply(0.0, [1.0, 2.0, 2.5, 9.0]), Reply(0.0, [1.0, 1.9, 3.0])]
    found = load.beside(2.2, 6.2, streams)
    assert found["gap_max_s"] == pytest.approx(6.2 - 2.5)  # not to 9.0, when it was over
    assert found["tok_s"] == pytest.approx(2 / 4.0)


def test_every_load_runs(server):
    """What the server remembers shows in `cached`: system prompts and turns; nothing else repeats."""
    found = {
        name: asyncio.run(serving._run(each, server, SMALL, load.Ids(32000, seed)))
        for seed, (name, each) in enumerate(load.LOADS.items())
    }
    assert {name: figures["failed"] for name, figures in found.items()} == dict.fromkeys(load.LOADS, 0)
    for name, figures in found.items():
        assert min(figures[key] for key in ("tok_s", "first_p50_s", "gap_max_s", "health_p99_s")) > 0, name
    assert {name: figures["cached"] for name, figures in found.items() if "cached" in figures} == {
        "shared": pytest.approx(1.0),
        "chats": pytest.approx(1.0),
        "turns": pytest.approx(1.0),
    }
    assert found["arrival"]["gap_max_s"] < 1
    assert set(load.LOADS) == set(load_table.TITLES)


def test_servers_take_turns_and_a_record_gives_a_table():
    chosen = {name: load.LOADS[name] for name in ("several", "turns")}
    said = []
    start = [fake, lambda: fake("llama-server", 0.006)]
    record = serving.measure(start, chosen, SMALL, 32000, 2, None, said.append)
    order = ["packlight", "llama-server"]
    assert [line.split(": ")[0].split(", ")[1:] for line in said] == [
        [name, who] for names in (order, order[::-1]) for name in chosen for who in names
    ]
    (ours, theirs) = (load_table.medians(record["serving"]["several"][name]) for name in order)
    assert ours["tok_s"] > theirs["tok_s"]
    record |= {"sizes": {"clients": 2}}
    text = render.load(record)
    assert text.count("| 2 clients | ") == 3
    assert "times better" in text


def recorded(**changes):
    figures = {
        "failed": 0,
        "tok_s": 300.0,
        "first_p95_s": 1.0,
        "gap_max_s": 0.2,
        "first_p50_s": 0.04,
        "gap_p50_s": 0.01,
    }
    slow = figures | {"tok_s": 100.0, "first_p95_s": 3.0}
    rows = {
        name: {"packlight": [figures] * 2, "llama-server": [slow] * 2}
        for name in ("one", "several", "arrival", "turns")
    }
    for name, change in changes.items():
        rows[name] = rows[name] | {"packlight": [figures | change] * 2}
    sizes = load.dataclasses.asdict(load.Sizes())
    return {"serving": rows, "sizes": sizes, "overhead": {"served_tok_s": [98.0, 99.0], "alone_tok_s": [100.0, 100.0]}}


def test_aims_are_kept_or_named():
    assert list(serving.missed(recorded())) == []
    for changes, line in (
        ({"several": {"tok_s": 240.0}}, "several: tok_s 2.40 times better, less than 2.5"),
        ({"several": {"first_p95_s": 1.6}}, "several: first_p95_s 1.88 times better, less than 2"),
        ({"arrival": {"gap_max_s": 0.31}}, "arrival: largest gap 0.310 s, more than 0.3"),
        ({"turns": {"first_p50_s": 0.06}}, "turns: first token 0.060 s, more than 3 decode steps and 0.02 s, 0.050"),
        ({"one": {"failed": 1}}, "one: 2 requests failed"),
        ({"one": {"unhealthy": 1}}, "one: /health was refused"),
    ):
        assert list(serving.missed(recorded(**changes))) == [line]
    slow = recorded() | {"overhead": {"served_tok_s": [95.0], "alone_tok_s": [100.0]}}
    assert list(serving.missed(slow)) == ["overhead: 5.0% of the engine's tokens/s, more than 3%"]
    assert list(serving.missed({"serving": {}})) == []
    assert load_table.medians([{"failed": 1, "unhealthy": 1}, {}, {}]) == {"failed": 1, "unhealthy": 1}


def test_the_table_shows_a_loss(tmp_path):
    record = recorded(several={"tok_s": 50.0}) | {
        **{"file": "m.gguf", "threads": 2, "slots": 4, "context": 512},
        "machine": {"cpu": "C", "date": "2026-01-02"},
        "peer": {"name": "llama-server", "version": "9"},
    }
    text = render.loads({"serving-m": [record]})
    assert "m.gguf on C, 2 threads, 4 slots of 512 tokens; 2026-01-02. Beside it llama-server 9, in turn." in text
    assert "| 4 clients | packlight | 50.0 | 0.040 | 1.000 |" in text
    assert "| 4 clients | times better | **0.50** (0.50–0.50) | 1.00 (1.00–1.00) | 3.00 (3.00–3.00) |" in text
    assert "| 4,096 tokens arrive among 3 streams | packlight | 300.0 |" in text
    assert text.endswith("the server costs 1.5%.\n")
    assert render.loads({"memory-m": [record]}) == ""


def test_a_server_that_does_not_start_is_told_in_one_line(tmp_path):
    with (
        pytest.raises(WorkerError, match=r"peer: the server ended; its last line: .*No module named 'nothing'"),
        Server("peer", [sys.executable, "-c", "import nothing"]),
    ):
        pass
    with pytest.raises(WorkerError, match="does not run: No such file"):
        Server("peer", [str(tmp_path / "none")])


class Words:
    """A tokenizer in which a letter is a token."""

    vocab_size = 1000

    def decode(self, ids):
        return "".join(f"{i:03}" for i in ids)

    def encode(self, text):
        return list(text)


def test_texts_for_the_other_loop_have_a_prompts_length():
    found = second_opinion.texts(Words(), SMALL, 1)
    assert [len(text) for text in found] == [SMALL.prompt] * SMALL.clients * SMALL.requests
    assert len(set(found)) == len(found)
    assert second_opinion.texts(Words(), SMALL, 1) == found


def test_both_loops_have_the_same_figures(server, tmp_path):
    """A program that reports as guidellm does; ours are those of the same texts."""
    requests = [
        {"request_start_time": 10.0, "request_end_time": 13.0, "output_tokens": 4, "inter_token_latency_ms": 500.0},
        {"request_start_time": 11.0, "request_end_time": 14.0, "output_tokens": 4, "inter_token_latency_ms": 700.0},
    ]
    metrics = {"time_to_first_token_ms": {"successful": {"percentiles": {"p50": 900.0, "p95": 1200.0}}}}
    report = {"benchmarks": [{"requests": {"successful": requests, "errored": []}, "metrics": metrics}]}
    program = tmp_path / "guidellm"
    program.write_text(
        f"#!{sys.executable}\nimport sys\npath = sys.argv[sys.argv.index('--output') + 1].partition('path=')[2]\n"
        f"open(path, 'w').write({json.dumps(report)!r})\n"
    )
    program.chmod(0o755)
    texts = ["one", "two"]
    theirs = second_opinion.by_guidellm(str(program), server, texts, SMALL)
    assert theirs == {"failed": 0, "tok_s": 2.0, "first_p50_s": 0.9, "first_p95_s": 1.2, "gap_p50_s": 0.6}
    assert set(theirs) < set(second_opinion.by_us(server, texts, SMALL))
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no backend')\n")
    with pytest.raises(WorkerError, match="guidellm: no backend"):
        second_opinion.by_guidellm(str(program), server, texts, SMALL)


def test_a_server_ends_with_its_context():
    with fake() as running:
        process = running._process
    assert process.returncode == -signal.SIGTERM
