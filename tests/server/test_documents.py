"""docs/server.md: its examples run, its tables and lines are the server's own, and it names every route and metric."""

import json
import re
import shutil
import subprocess

import pytest
from fake_engine import fake_llm
from raw_http import request, served, until

from packlight import demo
from packlight.bench.render import ROOT
from packlight.server import openapi
from packlight.server.accounts import Account
from packlight.server.app import Server
from packlight.server.life import METRICS
from packlight.server.metrics import Metrics
from packlight.server.settings import Settings
from tools import server_fields

TEXT = server_fields.DOCUMENT.read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server():
    llm = fake_llm(demo.MODEL)
    with served(lambda: Server(llm, Settings(names=("demo",)), Metrics(), lambda error: None).app()) as running:
        yield running


@pytest.fixture(scope="module")
def url(server):
    return server.life.url


def test_the_tables_are_the_server_s_own():
    assert server_fields.document(TEXT) == TEXT, "python -m tools.server_fields writes them"


def test_the_lines_are_what_it_says(server):
    block = next(
        block for block in re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if ": ready" in block
    )
    _, loading, ready, access = block.splitlines()
    assert [line.replace(server.life.url, BASE) for line in server.lines[:2]] == [loading, ready]
    body = {"messages": [{"role": "user", "content": "What is a generator?"}]}
    server.ask(request("/v1/chat/completions", "POST", json.dumps(body).encode()))
    until(lambda: server.said("POST /v1/chat/completions"))
    form = lambda line: re.sub(r"[\d.]+", "N", line)  # noqa: E731
    assert form(server.said("POST /v1/chat/completions")[-1]) == form(access.replace(" 12 cached,", ""))
    account = Account("POST", "/v1/chat/completions", status=200, complete=True, prompt_tokens=23, generated_tokens=31)
    account.cached_tokens, account.first_token_s, account.queue_s = 12, 0.031, 0.001
    assert account.line().partition(": ")[2] == access.partition(": ")[2]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_run(url):
    (block,) = blocks("bash")
    for command in block.split("curl")[1:]:
        done = subprocess.run(
            ["bash", "-c", f"curl --fail {command.replace(BASE, url)}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.clients
def test_the_client_runs(url, capsys):
    pytest.importorskip("openai")
    (block,) = blocks("py")
    exec(compile(block.replace(BASE, url), "docs/server.md", "exec"), {})
    assert capsys.readouterr().out == "A scripted answer."


def test_every_route_and_metric_is_named():
    app = Server(fake_llm(demo.MODEL), Settings(names=("demo",)), Metrics(), lambda error: None).app()
    for route in app.routes:
        path = route.path.replace("{name:path}", "NAME")
        assert path in TEXT, path
    for name in re.findall(rb"^# TYPE (\w+) ", Metrics().text(), re.MULTILINE):
        assert name.decode() in TEXT, name


def test_openapi_json_has_every_route():
    """But itself; those under /v1 stand for those without it."""
    app = Server(fake_llm(demo.MODEL), Settings(names=("demo",)), Metrics(), lambda error: None).app()
    told = openapi.document("1")["paths"]
    described = {(each, method) for path, methods in told.items() for method in methods for each in _ways(path)}
    answered = {
        (route.path.replace(":path", ""), method.lower()) for route in app.routes for method in route.methods - {"HEAD"}
    }
    assert described == answered - {("/openapi.json", "get")} | {(METRICS, "get")}  # which `Gate` answers
    for path, methods in told.items():
        for method in methods:
            assert ("requestBody" in methods[method]) == (method == "post"), path


def _ways(path):
    """A path and, under /v1, the same without it."""
    return {path, path.removeprefix("/v1")}


def test_the_unit_names_flags_that_there_are():
    flags = (ROOT / "src" / "packlight" / "cli" / "flags.py").read_text(encoding="utf-8")
    for flag in re.findall(r"--([a-z_]+)", TEXT):
        assert f'"{flag}": (' in flags or flag in ("temperature",), flag
