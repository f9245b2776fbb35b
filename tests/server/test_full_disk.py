"""A log that cannot be written, on a full disk or without a reader: requests are answered, and the server ends well."""

import contextlib
import fcntl
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest
from fake_engine import fake_llm
from raw_http import reply, request, until
from whole_server import posted, said_to, serving

from packlight import demo
from packlight.cli import messages, terminal

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
COMMAND = [sys.executable, str(pathlib.Path(__file__).parents[1] / "helpers" / "scripted_serve.py"), "An answer.", "0"]
BODY = {"prompt": [5, 6]}


@contextlib.contextmanager
def full(_):
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115  what it holds cannot be written when it closes
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


@contextlib.contextmanager
def without_reader(_):
    ours, theirs = os.pipe()
    os.close(ours)
    stream = open(theirs, "w", encoding="utf-8")  # noqa: SIM115  as above
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


@contextlib.contextmanager
def a_file(path):
    with open(path, "w", encoding="utf-8") as stream:
        yield stream


def answers(server) -> None:
    """Whole answers, streams, refusals and faults, more of them than a stream's buffer holds lines of."""
    for _ in range(50):
        told = server.ask(posted("/v1/completions", BODY))
        assert (told.status, told.json["choices"][0]["text"]) == (200, "A scripted answer.")
    assert b"[DONE]" in said_to(server, "/v1/completions", BODY | {"stream": True})
    assert server.ask(posted("/v1/completions", BODY | {"n": 0})).status == 400
    assert server.ask(request("/nowhere")).status == 404


@pytest.mark.parametrize("stderr", [full, without_reader])
def test_messages_that_stderr_does_not_take_end_no_request(monkeypatch, tmp_path, stderr):
    """Nor does a log file that fills up."""
    llm = fake_llm(demo.MODEL)
    with stderr(tmp_path) as stream, messages.of_a_command() as said:
        monkeypatch.setattr(sys, "stderr", stream)
        said.settle(quiet=False, verbose=True, log_file="/dev/full")
        with serving(llm, say=terminal.say, log_prompts=True) as (server, desk):
            answers(server)
            llm.engine.before_step = lambda number: 1 / 0
            assert server.ask(posted("/v1/completions", BODY)).status == 500
            llm.engine.before_step = lambda number: None
            answers(server)
        assert said.log is None
        monkeypatch.undo()
    assert server.ended == [True]
    assert llm.engine.idle
    assert not desk.driver.waiting + desk.driver.running
    assert not [line for line in server.details if line.startswith("asyncio:")]


def test_a_log_file_that_fills_up_is_said_once(monkeypatch, tmp_path):
    """It is a pipe here, which nobody reads and which holds a page."""
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        with a_file(tmp_path / "stderr") as stream, messages.of_a_command() as said:
            monkeypatch.setattr(sys, "stderr", stream)
            said.settle(quiet=False, verbose=False, log_file=str(path))
            with serving(fake_llm(demo.MODEL), say=terminal.say) as (server, _):
                answers(server)
            monkeypatch.undo()
        lines = (tmp_path / "stderr").read_text().splitlines()
        assert lines.count("warning: --log_file: Resource temporarily unavailable; nothing more is written there") == 1
        assert [line for line in lines if not line.startswith("warning: --log_file")] == server.lines
        logged = os.read(reader, 1 << 16).decode().splitlines()
        assert logged
        assert all(re.fullmatch(r"[\d-]+ [\d:.]+ .+", line) for line in logged)
    finally:
        os.close(reader)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-"])
def test_the_command_serves_and_ends_with_full_streams(streams):
    port = free_port()
    words = [*COMMAND, f"--port={port}", "--slots=2", "--log_file=/dev/full", "--log_prompts", "--verbose"]
    with subprocess.Popen(["sh", "-c", f'exec "$0" "$@" {streams}', *words]) as process:

        def asked(sent: bytes):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(sent)
                return reply(client)

        def ready() -> bool:
            assert process.poll() is None
            with contextlib.suppress(ConnectionRefusedError):
                return asked(request()).status == 200
            return False

        try:
            until(ready, 60)
            for _ in range(20):
                assert asked(posted("/v1/completions", BODY)).json["choices"][0]["text"] == "An answer."
            assert asked(b"nonsense\r\n\r\n").status == 400
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
